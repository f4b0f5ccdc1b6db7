"""The small models and tokenizers that ship in s1jax/assets, which `package:NAME` names."""

from __future__ import annotations

import importlib.resources
import os
import pathlib

from s1jax.errors import UserError

PREFIX = "package:"


def folder() -> pathlib.Path:
    """Returns the folder s1jax/assets of the installed package."""
    return pathlib.Path(str(importlib.resources.files("s1jax") / "assets"))


def path(name: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path that `name` stands for: a folder of the package for `package:NAME`, else `name` itself.

    Raises:
      UserError: if the package has no such folder.
    """
    text = os.fspath(name)
    if not text.startswith(PREFIX):
        return pathlib.Path(text)
    found = folder() / text.removeprefix(PREFIX)
    have = sorted(item.name for item in folder().iterdir() if item.is_dir())
    if found.name not in have or found.parent != folder():
        raise UserError(f"{text} is not in the package; it has {', '.join(PREFIX + item for item in have)}.")
    return found
