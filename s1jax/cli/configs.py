"""The experiments that come with s1jax, which --config names without a path: --config=countdown_s1."""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Sequence

import s1jax
from s1jax.errors import UserError

_PACKAGE = pathlib.Path(s1jax.__file__).parent
# A wheel has them in the package (setup.py); a checkout has the folder beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_NAME = re.compile(r"\w+")


def files() -> dict[str, pathlib.Path]:
    """Returns the file of each experiment that comes with s1jax, by name."""
    folder = next((folder for folder in _FOLDERS if (folder / "countdown_s1.py").is_file()), _FOLDERS[0])
    return {file.stem: file for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")}


def with_paths(arguments: Sequence[str], flag: str) -> list[str]:
    """Returns the command line with a path where the flag's value is only a name; a path stays as given.

    Args:
      arguments: as in sys.argv.
      flag: name of the flag that takes a file of settings, for example `config`.

    Raises:
      UserError: for a name that no experiment has.
    """
    changed = list(arguments)
    for i, part in enumerate(changed):
        name, equals, value = part.partition("=")
        if name.lstrip("-") != flag or not name.startswith("-"):
            continue
        if equals:
            changed[i] = f"{name}={_path(value, flag)}"
        elif i + 1 < len(changed):
            changed[i + 1] = _path(changed[i + 1], flag)
    return changed


def _path(value: str, flag: str) -> str:
    if not _NAME.fullmatch(value) or pathlib.Path(value).is_file():
        return value
    known = files()
    if value in known:
        return str(known[value])
    alike = difflib.get_close_matches(value, known, n=1)
    meant = f"; did you mean {alike[0]}? s1jax has" if alike else "; give a file, or one of"
    raise UserError(f"--{flag}={value} is neither a file nor an experiment of s1jax{meant} {', '.join(known)}.")
