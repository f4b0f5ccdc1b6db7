"""A model as one GGUF file, which llama.cpp and the programs on it run without anything else.

Names and layouts of tensors come from the rows of the family, as on reading. Tensors are converted and written one
after the other, piece by piece; the file appears when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from s1jax.checkpoint import names as names_lib
from s1jax.checkpoint.codecs import blocks
from s1jax.checkpoint.families.table import FAMILIES
from s1jax.checkpoint.gguf import container, metadata, mix, tokenizer_out
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer

# Values converted at a time: 64 MB in float32.
_CHUNK = 1 << 24


def write_model(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    *,
    file_type: str,
    name: str = "",
) -> dict[str, int]:
    """Writes a model with its tokenizer and chat template.

    Args:
      path: of the file; it is replaced if it exists.
      params: our tree; host arrays are read in place.
      config: of the model.
      tokenizer: of the model.
      chat: format that the model was trained with; becomes the chat template.
      file_type: one of `mix.TYPES`.
      name: of the model, for people.

    Returns:
      kind of weights -> number of tensors of that kind.

    Raises:
      UserError: llama.cpp would compute something else, a tensor or the tokenizer cannot be written so; `path` is as
        before.
    """
    values = metadata.written(config)
    architecture = str(values["general.architecture"])
    extra = metadata.extra_tensors(config)
    sources = {**names_lib.views(config, params, "gguf"), **extra}
    shapes = {name: tuple(map(int, view.shape)) for name, view in sources.items()}
    kinds = mix.kinds(config, shapes, file_type)
    values |= {
        "general.type": "model",
        **({"general.name": name} if name else {}),
        "general.file_type": int(mix.TYPES[file_type][1]),
        "general.quantization_version": 2,
        f"{architecture}.vocab_size": config.vocab_size,
        **tokenizer_out.metadata(tokenizer, chat, config.vocab_size),
    }
    table = [container.Tensor(name, shapes[name], kinds[name]) for name in sources]
    interleaved = FAMILIES[config.family].interleaved_in_gguf
    data = (
        _encoded(name, _turned(config, name, view) if interleaved else view, kinds[name])
        for name, view in sources.items()
    )
    with files.replace(path) as file:
        container.write(file, values, table, data)
    counts: dict[str, int] = {}
    for kind in kinds.values():
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _turned(config: ModelConfig, name: str, view: Any) -> Any:
    """A tensor whose rows of query and key heads are stored as pairs of a rotation, (H/2, 2); ours are (2, H/2)."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return view
    halves = np.reshape(view, (-1, 2, config.head_dim // 2, view.shape[-1]), copy=False)
    return halves.swapaxes(1, 2)


def _encoded(name: str, view: Any, kind: str) -> Iterator[np.ndarray]:
    """The data of a tensor in pieces of whole rows."""
    if not isinstance(view, np.ndarray):  # put together from several arrays of ours
        view = np.asarray(view)
    for matrix in view if view.ndim > 2 else [view]:
        rows = matrix.reshape(-1, matrix.shape[-1]) if matrix.ndim > 2 else np.atleast_2d(matrix)
        step = max(1, _CHUNK // max(rows.shape[-1], 1))
        for start in range(0, len(rows), step):
            try:
                yield blocks.encode(rows[start : start + step], kind)
            except blocks.NotFiniteError as error:
                raise UserError(
                    f"tensor {name} cannot be written: {error}; training has diverged, so take an earlier checkpoint."
                ) from None
            except ValueError as error:
                raise UserError(f"tensor {name} cannot be written as {kind}: {error}; choose another --type.") from None
