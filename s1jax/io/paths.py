"""Paths on this machine, under names that every library reads as they are written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from s1jax.errors import UserError

# Of URLs, and of what pathlib makes of gs://bucket: gs:/bucket.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:gs|s3|az|abfss?|hf|hdfs|https?|file):/", re.IGNORECASE)
# Names of other characters are no names to some library: Orbax globs with whole paths ([, ], *, ?), tensorstore takes a
# backslash for a slash and etils a folder gs: for a bucket.
_PLAIN = re.compile(r"[\w./ +,=@~-]*")


def local(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns `path`, which must be one of this machine's file system.

    Buckets are refused although Orbax could write to some: locks, digests and renames are operations of local files.
    A bucket that is mounted is a local folder.

    Args:
      path: of a file or folder, there or not.
      what: is called so in messages, for example `--workdir`.

    Raises:
      UserError: for a URL, and for a name that is not UTF-8 or holds a NUL.
    """
    text = os.fspath(path)
    if _URL.match(text):
        raise UserError(
            f"{what}={text} is a URL, and s1jax reads and writes files of this machine only; mount the bucket (for "
            "example with gcsfuse, mount-s3 or rclone mount) or copy the folder, and give its local path."
        )
    try:
        whole = os.fspath(pathlib.Path(text).absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"{what}={text!a} is not UTF-8; rename the folder, or choose another one.") from None
    if b"\0" in whole:
        raise UserError(f"{what}={text!a} holds a NUL; choose another name.")
    return pathlib.Path(text)


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path of `folder`, which need not exist yet, that holds no character with a meaning of its own.

    That is `folder` itself, or else a link to it among the temporary files: the same path in all processes, as Orbax
    wants it, and removed by the last process here that has used it.

    Raises:
      UserError: where the folder of temporary files has such a character in its path, too, or somebody else's link.
    """
    whole = folder.absolute()
    if _PLAIN.fullmatch(os.fspath(whole)):
        yield whole
        return
    name = f"s1jax-{os.getuid()}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}"
    temporary = pathlib.Path(tempfile.gettempdir(), name)
    link = temporary / "link"
    if not _PLAIN.fullmatch(os.fspath(temporary)):
        raise UserError(f"{temporary.parent} has special characters, as {whole} has; set TMPDIR to another folder.")
    descriptor = _share(temporary)
    try:
        with contextlib.suppress(FileExistsError):
            link.symlink_to(whole)
        if os.readlink(link) != os.fspath(whole):
            raise UserError(f"{link} does not lead to {whole}; remove it.")
        yield link
    finally:
        with contextlib.suppress(OSError):  # another process has it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            link.unlink(missing_ok=True)
            temporary.rmdir()
        os.close(descriptor)


def _share(folder: pathlib.Path) -> int:
    """Makes a folder for this user alone and returns a descriptor with a shared lock; nobody removes it meanwhile."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # the last one who had it has removed it
        except OSError:  # a file, or a link, which may be somebody else's
            raise UserError(f"{folder} is not a folder; remove it, or set TMPDIR to another folder.") from None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        mine = os.fstat(descriptor)
        if mine.st_uid != os.getuid():
            os.close(descriptor)
            raise UserError(f"{folder} belongs to another user; set TMPDIR to another folder.")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(mine, folder.stat()):
                return descriptor
        os.close(descriptor)
