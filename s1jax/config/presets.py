"""Shapes of published models by name; experiments that name one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.config.published import PUBLISHED
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import from_dict
from s1jax.errors import UserError


def _qwen2p5(d: int, layers: int, heads: int, kv: int, mlp: int, **more: Any) -> ModelConfig:
    shape = dict(
        family="qwen2",
        vocab_size=152064,
        d_model=d,
        mlp_dim=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=d // heads,
        qkv_bias=True,
    )
    return ModelConfig.dense(**{**shape, **more})


def _qwen3(d: int, layers: int, heads: int, mlp: int, tied: bool = False) -> ModelConfig:
    return ModelConfig.dense(
        family="qwen3",
        vocab_size=151936,
        d_model=d,
        mlp_dim=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        qk_norm=True,
        tied_embeddings=tied,
        context_length=40960,
    )


def _llama3(d: int, layers: int, heads: int, mlp: int, factor: float = 8, tied: bool = False) -> ModelConfig:
    return ModelConfig.dense(
        family="llama",
        vocab_size=128256,
        d_model=d,
        mlp_dim=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=d // heads,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", factor, 8192, low_freq_factor=1, high_freq_factor=4),
        norm_eps=1e-5,
        tied_embeddings=tied,
        context_length=131072,
    )


def _smollm2(d: int, layers: int, heads: int, kv: int, mlp: int, theta: float = 1e5) -> ModelConfig:
    return ModelConfig.dense(
        family="llama",
        vocab_size=49152,
        d_model=d,
        mlp_dim=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=64,
        rope_theta=theta,
        norm_eps=1e-5,
        tied_embeddings=True,
        context_length=8192,
    )


_LLAMA3_8B = _llama3(4096, 32, 32, 14336)
_LLAMA3_70B = _llama3(8192, 80, 64, 28672)
_R1: dict[str, Any] = dict(context_length=131072)

# Sizes as in each model's published config.json; tests compare `num_params` with the published weight counts.
PRESETS: dict[str, ModelConfig] = {
    "qwen2p5_0p5b": _qwen2p5(896, 24, 14, 2, 4864, vocab_size=151936, tied_embeddings=True),
    "qwen2p5_1p5b": _qwen2p5(1536, 28, 12, 2, 8960, vocab_size=151936, tied_embeddings=True),
    "qwen2p5_3b": _qwen2p5(2048, 36, 16, 2, 11008, vocab_size=151936, tied_embeddings=True),
    "qwen2p5_7b": _qwen2p5(3584, 28, 28, 4, 18944),
    "qwen2p5_14b": _qwen2p5(5120, 48, 40, 8, 13824),
    "qwen2p5_32b": _qwen2p5(5120, 64, 40, 8, 27648),
    "qwen3_0p6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3_1p7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3_4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3_8b": _qwen3(4096, 36, 32, 12288),
    "qwen3_14b": _qwen3(5120, 40, 40, 17408),
    "qwen3_32b": _qwen3(5120, 64, 64, 25600),
    "llama3p1_8b": _LLAMA3_8B,
    "llama3p1_70b": _LLAMA3_70B,
    "llama3p2_1b": _llama3(2048, 16, 32, 8192, factor=32, tied=True),
    "llama3p2_3b": _llama3(3072, 28, 24, 8192, factor=32, tied=True),
    "llama3p3_70b": _LLAMA3_70B,
    "r1_distill_llama_8b": _LLAMA3_8B,
    "r1_distill_llama_70b": _LLAMA3_70B,
    "r1_distill_qwen_1p5b": _qwen2p5(1536, 28, 12, 2, 8960, vocab_size=151936, rope_theta=1e4, **_R1),
    "r1_distill_qwen_7b": _qwen2p5(3584, 28, 28, 4, 18944, rope_theta=1e4, **_R1),
    "r1_distill_qwen_14b": _qwen2p5(5120, 48, 40, 8, 13824, norm_eps=1e-5, **_R1),
    "r1_distill_qwen_32b": _qwen2p5(5120, 64, 40, 8, 27648, norm_eps=1e-5, **_R1),
    "smollm2_135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2_360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2_1p7b": _smollm2(2048, 24, 32, 32, 8192, theta=1.3e5),
    **PUBLISHED,
}


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """Builds the experiment that a file of configs/ describes: `model` is "", a name of PRESETS or a group of fields.

    Raises:
      UserError: names the setting that is unknown, missing or out of range.
    """
    model = settings.get("model") or None
    if isinstance(model, str):
        if model not in PRESETS:
            raise UserError(f"config.model {model!r} is not a preset; choose one of {', '.join(PRESETS)}.")
        model = PRESETS[model]
    return from_dict(Experiment, {**settings, "model": model})
