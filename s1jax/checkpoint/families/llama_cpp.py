"""What llama.cpp computes for a file's architecture and keys, as the fields of a config.json.

Some settings are in the file, others in llama.cpp's code (src/models/*.cpp): which layers have a window, whether the
weights of experts are normalised, how queries are scaled. Both become fields here, which `Family.read` turns into
layers. An export is checked with the same functions: what llama.cpp would compute otherwise is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from s1jax.checkpoint.families.keys import Keys, decimal
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import shown
from s1jax.errors import UserError

Values = dict[str, Any]


def fields(keys: Keys) -> Values:
    """The fields of the config.json of the model that a file has.

    Raises:
      UserError: an unknown architecture, a setting that the decoder cannot represent, or a missing one.
    """
    if keys.architecture not in _READERS:
        raise UserError(
            f"{keys.where}: architecture {shown(keys.architecture)} is unknown; s1jax reads "
            f"{', '.join(sorted(_READERS))}."
        )
    values = _READERS[keys.architecture](keys)
    keys.finish()
    return values


def _common(
    keys: Keys, model_type: str, *, partial: bool = False, longrope: bool = False, narrow: bool = False
) -> Values:
    """Fields of a model with grouped-query attention.

    Args:
      keys: of the file.
      model_type: in config.json.
      partial: some dimensions of a head may not be rotated.
      longrope: the caller reads the rotary scaling.
      narrow: llama.cpp loads no file whose heads together are wider or narrower than the model.
    """
    d_model, num_heads = keys.get("embedding_length", int), keys.get("attention.head_count", int)
    fallback = keys.get("rope.dimension_count", int, 0) or d_model // max(num_heads, 1)
    head_dim = keys.get("attention.key_length", int, fallback)
    rotated = keys.get("rope.dimension_count", int, head_dim)
    if keys.get("attention.value_length", int, head_dim) != head_dim or (rotated != head_dim and not partial):
        name = "rope.dimension_count" if rotated != head_dim and not partial else "attention.value_length"
        raise UserError(
            f"{keys.where}: {keys.architecture}.{name} is {keys.get(name, int)}, the head dimension {head_dim}; they "
            "must be equal."
        )
    if narrow and head_dim * num_heads != d_model:
        raise UserError(
            f"{keys.where}: {num_heads} heads of {head_dim} dimensions are not as wide as the model, {d_model}, which "
            f"llama.cpp requires of {keys.architecture}."
        )
    return {
        **_outside(keys, model_type),
        **({"partial_rotary_factor": rotated / head_dim} if partial else {}),
        **({} if longrope else _rope(keys, rotated)),
        "num_key_value_heads": keys.get("attention.head_count_kv", int, num_heads),
        "head_dim": head_dim,
    }


def _outside(keys: Keys, model_type: str) -> Values:
    """Fields that every model has."""
    if "token_embd.weight" not in keys.shapes:
        raise UserError(f"{keys.where} lacks tensor token_embd.weight; get a complete file.")
    return {
        "model_type": model_type,
        "vocab_size": keys.shapes["token_embd.weight"][0],
        "hidden_size": keys.get("embedding_length", int),
        "num_hidden_layers": keys.get("block_count", int),
        "num_attention_heads": keys.get("attention.head_count", int),
        "rms_norm_eps": decimal(keys.get("attention.layer_norm_rms_epsilon", float)),
        "tie_word_embeddings": "output.weight" not in keys.shapes,
        "max_position_embeddings": keys.get("context_length", int),
    }


def _dense(keys: Keys, model_type: str, **options: bool) -> Values:
    return {**_common(keys, model_type, **options), "intermediate_size": keys.get("feed_forward_length", int)}


def _rope(keys: Keys, rotated: int) -> Values:
    """Base and scaling of the rotary frequencies, from `rope.scaling.*` or divisors in `rope_freqs.weight`."""
    theta = decimal(keys.get("rope.freq_base", float, 1e4))
    values: Values = {"rope_theta": theta}
    factor = keys.get("rope.scaling.factor", float, 0.0) or keys.get("rope.scale_linear", float, 0.0) or 1.0
    kind = keys.get("rope.scaling.type", str, "linear")  # rope.scale_linear: before 2023-11
    original = keys.get("rope.scaling.original_context_length", int, keys.get("context_length", int))
    if kind not in ("none", "linear", "yarn"):
        raise UserError(
            f"{keys.where}: rotary scaling of type {shown(kind)} is not computed by s1jax; get another model."
        )
    if kind == "yarn":
        values["rope_scaling"] = {"rope_type": "yarn", "factor": factor, **_yarn(keys, original)}
    elif kind == "linear" and factor != 1:
        values["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    divisors = keys.array("rope_freqs.weight")
    if divisors is not None and (divisors != 1).any():
        if "rope_scaling" in values:
            raise UserError(
                f"{keys.where} has both rope.scaling.type {kind!r} and rope_freqs.weight; get another model."
            )
        values["rope_scaling"] = _from_divisors(divisors, theta, rotated, keys.where)
    return values


def _yarn(keys: Keys, original: int) -> Values:
    """Fields of yarn; llama.cpp always rounds its borders to whole dimensions."""
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if (value := keys.get(f"rope.scaling.{key}", float, 1.0)) != 1.0:
            raise UserError(
                f"{keys.where}: rope.scaling.{key} is {value:g}; programs differ in what it means, so get a file "
                "without it, or convert the Hugging Face model."
            )
    values: Values = {
        "original_max_position_embeddings": original,
        "beta_fast": decimal(keys.get("rope.scaling.yarn_beta_fast", float, 32.0)),
        "beta_slow": decimal(keys.get("rope.scaling.yarn_beta_slow", float, 1.0)),
    }
    above = decimal(keys.get("rope.scaling.yarn_log_multiplier", float, 0.0))
    if above == 1 and keys.architecture == "mistral3":  # cosines and sines are not multiplied
        return values | {"attention_factor": 1.0}
    if above and keys.architecture != "deepseek2":
        raise UserError(
            f"{keys.where}: rope.scaling.yarn_log_multiplier is {above:g}, which s1jax does not compute; get another "
            "model."
        )
    return values | ({"mscale": decimal(above * 10), "mscale_all_dim": decimal(above * 10)} if above else {})


def _from_divisors(divisors: np.ndarray, theta: float, rotated: int, where: str) -> Values:
    """The llama3 scaling whose divisors these are; llama.cpp writes them in place of the settings.

    The published models have 1 and 4 as factors of the borders and an original context of 8,192; any power of two is
    tried.
    """
    from s1jax.model import rope  # imports jax

    if divisors.shape == (rotated // 2,) and np.isfinite(divisors).all() and 1 < divisors.max() <= 2**20:
        for original in (8192, *(2**power for power in range(5, 24))):
            scaling = RopeScaling("llama3", decimal(divisors.max()), original)
            if np.allclose(1 / rope.multipliers(rotated, theta, scaling), divisors, rtol=1e-4, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": scaling.factor,
                    "original_max_position_embeddings": original,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                }
    raise UserError(
        f"{where}: tensor rope_freqs.weight does not hold the divisors of Llama 3's rotary scaling; convert the "
        "Hugging Face model."
    )


def _llama(keys: Keys) -> Values:
    count = keys.get("expert_count", int, 0)
    used = keys.get("expert_used_count", int, 0)
    window, length = keys.get("attention.sliding_window", int, 0), keys.get("context_length", int)
    if 0 < window < length:
        raise UserError(
            f"{keys.where}: the sliding window is {window} and the context {length}, and llama.cpp computes no window "
            f"for {keys.architecture}; make the context as short as the window."
        )
    if not count:
        return _dense(keys, "llama")
    keys.get("expert_feed_forward_length", int, 0)  # llama.cpp takes feed_forward_length
    # The weights of Mixtral's experts are normalised; files of it have no window.
    return {**_dense(keys, "mixtral"), "num_local_experts": count, "num_experts_per_tok": used, "sliding_window": None}


def _mistral3(keys: Keys) -> Values:
    values = _dense(keys, "ministral3")
    beta = decimal(keys.get("attention.temperature_scale", float, 0.0))
    scaling = values.pop("rope_scaling", {"rope_type": "default"})
    theta = values.pop("rope_theta")
    return values | {
        "sliding_window": None,
        "rope_parameters": {**scaling, "rope_theta": theta, "llama_4_scaling_beta": beta},
    }


def _qwen_moe(keys: Keys, shared: bool) -> Values:
    """Fields of a Qwen with experts: the third generation always normalises their weights, the second never."""
    values = {
        **_dense(keys, "qwen2_moe" if shared else "qwen3_moe"),
        "num_experts": keys.get("expert_count", int),
        "num_experts_per_tok": keys.get("expert_used_count", int),
        "moe_intermediate_size": keys.get("expert_feed_forward_length", int),
        "norm_topk_prob": not shared,
    }
    if shared:
        values["shared_expert_intermediate_size"] = keys.get("expert_shared_feed_forward_length", int)
    return values


def _gpt_oss(keys: Keys) -> Values:
    keys.get("feed_forward_length", int, 0)  # also written, as that of experts
    return {
        **_common(keys, "gpt_oss"),
        "intermediate_size": keys.get("expert_feed_forward_length", int),
        "num_local_experts": keys.get("expert_count", int),
        "num_experts_per_tok": keys.get("expert_used_count", int),
        **_windows(keys, 2),
    }


def _windows(keys: Keys, pattern: int) -> Values:
    """Every `pattern`-th layer sees all earlier tokens; the pattern is in llama.cpp's code."""
    count = keys.get("block_count", int)
    if not 0 < count <= 10_000:
        raise UserError(f"{keys.where}: {keys.architecture}.block_count is {count}; get the file again.")
    kinds = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)]
    return {"sliding_window": keys.get("attention.sliding_window", int), "layer_types": kinds}


