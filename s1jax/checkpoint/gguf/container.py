"""The container of a GGUF file: a header with metadata, a table of tensors, and their data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import gguf
import numpy as np

Value = int | float | bool | str | list[int] | list[float] | list[str]

_ALIGNMENT = 32  # of every tensor's data, in bytes
_FORMATS = {
    gguf.GGUFValueType.UINT32: "<I",
    gguf.GGUFValueType.INT32: "<i",
    gguf.GGUFValueType.FLOAT32: "<f",
    gguf.GGUFValueType.BOOL: "<?",
}


class Tensor(NamedTuple):
    """One entry of the table.

    Attributes:
      name: of the tensor.
      shape: the last axis is that of a row, whose weights are side by side.
      kind: of its weights, such as "Q8_0".
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return int(np.prod(self.shape, dtype=np.int64)) // weights * size


def write(
    file: BinaryIO, metadata: Mapping[str, Value], tensors: Sequence[Tensor], data: Iterable[Iterator[np.ndarray]]
) -> None:
    """Writes a whole file; only one piece of a tensor is in memory at a time.

    Args:
      file: open for writing, empty.
      metadata: int is written as uint32, float as float32; of lists the elements: int as int32.
      tensors: the table.
      data: of each tensor in the same order, the pieces of its data as uint8.
    """
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _value(value))
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        kind = gguf.GGMLQuantizationType[tensor.kind]
        file.write(_string(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
        offset += -(-tensor.num_bytes // _ALIGNMENT) * _ALIGNMENT
    file.write(bytes(-file.tell() % _ALIGNMENT))
    for tensor, pieces in zip(tensors, data, strict=True):
        size = 0
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)
            size += piece.nbytes
        assert size == tensor.num_bytes, (tensor, size)
        file.write(bytes(-size % _ALIGNMENT))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", gguf.GGUFValueType.STRING) + _string(value)
    if isinstance(value, list):
        head = struct.pack("<I", gguf.GGUFValueType.ARRAY)
        if all(isinstance(item, str) for item in value):
            head += struct.pack("<IQ", gguf.GGUFValueType.STRING, len(value))
            return head + b"".join(_string(str(item)) for item in value)
        kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.INT32, float: gguf.GGUFValueType.FLOAT32}
        kind = kinds[type(value[0])]
        letter = _FORMATS[kind][1]
        return head + struct.pack("<IQ", kind, len(value)) + struct.pack(f"<{len(value)}{letter}", *value)
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    kind = kinds[type(value)]
    return struct.pack("<I", kind) + struct.pack(_FORMATS[kind], value)
