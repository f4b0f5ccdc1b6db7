"""Import of GGUF files: weights dequantised, configuration and tokenizer rebuilt from the metadata.

Names and layouts come from `s1jax.checkpoint.names`. One thing is special to llama.cpp: files of the `llama`
architecture keep the rows of query and key heads interleaved (pairs of a rotation side by side) where our rotation
pairs row i with row i + H/2; `read_params` undoes it. `qwen2` and `qwen3` files are stored as we compute.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from s1jax.checkpoint import huggingface_config
from s1jax.checkpoint import names as names_lib
from s1jax.checkpoint.families.table import FAMILIES
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import from_dict, plain, shown
from s1jax.errors import UserError

# What the library dequantises. Left out is NVFP4, whose second scales are tensors of their own.
_QUANTIZED = (
    "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
READABLE = ("F32", "F16", *_QUANTIZED)

# Values dequantised at a time: bounds the copy of a large embedding to 64 MB in float32.
_CHUNK = 1 << 24

# How text is cut into words before byte-level BPE, by `tokenizer.ggml.pre`. Patterns are those of the models' published
# tokenizer.json files.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN_WORDS.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


def open_file(path: str | os.PathLike[str]) -> gguf.GGUFReader:
    """Opens a GGUF file and parses its metadata; tensors stay on disk until they are read.

    Raises:
      UserError: no such file, not a (complete) GGUF file, or one part of a split file.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise UserError(f"{path} is not a regular file; give the path of a .gguf file.")
    try:
        reader = gguf.GGUFReader(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a .gguf file.") from None
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({shown(str(error), 200)}); get it again.") from None
    if _get(reader, str(path), "split.count", int, 1) > 1:
        raise UserError(f"{path} is one part of a split GGUF file; join the parts with llama.cpp's gguf-split --merge.")
    return reader


def _get(reader: gguf.GGUFReader, where: str, key: str, kind: type, default: Any = None) -> Any:
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
    architecture = _get(reader, where, "general.architecture", str)
    if architecture not in FAMILIES:
        raise UserError(
            f"{where}: architecture {shown(architecture)} is unknown; s1jax reads {', '.join(sorted(FAMILIES))}."
        )

    def get(key: str, kind: type, default: Any = None) -> Any:
        field = reader.get_field(f"{architecture}.{key}")
        if field is not None and field.types[0] == gguf.GGUFValueType.ARRAY:
            raise UserError(
                f"{where}: {architecture}.{key} differs between layers, which this decoder does not compute."
            )
        value = _get(reader, where, f"{architecture}.{key}", kind, default)
        if value is None:
            raise UserError(f"{where} lacks the metadata {architecture}.{key}; get a complete file.")
        return value

    if get("expert_count", int, 0):
        raise UserError(f"{where}: a mixture of experts is not supported; s1jax reads dense decoders.")
    d_model, num_heads = get("embedding_length", int), get("attention.head_count", int)
    head_dim = get("attention.key_length", int, get("rope.dimension_count", int, d_model // max(num_heads, 1)))
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, int, head_dim) != head_dim:
            raise UserError(
                f"{where}: {architecture}.{key} is {get(key, int)}, the head dimension {head_dim}; they must be equal."
            )
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise UserError(f"{where} lacks tensor token_embd.weight; get a complete file.")
    length, theta = get("context_length", int), _decimal(get("rope.freq_base", float, 1e4))
    scaling = _rope_scaling(reader, get, length, theta, head_dim, where)
    settings: dict[str, Any] = dict(
        family=architecture,
        vocab_size=int(shapes["token_embd.weight"][-1]),
        d_model=d_model,
        mlp_dim=get("feed_forward_length", int),
        num_layers=get("block_count", int),
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_decimal(get("attention.layer_norm_rms_epsilon", float)),
        qkv_bias=FAMILIES[architecture].qkv_bias,
        qk_norm=FAMILIES[architecture].qk_norm,
        tied_embeddings="output.weight" not in shapes,
        context_length=max(length, huggingface_config.extended_length(scaling)),
    )
    try:
        return ModelConfig.dense(**settings)
    except UserError as error:  # knows no file
        raise UserError(f"{where}: {error}") from None


def _rope_scaling(
    reader: gguf.GGUFReader, get: Callable[..., Any], length: int, theta: float, head_dim: int, where: str
) -> RopeScaling | None:
    """Rotary scaling as llama.cpp reads it: `rope.scaling.*`, or divisors of the frequencies in `rope_freqs.weight`.

    Args:
      reader: of the file.
      get: reads a value of the architecture, see `read_config`.
      length: context_length.
      theta: base of the frequencies.
      head_dim: H.
      where: name of the file.
    """
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    factor = get("rope.scaling.factor", float, 0.0) or get("rope.scale_linear", float, 0.0) or 1.0  # before 2023-11
    kind = get("rope.scaling.type", str, "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(f"{where}: rotary scaling of type {shown(kind)} is not computed by s1jax; get another model.")
    settings: dict[str, Any] | None = None
    if kind == "yarn":
        for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
            if (value := get(f"rope.scaling.{key}", float, 1.0)) != 1.0:
                raise UserError(
                    f"{where}: rope.scaling.{key} is {value:g}; programs differ in what it means, so get a file "
                    "without it, or convert the Hugging Face model."
                )
        if value := get("rope.scaling.yarn_log_multiplier", float, 0.0):
            raise UserError(
                f"{where}: rope.scaling.yarn_log_multiplier is {value:g}, which s1jax does not compute; get another "
                "model."
            )
        settings = {
            "kind": "yarn",
            "factor": factor,
            "original_context_length": get("rope.scaling.original_context_length", int, length),
            "beta_fast": _decimal(get("rope.scaling.yarn_beta_fast", float, 32.0)),
            "beta_slow": _decimal(get("rope.scaling.yarn_beta_slow", float, 1.0)),
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


def read_params(
    reader: gguf.GGUFReader, config: ModelConfig, where: str, dtype: npt.DTypeLike = np.float32
) -> names_lib.Params:
    """Reads and dequantises the weights into our tree.

    Args:
      reader: from `open_file`.
      config: from `read_config`.
      where: name of the file in errors.
      dtype: of the result; float32 holds every dequantised value exactly.

    Returns:
      numpy arrays, layers stacked, every one filled.

    Raises:
      UserError: names missing, extra or misshaped tensors and unreadable types.
    """
    for tensor in reader.tensors:
        if tensor.tensor_type.name not in READABLE:
            raise UserError(
                f"{where}: tensor {plain(tensor.name)} has type {tensor.tensor_type.name}; s1jax reads "
                f"{', '.join(READABLE)}, so get another quantisation of the model."
            )
    tensors = [tensor for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]  # in the configuration
    found = {tensor.name: (tuple(map(int, reversed(tensor.shape))), where) for tensor in tensors}
    names_lib.check(config, "gguf", found, where)
    params = names_lib.allocate(config, dtype)
    targets = names_lib.views(config, params, "gguf")
    interleaved = FAMILIES[config.family].interleaved_in_gguf
    for tensor in tensors:
        target = targets[tensor.name]
        if interleaved and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            # Rows of a head: stored (H/2, 2), ours (2, H/2).
            h = config.head_dim
            halves = np.reshape(target, (-1, 2, h // 2, target.shape[-1]), copy=False).swapaxes(1, 2)
            step = max(1, _CHUNK // (h * target.shape[-1]))
            for start in range(0, len(halves), step):
                heads = halves[start : start + step]
                rows = dequantize(tensor.data[start * h : (start + step) * h], tensor.tensor_type)
                heads[...] = rows.reshape(heads.shape)
            continue
        step = max(1, _CHUNK // target.shape[-1])
        for start in range(0, len(target), step):
            piece = slice(start, start + step)
            names_lib.copy(target[piece], dequantize(tensor.data[piece], tensor.tensor_type))
    return params


def dequantize(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Returns stored values as float32 (F16 and F32 as they are); rows of quantised `data` are bytes."""
    return gguf.dequantize(data, kind) if kind.name in _QUANTIZED else data


def read_tokenizer(reader: gguf.GGUFReader, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rebuilds a tokenizer from the metadata.

    Control tokens become special added tokens, user-defined ones plain added tokens; unused ids (padding of the
    vocabulary) are left out, so that they are never sampled.

    Returns:
      the contents of tokenizer.json and of tokenizer_config.json (which tokens end and pad a text).

    Raises:
      UserError: the file has no tokenizer, no byte-level BPE, or cuts words in a way not known here.
    """
    kind, pre = (_get(reader, where, f"tokenizer.ggml.{key}", str) for key in ("model", "pre"))
    remedy = "pass --tokenizer=DIR with the model's Hugging Face tokenizer"
    if kind != "gpt2":
        raise UserError(f"{where} has a tokenizer of type {shown(kind)}, not byte-level BPE (gpt2); {remedy}.")
    normalizer, ignore_merges = None, False
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    if pre in ("qwen2", "deepseek-r1-qwen", "llama-bpe", "llama3"):
        llama3 = pre.startswith("llama")
        pattern = {"Regex": _LLAMA3_WORDS if llama3 else _QWEN_WORDS}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        pre_tokenizers = [split, byte_level]
        normalizer = {"type": "NFC"} if pre == "qwen2" else None
        ignore_merges = llama3
    elif pre == "smollm":
        pre_tokenizers = [{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}]
    elif pre == "gpt-2":
        pre_tokenizers = [{**byte_level, "use_regex": True}]
    else:
        raise UserError(f"{where}: tokenizer.ggml.pre is {shown(pre)}, a way of cutting words unknown here; {remedy}.")

    tokens, merges, types = (
        _get(reader, where, f"tokenizer.ggml.{key}", list, []) for key in ("tokens", "merges", "token_type")
    )
    if not tokens or len(types) != len(tokens):
        raise UserError(f"{where} has {len(tokens)} tokens and {len(types)} token types; {remedy}.")
    if not all(isinstance(text, str) for text in (*tokens, *merges)):
        raise UserError(f"{where} has tokens or merges that are not text; {remedy}.")
    known = gguf.TokenType
    vocab, added = {}, []
    for index, (token, token_type) in enumerate(zip(tokens, types, strict=True)):
        if token_type == known.UNUSED:
            continue
        vocab[token] = index  # added tokens too: the tokenizers library gives new numbers to tokens that are not here
        if token_type == known.NORMAL:
            continue
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added.append({"id": index, "content": token, **flags, "special": token_type != known.USER_DEFINED})
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise UserError(f"{where}: merge {shown(merge)} names tokens that are not in the vocabulary; {remedy}.")
    named = {"eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in named.items():
        index = _get(reader, where, f"tokenizer.ggml.{key}", int)
        if index is not None and 0 <= index < len(tokens):
            about[name] = tokens[index]
    template = _get(reader, where, "tokenizer.chat_template", str)
    if template:
        about["chat_template"] = template
    model = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    return model, about