def _query_scalar(keys: Keys, large: int, head_dim: int) -> Values:
    """Gemma's divisor of scores: H, but D / N in the largest model, which has `large` layers."""
    is_large = keys.get("block_count", int) == large
    wide = keys.get("embedding_length", int) / max(keys.get("attention.head_count", int), 1)
    return {"query_pre_attn_scalar": wide if is_large else head_dim}


def _gemma2(keys: Keys) -> Values:
    values = _dense(keys, "gemma2")
    return {
        **values,
        **_windows(keys, 2),
        **_query_scalar(keys, 46, values["head_dim"]),
        "attn_logit_softcapping": decimal(keys.get("attn_logit_softcapping", float, 50.0)),
        "final_logit_softcapping": decimal(keys.get("final_logit_softcapping", float, 30.0)),
    }


def _gemma3(keys: Keys) -> Values:
    values = _dense(keys, "gemma3_text")
    softcap = decimal(keys.get("final_logit_softcapping", float, 0.0))
    return {
        **values,
        **_windows(keys, keys.get("attention.sliding_window_pattern", int, 6)),
        **_query_scalar(keys, 62, values["head_dim"]),
        "rope_local_base_freq": decimal(keys.get("rope.freq_base_swa", float, 1e4)),
        "final_logit_softcapping": softcap or None,
    }


