"""The configuration of a model as the metadata of a GGUF file, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from s1jax.checkpoint import names
from s1jax.checkpoint.families import llama_cpp, llama_cpp_out
from s1jax.checkpoint.families.family import differences
from s1jax.checkpoint.families.keys import Keys
from s1jax.checkpoint.families.table import FAMILIES
from s1jax.checkpoint.gguf.container import Value
from s1jax.checkpoint.gguf.file import File
from s1jax.checkpoint.gguf.parse import Damaged
from s1jax.config.layers import GQA
from s1jax.config.model import Group, ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import shown
from s1jax.errors import UserError


def get(reader: File, where: str, key: str, kind: type, default: Any = None) -> Any:
    """A value of the metadata; UserError names the file and the key where the value is damaged or no `kind`."""
    if key not in reader.metadata:
        return default
    value = _contents(reader, where, key)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(
            f"{where}: the metadata {key} is of type {type(value).__name__}, not {kind.__name__}; get the file again."
        )
    return value


def _contents(reader: File, where: str, key: str) -> Any:
    value = reader.metadata[key]
    if isinstance(value, Damaged):
        raise UserError(f"{where}: the metadata {key} is damaged; get the file again.")
    return value


def read_config(reader: File, where: str) -> ModelConfig:
    """Translates the metadata of a file.

    Args:
      reader: from `file.open_file`.
      where: name of the file in errors.

    Raises:
      UserError: unknown architecture, a setting the decoder cannot represent, or a missing one.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    keys = Keys(
        get(reader, where, "general.architecture", str),
        where,
        list(reader.metadata),
        lambda key: _contents(reader, where, key),
        {name: tensor.shape for name, tensor in tensors.items()},
        lambda name: np.array(tensors[name].data),
    )
    return _config(keys)


def _config(keys: Keys) -> ModelConfig:
    values = llama_cpp.fields(keys)
    if values["model_type"] not in FAMILIES:
        raise UserError(
            f"{keys.where}: models of type {shown(values['model_type'])} are unknown; s1jax reads "
            f"{', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[values["model_type"]].read(values, keys.where)


def written(config: ModelConfig) -> dict[str, Value]:
    """The metadata of a model, tokenizer and file type left out.

    They are read again, as llama.cpp does: it must compute what this model is.

    Raises:
      UserError: llama.cpp would compute something else, and what.
    """
    if config.family not in FAMILIES:
        raise UserError(
            f"model.family is {config.family!r}, which llama.cpp does not know; s1jax writes GGUF files of "
            f"{', '.join(sorted(FAMILIES))}."
        )
    family = FAMILIES[config.family]
    architecture = family.gguf_architecture or family.model_type
    values = {f"{architecture}.{key}": value for key, value in llama_cpp_out.keys(config).items()}
    _check(config, architecture, values)
    return {"general.architecture": architecture, **values}


def extra_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensors of a file that are a part of its configuration."""
    return llama_cpp_out.tensors(config)


def _check(config: ModelConfig, architecture: str, values: Mapping[str, Any]) -> None:
    """Raises UserError where llama.cpp reads another model than `config`."""
    extra = extra_tensors(config)
    shapes = names.shapes(config, "gguf") | {name: array.shape for name, array in extra.items()}
    keys = Keys(architecture, "the GGUF file", list(values), values.__getitem__, shapes, extra.__getitem__)
    try:
        held = _config(keys)
    except UserError as error:
        raise UserError(f"llama.cpp's architecture {architecture} does not hold this model: {error}") from None
    for name, ours, theirs in _differences(_visible(config), dataclasses.replace(held, family=config.family)):
        raise UserError(
            f"llama.cpp's architecture {architecture} computes with {name} {theirs}, and this model has {ours}; it "
            "would give other answers, so the GGUF file is not written; --to_hf writes a folder for other programs."
        )


def _differences(config: ModelConfig, held: ModelConfig) -> list[tuple[str, object, object]]:
    """As `differences`, with the fields of rotary scaling one by one."""
    ours, theirs = config.rope_scaling, held.rope_scaling
    if ours is None or theirs is None or ours.kind != theirs.kind:
        return [*differences(config, held)]
    found = [
        (f"rope_scaling.{field.name}", getattr(ours, field.name), getattr(theirs, field.name))
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    return [*found, *differences(config, held)]


def _usual(scaling: RopeScaling | None) -> RopeScaling | None:
    """Rotary scaling whose attention factor is left out where it is what follows from the others."""
    if scaling is None or scaling.kind != "yarn" or scaling.attention_factor is None:
        return scaling
    follows = 0.1 * math.log(scaling.factor) + 1
    return (
        dataclasses.replace(scaling, attention_factor=None)
        if math.isclose(scaling.attention_factor, follows)
        else scaling
    )


def _visible(config: ModelConfig) -> ModelConfig:
    """The model without windows that the longest sequence fits into, and without an attention factor that follows."""
    groups = []
    for group in config.groups:
        pattern = [
            dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=0))
            if isinstance(layer.attention, GQA) and layer.attention.window >= config.context_length
            else layer
            for layer in group.pattern
        ]
        groups.append(Group(group.repeat, tuple(pattern)))
    return dataclasses.replace(config, groups=tuple(groups), rope_scaling=_usual(config.rope_scaling))
