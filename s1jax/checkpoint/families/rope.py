"""Rotary scaling in config.json: `rope_scaling` of transformers 4 and `rope_parameters` of transformers 5."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from s1jax.checkpoint.families.fields import Fields
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import from_dict, plain, shown
from s1jax.errors import UserError

# Fields of rotary scaling by kind, in Hugging Face's names; those not listed are refused.
_COMMON = {"factor", "rope_type", "type", "rope_theta", "partial_rotary_factor"}
_ROPE_FIELDS: dict[str, set[str]] = {
    "default": _COMMON - {"factor"},
    "linear": _COMMON,
    "llama3": _COMMON | {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": _COMMON
    | {"original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"}
    | {"attention_factor", "mscale", "mscale_all_dim"},
    "longrope": _COMMON | {"original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}
KINDS = ("full_attention", "sliding_attention")


class Options(NamedTuple):
    """What a family has beside the usual rotary settings.

    Attributes:
      kinds: of scaling that it may have.
      partial: `partial_rotary_factor` may be another number than 1; the family reads it.
      mscale: `mscale` and `mscale_all_dim` are kept, because attention needs them; else they give `attention_factor`.
      more: names of fields that the family reads.
    """

    kinds: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    partial: bool = False
    mscale: bool = False
    more: frozenset[str] = frozenset()


_USUAL = Options()


def read_kinds(
    fields: Fields, length: int, bases: tuple[float, float], local: str
) -> tuple[Any, RopeScaling | None, float]:
    """Base and scaling of layers that see everything, and the base of those with a window, which are never scaled.

    Args:
      fields: of config.json; `rope_parameters` may have an object for each of the two kinds.
      length: `max_position_embeddings`.
      bases: of both kinds where the file has none.
      local: the field with the base of layers with a window in files of transformers 4.
    """
    given = fields.values.get("rope_parameters") or {}
    fields.has(local)
    if isinstance(given, Mapping) and any(isinstance(value, Mapping) for value in given.values()):
        if unknown := sorted(set(given) - set(KINDS)):
            raise UserError(
                f"{fields.where}: rope_parameters has {shown(unknown[0])} beside {' and '.join(KINDS)}, which are the "
                "kinds of layers that this model has; get the file again."
            )
        full, sliding = (given.get(kind) or {} for kind in KINDS)
    else:
        full, sliding = given, {}
    theta, scaling = read(fields, fields.raw("rope_theta") or bases[0], length, parameters=full)
    base = fields.values.get(local)
    below = Fields({"rope_theta": base, "rope_parameters": sliding}, fields.where, {})
    found, scaled = read(below, bases[1] if base is None else base, length)
    if scaled is not None:
        raise UserError(
            f"{fields.where}: rope_parameters scales layers of kind sliding_attention, which this decoder does not "
            "compute; get another model."
        )
    below.replace("rope_theta", found)
    return theta, scaling, below.get("rope_theta", float)


def read(
    fields: Fields,
    theta: Any,
    length: int,
    options: Options = _USUAL,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Any, RopeScaling | None]:
    """Base and scaling of the rotary frequencies, from `rope_scaling` (transformers 4) or `rope_parameters` (5).

    Args:
      fields: of config.json.
      theta: base where they have none.
      length: `max_position_embeddings`.
      options: of the family.
      parameters: in place of `rope_parameters`.
    """
    values, where = fields.values, fields.where
    for key in ("rope_scaling", "rope_parameters", "original_max_position_embeddings"):
        fields.has(key)
    given: dict[str, dict[str, Any]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        if key == "rope_parameters" and parameters is not None:
            rope = parameters
        if not isinstance(rope, Mapping):
            raise UserError(f"{where}: {key} is {shown(rope)}; it must be a JSON object.")
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise UserError(
                f"{where}: {key} differs between layers ({', '.join(map(shown, sorted(rope)[:3]))}), which this "
                "decoder does not compute; get another model."
            )
        if rope:
            given[key] = {name: value for name, value in rope.items() if value is not None or name == "truncate"}
    for key, rope in given.items():
        found = rope.get("rope_theta", theta)
        if values.get("rope_theta") is not None and found != values["rope_theta"]:
            raise UserError(
                f"{where}: rope_theta is {shown(values['rope_theta'])} but {key} says {shown(found)}; keep one."
            )
        theta = found
    scalings = {key: _scaling(rope, values, theta, length, f"{where}: {key}", options) for key, rope in given.items()}
    if len({*scalings.values()}) > 1:
        raise UserError(f"{where}: rope_scaling and rope_parameters ask for different rotary scaling; keep one.")
    return theta, next(iter(scalings.values()), None)


def _scaling(
    rope: Mapping[str, Any], values: Mapping[str, Any], theta: Any, length: int, where: str, options: Options
) -> RopeScaling | None:
    """The scaling that one JSON object asks for; None: no scaling."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in [*options.kinds]:
        remedy = "get a model without it"
        if kind == "dynamic":  # changes nothing in rows of up to `length` tokens
            unscaled = json.dumps({"rope_type": "default", "rope_theta": theta})
            remedy = (
                f"set it to {unscaled} to use the model with rows of up to {length} tokens, which is the same there"
            )
        raise UserError(
            f"{where} asks for rotary scaling of type {shown(kind)}; s1jax computes "
            f"{', '.join(options.kinds)}, so {remedy}."
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not options.partial:
        raise UserError(
            f"{where}.partial_rotary_factor is {shown(rope['partial_rotary_factor'])}, which this decoder does not "
            "compute; only 1.0 is."
        )
    unknown = sorted(set(rope) - _ROPE_FIELDS[kind] - options.more)
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
    if kind == "longrope":
        settings |= _long_factors(rope, settings, length, where)
    required = {"llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_context_length")}
    for name in required.get(kind, ("factor",)):
        if name not in settings:
            name = name.replace("original_context_length", "original_max_position_embeddings")
            raise UserError(f"{where} lacks {name}, which rotary scaling of type {kind!r} needs; get the file again.")
    try:
        scaling = from_dict(RopeScaling, settings, where)
        both = [_number(rope[name], f"{where}.{name}") for name in ("mscale", "mscale_all_dim") if rope.get(name)]
        if options.mscale:
            one, all_dim = (_number(rope.get(name, 0), f"{where}.{name}") for name in ("mscale", "mscale_all_dim"))
            return dataclasses.replace(scaling, mscale=one, mscale_all_dim=all_dim)
        if len(both) == 2 and scaling.attention_factor is None:  # DeepSeek's; transformers uses them together only
            above, below = (0.1 * value * math.log(scaling.factor) + 1 for value in both)
            scaling = dataclasses.replace(scaling, attention_factor=above / below)
    except UserError as error:  # speaks of model.rope_scaling, and of our names
        text = str(error).replace("model.rope_scaling.", f"{where}.")
        raise UserError(text.replace("original_context_length", "original_max_position_embeddings")) from None
    return scaling


def _long_factors(rope: Mapping[str, Any], settings: Mapping[str, Any], length: int, where: str) -> dict[str, Any]:
    """The factors of `longrope`, one by one and, where it is not given, the whole one: how far the context grew."""
    found: dict[str, Any] = {}
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if not isinstance(factors, list) or not all(type(factor) in (int, float) for factor in factors):
            raise UserError(f"{where}.{name} is {shown(factors)}; it must be a list of numbers, so get the file again.")
        found[name] = tuple(map(float, factors))
    original = settings.get("original_context_length")
    if "factor" not in settings and type(original) is int and original > 0:
        found["factor"] = max(length / original, 1.0)
    return found


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 2**20:
        raise UserError(f"{where} is {shown(value)}; it must be a number from 0 to 2**20.")
    return float(value)


def to_json(scaling: RopeScaling | None) -> dict[str, Any]:
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
        values |= {name: getattr(scaling, name) for name in ("mscale", "mscale_all_dim") if getattr(scaling, name)}
    if scaling.kind == "longrope":
        values |= {name: list(getattr(scaling, name)) for name in ("short_factor", "long_factor")}
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
