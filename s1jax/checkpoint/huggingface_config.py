"""config.json of Hugging Face model folders, with generation_config.json beside it, read and written.

What differs between architectures is in `s1jax.checkpoint.families`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from s1jax.checkpoint.families.table import FAMILIES, exported
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import from_dict, plain, shown
from s1jax.errors import UserError
from s1jax.io import files

_MAX_JSON_BYTES = 100_000_000  # an index of a million tensors

# What transformers assumes for keys that config.json does not have; a family may have more of them.
_DEFAULTS = {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

# Settings that change the computation in a way this decoder does not have: key -> the only value accepted.
_FIXED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False,
    "partial_rotary_factor": 1.0, "quantization_config": None,
}  # fmt: skip


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; UserError names the file when it is missing, broken (with the line) or no object.

    A link is followed within the file's own folder only, see `s1jax.io.files.check_own`.
    """
    files.check_own(path)
    if path.exists() and path.stat().st_size > _MAX_JSON_BYTES:
        raise UserError(f"{path} has more than {_MAX_JSON_BYTES // 10**6} MB; get the file again.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a folder with a complete Hugging Face model.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); get the file again.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; get the file again.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep; get the file again.") from None
    except ValueError:  # Python converts no number of more than 4,300 digits
        raise UserError(f"{path} holds a number with too many digits; get the file again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); get the file again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object; get the file again.")
    return values


def wrong_type(where: object, key: str, value: Any, wanted: str) -> UserError:
    """The error for a value of a JSON file that has another type than it must have."""
    return UserError(f"{where}: {key} is {shown(value)}; it must be {wanted}, so get the file again.")


