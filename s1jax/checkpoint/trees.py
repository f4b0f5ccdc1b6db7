"""Trees of arrays as Orbax describes them, compared with those that are wanted."""

from __future__ import annotations

import pathlib
from typing import Any

from s1jax.config import InputError


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
      InputError: names the first leaf that is missing, superfluous or of another shape.
    """
    have, want = flatten(stored), flatten(wanted)
    for name in sorted(set(have) ^ set(want)):
        raise InputError(f"{folder}: {name} {'is missing' if name in want else 'was not expected'}; {fault}.")
    for name, leaf in want.items():
        if tuple(have[name].shape) != tuple(leaf.shape):
            raise InputError(
                f"{folder}: {name} has shape {tuple(have[name].shape)} instead of {tuple(leaf.shape)}; {fault}."
            )
