"""Hugging Face model folders: config.json and safetensors, single or sharded, read and written without torch.

Reading fills arrays that are allocated once, tensor by tensor, so the peak of host memory is the target plus one
tensor; writing copies out one tensor at a time. Names and layouts come from `s1jax.checkpoint.names`.
File format: https://huggingface.co/docs/safetensors; configuration keys as in transformers' Qwen2, Qwen3 and Llama.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from s1jax.checkpoint import names as names_lib
from s1jax.config import InputError, ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000

_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# model_type -> architecture, and what transformers assumes where config.json is silent.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2ForCausalLM", {"max_position_embeddings": 32768}),
    "qwen3": ("Qwen3ForCausalLM", {"max_position_embeddings": 32768, "head_dim": 128}),
    "llama": ("LlamaForCausalLM", {"max_position_embeddings": 2048}),
}
_DEFAULTS = {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

# Settings that change the computation in a way this decoder does not have: key -> the only value accepted.
_FIXED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False,
    "partial_rotary_factor": 1.0, "quantization_config": None,
}  # fmt: skip


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; InputError names the file when it is missing, broken (with the line) or no object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a folder with a complete Hugging Face model.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); get the file again.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; get the file again.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object; get the file again.")
    return values


def config_from_json(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Translates the contents of a config.json.

    Args:
      values: its keys, as written by transformers 4 (`rope_theta`) or 5 (`rope_parameters`).
      where: name of the file in errors.

    Raises:
      InputError: unknown architecture, a setting that the decoder cannot represent, a missing or mistyped key.
    """
    family = values.get("model_type")
    architectures = values.get("architectures") or [_FAMILIES.get(str(family), ("",))[0] or "unnamed"]
    if family not in _FAMILIES or list(architectures) != [_FAMILIES[family][0]]:
        raise InputError(
            f"{where}: architecture {', '.join(map(str, architectures))} (model_type {family!r}) is unknown; "
            f"s1jax reads {', '.join(name for name, _ in _FAMILIES.values())}."
        )
    for key, accepted in _FIXED.items():
        if values.get(key, accepted) not in (accepted, None):
            raise InputError(
                f"{where}: {key} is {values[key]!r}, which this decoder does not compute; only {accepted!r} is."
            )
    if set(values.get("layer_types") or ()) - {"full_attention"}:
        raise InputError(f"{where}: layer_types names other layers than full_attention, which this decoder lacks.")

    known = {**_DEFAULTS, **_FAMILIES[family][1], **{k: v for k, v in values.items() if v is not None}}
    if family == "llama" or values.get("num_key_value_heads", 0) is None:
        known.setdefault("num_key_value_heads", known.get("num_attention_heads"))

    def get(key: str, kind: type) -> Any:
        if key not in known:
            raise InputError(f"{where} lacks {key}; get the complete file.")
        value = known[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{where}: {key} is {value!r}; it must be of type {kind.__name__}.")
        return value

    d_model, num_heads = get("hidden_size", int), get("num_attention_heads", int)
    if "head_dim" not in known:
        if num_heads <= 0 or d_model % num_heads:
            raise InputError(
                f"{where}: hidden_size {d_model} is no multiple of num_attention_heads {num_heads}; add head_dim."
            )
        known["head_dim"] = d_model // num_heads
    known["rope_theta"] = _rope_theta(values, known["rope_theta"], where)
    return ModelConfig(
        vocab_size=get("vocab_size", int),
        d_model=d_model,
        mlp_dim=get("intermediate_size", int),
        num_layers=get("num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=get("num_key_value_heads", int),
        head_dim=get("head_dim", int),
        rope_theta=get("rope_theta", float),
        norm_eps=get("rms_norm_eps", float),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_embeddings=get("tie_word_embeddings", bool),
        context_length=get("max_position_embeddings", int),
    )


def _rope_theta(values: Mapping[str, Any], default: Any, where: str) -> Any:
    """Base of the rotary frequencies from either spelling; rejects every kind of scaling."""
    theta = default
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        if not isinstance(rope, Mapping):
            raise InputError(f"{where}: {key} is {rope!r}; it must be a JSON object.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        more = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if kind != "default" or more or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise InputError(
                f"{where}: {key} asks for rotary scaling of type {kind!r} ({', '.join(sorted(rope))}), which s1jax "
                "does not compute; remove it to use the model within its unscaled context."
            )
        found = rope.get("rope_theta", theta)
        if values.get("rope_theta") is not None and found != values["rope_theta"]:
            raise InputError(f"{where}: rope_theta is {values['rope_theta']} but {key} says {found}; keep one.")
        theta = found
    return theta


def config_to_json(config: ModelConfig, eos: Sequence[int] = (), dtype: Any = np.float32) -> dict[str, Any]:
    """The inverse of `config_from_json`: a config.json that transformers 4 and 5 read the same way.

    Args:
      config: of the model.
      eos: ids that end a text; none leaves `eos_token_id` null.
      dtype: of the stored weights.

    Raises:
      InputError: no architecture of transformers has this combination of settings.
    """
    if config.qkv_bias and config.qk_norm:
        raise InputError(
            "qkv_bias with qk_norm: no architecture of transformers has both; the model cannot be exported."
        )
    family = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    if family == "llama" and config.d_model % config.num_heads:
        raise InputError(
            f"d_model {config.d_model} is no multiple of num_heads {config.num_heads}, which transformers "
            "requires of a Llama; the model cannot be exported."
        )
    return {
        "architectures": [_FAMILIES[family][0]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": _one_or_list(eos),
        "torch_dtype": np.dtype(dtype).name,
    }


def _one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def read_eos(folder: pathlib.Path) -> tuple[int, ...]:
    """Ids that end a text, from generation_config.json or else config.json; empty when neither says."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            ids = read_json(folder / name).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def find_tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> the safetensors file that holds it, from the index or the single file.

    Raises:
      InputError: no weights, an index that names a missing file, or a file whose tensors are not those of the index
        (a tensor in two files included).
    """
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} has no weight_map; get the file again.")
    elif (folder / SINGLE).exists():
        weight_map = dict.fromkeys(_keys(folder / SINGLE), SINGLE)
    else:
        hint = "only PyTorch .bin files" if list(folder.glob("*.bin")) else f"neither {SINGLE} nor {INDEX}"
        raise InputError(f"{folder} has {hint}; s1jax reads safetensors, so save the model in that format.")
    for file in sorted(set(weight_map.values())):
        path = folder / file
        if not path.exists():
            raise InputError(f"{folder / INDEX} names the shard {file}, which does not exist; get it again.")
        promised, stored = {name for name, at in weight_map.items() if at == file}, set(_keys(path))
        if promised != stored:
            odd = sorted(promised ^ stored)[0]
            problem = "lacks it" if odd in promised else "holds it as well"
            raise InputError(f"{folder / INDEX}: tensor {odd} is not listed where it is, {file} {problem}.")
    return {name: folder / file for name, file in weight_map.items()}


def _keys(path: pathlib.Path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def _open(path: pathlib.Path) -> Any:
    try:
        # pread rather than mmap: pages of a mapped shard would stay in this process's memory next to the target.
        return safetensors.safe_open(path, framework="np", backend="pread")
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); get the file again.") from None


def read_params(folder: pathlib.Path, config: ModelConfig, dtype: Any = None) -> names_lib.Params:
    """Reads a folder's weights into our tree.

    A tied model may store `lm_head.weight` as well (Qwen3 0.6B does): it must then equal the embedding bit for bit,
    because the file would otherwise not be the model that its config.json describes.

    Args:
      folder: with safetensors files.
      config: of the model.
      dtype: of the result; None takes bfloat16 where all tensors are stored in it, float32 otherwise.

    Returns:
      numpy arrays, layers stacked, every one filled.

    Raises:
      InputError: names missing, extra, misshaped or non-float tensors.
    """
    files = find_tensors(folder)
    found = set(files)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tied_embeddings:
        found -= {head}
    # A tree of zero-size stand-ins would do for names; the real one costs address space only, until it is filled.
    if dtype is None:
        dtype = _stored_dtype(files)
    params = names_lib.allocate(config, dtype)
    targets = names_lib.views(config, params, "huggingface")
    names_lib.check_names(found, targets, str(folder))
    handles = {path: _open(path) for path in sorted(set(files.values()))}
    for name in sorted(targets, key=lambda name: files[name]):
        stored = handles[files[name]].get_slice(name)
        names_lib.check_shape(name, tuple(stored.get_shape()), targets[name].shape, str(files[name]))
    for name in sorted(targets, key=lambda name: files[name]):
        names_lib.copy(targets[name], handles[files[name]].get_tensor(name))
    if config.tied_embeddings and head in files:
        one, other = (handles[files[name]].get_tensor(name) for name in (embedding, head))
        if one.dtype != other.dtype or not np.array_equal(_bits(one), _bits(other)):
            raise InputError(
                f"{files[head]}: {head} differs from {embedding} although config.json ties them; "
                "set tie_word_embeddings to false."
            )
    return params


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8)


def _stored_dtype(files: Mapping[str, pathlib.Path]) -> Any:
    """bfloat16 if all tensors are stored in it, else float32; InputError names a tensor that is no float."""
    kinds = set()
    for path in sorted(set(files.values())):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
                kind = file.get_slice(name).get_dtype()
                if kind not in _DTYPES:
                    raise InputError(
                        f"{path}: tensor {name} is stored as {kind}; s1jax reads {', '.join(_DTYPES)}, "
                        "so get the unquantised model."
                    )
                kinds.add(kind)
    return ml_dtypes.bfloat16 if kinds == {"BF16"} else np.float32


def write_model(
    folder: pathlib.Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    dtype: Any = None,
    eos: Sequence[int] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json, generation_config.json and safetensors that transformers loads; no tokenizer.

    Args:
      folder: exists and is empty.
      params: our tree; host arrays are read in place, one tensor is copied at a time.
      config: of the model.
      dtype: of the stored weights; None keeps that of `params`.
      eos: ids that end a text.
      max_shard_bytes: larger models are split into files of at most this size (a larger tensor has its own).
    """
    sources = names_lib.views(config, params, "huggingface")
    dtype = np.dtype(dtype or sources["model.embed_tokens.weight"].dtype)
    shards: list[list[str]] = [[]]
    size = 0
    for name, view in sources.items():
        num_bytes = view.size * dtype.itemsize
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, {name: sources[name] for name in shard}, dtype)
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        total = sum(view.size for view in sources.values()) * dtype.itemsize
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", config_to_json(config, eos, dtype))
    _write_json(folder / "generation_config.json", {"eos_token_id": _one_or_list(eos), "do_sample": False})


def _write_shard(path: pathlib.Path, tensors: Mapping[str, np.ndarray], dtype: np.dtype) -> None:
    """Writes one safetensors file tensor by tensor; the library's writer wants all of them contiguous at once."""
    kind = next(name for name, known in _DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.size * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            contiguous = np.empty(tensor.shape, dtype)
            names_lib.copy(contiguous, tensor)
            file.write(contiguous.view(np.uint8).data)  # tofile does not say that the disk is full


def complete_tokenizer(folder: pathlib.Path, eos: str) -> None:
    """Adds the tokenizer_config.json that transformers needs where the tokenizer's own files bring none.

    Args:
      folder: holds a `tokenizer.json` or a SentencePiece `.model` file.
      eos: the token that ends a text.
    """
    if (folder / "tokenizer_config.json").exists():
        return
    # The general class takes tokenizer.json as it is; those of a family would put their own pre-tokenizer in its place.
    kind = "PreTrainedTokenizerFast" if (folder / "tokenizer.json").exists() else "LlamaTokenizer"
    values = {"tokenizer_class": kind, "eos_token": eos, "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", values)


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
