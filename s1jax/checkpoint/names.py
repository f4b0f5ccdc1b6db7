"""The one table between other formats' tensor names and our parameter tree; it is read in both directions.

A row says what one tensor of ours is called and how it is laid out elsewhere. Hugging Face and GGUF store matrices as
[outputs, inputs] and merge heads with head dimension, so a row is two strings of axis letters: ours without the layer
axis ("DNH") and the stored order with spaces between the stored axes ("NH D": N and H merged, then D). Reading and
writing both go through `views`: numpy views of our arrays in the stored layout, to be filled or to be copied out.

Axis letters: D model, F mlp, N query heads, K key/value heads, H head dimension, L layers, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from s1jax.config.layers import GQA, Layer
from s1jax.config.model import ModelConfig, Stack
from s1jax.config.schema import plain
from s1jax.errors import UserError

Params = dict[str, Any]

_BLOCK = 256


class Row(NamedTuple):
    """One line of the table; `{}` stands for the layer number, which makes `path` one below each stack of layers."""

    huggingface: str
    gguf: str
    path: str
    axes: str
    stored: str


_QKV = "model.layers.{}.self_attn."
_MLP = "model.layers.{}.mlp."

TABLE = (
    Row("model.embed_tokens.weight", "token_embd.weight", "embed/embedding", "VD", "V D"),
    Row("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", "attention_norm/scale", "D", "D"),
    Row(_QKV + "q_proj.weight", "blk.{}.attn_q.weight", "attention/query/kernel", "DNH", "NH D"),
    Row(_QKV + "q_proj.bias", "blk.{}.attn_q.bias", "attention/query/bias", "NH", "NH"),
    Row(_QKV + "k_proj.weight", "blk.{}.attn_k.weight", "attention/key/kernel", "DKH", "KH D"),
    Row(_QKV + "k_proj.bias", "blk.{}.attn_k.bias", "attention/key/bias", "KH", "KH"),
    Row(_QKV + "v_proj.weight", "blk.{}.attn_v.weight", "attention/value/kernel", "DKH", "KH D"),
    Row(_QKV + "v_proj.bias", "blk.{}.attn_v.bias", "attention/value/bias", "KH", "KH"),
    Row(_QKV + "q_norm.weight", "blk.{}.attn_q_norm.weight", "attention/query_norm/scale", "H", "H"),
    Row(_QKV + "k_norm.weight", "blk.{}.attn_k_norm.weight", "attention/key_norm/scale", "H", "H"),
    Row(_QKV + "o_proj.weight", "blk.{}.attn_output.weight", "attention/out/kernel", "NHD", "D NH"),
    Row("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", "mlp_norm/scale", "D", "D"),
    Row(_MLP + "gate_proj.weight", "blk.{}.ffn_gate.weight", "mlp/gate/kernel", "DF", "F D"),
    Row(_MLP + "up_proj.weight", "blk.{}.ffn_up.weight", "mlp/up/kernel", "DF", "F D"),
    Row(_MLP + "down_proj.weight", "blk.{}.ffn_down.weight", "mlp/down/kernel", "FD", "D F"),
    Row("model.norm.weight", "output_norm.weight", "final_norm/scale", "D", "D"),
    Row("lm_head.weight", "output.weight", "head/kernel", "DV", "V D"),
)


def _rows(config: ModelConfig) -> list[Row]:
    """Rows of the table whose tensors a model of `config` has, in any of its layers or outside of them."""
    layers = [stack.layer for stack in config.stacks()]

    def is_there(row: Row) -> bool:
        return any(_has(layer, row) for layer in layers) if "{}" in row.gguf else _kept(config, row)

    return [row for row in TABLE if is_there(row)]


def _has(layer: Layer, row: Row) -> bool:
    """Whether a layer has the tensor of a row."""
    parts = row.path.split("/")
    assert isinstance(layer.attention, GQA)
    if "bias" in parts:
        return layer.attention.qkv_bias
    return layer.attention.qk_norm or not {"query_norm", "key_norm"} & set(parts)


def _kept(config: ModelConfig, row: Row) -> bool:
    """Whether a model has the tensor of a row that is not of a layer."""
    return not (config.tied_embeddings and row.path.startswith("head/"))


def _sizes(config: ModelConfig, layer: Layer | None = None) -> dict[str, int]:
    """Axis letter -> size, in the model or in one of its layers."""
    sizes = {"V": config.vocab_size, "D": config.d_model}
    if layer is not None:
        attention = layer.attention
        assert isinstance(attention, GQA)
        sizes |= {"F": layer.mlp.hidden, "N": attention.num_heads, "K": attention.num_kv_heads, "H": attention.head_dim}
    return sizes


def _arrays(config: ModelConfig) -> Iterator[tuple[Row, Stack | None, str, dict[str, int]]]:
    """Every array of the tree in the table's order: its row, its stack, if it has one, its path and its axes' sizes."""
    stacks = config.stacks()
    for row in _rows(config):
        if "{}" not in row.gguf:
            yield row, None, row.path, _sizes(config)
            continue
        for stack in stacks:
            if _has(stack.layer, row):
                yield row, stack, f"{stack.name}/{row.path}", _sizes(config, stack.layer)


def allocate(config: ModelConfig, dtype: npt.DTypeLike) -> Params:
    """Returns the parameter tree of `config` with uninitialised numpy arrays of `dtype`, layers stacked."""
    params: Params = {}
    for row, stack, path, sizes in _arrays(config):
        lead = [] if stack is None else [len(stack.numbers)]
        *folders, leaf = path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = np.empty([*lead, *(sizes[axis] for axis in row.axes)], dtype)
    return params


def views(
    config: ModelConfig, params: Mapping[str, Any], names: Literal["huggingface", "gguf"]
) -> dict[str, np.ndarray]:
    """Stored name -> view of our array (one layer of it) in the stored layout; no memory is copied.

    Args:
      config: of the model.
      params: the parameter tree; numpy arrays, or anything that `np.asarray` turns into one.
      names: which of the table's two columns names the result.

    Returns:
      every tensor of the model in the table's order, layer by layer; writing to a view writes to `params`.
    """
    found: dict[str, np.ndarray] = {}
    for row, stack, path, _ in _arrays(config):
        array: Any = params
        for part in path.split("/"):
            array = array[part]
        array = np.asarray(array)
        name = getattr(row, names)
        if stack is None:
            found[name] = _stored(array, row)
        else:
            found.update((name.format(layer), _stored(array[i], row)) for i, layer in enumerate(stack.numbers))
    return found


def shapes(config: ModelConfig, names: Literal["huggingface", "gguf"]) -> dict[str, tuple[int, ...]]:
    """Stored name -> stored shape of every tensor of `config`, as `views` has them, without any array."""
    found: dict[str, tuple[int, ...]] = {}
    for row, stack, _, sizes in _arrays(config):
        shape = tuple(math.prod(sizes[axis] for axis in group) for group in row.stored.split(" "))
        name = getattr(row, names)
        found.update((name.format(layer), shape) for layer in ([0] if stack is None else stack.numbers))
    return found


def _stored(array: np.ndarray, row: Row) -> np.ndarray:
    """View of `array`, whose axes are row.axes, transposed and merged to row.stored."""
    order = row.stored.replace(" ", "")
    turned = array.transpose([row.axes.index(axis) for axis in order])
    sizes = dict(zip(order, turned.shape, strict=True))
    merged = [int(np.prod([sizes[axis] for axis in group])) for group in row.stored.split(" ")]
    return np.reshape(turned, merged, copy=False)


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copies `source` into `target` of the same shape, converting the type; either may be a transposed view.

    Goes block by block, because a row-by-row copy between opposite memory orders is bound by cache misses (4x slower).
    """
    if target.ndim != 2:
        target[...] = source
        return
    for i in range(0, target.shape[0], _BLOCK):
        for j in range(0, target.shape[1], _BLOCK):
            block = (slice(i, i + _BLOCK), slice(j, j + _BLOCK))
            target[block] = source[block].astype(target.dtype, copy=False)


