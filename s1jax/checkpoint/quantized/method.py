"""Which quantisation a `quantization_config` describes, and the tensors of its checkpoint as floats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from s1jax.checkpoint.quantized.awq import AWQ
from s1jax.checkpoint.quantized.bitsandbytes import BitsAndBytes
from s1jax.checkpoint.quantized.compressed import Compressed
from s1jax.checkpoint.quantized.fp8 import FP8
from s1jax.checkpoint.quantized.gptq import GPTQ
from s1jax.checkpoint.quantized.held import Held, Parts
from s1jax.checkpoint.quantized.mxfp4_experts import MXFP4
from s1jax.checkpoint.quantized.settings import REMEDY, Settings
from s1jax.config.schema import shown
from s1jax.errors import UserError


class Method(Protocol):
    """A way to store quantised weights."""

    @property
    def about(self) -> str:
        """What the weights are, in words."""

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Takes the quantised tensors of `parts` and puts tensors of floats there.

        Args:
          parts: tensors of a checkpoint.
          wanted: names of the model's tensors.

        Raises:
          UserError: names a tensor that is missing or does not fit the others.
        """


METHODS: Mapping[str, Callable[[Settings], Method]] = {
    "compressed-tensors": Compressed.read,
    "gptq": GPTQ.read,
    "awq": AWQ.read,
    "fp8": FP8.read,
    "bitsandbytes": BitsAndBytes.read,
    "mxfp4": MXFP4.read,
}


def read_method(values: Mapping[str, Any], where: str) -> Method | None:
    """The quantisation of a checkpoint.

    Args:
      values: of its config.json.
      where: name of the file in errors.

    Returns:
      None where there is none.

    Raises:
      UserError: an unknown quantisation, or a field of it that s1jax does not know.
    """
    found = values.get("quantization_config")
    if found is None:
        return None
    where = f"{where}: quantization_config"
    if not isinstance(found, dict):
        raise UserError(f"{where} is {shown(found)}; it must be a JSON object, so get the file again.")
    name = found.get("quant_method")
    if name is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        name = "bitsandbytes"  # older files leave it out
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(
            f"{where}: quant_method {shown(name)} is unknown; s1jax reads {', '.join(METHODS)}, so {REMEDY}."
        )
    return METHODS[name](Settings(found, where))


def restore(method: Method | None, tensors: Mapping[str, Held], wanted: Collection[str]) -> dict[str, Held]:
    """The tensors of a checkpoint, quantised ones as floats, which are made when they are read.

    Args:
      method: of the checkpoint.
      tensors: as they are stored.
      wanted: names of the model's tensors.
    """
    if method is None:
        return dict(tensors)
    parts = Parts(dict(tensors))
    method.restore(parts, wanted)
    return parts.all()
