"""The metadata of a GGUF file, read with their types and counted, so that none is overlooked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from s1jax.config.schema import plain, shown
from s1jax.errors import UserError

# Keys of an architecture that change no logits, or say what tensors say already.
_HARMLESS = {
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.causal", "expert_gating_func",
    "nextn_predict_layers", "interleave_moe_layer_step", "moe_every_n_layers", "pooling_type",
}  # fmt: skip


class Keys:
    """The keys of one file's architecture, whose name is left out in front of them.

    Attributes:
      architecture: `general.architecture`.
      where: name of the file in errors.
      shapes: of its tensors, the last axis being that of a row.
    """

    def __init__(
        self,
        architecture: str,
        where: str,
        names: Collection[str],
        lookup: Callable[[str], Any],
        shapes: Mapping[str, tuple[int, ...]],
        arrays: Callable[[str], np.ndarray],
    ):
        """Makes keys of any source.

        Args:
          architecture: `general.architecture`.
          where: name of the file in errors.
          names: of all metadata.
          lookup: gives the value of one of them.
          shapes: of all tensors.
          arrays: gives the numbers of one of them.
        """
        self.architecture, self.where, self.shapes = architecture, where, shapes
        self._names, self._lookup, self._arrays = frozenset(names), lookup, arrays
        self._read: set[str] = set()

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key; without a default it must be there.

        Raises:
          UserError: it is missing, or of another type.
        """
        name = f"{self.architecture}.{key}"
        self._read.add(name)
        if name not in self._names:
            if default is None:
                raise UserError(f"{self.where} lacks the metadata {name}; get a complete file.")
            return default
        value = self._lookup(name)
        if isinstance(value, list) and kind is not list:
            if not value or any(item != value[0] for item in value):
                raise UserError(f"{self.where}: {name} differs between layers, which this decoder does not compute.")
            value = value[0]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UserError(
                f"{self.where}: the metadata {name} is of type {type(value).__name__}, not {kind.__name__}; get the "
                "file again."
            )
        return value

    def array(self, tensor: str) -> np.ndarray | None:
        """The numbers of a tensor that is a part of the configuration; None: the file has none."""
        return self._arrays(tensor) if tensor in self.shapes else None

    def finish(self) -> None:
        """Checks that nothing was overlooked.

        Raises:
          UserError: names a key of the architecture that was not read and may change what the model computes.
        """
        prefix = f"{self.architecture}."
        for name in sorted(self._names - self._read):
            if name.startswith(prefix) and name.removeprefix(prefix) not in _HARMLESS:
                raise UserError(
                    f"{self.where}: the metadata {plain(name)} is {shown(self._lookup(name))}, which s1jax does not "
                    "know; it may change what the model computes, so convert the Hugging Face model."
                )


def decimal(value: float) -> float:
    """Shortest decimal of a value stored as float32: 1e-5 rather than 9.99999974e-06."""
    return float(str(np.float32(value)))
