"""The metadata and the table of tensors of one GGUF file, parsed in one pass.

The package gguf reads them too, but makes several arrays of each string, which is slow for large vocabularies.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from typing import Any

import gguf
import numpy as np

_KINDS = gguf.GGUFValueType
_NUMBERS = {
    _KINDS.UINT8: "<u1", _KINDS.INT8: "<i1", _KINDS.UINT16: "<u2", _KINDS.INT16: "<i2", _KINDS.UINT32: "<u4",
    _KINDS.INT32: "<i4", _KINDS.FLOAT32: "<f4", _KINDS.UINT64: "<u8", _KINDS.INT64: "<i8", _KINDS.FLOAT64: "<f8",
    _KINDS.BOOL: "?",
}  # fmt: skip
_MAX_AXES = 4  # GGML_MAX_DIMS
_PLAIN: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"
    }.items()
}  # fmt: skip


class Damaged:
    """Stands for a value that is not text, or of a type that does not exist."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
      name: of the tensor.
      kind: of its weights, such as "Q8_0".
      shape: the last axis is that of a row.
      data: view of the file; numbers of `shape`, or uint8 whose last axis has the bytes of a row.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


class _Cursor:
    """A place in the file's bytes, which moves with what is read."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        end = self.at + size
        if end > len(self.data):
            raise ValueError(f"the file ends at byte {len(self.data)}, and more was to follow")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, kind: str) -> Any:
        """The next number of a struct format."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str | Damaged:
        """The next string."""
        piece = self.take(self.number("<Q"))
        try:
            return str(piece, "utf-8")
        except UnicodeDecodeError:
            return Damaged()


def parse(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Tensor]]:
    """Parses a file.

    Returns:
      metadata by name: numbers, strings, lists, or `Damaged`; and the tensors, whose data stay on disk until they are
      read.

    Raises:
      ValueError: it is not a complete GGUF file, and why.
      OSError: it cannot be read.
    """
    if os.path.getsize(path) < 24:
        raise ValueError("it is shorter than the header of any")
    array = np.memmap(path, np.uint8, "r").view(np.ndarray)
    cursor = _Cursor(array.data)
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("<I")
    if version not in (2, 3):
        other = "for machines of the other byte order" if not version & 0xFFFF else f"{version}, and 2 and 3 are known"
        raise ValueError(f"its version is {other}")
    num_tensors, num_values = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        name = cursor.text()
        if isinstance(name, Damaged) or name in metadata:
            raise ValueError(f"a name of its metadata is {'there twice' if isinstance(name, str) else 'not text'}")
        metadata[name] = _value(cursor, cursor.number("<I"))
    entries = [_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    return metadata, _tensors(array, start, entries)


def _value(cursor: _Cursor, number: int) -> Any:
    """A value of the type with this number; a type that does not exist ends all reading."""
    kind = _KINDS(number)  # ValueError
    if kind is _KINDS.STRING:
        return cursor.text()
    if kind is not _KINDS.ARRAY:
        return np.frombuffer(cursor.take(np.dtype(_NUMBERS[kind]).itemsize), _NUMBERS[kind])[0].item()
    inner, count = _KINDS(cursor.number("<I")), cursor.number("<Q")
    if inner is _KINDS.STRING:
        if count > len(cursor.data):
            raise ValueError("a list of its metadata is longer than the file")
        texts = [cursor.text() for _ in range(count)]
        return Damaged() if any(isinstance(text, Damaged) for text in texts) else texts
    if inner is _KINDS.ARRAY:
        raise ValueError("its metadata has a list of lists")
    dtype = np.dtype(_NUMBERS[inner])
    return np.frombuffer(cursor.take(count * dtype.itemsize), dtype).tolist()


def _entry(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Name, kind, shape and place of a tensor."""
    name = cursor.text()
    axes = cursor.number("<I")
    if isinstance(name, Damaged) or not 0 < axes <= _MAX_AXES:
        raise ValueError(f"a tensor has {axes} axes" if isinstance(name, str) else "a tensor's name is not text")
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
    return name, gguf.GGMLQuantizationType(cursor.number("<I")).name, shape, cursor.number("<Q")


def _tensors(array: np.ndarray, start: int, entries: list[tuple[str, str, tuple[int, ...], int]]) -> list[Tensor]:
    """Views of the data of all tensors."""
    found: dict[str, Tensor] = {}
    for name, kind, shape, offset in entries:
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        if name in found or shape[-1] % weights:
            problem = (
                "is there twice" if name in found else f"has rows of {shape[-1]}, which no block of {kind} divides"
            )
            raise ValueError(f"tensor {name} {problem}")
        num_bytes = math.prod(shape) // weights * size
        if start + offset + num_bytes > len(array):
            raise ValueError(f"the data of tensor {name} go beyond the end of the file")
        data = array[start + offset : start + offset + num_bytes]
        if kind in _PLAIN:
            data = data.view(_PLAIN[kind]).reshape(shape)
        else:
            data = data.reshape(*shape[:-1], shape[-1] // weights * size)
        found[name] = Tensor(name, kind, shape, data)
    return list(found.values())