def config_from_json(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Translates the contents of a config.json.

    Args:
      values: its keys, as written by transformers 4 (`rope_theta`) or 5 (`rope_parameters`).
      where: name of the file in errors.

    Raises:
      UserError: unknown architecture, a setting that the decoder cannot represent, a missing or mistyped key.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str | None):
        raise wrong_type(where, "model_type", model_type, "a string")
    family = FAMILIES.get(str(model_type))
    architectures = values.get("architectures") or ["unnamed" if family is None else family.architecture]
    if not isinstance(architectures, list):
        raise wrong_type(where, "architectures", architectures, "a list")
    if family is None or architectures != [family.architecture]:
        raise UserError(
            f"{where}: architecture {', '.join(plain(str(name)) for name in architectures[:3])} (model_type "
            f"{shown(model_type)}) is unknown; "
            f"s1jax reads {', '.join(known.architecture for known in FAMILIES.values())}."
        )
    for key, accepted in _FIXED.items():
        if values.get(key, accepted) not in (accepted, None):
            raise UserError(
                f"{where}: {key} is {shown(values[key])}, which this decoder does not compute; only {accepted!r} is."
            )
    if values.get("transformers_weights") is not None:
        raise UserError(
            f"{where}: transformers_weights names a file of its own, {shown(values['transformers_weights'])}; save the "
            "model with save_pretrained, which writes model.safetensors."
        )
    layer_types = values.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise wrong_type(where, "layer_types", layer_types, "a list")
    if any(kind != "full_attention" for kind in layer_types):
        raise UserError(f"{where}: layer_types names other layers than full_attention, which this decoder lacks.")

    known = {**_DEFAULTS, **family.silent, **{k: v for k, v in values.items() if v is not None}}
    if model_type == "llama" or values.get("num_key_value_heads", 0) is None:
        known.setdefault("num_key_value_heads", known.get("num_attention_heads"))

    def get(key: str, kind: type) -> Any:
        if key not in known:
            raise UserError(f"{where} lacks {key}; get the complete file.")
        value = known[key]
        if kind is float and type(value) is int:
            value = float(str(value))  # infinite where float(value) would overflow
        if value in (math.inf, -math.inf) or value != value:
            raise UserError(f"{where}: {key} is {value}; it must be finite.")
        if type(value) is not kind:
            raise UserError(f"{where}: {key} is {shown(value)}; it must be of type {kind.__name__}.")
        return value

    d_model, num_heads = get("hidden_size", int), get("num_attention_heads", int)
    if "head_dim" not in known:
        if num_heads <= 0 or d_model % num_heads:
            raise UserError(
                f"{where}: hidden_size {d_model} is not a multiple of num_attention_heads {num_heads}; add head_dim."
            )
        known["head_dim"] = d_model // num_heads
    length = get("max_position_embeddings", int)
    known["rope_theta"], scaling = _rope(values, known["rope_theta"], length, where)
    settings: dict[str, Any] = dict(
        family=family.model_type,
        vocab_size=get("vocab_size", int),
        d_model=d_model,
        mlp_dim=get("intermediate_size", int),
        num_layers=get("num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=get("num_key_value_heads", int),
        head_dim=get("head_dim", int),
        rope_theta=get("rope_theta", float),
        rope_scaling=scaling,
        norm_eps=get("rms_norm_eps", float),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=get("tie_word_embeddings", bool),
        context_length=max(length, extended_length(scaling)),
    )
    try:
        return ModelConfig.dense(**settings)
    except UserError as error:  # knows no file
        raise UserError(f"{where}: {error}") from None


# Fields of rotary scaling by kind, in Hugging Face's names; those not listed are refused.
_COMMON = {"factor", "rope_type", "type", "rope_theta", "partial_rotary_factor"}
_ROPE_FIELDS: dict[str, set[str]] = {
    "default": _COMMON - {"factor"},
    "linear": _COMMON,
    "llama3": _COMMON | {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": _COMMON
    | {"original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"}
    | {"attention_factor", "mscale", "mscale_all_dim"},
}


def _rope(values: Mapping[str, Any], theta: Any, length: int, where: str) -> tuple[Any, RopeScaling | None]:
    """Base and scaling of the rotary frequencies, from `rope_scaling` (transformers 4) or `rope_parameters` (5).

    Args:
      values: of config.json.
      theta: base where they have none.
      length: `max_position_embeddings`.
      where: name of the file.
    """
    read: dict[str, dict[str, Any]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        if not isinstance(rope, Mapping):
            raise UserError(f"{where}: {key} is {shown(rope)}; it must be a JSON object.")
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise UserError(
                f"{where}: {key} differs between layers ({', '.join(map(shown, sorted(rope)[:3]))}), which this "
                "decoder does not compute; get another model."
            )
        if rope:
            read[key] = {name: value for name, value in rope.items() if value is not None or name == "truncate"}
    for key, rope in read.items():
        found = rope.get("rope_theta", theta)
        if values.get("rope_theta") is not None and found != values["rope_theta"]:
            raise UserError(
                f"{where}: rope_theta is {shown(values['rope_theta'])} but {key} says {shown(found)}; keep one."
            )
        theta = found
    scalings = {key: _scaling(rope, values, theta, length, f"{where}: {key}") for key, rope in read.items()}
    if len({*scalings.values()}) > 1:
        raise UserError(f"{where}: rope_scaling and rope_parameters ask for different rotary scaling; keep one.")
    return theta, next(iter(scalings.values()), None)


def _scaling(
    rope: Mapping[str, Any], values: Mapping[str, Any], theta: Any, length: int, where: str
) -> RopeScaling | None:
    """The scaling that one JSON object asks for; None: no scaling."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in (*_ROPE_FIELDS,):
        remedy = "get a model without it"
        if kind == "dynamic":  # changes nothing in rows of up to `length` tokens
            unscaled = json.dumps({"rope_type": "default", "rope_theta": theta})
            remedy = (
                f"set it to {unscaled} to use the model with rows of up to {length} tokens, which is the same there"
            )
        raise UserError(
            f"{where} asks for rotary scaling of type {shown(kind)}; s1jax computes "
            f"{', '.join(_ROPE_FIELDS)}, so {remedy}."
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{where}.partial_rotary_factor is {shown(rope['partial_rotary_factor'])}, which this decoder does not "
            "compute; only 1.0 is."
        )
    unknown = sorted(set(rope) - _ROPE_FIELDS[kind])
    if unknown == ["attn_factor"] and kind == "yarn":
        raise UserError(
            f"{where}.attn_factor is read differently by other programs: transformers ignores it, vLLM multiplies by "
            "it. Remove it for the first, or replace it by attention_factor, the product that cosines and sines are "
            "multiplied by (1.0 in DeepSeek-R1-0528-Qwen3-8B), for the second."
        )
    if unknown:
        raise UserError(
            f"{where}.{plain(unknown[0])} is not a field of rotary scaling of type {kind!r}; transformers ignores it, "
            "so remove it if the model is right there."
        )
    if kind == "default":
        return None
    settings: dict[str, Any] = {"kind": kind}
    for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate"):
        if name in rope:
            settings[name] = rope[name]
    if "attention_factor" in rope:
        settings["attention_factor"] = rope["attention_factor"]
    if kind != "linear":
        # transformers: a value beside the object comes first, and yarn without any was trained up to `length`.
        outside, original = values.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")
        if None not in (outside, original) and outside != original:
            raise UserError(
                f"{where}.original_max_position_embeddings is {shown(original)}, but the file has {shown(outside)} "
                "outside; keep one."
            )
        original = outside if original is None else original
        original = length if original is None and kind == "yarn" else original
        if original is not None:
            settings["original_context_length"] = original
    required = {"llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_context_length")}
    for name in required.get(kind, ("factor",)):
        if name not in settings:
            name = name.replace("original_context_length", "original_max_position_embeddings")
            raise UserError(f"{where} lacks {name}, which rotary scaling of type {kind!r} needs; get the file again.")
    try:
        scaling = from_dict(RopeScaling, settings, where)
        both = [_number(rope[name], f"{where}.{name}") for name in ("mscale", "mscale_all_dim") if rope.get(name)]
        if len(both) == 2 and scaling.attention_factor is None:  # DeepSeek's; transformers uses them together only
            above, below = (0.1 * value * math.log(scaling.factor) + 1 for value in both)
            scaling = dataclasses.replace(scaling, attention_factor=above / below)
    except UserError as error:  # speaks of model.rope_scaling, and of our names
        text = str(error).replace("model.rope_scaling.", f"{where}.")
        raise UserError(text.replace("original_context_length", "original_max_position_embeddings")) from None
    return scaling


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 2**20:
        raise UserError(f"{where} is {shown(value)}; it must be a number from 0 to 2**20.")
    return float(value)


def _rope_to_json(scaling: RopeScaling | None) -> dict[str, Any]:
    """The inverse of `_scaling`."""
    if scaling is None:
        return {"rope_type": "default"}
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        values["original_max_position_embeddings"] = scaling.original_context_length
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        values |= {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate")}
        if scaling.attention_factor is not None:
            values["attention_factor"] = scaling.attention_factor
    return values


def extended_length(scaling: RopeScaling | None) -> int:
    """Longest row that `yarn` was made for, in tokens; 0: other kinds leave that to `max_position_embeddings`.

    Qwen's documentation adds yarn to a model without raising `max_position_embeddings`; vLLM multiplies likewise.
    """
    if scaling is None or scaling.kind != "yarn":
        return 0
    return int(scaling.factor * scaling.original_context_length)


def config_to_json(config: ModelConfig, eos: Sequence[int] = (), dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    """The inverse of `config_from_json`: a config.json that transformers 4 and 5 read the same way.

    Args:
      config: of the model.
      eos: ids that end a text; none leaves `eos_token_id` null.
      dtype: of the stored weights.

    Raises:
      UserError: the model's family has no such layers, see `s1jax.checkpoint.families.table.exported`.
    """
    family = exported(config)
    rope = _rope_to_json(config.rope_scaling)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": max(config.mlp_dims),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": one_or_list(eos),
        "torch_dtype": np.dtype(dtype).name,
    }


def one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    """Ids that end a text as `eos_token_id` has them."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def read_eos(folder: pathlib.Path) -> tuple[int, ...]:
    """Ids that end a text, from generation_config.json or else config.json; empty when neither says.

    Raises:
      UserError: where the file says something else than an id or a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            ids = read_json(folder / name).get("eos_token_id")
            if ids is None:
                continue
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(id_) is int for id_ in ids):
                raise wrong_type(folder / name, "eos_token_id", ids, "an id or a list of ids")
            return tuple(ids)
    return ()
