"""Size and SHA-256 of every file of a checkpoint, in its digests.json.

Orbax does not notice flipped bits in its data files. The file is written last, so a checkpoint
without it is incomplete.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from s1jax.errors import UserError
from s1jax.io import files


def is_there(folder: pathlib.Path) -> bool:
    """Whether `folder` is a checkpoint whose writing came to its end."""
    return (folder / "digests.json").is_file()


def _files(folder: pathlib.Path) -> list[str]:
    names = (item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file())
    return sorted(name for name in names if name != "digests.json")


def _digest(file: pathlib.Path, sync: bool = False) -> dict[str, Any]:
    with file.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def write(folder: pathlib.Path) -> None:
    """Finishes a checkpoint: the rename of digests.json is the moment from which it counts.

    Before it every file and folder of the checkpoint is on the disk, and after it the rename: the machine may lose its
    power at any time. Whoever calls this has read back what he wrote.
    """
    names = _files(folder)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        digests = dict(zip(names, pool.map(lambda name: _digest(folder / name, sync=True), names), strict=True))
    for inner in (item for item in folder.rglob("*") if item.is_dir()):
        files.sync_folder(inner)
    files.write_text(folder / "digests.json", json.dumps(digests, indent=1))
    files.sync_folder(folder.parent)


def fingerprint(folder: pathlib.Path) -> str:
    """SHA-256 of the digests of all files of a finished checkpoint: equal for equal checkpoints, in any folder."""
    return hashlib.sha256((folder / "digests.json").read_bytes()).hexdigest()


def verify(folder: pathlib.Path, wanted: Callable[[str], bool]) -> None:
    """Compares the files whose names `wanted` accepts with digests.json.

    Raises:
      UserError: names the first file that is missing, truncated or altered.
    """
    if not is_there(folder):
        raise UserError(f"{folder} has no digests.json here; all hosts of a run have to see the same files.")
    try:
        digests = json.loads((folder / "digests.json").read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in digests.items() if wanted(name)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'digests.json'} is damaged; use another checkpoint or copy it again.") from error

    def fault(name: str) -> str:
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        size, sha256 = expected[name]
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
        return "" if _digest(file)["sha256"] == sha256 else f"{file} was altered after it was written"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for sentence in pool.map(fault, expected):
            if sentence:
                raise UserError(f"{sentence}; the checkpoint is damaged: use another one or copy it again.")
