"""An open GGUF file, in one piece or split into several (`NAME-00001-of-00003.gguf`)."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from s1jax.checkpoint.gguf.parse import Tensor, parse
from s1jax.config.schema import shown
from s1jax.errors import UserError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MAX_PARTS = 10_000


class File:
    """Metadata of the first part, and the tensors of all.

    Attributes:
      metadata: values by name; `parse.Damaged` where one is not text.
      tensors: of all parts; the data stay on disk until they are read.
    """

    def __init__(self, metadata: dict[str, Any], tensors: list[Tensor]):
        self.metadata, self.tensors = metadata, tensors


def open_file(path: str | os.PathLike[str]) -> File:
    """Opens a GGUF file and parses its metadata; of a split one any part may be given.

    Raises:
      UserError: no such file, not a (complete) GGUF file, or a part is missing.
    """
    file = _open(path)
    count = _number(file, "split.count", 1)
    if count <= 1:
        return file
    match = _PART.fullmatch(os.path.basename(path))
    if match is None or int(match[3]) != count or count > _MAX_PARTS:
        raise UserError(
            f"{path} is one of {count} parts of a split GGUF file, which must be called NAME-00001-of-{count:05d}.gguf "
            "and so on; give it its name back."
        )
    parts = []
    for number in range(1, count + 1):
        other = pathlib.Path(path).with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf")
        if not other.exists():
            raise UserError(f"{path} is one of {count} parts, and {other.name} is not beside it; get all of them.")
        part = _open(other)
        if (_number(part, "split.count", 1), _number(part, "split.no", -1)) != (count, number - 1):
            raise UserError(f"{other} is not part {number} of {count} by its own metadata; get it again.")
        parts.append(part)
    file = File(parts[0].metadata, [tensor for part in parts for tensor in part.tensors])
    wanted = _number(parts[0], "split.tensors.count", len(file.tensors))
    if wanted != len(file.tensors) or len({tensor.name for tensor in file.tensors}) != wanted:
        raise UserError(f"{path} and its other parts have {len(file.tensors)} tensors, not {wanted}; get them again.")
    return file


def _open(path: str | os.PathLike[str]) -> File:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise UserError(f"{path} is not a regular file; give the path of a .gguf file.")
    try:
        return File(*parse(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a .gguf file.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({shown(str(error), 200)}); get it again.") from None


def _number(file: File, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    return value if isinstance(value, int) else default