def check(
    config: ModelConfig,
    names: Literal["huggingface", "gguf"],
    found: Mapping[str, tuple[tuple[int, ...], str]],
    where: str,
) -> None:
    """Compares the tensors of a model on disk with its configuration, before memory is taken for any.

    Args:
      config: of the model; its sizes may be wrong by any factor.
      names: which of the table's columns names the tensors.
      found: stored name -> stored shape and the file that holds it.
      where: what holds all of them, in messages.

    Raises:
      UserError: names tensors that are missing, extra or of another shape.
    """
    if config.num_layers > len(found):  # a layer has several tensors; a billion of names would take all memory
        raise UserError(
            f"{where} has {len(found)} tensors, too few for the {config.num_layers} layers of its configuration; "
            "get the configuration that belongs to these weights."
        )
    expected = shapes(config, names)
    _check_names(found, expected, where)
    for name, wanted in expected.items():
        shape, file = found[name]
        if shape != wanted:
            raise UserError(
                f"{file}: tensor {name} has shape {list(shape)} where the configuration says {list(wanted)}; "
                "get the configuration that belongs to these weights."
            )


def _check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    found, expected = set(found), set(expected)
    for problem, names in (("lacks", expected - found), ("has the unexpected", found - expected)):
        if names:
            listed = ", ".join(map(plain, sorted(names)[:3])) + (
                f" and {len(names) - 3} more" if len(names) > 3 else ""
            )
            raise UserError(
                f"{where} {problem} tensor{'s' * (len(names) > 1)} {listed}; its configuration does not describe "
                "these weights, so get a complete copy or correct the configuration."
            )
