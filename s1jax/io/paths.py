"""Checks that paths are local, and gives them names that every library reads literally."""

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

# URLs, and what pathlib makes of gs://bucket: gs:/bucket.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:gs|s3|az|abfss?|hf|hdfs|https?|file):/", re.IGNORECASE)
# Some libraries misread other characters: Orbax globs with whole paths ([, ], *, ?), tensorstore reads a backslash as a
# slash, etils reads a folder gs: as a bucket.
_PLAIN = re.compile(r"[\w./ +,=@~-]*")


def local(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns `path`, which must be a path in the local file system.

    Buckets are refused although Orbax could write to some: locks, digests and renames need local files. A mounted
    bucket is a local folder.

    Args:
      path: a file or folder, existing or not.
      what: its name in messages, for example `--workdir`.

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
    """Yields a path to `folder`, which need not exist yet, without characters that some library misreads.

    It is `folder` itself, or a link to it in the temporary folder. The link has the same path in all processes, because
    Orbax needs that. The last process on this machine that used it removes it.

    Raises:
      UserError: if the path of the temporary folder has such characters too, or the link belongs to another user.
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
    """Creates a folder that only this user may enter. Returns a descriptor with a shared lock, which protects it."""
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
