"""Train step of s1jax against transformers + torch AdamW and google-tunix: same shapes, same run, alternating.

    python -m benchmarks.train_step [--rounds 5] [--rows 4] [--length 512] [--peers transformers,tunix]

fp32 on a CPU, no rematerialisation on any side, whole rows supervised. Each takes three steps in a row, as in a run,
and their median counts: memory that lies idle for two seconds is taken back by some hypervisors, and a step after such
a pause took 3.5 s instead of 2.0. Needs torch and transformers, and google-tunix where it is asked for.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import models, record
from s1jax.config.experiment import MeshConfig, TrainConfig
from s1jax.parallel import mesh as mesh_lib


def ours(tokens: np.ndarray) -> Callable[[], Any]:
    """A function that takes one s1jax step on tokens [B, T + 1] and returns its loss."""
    mesh = mesh_lib.make_mesh(MeshConfig())
    train = TrainConfig(batch_size=tokens.shape[0], compute_dtype="float32", remat="none", loss_chunk=2048)
    params = jax.tree.map(jax.numpy.asarray, models.random_params())
    step = models.stepper(models.CONFIG, train, params, 100, mesh)
    batch = batch_of(tokens)
    return lambda: step(batch)


def batch_of(tokens: np.ndarray) -> dict[str, jax.Array]:
    """Whole rows of tokens [B, T + 1] as a batch."""
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    arrays = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
        "segment_ids": np.ones((rows, length), np.int32),
        "weights": np.ones((rows, length), np.float32),
    }
    return {name: jax.numpy.asarray(array) for name, array in arrays.items()}


def transformers(tokens: np.ndarray) -> Callable[[], Any]:
    """The same with transformers and torch.optim.AdamW."""
    return torch_step(models.transformers_model(), tokens)


def torch_step(model: Any, tokens: np.ndarray) -> Callable[[], Any]:
    """A function that takes one step of torch.optim.AdamW with a model of transformers."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=1e-4)
    inputs = torch.from_numpy(tokens[:, :-1]).long()
    targets = torch.from_numpy(tokens[:, 1:]).long()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return run


def tunix(tokens: np.ndarray) -> Callable[[], Any]:
    """The same with tunix's model and the loss of its trainer, which has no target for the last id of a row."""
    import optax
    from flax import nnx
    from tunix.sft import peft_trainer

    model = models.tunix_model()
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, 0.9, 0.95, weight_decay=1e-4))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    tokens = tokens[:, :-1]
    rows, length = tokens.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    mask = np.broadcast_to(np.tril(np.ones((length, length), bool)), (rows, length, length))
    batch = [jax.numpy.asarray(x) for x in (tokens, np.ones((rows, length), bool), positions, mask)]

    def step(model: Any, optimizer: Any, *batch: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(peft_trainer._default_loss_fn)(model, *batch)
        optimizer.update(model, gradients)
        return loss

    jitted: Any = nnx.jit(step, donate_argnums=(0, 1))
    return lambda: float(jitted(model, optimizer, *batch))


PEERS = {"transformers": transformers, "tunix": tunix}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    record.add_peers(parser, PEERS)
    args = parser.parse_args()
    shape = (args.rows, args.length + 1)
    tokens = np.random.default_rng(0).integers(0, models.CONFIG.vocab_size, shape, dtype=np.int32)
    peers = {name: PEERS[name](tokens) for name in args.peers}
    seconds = record.alternate({"s1jax": ours(tokens), **peers}, args.rounds, in_a_row=3)
    count = args.rows * args.length
    record.write(
        "train_step",
        {
            "shape": {
                "rows": args.rows,
                "length": args.length,
                "dtype": "float32",
                "parameters": models.CONFIG.num_params,
            },
            "tokens_per_second": {name: count / statistics.median(times) for name, times in seconds.items()},
            **record.comparisons(seconds),
        },
        speed=True,
    )


if __name__ == "__main__":
    main()
