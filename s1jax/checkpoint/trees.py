"""Trees of arrays in Orbax's files: compared with what is wanted, and verified after they were written."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from s1jax.errors import UserError
from s1jax.io import files

# Orbax counts a save's time on the wall clock, which may jump by an hour, and gives up after 20 minutes. A process that
# is lost is noticed by the others without it.
_TIMEOUT_SECONDS = 7 * 24 * 3600
_NOT_DAMAGE = {*files.FULL, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM}


def context() -> Any:
    """Orbax's options for all saves: a clock that jumps does not end them."""
    from orbax.checkpoint import v1 as ocp

    made = ocp.Context()
    made.async_options.timeout_secs = _TIMEOUT_SECONDS
    made.async_options.create_directories_asynchronously = False
    return made


def alone() -> Any:
    """Orbax's options for a process that loads onto its own devices: it waits for no other process of the run."""
    import jax
    from orbax.checkpoint import v1 as ocp

    made = ocp.Context()
    if jax.process_count() > 1:
        made.multiprocessing.primary_host = jax.process_index()
        made.multiprocessing.active_processes = {jax.process_index()}
    return made


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path, {"a/b/c": leaf}; tuples, named or not, have the paths of what Orbax makes of them."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def compare(stored: Any, wanted: Any, folder: pathlib.Path, fault: str) -> None:
    """Compares names and shapes before anything is read.

    Args:
      stored: what Orbax says of the tree in `folder`.
      wanted: tree of arrays or `jax.ShapeDtypeStruct`s.
      folder: in messages.
      fault: what a difference means.

    Raises:
      UserError: names the first leaf that is missing, superfluous, of another shape or not an array.
    """
    have, want = flatten(stored), flatten(wanted)
    for name in sorted(set(have) ^ set(want)):
        raise UserError(f"{folder}: {name} {'is missing' if name in want else 'was not expected'}; {fault}.")
    for name, leaf in want.items():
        if not isinstance(getattr(have[name], "shape", None), tuple):
            raise UserError(f"{folder}: {name} is not an array; {fault}.")
        if tuple(have[name].shape) != tuple(leaf.shape):
            raise UserError(
                f"{folder}: {name} has shape {tuple(have[name].shape)} instead of {tuple(leaf.shape)}; {fault}."
            )


def read_metadata(path: pathlib.Path, folder: pathlib.Path) -> Any:
    """Returns what Orbax says of the tree at `path`: leaves with `shape` and `dtype`; `folder` is named in errors.

    Raises:
      UserError: where Orbax cannot read it.
    """
    from orbax.checkpoint import v1 as ocp

    with reading(folder):
        found = ocp.metadata(path).metadata
        flatten(found)
        return found


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax raises for files that it cannot read into an UserError that names `folder`.

    Want of memory, of access or of open files, an unreadable disk and a lost process stay what they are.
    """
    import jax

    try:
        yield
    except (UserError, MemoryError, TimeoutError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        if getattr(error, "errno", None) in _NOT_DAMAGE or "RESOURCE_EXHAUSTED" in said:
            raise
        raise UserError(
            f"Orbax cannot read the arrays of {folder} ({type(error).__name__}: {said[:160]}); the checkpoint is "
            "damaged: use another one or copy it again."
        ) from error


def check_written(path: pathlib.Path, wanted: Any, folder: pathlib.Path) -> None:
    """Verifies that a tree which was just written is there: every array's name, shape, type and number of chunks.

    Args:
      path: where Orbax wrote it.
      wanted: tree of arrays or `jax.ShapeDtypeStruct`s.
      folder: in messages.

    Raises:
      UserError: names the first array that cannot be found again.
    """
    import numpy as np

    fault = "what was just written cannot be read back, so that it does not count as a checkpoint; write it elsewhere"
    stored = read_metadata(path, folder)
    compare(stored, wanted, folder, fault)
    have, want = flatten(stored), flatten(wanted)
    chunks = _chunks(path / "state")
    for name, leaf in want.items():
        if np.dtype(have[name].dtype) != np.dtype(leaf.dtype):
            raise UserError(f"{folder}: {name} has type {have[name].dtype} instead of {leaf.dtype}; {fault}.")
        there, expected = chunks.get(name.replace("/", "."), (0, 1))
        if there != expected:
            raise UserError(f"{folder}: {name} has {there} of {expected} chunks; {fault}.")


def _chunks(path: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Of every array in Orbax's folder: chunks that are there, chunks that its shape wants."""
    import tensorstore as ts

    base: Any = {"driver": "file", "path": f"{path}/"}
    merged = (path / "manifest.ocdbt").exists()
    store = ts.KvStore.open({"driver": "ocdbt", "base": base} if merged else base).result()
    there: collections.Counter[str] = collections.Counter()
    described = {}
    for name, _, rest in (key.decode().partition("/") for key in store.list().result()):
        if rest in ("zarr.json", ".zarray"):
            described[name] = f"{name}/{rest}"
        elif not rest.startswith("."):  # zarr3 has chunks as NAME/c/0/1, zarr as NAME/0.1
            there[name] += 1
    found = {}
    for name, key in described.items():
        about = json.loads(store.read(key).result().value)
        sizes = about["chunks"] if "chunks" in about else about["chunk_grid"]["configuration"]["chunk_shape"]
        wanted = math.prod(-(-size // chunk) for size, chunk in zip(about["shape"], sizes, strict=True))
        found[name] = there[name], wanted
    return found
