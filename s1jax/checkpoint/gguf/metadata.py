"""The metadata of a GGUF file as a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np

from s1jax.checkpoint import huggingface_config
from s1jax.checkpoint.families.table import IN_GGUF
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import from_dict, shown
from s1jax.errors import UserError


def get(reader: gguf.GGUFReader, where: str, key: str, kind: type, default: Any = None) -> Any:
    """A value of the metadata; UserError names the file and the key where the value is damaged or no `kind`."""
    field = reader.get_field(key)
    if field is None:
        return default
    try:
        value = field.contents()
    except (ValueError, IndexError, KeyError, TypeError):  # no UTF-8 text, or a type that does not exist
        raise UserError(f"{where}: the metadata {key} is damaged; get the file again.") from None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(
            f"{where}: the metadata {key} is of type {type(value).__name__}, not {kind.__name__}; get the file again."
        )
    return value


def read_config(reader: gguf.GGUFReader, where: str) -> ModelConfig:
    """Translates the metadata of a file.

    Args:
      reader: from `open_file`.
      where: name of the file in errors.

    Raises:
      UserError: unknown architecture, a setting the decoder cannot represent, or a missing one.
    """
    architecture = get(reader, where, "general.architecture", str)
    if architecture not in IN_GGUF:
        raise UserError(
            f"{where}: architecture {shown(architecture)} is unknown; s1jax reads {', '.join(sorted(IN_GGUF))}."
        )

    def of(key: str, kind: type, default: Any = None) -> Any:
        field = reader.get_field(f"{architecture}.{key}")
        if field is not None and field.types[0] == gguf.GGUFValueType.ARRAY:
            raise UserError(
                f"{where}: {architecture}.{key} differs between layers, which this decoder does not compute."
            )
        value = get(reader, where, f"{architecture}.{key}", kind, default)
        if value is None:
            raise UserError(f"{where} lacks the metadata {architecture}.{key}; get a complete file.")
        return value

    if of("expert_count", int, 0):
        raise UserError(f"{where}: a mixture of experts is not supported; s1jax reads dense decoders.")
    d_model, num_heads = of("embedding_length", int), of("attention.head_count", int)
    head_dim = of("attention.key_length", int, of("rope.dimension_count", int, d_model // max(num_heads, 1)))
    for key in ("attention.value_length", "rope.dimension_count"):
        if of(key, int, head_dim) != head_dim:
            raise UserError(
                f"{where}: {architecture}.{key} is {of(key, int)}, the head dimension {head_dim}; they must be equal."
            )
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise UserError(f"{where} lacks tensor token_embd.weight; get a complete file.")
    length, theta = of("context_length", int), _decimal(of("rope.freq_base", float, 1e4))
    scaling = _rope_scaling(reader, of, length, theta, head_dim, where)
    settings: dict[str, Any] = dict(
        family=architecture,
        vocab_size=int(shapes["token_embd.weight"][-1]),
        d_model=d_model,
        mlp_dim=of("feed_forward_length", int),
        num_layers=of("block_count", int),
        num_heads=num_heads,
        num_kv_heads=of("attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_decimal(of("attention.layer_norm_rms_epsilon", float)),
        qkv_bias=IN_GGUF[architecture].qkv_bias,
        qk_norm=IN_GGUF[architecture].qk_norm,
        tied_embeddings="output.weight" not in shapes,
        context_length=max(length, huggingface_config.extended_length(scaling)),
    )
    try:
        return ModelConfig.dense(**settings)
    except UserError as error:  # knows no file
        raise UserError(f"{where}: {error}") from None


def _rope_scaling(
    reader: gguf.GGUFReader, of: Callable[..., Any], length: int, theta: float, head_dim: int, where: str
) -> RopeScaling | None:
    """Rotary scaling as llama.cpp reads it: `rope.scaling.*`, or divisors of the frequencies in `rope_freqs.weight`.

    Args:
      reader: of the file.
      of: reads a value of the architecture, see `read_config`.
      length: context_length.
      theta: base of the frequencies.
      head_dim: H.
      where: name of the file.
    """
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    factor = of("rope.scaling.factor", float, 0.0) or of("rope.scale_linear", float, 0.0) or 1.0  # before 2023-11
    kind = of("rope.scaling.type", str, "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(f"{where}: rotary scaling of type {shown(kind)} is not computed by s1jax; get another model.")
    settings: dict[str, Any] | None = None
    if kind == "yarn":
        for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
            if (value := of(f"rope.scaling.{key}", float, 1.0)) != 1.0:
                raise UserError(
                    f"{where}: rope.scaling.{key} is {value:g}; programs differ in what it means, so get a file "
                    "without it, or convert the Hugging Face model."
                )
        if value := of("rope.scaling.yarn_log_multiplier", float, 0.0):
            raise UserError(
                f"{where}: rope.scaling.yarn_log_multiplier is {value:g}, which s1jax does not compute; get another "
                "model."
            )
        settings = {
            "kind": "yarn",
            "factor": factor,
            "original_context_length": of("rope.scaling.original_context_length", int, length),
            "beta_fast": _decimal(of("rope.scaling.yarn_beta_fast", float, 32.0)),
            "beta_slow": _decimal(of("rope.scaling.yarn_beta_slow", float, 1.0)),
        }
    elif kind == "linear" and factor != 1:
        settings = {"kind": "linear", "factor": factor}
    if divisors is not None and (divisors != 1).any():
        if settings is not None:
            raise UserError(f"{where} has both rope.scaling.type {kind!r} and rope_freqs.weight; get another model.")
        return _from_divisors(divisors, theta, head_dim, where)
    try:
        return None if settings is None else from_dict(RopeScaling, settings)
    except UserError as error:  # knows no file
        raise UserError(f"{where}: {error}") from None


def _from_divisors(divisors: np.ndarray, theta: float, head_dim: int, where: str) -> RopeScaling:
    """The llama3 scaling whose divisors these are; llama.cpp writes them in place of the settings.

    The published models have 1 and 4 as factors of the borders and an original context of 8,192; any power of two is
    tried.
    """
    from s1jax.model import rope  # imports jax

    if divisors.shape == (head_dim // 2,) and np.isfinite(divisors).all() and 1 < divisors.max() <= 2**20:
        for original in (8192, *(2**power for power in range(5, 24))):
            scaling = RopeScaling("llama3", _decimal(divisors.max()), original)
            if np.allclose(1 / rope.multipliers(head_dim, theta, scaling), divisors, rtol=1e-4, atol=0):
                return scaling
    raise UserError(
        f"{where}: tensor rope_freqs.weight does not hold the divisors of Llama 3's rotary scaling; convert the "
        "Hugging Face model."
    )


def _decimal(value: float) -> float:
    """Shortest decimal of a value stored as float32: 1e-5 rather than 9.99999974e-06."""
    return float(str(np.float32(value)))
