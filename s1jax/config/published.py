"""Shapes of published models whose layers have windows, experts, latent attention or other norms, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.config.grouping import group
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.rope import RopeScaling


def _alike(count: int, layer: Layer, **more: Any) -> ModelConfig:
    return ModelConfig(groups=(Group(count, (layer,)),), **more)


def _mixed(layers: list[Layer], **more: Any) -> ModelConfig:
    return ModelConfig(groups=group(layers), **more)


def _qwen3_moe(d: int, layers: int, heads: int, hidden: int) -> ModelConfig:
    mlp = Experts(128, 8, hidden, normalize=True)
    layer = Layer(GQA(heads, 4, 128, qk_norm=True), mlp)
    return _alike(layers, layer, family="qwen3_moe", vocab_size=151936, d_model=d, context_length=40960)


def _qwen2_moe(d: int, layers: int, heads: int, kv: int, experts: Experts, length: int) -> ModelConfig:
    layer = Layer(GQA(heads, kv, 128, qkv_bias=True), experts)
    return _alike(layers, layer, family="qwen2_moe", vocab_size=151936, d_model=d, context_length=length)


def _mixtral(d: int, layers: int, heads: int, hidden: int, vocab: int, length: int) -> ModelConfig:
    layer = Layer(GQA(heads, 8, 128), Experts(8, 2, hidden, normalize=True))
    return _alike(layers, layer, family="mixtral", vocab_size=vocab, d_model=d, norm_eps=1e-5, context_length=length)


def _gpt_oss(layers: int, num_experts: int) -> ModelConfig:
    full = GQA(64, 8, 64, qkv_bias=True, out_bias=True, sinks=True)
    mlp = Experts(num_experts, 4, 2880, scores="topk_softmax", router_bias=True, expert_bias=True, activation="clamped")
    pair = tuple(Layer(attention, mlp) for attention in (dataclasses.replace(full, window=128), full))
    return ModelConfig(
        family="gpt_oss",
        vocab_size=201088,
        d_model=2880,
        groups=(Group(layers // 2, pair),),
        rope_theta=150000.0,
        rope_scaling=RopeScaling("yarn", 32.0, 4096, truncate=False),
        norm_eps=1e-5,
        context_length=131072,
    )


def _deepseek(
    family: str, d: int, vocab: int, dense: int, attention: MLA, hidden: int, experts: Experts, count: int, m: float
) -> ModelConfig:
    first, rest = Layer(attention, Dense(hidden)), Layer(attention, experts)
    return ModelConfig(
        family=family,
        vocab_size=vocab,
        d_model=d,
        groups=(Group(dense, (first,)), Group(count - dense, (rest,))),
        rope_theta=1e4,
        rope_scaling=RopeScaling("yarn", 40.0, 4096, mscale=m, mscale_all_dim=m),
        context_length=163840,
    )


_V2_EXPERTS = Experts(160, 6, 1536, routed_scale=16.0, groups=8, top_groups=3, shared_hidden=3072)
_V3 = _deepseek(
    "deepseek_v3", 7168, 129280, 3, MLA(128, 1536, 512, 128, 64, 128), 18432,
    Experts(
        256, 8, 2048, scores="sigmoid", normalize=True, routed_scale=2.5, groups=8, top_groups=4, selection_bias=True,
        shared_hidden=2048,
    ),
    61, 1.0,
)  # fmt: skip


def _gemma2(d: int, layers: int, heads: int, kv: int, h: int, hidden: int, scalar: int) -> ModelConfig:
    scale = 0.0 if scalar == h else scalar**-0.5
    full = GQA(heads, kv, h, softcap=50.0, query_scale=scale)
    mlp = Dense(hidden, "gelu_tanh")
    pair = [Layer(attention, mlp, "both") for attention in (dataclasses.replace(full, window=4096), full)]
    return _mixed(
        pair * (layers // 2),
        family="gemma2",
        vocab_size=256000,
        d_model=d,
        rope_theta=1e4,
        tied_embeddings=True,
        context_length=8192,
        norm_offset=True,
        scale_embeddings=True,
        final_softcap=30.0,
    )


def _gemma3(
    d: int, layers: int, heads: int, kv: int, hidden: int, window: int, h: int = 256, scale: float = 0, **more: Any
) -> ModelConfig:
    full = GQA(heads, kv, h, qk_norm=True, query_scale=scale)
    local = dataclasses.replace(full, window=window, rope="local")
    mlp = Dense(hidden, "gelu_tanh")
    settings: dict[str, Any] = dict(
        family="gemma3_text",
        vocab_size=262208,
        d_model=d,
        rope_theta=1e6,
        local_rope_theta=1e4,
        tied_embeddings=True,
        context_length=131072,
        norm_offset=True,
        scale_embeddings=True,
        rope_scaling=RopeScaling("linear", 8.0),
    )
    return _mixed(
        [Layer(full if (i + 1) % 6 == 0 else local, mlp, "both") for i in range(layers)], **{**settings, **more}
    )


_GEMMA3_SMALL: dict[str, Any] = dict(vocab_size=262144, rope_scaling=None, context_length=32768)


def _olmo2(d: int, layers: int, heads: int, kv: int, hidden: int) -> ModelConfig:
    layer = Layer(GQA(heads, kv, 128, qk_norm_whole=True), Dense(hidden), "post")
    return _alike(layers, layer, family="olmo2", vocab_size=100352, d_model=d, rope_theta=5e5, context_length=4096)


def _olmo3(d: int, layers: int, heads: int, kv: int, hidden: int) -> ModelConfig:
    full = GQA(heads, kv, 128, qk_norm_whole=True)
    local = dataclasses.replace(full, window=4096, rope="local")
    return _mixed(
        [Layer(full if (i + 1) % 4 == 0 else local, Dense(hidden), "post") for i in range(layers)],
        family="olmo3",
        vocab_size=100278,
        d_model=d,
        rope_theta=5e5,
        local_rope_theta=5e5,
        rope_scaling=RopeScaling("yarn", 8.0, 8192, attention_factor=1.2079441541679836),
        context_length=65536,
    )


def _smollm3() -> ModelConfig:
    turned = GQA(16, 4, 128)
    still = dataclasses.replace(turned, rope="none")
    return _mixed(
        [Layer(still if (i + 1) % 4 == 0 else turned, Dense(11008)) for i in range(36)],
        family="smollm3",
        vocab_size=128256,
        d_model=2048,
        rope_theta=5e6,
        tied_embeddings=True,
        context_length=65536,
    )


def _mistral(d: int, layers: int, hidden: int, vocab: int, theta: float, length: int, window: int = 0) -> ModelConfig:
    layer = Layer(GQA(32, 8, 128, window=window), Dense(hidden))
    return _alike(
        layers, layer, family="mistral", vocab_size=vocab, d_model=d, rope_theta=theta, norm_eps=1e-5,
        context_length=length,
    )  # fmt: skip


def _ministral3(d: int, layers: int, hidden: int) -> ModelConfig:
    return _alike(
        layers,
        Layer(GQA(32, 8, 128, position_scaling=0.1), Dense(hidden)),
        family="ministral3",
        vocab_size=131072,
        d_model=d,
        rope_scaling=RopeScaling("yarn", 16.0, 16384, attention_factor=1.0),
        norm_eps=1e-5,
        context_length=262144,
    )


def _phi(
    d: int, layers: int, heads: int, kv: int, hidden: int, vocab: int, window: int = 0, **more: Any
) -> ModelConfig:
    layer = Layer(GQA(heads, kv, d // heads, window=window), Dense(hidden))
    return _alike(layers, layer, family="phi3", vocab_size=vocab, d_model=d, norm_eps=1e-5, **more)


PUBLISHED: dict[str, ModelConfig] = {
    "qwen3_30b_a3b": _qwen3_moe(2048, 48, 32, 768),
    "qwen3_235b_a22b": _qwen3_moe(4096, 94, 64, 1536),
    "qwen1p5_moe_a2p7b": _qwen2_moe(2048, 24, 16, 16, Experts(60, 4, 1408, shared_hidden=5632, shared_gate=True), 8192),
    "qwen2_57b_a14b": _qwen2_moe(3584, 28, 28, 4, Experts(64, 8, 2560, shared_hidden=20480, shared_gate=True), 131072),
    "mixtral_8x7b": _mixtral(4096, 32, 32, 14336, 32000, 32768),
    "mixtral_8x22b": _mixtral(6144, 56, 48, 16384, 32768, 65536),
    "gpt_oss_20b": _gpt_oss(24, 32),
    "gpt_oss_120b": _gpt_oss(36, 128),
    "deepseek_v2_lite": _deepseek(
        "deepseek_v2", 2048, 102400, 1, MLA(16, 0, 512, 128, 64, 128), 10944,
        Experts(64, 6, 1408, shared_hidden=2816), 27, 0.707,
    ),
    "deepseek_v2": _deepseek(
        "deepseek_v2", 5120, 102400, 1, MLA(128, 1536, 512, 128, 64, 128), 12288, _V2_EXPERTS, 60, 0.707
    ),
    "deepseek_v3": _V3,
    "deepseek_r1": _V3,
    "gemma2_2b": _gemma2(2304, 26, 8, 4, 256, 9216, 256),
    "gemma2_9b": _gemma2(3584, 42, 16, 8, 256, 14336, 256),
    "gemma2_27b": _gemma2(4608, 46, 32, 16, 128, 36864, 144),
    "gemma3_270m": _gemma3(640, 18, 4, 1, 2048, 512, **_GEMMA3_SMALL),
    "gemma3_1b": _gemma3(1152, 26, 4, 1, 6912, 512, **_GEMMA3_SMALL),
    "gemma3_4b": _gemma3(2560, 34, 8, 4, 10240, 1024),
    "gemma3_12b": _gemma3(3840, 48, 16, 8, 15360, 1024),
    "gemma3_27b": _gemma3(5376, 62, 32, 16, 21504, 1024, h=128, scale=168**-0.5),
    "phi3_mini_4k": _phi(3072, 32, 32, 32, 8192, 32064, window=2047, rope_theta=1e4, context_length=4096),
    "phi4": _phi(5120, 40, 40, 10, 17920, 100352, rope_theta=250000.0, context_length=16384),
    "olmo2_7b": _olmo2(4096, 32, 32, 32, 11008),
    "olmo2_13b": _olmo2(5120, 40, 40, 40, 13824),
    "olmo2_32b": _olmo2(5120, 64, 40, 8, 27648),
    "olmo3_7b": _olmo3(4096, 32, 32, 32, 11008),
    "olmo3_32b": _olmo3(5120, 64, 40, 8, 27648),
    "smollm3_3b": _smollm3(),
    "mistral_7b_v0p1": _mistral(4096, 32, 14336, 32000, 1e4, 32768, window=4096),
    "mistral_7b_v0p3": _mistral(4096, 32, 14336, 32768, 1e6, 32768),
    "mistral_nemo_12b": _mistral(5120, 40, 14336, 131072, 1e6, 131072),
    "mistral_small_24b": _mistral(5120, 40, 32768, 131072, 1e8, 32768),
    "ministral3_8b": _ministral3(4096, 34, 14336),
}  # fmt: skip