def _phi3(keys: Keys) -> Values:
    values = _dense(keys, "phi3", partial=True, longrope=True)
    keys.get("attention.sliding_window", int, 0)  # llama.cpp does not compute it
    short, long = keys.array("rope_factors_short.weight"), keys.array("rope_factors_long.weight")
    values |= {"sliding_window": None, "rope_theta": decimal(keys.get("rope.freq_base", float, 1e4))}
    if short is None or long is None:
        return values | _rope(keys, round(values["head_dim"] * values["partial_rotary_factor"]))
    length = keys.get("context_length", int)
    original = keys.get("rope.scaling.original_context_length", int, length)
    keys.get("rope.scaling.type", str, "longrope")
    factor = length / max(original, 1)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    given = decimal(keys.get("rope.scaling.attn_factor", float, 1.0))
    scaling = {
        "rope_type": "longrope",
        "short_factor": [decimal(value) for value in short],
        "long_factor": [decimal(value) for value in long],
        "rope_theta": values["rope_theta"],
        "partial_rotary_factor": values["partial_rotary_factor"],
        **({} if abs(given - usual) < 1e-5 else {"attention_factor": given}),
    }
    return values | {"original_max_position_embeddings": original, "rope_parameters": scaling}


def _olmo2(keys: Keys) -> Values:
    if not keys.get("attention.sliding_window", int, 0):
        return _dense(keys, "olmo2")
    values = {**_dense(keys, "olmo3"), **_windows(keys, 4)}
    scaling = values.pop("rope_scaling", {"rope_type": "default"})
    theta = values.pop("rope_theta")
    local = {"rope_type": "default", "rope_theta": theta}
    kinds = {"full_attention": {**scaling, "rope_theta": theta}, "sliding_attention": local}
    return values | {"rope_parameters": kinds}


