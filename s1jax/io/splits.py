"""Decides which files of a folder belong to which split, by the rules of the `datasets` library.

Names of folders decide first, then names of files: `train` or `training`; `validation`, `valid`, `dev` or `val`;
`test`, `testing`, `eval` or `evaluation`. The word must be the whole name or be separated by `-`, `.`, `_`, a blank or
a digit. `data/NAME-00000-of-00001.*` is split NAME. Without any such name, all files are `train`. Source:
SPLIT_KEYWORDS and `get_data_patterns` in github.com/huggingface/datasets, src/datasets/data_files.py (release 5.2). One
rule differs: only files of rows count, so `test.py` next to `rows.jsonl` is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_SPLIT = re.compile(r"\w+(\.\w+)*")


def _named(rest: str) -> dict[str, re.Pattern[str]]:
    """Patterns of a name that holds a keyword, split -> pattern; `rest` is what may follow the keyword."""
    return {
        split: re.compile(rf"(?:.*[-._ 0-9])?(?:{'|'.join(words)}){rest}", re.DOTALL)
        for split, words in _KEYWORDS.items()
    }


_FILE = _named("[-._ 0-9].*")
_FOLDER = _named("(?:[-._ 0-9].*)?")


def assign(paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns split -> files.

    Args:
      paths: files of rows, relative to their folder, with `/` between names.

    Returns:
      `train`, `validation`, `test` and then other splits, each with its files in the order of `paths`. A file whose
      name has the words of two splits is in both, as in `datasets`. If any file has a split word, a file without one
      is in no split.
    """
    paths = list(paths)
    shards = {path: match[1] for path in paths if (match := _SHARD.fullmatch(path))}
    if shards and all(_SPLIT.fullmatch(split) for split in shards.values()):
        names = sorted(set(shards.values()), key=lambda split: (_order(split), split))
        return {split: [path for path, own in shards.items() if own == split] for split in names}
    found = {
        split: [path for path in paths if any(map(pattern.fullmatch, path.split("/")[:-1]))]
        for split, pattern in _FOLDER.items()
    }
    if not any(found.values()):
        found = {
            split: [path for path in paths if pattern.fullmatch(path.split("/")[-1])]
            for split, pattern in _FILE.items()
        }
    if not any(found.values()):
        found = {"train": paths}
    return {split: files for split, files in found.items() if files}


def _order(split: str) -> int:
    names = list(_KEYWORDS)
    return names.index(split) if split in names else len(names)
