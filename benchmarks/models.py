"""The decoder of the CPU benchmarks, in s1jax, transformers and google-tunix.

8 layers, D 512, F 2048, 8/2 heads of 64, vocabulary 32,000, tied, with QKV bias: 46.8 M parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from s1jax.config.experiment import OptimizerConfig, TrainConfig
from s1jax.config.lora import OFF, LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.model import decoder
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib

CONFIG = ModelConfig.dense(
    vocab_size=32000,
    d_model=512,
    mlp_dim=2048,
    num_layers=8,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    qkv_bias=True,
    tied_embeddings=True,
)


def random_params(seed: int = 0) -> dict[str, Any]:
    """float32 weights of standard deviation 0.02, norms 1."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return rng.normal(scale=0.02, size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(CONFIG))


def stepper(
    config: ModelConfig,
    train: TrainConfig,
    params: Any,
    num_steps: int,
    mesh: Mesh,
    lora: LoraConfig = OFF,
    base: Any = None,
) -> Callable[[dict[str, jax.Array]], float]:
    """A function that takes the next step of a run from `params` on a batch, and returns its loss.

    With `lora` they are adapters, and `base` the frozen weights.
    """
    optimizer = OptimizerConfig()
    tx = optimizer_lib.make(optimizer, config, num_steps, lora)
    abstract = step_lib.abstract_state(config, tx, mesh, train.param_dtype, lora)
    state = step_lib.init_state(params, tx, abstract)
    step = step_lib.make_step(config, train, optimizer, num_steps, tx, mesh, abstract, lora=lora)
    frozen = () if base is None else (step_lib.Frozen(base=base),)

    def run(batch: dict[str, jax.Array]) -> float:
        nonlocal state
        state, metrics = step(state, batch, *frozen)
        return float(metrics["loss"])

    return run


def transformers_model() -> Any:
    """A Qwen2ForCausalLM of the same shape (its own random weights: speed does not depend on them)."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.d_model,
        intermediate_size=max(CONFIG.mlp_dims),
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=CONFIG.context_length,
    )
    return transformers.Qwen2ForCausalLM(config)  # float32, torch's default


def tunix_model() -> Any:
    """The same of google-tunix, an nnx module."""
    from flax import nnx
    from tunix.models.qwen2 import model

    config = model.ModelConfig(
        num_layers=CONFIG.num_layers,
        vocab_size=CONFIG.vocab_size,
        embed_dim=CONFIG.d_model,
        hidden_dim=max(CONFIG.mlp_dims),
        num_heads=CONFIG.num_heads,
        head_dim=CONFIG.head_dim,
        num_kv_heads=CONFIG.num_kv_heads,
        rope_theta=int(CONFIG.rope_theta),
        norm_eps=CONFIG.norm_eps,
        use_tied_embedding=True,
    )
    return model.Qwen2(config, rngs=nnx.Rngs(0))  # float32
