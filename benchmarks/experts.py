"""A mixture of experts in s1jax, transformers and google-tunix on a CPU: same shapes, same run, alternating.

    python -m benchmarks.experts [--rounds 5] [--rows 4] [--length 256] [--cases 1x128x128,16x128x64]
        [--peers transformers,transformers_grouped,tunix]

8 layers with 32 experts, 4 for a token, D 256 and F 128 in float32: Qwen3-MoE's layers. Three parts: a train step
(AdamW, no rematerialisation, all tokens supervised), and greedy decoding. A case of decoding is BATCH x PROMPT x NEW
ids, with the prefill in its time. `transformers` runs its experts one by one (`eager`), `transformers_grouped` by
torch's grouped products. google-tunix computes every expert for every token on a CPU; it takes part in the train step.
Each runs three times in a row, as in benchmarks/train_step.py. Needs torch and transformers, google-tunix where it is
asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import decode, models, record, train_step
from s1jax.config.experiment import MeshConfig, TrainConfig
from s1jax.config.layers import GQA, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.engine.engine import Engine
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.text.delimiters import Delimiters

SPEC = Experts(num_experts=32, experts_per_token=4, hidden=128, normalize=True)
ATTENTION = GQA(num_heads=4, num_kv_heads=2, head_dim=64, qk_norm=True)
CONFIG = ModelConfig(vocab_size=8192, d_model=256, groups=(Group(8, (Layer(ATTENTION, SPEC),)),), tied_embeddings=True)
DELIMITERS = Delimiters((), (0,), (), (), (), (), (), num_ids=CONFIG.vocab_size)


def random_params() -> dict[str, Any]:
    """float32 weights of standard deviation 0.02, norms 1."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(scale=0.02, size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(CONFIG))


def our_step(tokens: np.ndarray) -> Callable[[], Any]:
    """A function that takes one s1jax step on tokens [B, T + 1]."""
    train = TrainConfig(batch_size=tokens.shape[0], compute_dtype="float32", remat="none", loss_chunk=2048)
    step = models.stepper(CONFIG, train, random_params(), 100, mesh_lib.make_mesh(MeshConfig()))
    batch = train_step.batch_of(tokens)
    return lambda: step(batch)


def transformers_model(implementation: str) -> Any:
    """A Qwen3MoeForCausalLM of the same shape; its experts are computed by `eager` or `grouped_mm`."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.d_model,
        intermediate_size=SPEC.hidden,
        moe_intermediate_size=SPEC.hidden,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=ATTENTION.num_heads,
        num_key_value_heads=ATTENTION.num_kv_heads,
        head_dim=ATTENTION.head_dim,
        num_experts=SPEC.num_experts,
        num_experts_per_tok=SPEC.experts_per_token,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        decoder_sparse_step=1,
        experts_implementation=implementation,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def transformers_step(implementation: str, tokens: np.ndarray) -> Callable[[], Any]:
    """The same with transformers and torch.optim.AdamW."""
    return train_step.torch_step(transformers_model(implementation), tokens)


def tunix_step(tokens: np.ndarray) -> Callable[[], Any]:
    """The same with tunix's model and the loss of its trainer, which has no target for the last id of a row.

    Its Qwen3 has an output projection of its own, 2.1 M weights more than the others.
    """
    import optax
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3
    from tunix.sft import peft_trainer

    config = qwen3.ModelConfig(
        num_layers=CONFIG.num_layers,
        vocab_size=CONFIG.vocab_size,
        embed_dim=CONFIG.d_model,
        hidden_dim=SPEC.hidden,
        num_heads=ATTENTION.num_heads,
        head_dim=ATTENTION.head_dim,
        num_kv_heads=ATTENTION.num_kv_heads,
        rope_theta=int(CONFIG.rope_theta),
        norm_eps=CONFIG.norm_eps,
        num_experts=SPEC.num_experts,
        num_experts_per_tok=SPEC.experts_per_token,
    )
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, 0.9, 0.95, weight_decay=1e-4))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    tokens = tokens[:, :-1]
    rows, length = tokens.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    mask = np.broadcast_to(np.tril(np.ones((length, length), bool)), (rows, length, length))
    batch = [jnp.asarray(x) for x in (tokens, np.ones((rows, length), bool), positions, mask)]

    def step(model: Any, optimizer: Any, *batch: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(peft_trainer._default_loss_fn)(model, *batch)
        optimizer.update(model, gradients)
        return loss

    jitted: Any = nnx.jit(step, donate_argnums=(0, 1))
    return lambda: float(jitted(model, optimizer, *batch))


STEPS: dict[str, Callable[[np.ndarray], Callable[[], Any]]] = {
    "transformers": functools.partial(transformers_step, "eager"),
    "transformers_grouped": functools.partial(transformers_step, "grouped_mm"),
    "tunix": tunix_step,
}
IMPLEMENTATIONS = {"transformers": "eager", "transformers_grouped": "grouped_mm"}


def our_decoding(prompts: list[list[int]], new: int) -> Callable[[], None]:
    """A function that samples `new` ids after every prompt with s1jax."""
    engine = Engine(random_params(), config=CONFIG, slots=len(prompts))

    def run() -> None:
        samples = engine.sample(decode.requests(prompts, [new] * len(prompts)), DELIMITERS)
        assert all(len(sample.ids) == new for _, sample in samples)

    return run


def transformers_decoding(implementation: str, prompts: list[list[int]], new: int) -> Callable[[], None]:
    """The same with transformers' generate."""
    import torch

    model = transformers_model(implementation).eval()
    model.generation_config.eos_token_id = None
    inputs = torch.tensor(prompts)

    def run() -> None:
        with torch.inference_mode():
            ids = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        assert ids.shape[1] == inputs.shape[1] + new

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--cases", default="1x128x128,16x128x64")
    record.add_peers(parser, STEPS)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (args.rows, args.length + 1), dtype=np.int32)
    peers = {name: STEPS[name](tokens) for name in args.peers}
    seconds = record.alternate({"s1jax": our_step(tokens), **peers}, args.rounds, in_a_row=3)
    count = args.rows * args.length
    found: dict[str, Any] = {
        "train_step": {
            "rows": args.rows,
            "length": args.length,
            "tokens_per_second": {name: count / statistics.median(times) for name, times in seconds.items()},
            **record.comparisons(seconds),
        }
    }
    for case in args.cases.split(","):
        batch, length, new = map(int, case.split("x"))
        prompts = rng.integers(0, CONFIG.vocab_size, (batch, length)).tolist()
        others = {
            name: transformers_decoding(IMPLEMENTATIONS[name], prompts, new)
            for name in args.peers
            if name in IMPLEMENTATIONS
        }
        seconds = record.alternate({"s1jax": our_decoding(prompts, new), **others}, args.rounds, in_a_row=3)
        found[f"decode_{case}"] = {
            "tokens_per_second": {name: batch * new / statistics.median(times) for name, times in seconds.items()},
            **record.comparisons(seconds),
        }
    shape = {
        "layers": CONFIG.num_layers,
        "d_model": CONFIG.d_model,
        **dataclasses.asdict(SPEC),
        "parameters": CONFIG.num_params,
        "active_parameters": CONFIG.active_params,
        "dtype": "float32",
    }
    record.write("experts", {"shape": shape, **found}, speed=True)


if __name__ == "__main__":
    main()
