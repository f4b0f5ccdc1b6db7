"""Safe writing: files that appear whole, files and folders that one process locks, errors that name the file.

One process at a time holds the folder of a training run, or a file of samples that grows. A file that is written in one
go appears with all its contents or not at all (`replace`). No function here writes through an existing link, so a link
in a foreign folder cannot redirect what is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import pathlib
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import IO, Any, BinaryIO

from s1jax.config.schema import shown
from s1jax.errors import UserError

_PART = re.compile(r"\..{1,32}\.[0-9a-f]{16}\.part")  # temporary names of `replace`
# Error numbers: why a file could not be written, and what to do.
FULL = {
    errno.ENOSPC: ("no space left on the device", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file larger than this process may write", "raise the limit (ulimit -f unlimited)"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n 1024)"),
    errno.ENFILE: ("too many open files on this machine", "end other processes"),
}


def take(file: IO[Any], *, shared: bool = False) -> bool:
    """Locks an open file until it is closed or this process ends, however it does; a shared lock allows others.

    Returns:
      False where another process has it. True as well where the file system has no locks: nothing keeps others out.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds `path` to an OSError that names no file, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def check_own(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> None:
    """Refuses a file of a model folder that links to a place outside of it.

    Links within the folder are allowed. So are links within one repository of Hugging Face's cache, where every file of
    `models--OWNER--NAME/snapshots/COMMIT` is a link to `models--OWNER--NAME/blobs`.

    Args:
      path: the file; a missing file is accepted.
      folder: the folder that it belongs to; None: the one it is in.

    Raises:
      UserError: it leads out of the folder, or to something else than a regular file, which might never end.
    """
    root = pathlib.Path(os.path.realpath(pathlib.Path(path).parent if folder is None else folder))
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    real = pathlib.Path(os.path.realpath(path))
    if not real.is_relative_to(root):
        raise UserError(
            f"{path} is a link to {shown(str(real), 200)}, which is not in its folder; put the file itself there if it "
            "belongs to the model."
        )
    if os.path.exists(real) and not os.path.isfile(real) and not os.path.isdir(real):
        raise UserError(f"{path} is not a regular file; get it again.")


def create(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a new, empty file for writing. An existing file or link is removed first; a link's target stays."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")


def append(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for appending and locking; creates it if there is none.

    Raises:
      OSError: ELOOP where `path` is a link, which is not followed; or as `open`.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab")


@contextlib.contextmanager
def replace(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a binary file that takes the place of `path` when the block ends, complete and synced to the disk.

    Until then it has a unique temporary name in the same folder. If the block raises, it is removed and `path` does not
    change. The new file gets the permissions of the old one. If `path` is a link, the link itself is replaced.

    Raises:
      OSError: names `path`; EINVAL in /dev, whose entries are not files to be replaced.
    """
    final = pathlib.Path(path)
    if os.path.realpath(final.parent) == "/dev":
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path))
    temporary = final.with_name(f".{final.name[:32]}.{secrets.token_hex(8)}.part")
    with named(path):
        try:
            file = create(temporary)
        except OSError as error:  # the user did not choose the temporary name
            error.filename = os.fspath(path)
            raise
        try:
            with file:
                with contextlib.suppress(OSError):
                    before = os.lstat(path)
                    if stat.S_ISREG(before.st_mode):
                        os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError) and error.filename == os.fspath(temporary):
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            raise
        sync_folder(final.parent)


def remove_parts(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes have left of `replace` in a folder that this process alone writes."""
    for path in pathlib.Path(folder).glob(".*.part"):
        if _PART.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def check_not_read(sources: Iterable[str | os.PathLike[str]], target: str | os.PathLike[str], flag: str) -> None:
    """Refuses to write a file over rows that are read from it.

    Args:
      sources: files, or folders whose files are read; what does not exist is none of them.
      target: the file that will be written.
      flag: names in messages what chose the target.

    Raises:
      UserError: a source is the target, or a folder with it.
    """
    own = os.path.realpath(target)
    for source in sources:
        if os.path.realpath(source) in (own, os.path.dirname(own)) and os.path.exists(own):
            raise UserError(
                f"{source} would be read and {target} written over it, which loses rows; choose another {flag}."
            )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text by `replace`."""
    with replace(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], where: str = "") -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `path` when the block ends, complete and synced; it is removed on failure.

    Until then it has a unique temporary name next to `path`, so that two processes never write into the same folder.
    The second process for a path is refused at the start if the file system has locks, otherwise at the end. The next
    process for the same path removes what a killed one left.

    Args:
      path: does not exist yet, or is an empty folder.
      where: first words of messages, such as the name of a flag.

    Raises:
      UserError: something is there already, another process writes it, or it may not be written.
    """
    where = f"{where}: " if where else ""
    final = pathlib.Path(os.path.realpath(path))
    taken = UserError(f"{where}{path} exists and is not empty; remove it or choose another folder.")
    busy = UserError(f"{where}another process writes {path}; wait until it has ended, or choose another folder.")
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise taken
    prefix = f".{final.name[:32]}-{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:8]}."
    partial = final.with_name(f"{prefix}{secrets.token_hex(8)}.partial")
    with _cannot_write(where):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()  # fails where there is anything, a link included
    try:
        with _folder_lock(partial) as lock:
            if lock is False:
                raise busy
            for other in final.parent.glob(f"{glob.escape(prefix)}*.partial"):
                with contextlib.nullcontext() if other == partial else _folder_lock(other) as free:
                    if free is False:
                        raise busy
                    if free and lock:
                        shutil.rmtree(other, ignore_errors=True)
            yield partial
            sync_tree(partial)
            with _cannot_write(where):
                try:
                    os.rename(partial, final)  # over an empty folder at most
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    raise taken from None
        sync_folder(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _cannot_write(where: str) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(
            f"{where}cannot write {error.filename} ({error.strerror}); choose a folder you may write to."
        ) from None


@contextlib.contextmanager
def _folder_lock(folder: pathlib.Path) -> Iterator[bool | None]:
    """Locks a folder. Returns True, False if another process holds it, None if the file system cannot lock folders."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # removed meanwhile, or a link
        yield None
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held: bool | None = True
    except BlockingIOError:
        held = False
    except OSError:  # such as NFS, which locks files only
        held = None
    try:
        yield held
    finally:
        os.close(handle)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Syncs the directory entries of a folder to disk; does nothing on file systems that cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Syncs every file and folder below `folder` to disk, except links, and then the folder itself.

    Raises:
      OSError: names the file that could not be written.
    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = os.path.join(root, name)
            if os.path.islink(path):
                continue
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with named(path):
                    os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(root)
