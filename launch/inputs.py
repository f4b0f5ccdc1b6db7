"""Which files and folders a command of launch.train starts from: `python -m launch.inputs list|check FLAG...`.

FLAG... are the flags of launch.train. This file needs only Python's standard library, so that the cluster recipes can
check the inputs before anything is installed or paid for. It checks paths, not contents; launch.train checks those.

`list` prints a line SETTING<tab>PATH<tab>STAMP<tab>BYTES for each path. STAMP changes with names, sizes and times of
the files there; it is `-` if nothing exists. `check` prints a sentence for each path that does not exist.

Exit codes:

    0  all paths are known and, for `check`, exist
    2  the config file does not load, or a path does not exist
    3  without ml_collections this config file cannot be read; `check` returns 0 instead and leaves it to launch.train
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import runpy
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

# Settings that name a file or folder, and those of their values that do not.
SETTINGS: dict[str, tuple[str, ...]] = {
    "config.data.source": ("countdown", "countdown_corpus", "s1k", "s1k_1_1"),
    "config.init_from": (),
    "config.tokenizer": (),
}
_PACKAGE = "package:"  # of checkpoints that ship with s1jax
_REMEDY = {
    "config.data.source": "give a file or folder of rows",
    "config.init_from": "give a checkpoint, for example one that launch.convert has made",
    "config.tokenizer": "give a tokenizer's file or folder",
}


class _ConfigDict(dict[str, Any]):
    """The part of ml_collections.ConfigDict that config files use: a nested dict whose keys are attributes."""

    def __init__(self, values: Any = ()):
        super().__init__()
        for name, value in dict(values).items():
            self[name] = _ConfigDict(value) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = _ConfigDict(value) if isinstance(value, dict) else value

    def copy_and_resolve_references(self) -> _ConfigDict:
        return _ConfigDict(self)


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in ("list", "check"):
        print("error: give list or check, then the flags of launch.train.", file=sys.stderr)
        return 2
    mode, given = arguments[0], dict(_flags(arguments[1:]))
    if not given.get("config"):
        print("error: --config is missing; give a file of configs/.", file=sys.stderr)
        return 2
    named = pathlib.Path(__file__).parents[1] / "configs" / f"{given['config']}.py"
    if given["config"].isidentifier() and named.is_file():  # the name of an experiment of s1jax
        given["config"] = str(named)
    if not pathlib.Path(given["config"]).is_file():
        print(f"error: --config={given['config']} is not a file; give one of configs/.", file=sys.stderr)
        return 2
    settings: dict[str, Any] = {}
    code = 0
    try:
        settings = _settings(given["config"])
    except Exception as error:
        if getattr(sys.modules.get("ml_collections"), "ConfigDict", None) is not _ConfigDict:
            print(f"error: the file of --config does not load: {type(error).__name__}: {error}", file=sys.stderr)
            return 2
        code = 3  # it may need more of ml_collections than the stand-in has
    settings |= {name: given[name] for name in SETTINGS if name in given}
    missing = 0
    for name, names in SETTINGS.items():
        value = settings.get(name) or ""
        if not isinstance(value, str) or not value.strip() or value in names or value.startswith(_PACKAGE):
            continue
        for one in _sources(value) if name == "config.data.source" else [value]:
            stamp, size = _stamp(pathlib.Path(one))
            if mode == "list" and one not in names:
                print(name, one, stamp, size, sep="\t")
            elif stamp == "-" and one not in names:
                missing = 2
                print(f"error: {name} {one} does not exist here; {_REMEDY[name]}.", file=sys.stderr)
    return missing if mode == "check" else code


def _sources(value: str) -> list[str]:
    """The sources of a mix, as s1jax.data.mix reads them: `FILE:0.7,FILE:0.3`."""
    if "," not in value or pathlib.Path(value).exists():
        return [value]
    parts = [part.strip() for part in value.split(",")]
    return [part if pathlib.Path(part).exists() else re.sub(r":[0-9.eE+-]+$", "", part) for part in parts if part]


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (name, value) of --name=value and --name value, in order."""
    for part, after in zip(arguments, [*arguments, ""][1:], strict=True):
        if part.startswith("-"):
            name, equals, value = part.lstrip("-").partition("=")
            yield name, value if equals else after


def _settings(file: str) -> dict[str, Any]:
    """Values that a config file gives to `SETTINGS`."""
    try:
        import ml_collections  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("ml_collections")
        stand_in.ConfigDict = _ConfigDict  # type: ignore[attr-defined]
        sys.modules["ml_collections"] = stand_in
    config = runpy.run_path(file)["get_config"]()
    found: dict[str, Any] = {}
    for name in SETTINGS:
        node = config
        for part in name.split(".")[1:]:
            node = node.get(part) if hasattr(node, "get") else None
        found[name] = node
    return found


def _stamp(path: pathlib.Path) -> tuple[str, int]:
    """A digest of names, sizes and times under `path` and the sum of the sizes in bytes; ("-", 0) if nothing exists."""
    if not path.exists():
        return "-", 0
    lines, total = [], 0
    files = [path] if path.is_file() else [pathlib.Path(top, name) for top, _, names in os.walk(path) for name in names]
    for file in sorted(files):
        if file.is_file():
            stat = file.stat()
            total += stat.st_size
            lines.append(f"{os.path.relpath(file, path)} {stat.st_size} {stat.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:16], total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
