"""Tiny models of transformers' own making, one or more of every family; the keys of their configurations."""

from typing import Any

_PLAIN: dict[str, Any] = dict(
    vocab_size=61,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
)
_MOE = dict(num_experts_per_tok=2, moe_intermediate_size=20, norm_topk_prob=True)
_MLA: dict[str, Any] = dict(
    num_key_value_heads=6,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=12,
    moe_intermediate_size=20,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=2,
    first_k_dense_replace=1,
)
_YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=1e4)
_LONGROPE = dict(
    rope_type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.5, 4.0], rope_theta=1e4,
    original_max_position_embeddings=32, partial_rotary_factor=0.75,
)  # fmt: skip


def _of(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **{k: v for k, v in {**_PLAIN, **changes}.items() if v is not None}}


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": _of("qwen3_moe", num_experts=5, num_hidden_layers=4, mlp_only_layers=[1], **_MOE),
    "qwen3_moe_step": _of("qwen3_moe", num_experts=5, num_hidden_layers=4, decoder_sparse_step=2, **_MOE),
    "qwen2_moe": _of("qwen2_moe", num_experts=5, shared_expert_intermediate_size=28, **_MOE),
    "mixtral": _of("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "gemma2": _of("gemma2", num_hidden_layers=3, sliding_window=32, query_pre_attn_scalar=13),
    "gemma3_text": _of("gemma3_text", num_hidden_layers=8, sliding_window=32, query_pre_attn_scalar=8),
    "gemma3_text_pattern": _of(
        "gemma3_text",
        num_hidden_layers=5,
        sliding_window=32,
        sliding_window_pattern=2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "phi3": _of("phi3", head_dim=None, pad_token_id=0),
    "phi3_longrope": _of(
        "phi3",
        head_dim=None,
        pad_token_id=0,
        sliding_window=40,
        tie_word_embeddings=True,
        original_max_position_embeddings=32,
        rope_parameters=_LONGROPE,
    ),
    "olmo2": _of("olmo2", head_dim=None),
    "olmo3": _of(
        "olmo3",
        head_dim=None,
        num_hidden_layers=5,
        sliding_window=32,
        rope_parameters={
            "full_attention": {**_YARN, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "smollm3": _of("smollm3", head_dim=None, num_hidden_layers=5, no_rope_layer_interval=2, pad_token_id=0),
    "mistral": _of("mistral", sliding_window=32),
    "mistral_full": _of("mistral", sliding_window=None, num_hidden_layers=1),
    "ministral3": _of(
        "ministral3",
        rope_parameters={**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    ),
    "gpt_oss": _of(
        "gpt_oss",
        num_hidden_layers=3,
        sliding_window=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={**_YARN, "truncate": False},
    ),
    "deepseek_v2": {**_of("deepseek_v2", head_dim=None, num_hidden_layers=3, **_MLA), "q_lora_rank": None},
    "deepseek_v2_groups": _of(
        "deepseek_v2",
        head_dim=None,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        rope_parameters={**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        **_MLA,
    ),
    "deepseek_v3": _of(
        "deepseek_v3",
        head_dim=None,
        num_hidden_layers=3,
        n_group=4,
        topk_group=2,
        rope_parameters={**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        **_MLA,
    ),
}  # fmt: skip


def model(name: str, seed: int = 0) -> Any:
    """transformers' model with random float32 weights of deviation 0.15; norms, sinks and biases are perturbed, too."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**CONFIGS[name])
    found = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in found.state_dict().values():
            noise = torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim == 1 else 0.15)
            tensor += noise.to(tensor.dtype) if tensor.ndim == 1 else noise - tensor
    return found.eval()