def _smollm3(keys: Keys) -> Values:
    values = _dense(keys, "smollm3")
    count = values["num_hidden_layers"]
    if not 0 < count <= 10_000:
        raise UserError(f"{keys.where}: {keys.architecture}.block_count is {count}; get the file again.")
    return values | {"no_rope_layers": [int(bool((i + 1) % 4)) for i in range(count)], "no_rope_layer_interval": 4}


_LITE = (26, 27)  # numbers of layers by which llama.cpp knows a DeepSeek whose queries come from the layer's input


def _deepseek2(keys: Keys) -> Values:
    rotated = keys.get("rope.dimension_count", int)
    sigmoid = keys.get("expert_gating_func", int, 0) == 2
    keys.get("attention.head_count_kv", int, 1)
    rank = keys.get("attention.kv_lora_rank", int)
    if keys.get("attention.key_length", int) != rank + rotated or keys.get("attention.value_length", int) != rank:
        raise UserError(
            f"{keys.where} has keys and values of latent attention in the form of before 2025-04; get a newer file of "
            "the model."
        )
    per_expert = keys.get("expert_feed_forward_length", int)
    has_rank = "blk.0.attn_q_a.weight" in keys.shapes
    if has_rank == (keys.get("block_count", int) in _LITE):
        raise UserError(
            f"{keys.where}: queries {'come' if has_rank else 'do not come'} from latent vectors in a model of "
            f"{keys.get('block_count', int)} layers, and llama.cpp takes just those of {_LITE[0]} or {_LITE[1]} layers "
            "for models without."
        )
    return {
        **_outside(keys, "deepseek_v3" if sigmoid else "deepseek_v2"),
        **_rope(keys, rotated),
        "intermediate_size": keys.get("feed_forward_length", int),
        "q_lora_rank": keys.get("attention.q_lora_rank", int, 0) or None if has_rank else None,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": keys.get("attention.key_length_mla", int) - rotated,
        "v_head_dim": keys.get("attention.value_length_mla", int),
        "first_k_dense_replace": keys.get("leading_dense_block_count", int, 0),
        "n_routed_experts": keys.get("expert_count", int),
        "num_experts_per_tok": keys.get("expert_used_count", int),
        "n_shared_experts": keys.get("expert_shared_count", int, 0),
        "moe_intermediate_size": per_expert,
        "routed_scaling_factor": decimal(keys.get("expert_weights_scale", float, 1.0)),
        "norm_topk_prob": keys.get("expert_weights_norm", bool, False),
        "n_group": keys.get("expert_group_count", int, 1),
        "topk_group": keys.get("expert_group_used_count", int, 1),
        **({} if sigmoid else {"topk_method": "greedy"}),
    }


_READERS: Mapping[str, Callable[[Keys], Values]] = {
    "llama": _llama,
    "mistral3": _mistral3,
    "qwen2": lambda keys: _dense(keys, "qwen2", narrow=True),
    "qwen3": lambda keys: _dense(keys, "qwen3"),
    "qwen2moe": lambda keys: _qwen_moe(keys, shared=True),
    "qwen3moe": lambda keys: _qwen_moe(keys, shared=False),
    "gpt-oss": _gpt_oss,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "deepseek2": _deepseek2,
}
