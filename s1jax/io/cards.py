"""Reads from the README of a folder which files belong to which split, as for dataset repositories on the hub.

The YAML at the top of README.md may have `configs`, each with `config_name` and `data_files` or `data_dir`. One of them
is taken: the only one, the one called `default`, or the one with `default: true`. Source: `MetadataConfigs` in
github.com/huggingface/datasets, src/datasets/utils/metadata.py (release 5.2).
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.io import splits

_LONGEST = 1 << 20  # bytes of a README that are read
_BLOCK = re.compile(r"\ufeff?---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", re.DOTALL)


def assign(folder: pathlib.Path, paths: Sequence[str]) -> dict[str, list[str]]:
    """Returns split -> files as the README of a folder declares them; empty if it declares none.

    Args:
      folder: may have a README.md.
      paths: the files of rows in it, relative to it, with `/` between names.

    Raises:
      UserError: if the README names several configs and no default, or names files that do not exist.
    """
    readme = folder / "README.md"
    configs = _configs(readme) if readme.is_file() else []
    if not configs:
        return {}
    defaults = [one for one in configs if len(configs) == 1 or one["config_name"] == "default" or one.get("default")]
    if len(defaults) != 1:
        names = ", ".join(str(one["config_name"]) for one in configs)
        raise UserError(
            f"{readme} has the configs {names} and no default; give the folder or the files of one of them."
        )
    (config,) = defaults
    base = str(config.get("data_dir") or "").strip("/")
    inside = {path.removeprefix(f"{base}/"): path for path in paths if not base or path.startswith(f"{base}/")}
    wanted = config.get("data_files")
    found = _patterns(wanted, readme) if wanted is not None else {}
    if wanted is None:
        chosen = splits.assign(inside)
    else:
        chosen = {
            split: [name for name in inside if any(pattern.fullmatch(name) for pattern in patterns)]
            for split, patterns in found.items()
        }
    missing = [split for split, names in chosen.items() if not names]
    if missing or not inside:
        what = f"split {missing[0]}" if missing else f"config {config['config_name']}"
        raise UserError(
            f"{readme} names files of {what} that are not in {folder}; add them or give the files themselves."
        )
    return {split: [inside[name] for name in names] for split, names in chosen.items()}


def _configs(readme: pathlib.Path) -> list[dict[str, Any]]:
    with readme.open("rb") as stream:
        text = stream.read(_LONGEST).decode(errors="replace")
    block = _BLOCK.match(text)
    if not block or not re.search(r"^configs\s*:", block[1], re.MULTILINE):
        return []
    try:
        import yaml
    except ImportError:
        raise UserError(f"{readme} names the files of its splits, which needs PyYAML; install it.") from None
    try:
        configs = (yaml.safe_load(block[1]) or {}).get("configs")
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{readme} begins with YAML that cannot be read ({reason}); repair it.") from None
    if configs is None:
        return []
    if not isinstance(configs, list) or not all(isinstance(one, dict) and "config_name" in one for one in configs):
        raise UserError(f"{readme}: configs is not a list of objects with config_name; repair it.")
    return configs


def _patterns(wanted: Any, readme: pathlib.Path) -> dict[str, list[re.Pattern[str]]]:
    """Split -> patterns of one config's `data_files`: a path, a list of paths, or a list of {split, path}."""
    entries = wanted if isinstance(wanted, list) else [wanted]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    found: dict[str, list[re.Pattern[str]]] = {}
    for entry in entries:
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        split = entry.get("split") if isinstance(entry, dict) else None
        if not isinstance(split, str) or not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
            raise UserError(f"{readme}: data_files holds {entry!r:.60}; write objects with split and path.")
        found.setdefault(split, []).extend(map(_pattern, paths))
    return found


def _pattern(glob: str) -> re.Pattern[str]:
    """A path with *, **, ? and [...] as fsspec understands it."""
    regex = ""
    parts = glob.removeprefix("./").split("/")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            regex += ".+" if last else "(?:.+/)?"
            continue
        for token in re.findall(r"\*+|\?|\[[^\]]+\]|.", part, re.DOTALL):
            if token[0] == "*":
                regex += "[^/]*"
            elif token == "?":
                regex += "[^/]"
            elif len(token) > 2:
                regex += "[" + re.sub(r"^!", "^", token[1:-1]).replace("\\", r"\\") + "]"
            else:
                regex += re.escape(token)
        regex += "" if last else "/"
    try:
        return re.compile(regex, re.DOTALL)
    except re.error:
        raise UserError(f"the pattern {glob!r} of README.md cannot be read; repair it.") from None
