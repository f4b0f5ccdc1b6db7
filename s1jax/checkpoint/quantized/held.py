"""Tensors of safetensors files as they are held there, or as they become once quantised parts are put together."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s1jax.config.schema import plain
from s1jax.errors import UserError

# Kinds that `safetensors` does not give as numpy arrays: they are read as bytes.
_BYTES = ("F8_E4M3", "F8_E5M2", "F8_E8M0")

_OF_ACTIVATIONS = {
    "activation_scale", "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
    "k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point", "v_zero_point",
}  # fmt: skip

# Of a tensor that was put together from quantised parts.
RESTORED = "restored"


@dataclasses.dataclass(frozen=True)
class Held:
    """A tensor that can be read.

    Attributes:
      name: of the tensor.
      file: that holds it.
      kind: safetensors' name of its type, or `RESTORED`.
      shape: of the tensor.
      read: gives the array; floats of 8 bits are uint8.
    """

    name: str
    file: str
    kind: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def held(handle: Any, name: str, file: str) -> Held:
    """A tensor of an open safetensors file."""
    part = handle.get_slice(name)
    kind, shape = part.get_dtype(), tuple(part.get_shape())
    if kind in _BYTES:
        return Held(name, file, kind, shape, lambda: _read_bytes(file, name, shape))
    return Held(name, file, kind, shape, lambda: handle.get_tensor(name))


def _read_bytes(file: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a tensor; the library has checked the header when it opened the file."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        start, end = json.loads(opened.read(length))[name]["data_offsets"]
        opened.seek(8 + length + start)
        data = np.fromfile(opened, np.uint8, end - start)
    if data.size != math.prod(shape):
        raise UserError(f"{file}: tensor {plain(name)} ends early; get the file again.")
    return data.reshape(shape)


class Parts:
    """The tensors of a checkpoint, taken away one by one as quantised ones are put together.

    Attributes:
      left: name -> tensor that nobody has taken.
      restored: name -> tensor that was put together.
    """

    def __init__(self, tensors: dict[str, Held]):
        self.left, self.restored = dict(tensors), dict[str, Held]()
        self._given = tensors

    def modules(self, suffix: str) -> list[str]:
        """Names without `suffix` of the tensors that end with it."""
        return sorted(name.removesuffix(suffix) for name in self.left if name.endswith(suffix))

    def take(self, name: str, kinds: Sequence[str], shape: Sequence[int] | None = None) -> Held:
        """A tensor that must be there.

        Raises:
          UserError: it is missing, has another type or another shape than the rest of its module asks for.
        """
        if name not in self.left:
            file = next(tensor.file for key, tensor in self._given.items() if key.startswith(name.rpartition(".")[0]))
            raise UserError(
                f"{file}: tensor {plain(name)} is missing, without which the quantised weights of its module cannot be "
                "read; get a complete copy."
            )
        found = self.left.pop(name)
        if found.kind not in kinds:
            raise UserError(
                f"{found.file}: tensor {plain(name)} is stored as {found.kind}, not {' or '.join(kinds)}; "
                "quantization_config does not describe it, so get the file again."
            )
        if shape is not None and found.shape != tuple(shape):
            raise UserError(
                f"{found.file}: tensor {plain(name)} has shape {list(found.shape)} where quantization_config and the "
                f"other tensors of its module ask for {list(shape)}; get the file again."
            )
        return found

    def optional(self, name: str, kinds: Sequence[str], shape: Sequence[int] | None = None) -> Held | None:
        """A tensor that may be there."""
        return self.take(name, kinds, shape) if name in self.left else None

    def drop(self, name: str) -> bool:
        """Leaves a tensor out, if it is there; returns whether it was."""
        return self.left.pop(name, None) is not None

    def drop_scales_of_activations(self) -> None:
        """Leaves out what belongs to quantised activations and key-value caches: both are floats here."""
        for name in [name for name in self.left if name.rpartition(".")[2] in _OF_ACTIVATIONS]:
            del self.left[name]

    def put(self, name: str, of: Held, shape: Sequence[int], read: Callable[[], np.ndarray]) -> None:
        """Adds a tensor of floats that `read` makes; `of` is one of its parts."""
        if name in self.left:
            raise UserError(
                f"{self.left[name].file}: tensor {plain(name)} is stored beside its quantised parts "
                f"({plain(of.name.rpartition('.')[2])}); keep one of them."
            )
        self.restored[name] = Held(name, of.file, RESTORED, tuple(shape), read)

    def all(self) -> dict[str, Held]:
        """Every tensor after the work."""
        return self.left | self.restored


def floats(tensor: Held) -> np.ndarray:
    """A small tensor of floats in float32."""
    return np.asarray(tensor.read(), np.float32)
