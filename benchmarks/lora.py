"""Train step with adapters of s1jax against PEFT + torch AdamW: same shapes, same run, alternating.

    python -m benchmarks.lora [--rounds 5] [--rows 4] [--length 512] [--rank 16] [--peers peft]

fp32 on a CPU, adapters on all projections of the layers, no rematerialisation on any side, whole rows supervised. Three
steps in a row, whose median counts, as in `benchmarks.train_step`. s1jax also runs with its base in int8 and in
nf4, which torch's packages have for GPUs only, and with all weights trained. `kept_bytes` are those of base, adapters
and moments. Needs torch, transformers and peft.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import models, record, train_step
from s1jax.config.experiment import MeshConfig, TrainConfig
from s1jax.config.lora import OFF, LoraConfig
from s1jax.model import adapters
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import quantized

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ours(tokens: np.ndarray, lora: LoraConfig) -> tuple[Callable[[], Any], int]:
    """A function that takes one s1jax step on tokens [B, T + 1] and returns its loss; bytes that a step keeps."""
    mesh = mesh_lib.make_mesh(MeshConfig())
    train = TrainConfig(batch_size=tokens.shape[0], compute_dtype="float32", remat="none", loss_chunk=2048)
    params: Any = jax.tree.map(jax.numpy.asarray, models.random_params())
    trained, base = params, None
    if lora.rank:
        base = params
        if lora.quantized:
            kind: Any = lora.base
            base = quantized.quantize(params, models.CONFIG, kind, train.compute_dtype, mesh)
        trained = adapters.init(models.CONFIG, lora, jax.random.key(0), "float32")
    kept = 3 * sum(x.nbytes for x in jax.tree.leaves(trained)) + sum(x.nbytes for x in jax.tree.leaves(base))
    step = models.stepper(models.CONFIG, train, trained, 100, mesh, lora, base)
    batch = train_step.batch_of(tokens)
    return lambda: step(batch), kept


def peft(tokens: np.ndarray, rank: int) -> tuple[Callable[[], Any], int]:
    """The same with PEFT and torch.optim.AdamW."""
    import peft
    import torch

    config = peft.LoraConfig(r=rank, lora_alpha=32, target_modules=_TARGETS)
    model = peft.get_peft_model(models.transformers_model(), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=1e-4)
    inputs, targets = torch.from_numpy(tokens[:, :-1]).long(), torch.from_numpy(tokens[:, 1:]).long()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss)

    return run, sum(p.nbytes for p in model.parameters()) + 2 * sum(p.nbytes for p in trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    record.add_peers(parser, {"peft": peft})
    args = parser.parse_args()
    tokens = np.random.default_rng(0).integers(0, models.CONFIG.vocab_size, (args.rows, args.length + 1), np.int32)
    float32 = LoraConfig(args.rank, base="float32")
    made = {
        "s1jax": ours(tokens, float32),
        "s1jax_int8": ours(tokens, LoraConfig(args.rank, base="int8")),
        "s1jax_nf4": ours(tokens, LoraConfig(args.rank, base="nf4")),
        "s1jax_all_weights": ours(tokens, OFF),
        **({"peft": peft(tokens, args.rank)} if "peft" in args.peers else {}),
    }
    seconds = record.alternate({name: run for name, (run, _) in made.items()}, args.rounds, in_a_row=3)
    record.write(
        "lora",
        {
            "shape": {
                "rows": args.rows,
                "length": args.length,
                "rank": args.rank,
                "dtype": "float32",
                "parameters": models.CONFIG.num_params,
                "adapter_parameters": adapters.num_params(models.CONFIG, float32),
            },
            "kept_bytes": {name: kept for name, (_, kept) in made.items()},
            "tokens_per_second": {
                name: args.rows * args.length / statistics.median(times) for name, times in seconds.items()
            },
            **record.comparisons(seconds),
        },
        speed=True,
    )


if __name__ == "__main__":
    main()
