"""Small models of every family with all their weights, from seeds alone, for parity tests and goldens."""

from typing import Any

import numpy as np

from s1jax.checkpoint import names
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.model.quant import QTensor


def _config(**changes: Any) -> ModelConfig:
    shape: dict[str, Any] = dict(
        vocab_size=61, d_model=48, mlp_dim=80, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, rope_theta=1e4
    )
    return ModelConfig.dense(**{**shape, **changes})


# Theta, eps, tied, bias, head_dim and the number of query heads a key head serves, all varied.
CASES = {
    "qwen2": _config(qkv_bias=True, rope_theta=1e6, norm_eps=1e-6),
    "qwen2_tied_mha": _config(qkv_bias=True, tied_embeddings=True, num_kv_heads=6, norm_eps=1e-5, vocab_size=97),
    "qwen3_wide_heads": _config(qk_norm=True, head_dim=32, num_kv_heads=3, rope_theta=5e5, num_layers=3),
    "qwen3_tied_one_head": _config(qk_norm=True, head_dim=16, num_kv_heads=1, tied_embeddings=True, norm_eps=1e-3),
    "llama": _config(num_heads=4, head_dim=12, num_kv_heads=2, rope_theta=1.3e5, norm_eps=1e-5),
    # Rows of 300 are longer than the original context.
    "llama3_scaled": _config(
        num_heads=4, head_dim=16, num_kv_heads=2, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 64)
    ),
    "qwen2_yarn": _config(qkv_bias=True, head_dim=16, rope_theta=1e6, rope_scaling=RopeScaling("yarn", 4.0, 64)),
    "qwen3_yarn_exact": _config(
        qk_norm=True,
        head_dim=32,
        rope_theta=1e3,
        rope_scaling=RopeScaling("yarn", 8.0, 40, beta_fast=4, beta_slow=0.5, truncate=False, attention_factor=0.8),
    ),
    "llama_tied": _config(num_heads=12, head_dim=4, num_kv_heads=3, tied_embeddings=True, mlp_dim=33),
}
WHOLE = ("qwen2", "qwen3_tied_one_head", "llama")  # those with goldens of whole rows, see make_golden.py


def weights(config: ModelConfig, seed: int = 0) -> names.Params:
    """Random float32 weights in our tree; norms and biases are far from 1 and 0, so that every tensor counts."""
    rng = np.random.default_rng(seed)
    params = names.allocate(config, np.float32)
    for name, view in names.views(config, params, "huggingface").items():
        noise = rng.standard_normal(view.shape)
        if "norm" in name:
            view[...] = 1 + 0.3 * noise
        elif name.endswith("bias"):
            view[...] = 0.5 * noise
        else:
            # A tied embedding is the output projection as well: small enough for logits of the usual size.
            scale = 1.5 / np.sqrt(view.shape[-1]) if "embed" not in name else 0.2 if config.tied_embeddings else 0.7
            view[...] = scale * noise
    return params


def tokens(config: ModelConfig, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """int32 ids of the given shape."""
    return np.random.default_rng(seed).integers(config.vocab_size, size=shape).astype(np.int32)


def packed(parts: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row [1, length] of ids, positions and segment ids that holds `parts` one after the other, then padding."""
    ids, positions, segment_ids = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for number, part in enumerate(parts, 1):
        place = slice(start, start + len(part))
        ids[0, place], positions[0, place], segment_ids[0, place] = part, np.arange(len(part)), number
        start += len(part)
    return ids, positions, segment_ids


def transformers_model(config: ModelConfig, params: names.Params) -> Any:
    """transformers' own model with these weights, float32, in evaluation mode."""
    import torch
    import transformers

    from s1jax.checkpoint import huggingface_config

    values = huggingface_config.config_to_json(config)
    kind = getattr(transformers, values["architectures"][0])
    model = kind(kind.config_class(**values))
    state = {
        name: torch.from_numpy(np.array(view)) for name, view in names.views(config, params, "huggingface").items()
    }
    if config.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.to(torch.float32).eval()


def transformers_logits(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """float32 logits [B, T, V] of ids [B, T]; mask [B, T] is 0 where a row is padded."""
    import torch

    with torch.no_grad():
        attention = None if mask is None else torch.from_numpy(mask.astype(np.int64))
        return model(torch.from_numpy(ids.astype(np.int64)), attention_mask=attention).logits.float().numpy()


# Axes that a scale is shared along, counted from the last; the out projection has two.
SHARED = {"query": (-3,), "key": (-3,), "value": (-3,), "out": (-3, -2), "gate": (-2,), "up": (-2,), "down": (-2,)}


def dequantised(quantised):
    """The tree of float32 weights that int8 weights and scales stand for."""

    def walk(tree, above):
        found = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                found[name] = walk(value, name)
            elif isinstance(value, QTensor):
                shared = (-1,) if name == "embedding" else SHARED.get(above, (-2,))
                found[name] = np.asarray(value.values, np.float32) * np.expand_dims(np.asarray(value.scale), shared)
            else:
                found[name] = np.asarray(value)
        return found

    return walk(quantised, "")
