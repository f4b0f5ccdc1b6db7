"""The folder that the path of a checkpoint stands for, held while it is read.

A training run beside the reader saves newer checkpoints and removes old ones, so a workdir's newest step is looked up
once for everything that is read of it: metadata, fingerprint and weights. The reader holds a shared lock on the
folder's digests.json, and the run removes no folder that is held. Where the file system has no locks, a folder may go
away; then the next newest is read from the beginning.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from s1jax.checkpoint import digests
from s1jax.errors import UserError
from s1jax.io import assets, files, paths

_TRIES = 20
_PAUSE = 0.05  # seconds between tries to lock, in which another process removes a folder

_Result = TypeVar("_Result")


def resolve(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a finished checkpoint: `path` itself, a workdir's newest step, or one from the package.

    Raises:
      UserError: where there is none, with what was found instead.
    """
    text = os.fspath(path)
    if text.startswith(assets.PREFIX):
        folder = assets.folder() / text.removeprefix(assets.PREFIX)
        if not digests.is_there(folder):
            shipped = sorted(item.name for item in assets.folder().glob("*") if digests.is_there(item))
            have = ", ".join(assets.PREFIX + name for name in shipped)
            raise UserError(f"{text} is not in the package; it has {have or 'none'}.")
        return folder
    folder = paths.local(text, "checkpoint").absolute()
    if not folder.is_dir():
        raise UserError(f"{text} is not a folder; give a checkpoint, a training workdir or package:NAME.")
    if digests.is_there(folder):
        return folder
    steps = finished_steps(folder)
    if steps:
        return step_folder(folder, steps[-1])
    if (folder / "s1jax.json").exists():
        raise UserError(f"{text} is a checkpoint that was never finished (no digests.json); make it again.")
    if (folder / "checkpoints").is_dir():
        raise UserError(f"{text} is a training workdir without a finished checkpoint; let the run save one first.")
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{text} is a Hugging Face folder; turn it into a checkpoint with launch.convert --from_hf.")
    raise UserError(f"{text} holds no checkpoint (no s1jax.json); give the folder that launch.train or convert wrote.")


def step_folder(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Where a run keeps the checkpoint of a step."""
    return workdir / "checkpoints" / str(step)


def finished_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints of a run, ascending."""
    return [step for step in all_steps(workdir) if digests.is_there(step_folder(workdir, step))]


def all_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of all checkpoints, ascending, those that were interrupted while being written or removed as well."""
    root = workdir / "checkpoints"
    # Names that a run gives: isdigit alone is true of other scripts' digits, and 07 would be read as 7.
    names = (item.name for item in root.iterdir()) if root.is_dir() else ()
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def step_of(folder: pathlib.Path) -> int | None:
    """The step of a run whose checkpoint is in `folder`; None for a checkpoint that is not a step of a run."""
    name = folder.name
    return int(name) if folder.parent.name == "checkpoints" and name.isdecimal() else None


@contextlib.contextmanager
def hold(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives the folder of a finished checkpoint, see `resolve`, which no training run removes during the block.

    Raises:
      UserError: as `resolve`.
    """
    folder, file = _lock(path)
    with file:
        yield folder


def _lock(path: str | os.PathLike[str]) -> tuple[pathlib.Path, IO[Any]]:
    for _ in range(_TRIES):
        folder = resolve(path)
        with contextlib.suppress(FileNotFoundError):
            file = (folder / "digests.json").open("rb")
            if files.take(file, shared=True) and digests.is_there(folder):
                return folder, file
            file.close()
        time.sleep(_PAUSE)
    raise UserError(f"{os.fspath(path)}: {folder} is being removed by another process; run the same command again.")


def using(path: str | os.PathLike[str], use: Callable[[pathlib.Path], _Result]) -> _Result:
    """Returns what `use` gives for the folder of a finished checkpoint, held meanwhile.

    Where the folder is removed all the same, `use` is called again with the next newest.

    Raises:
      UserError: as `resolve`; and what `use` raises for a folder that is still there.
    """
    for left in reversed(range(_TRIES)):
        with hold(path) as folder:
            try:
                return use(folder)
            except (UserError, FileNotFoundError):
                if digests.is_there(folder) or not left:
                    raise
    raise AssertionError("the last try returns or raises")


def remove(folder: pathlib.Path) -> bool:
    """Removes a checkpoint, finished or not, unless a reader holds it; returns whether it did.

    The marker goes first, so what an interrupted removal leaves does not count as a checkpoint.
    """
    marker = folder / "digests.json"
    # Over NFS a lock against others takes a file that is open for writing.
    with contextlib.suppress(FileNotFoundError), marker.open("r+b") as file:
        if not files.take(file):
            return False
        marker.unlink()
    shutil.rmtree(folder)
    return True
