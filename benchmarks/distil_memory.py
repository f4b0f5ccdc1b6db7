"""What logit distillation adds to the memory of a step: Qwen2.5-1.5B with Qwen2.5-7B as teacher, 32,768 ids, 16 H100.

    python -m benchmarks.distil_memory

Compiles the step of launch.plan with and without the teacher (extra gpu-aot), for every loss: a minute. The goal is
that the peak grows by no more than the teacher's shard and 2 GB. And with stored targets, the 64 most probable ids.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

from benchmarks import plans, record

_LOSSES = ("forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl")
_FLAGS = [
    "--config=configs/s1_qwen2p5_1p5b.py",
    "--model=qwen2p5_1p5b",
    "--target=h100:16",
    "--config.data.batching=padded",
    "--config.data.block_size=32768",
    "--config.train.batch_tokens=0",
    "--config.train.batch_size=16",
    "--config.train.loss_chunk=256",
]
_ROOM = 2e9


def main() -> None:
    folder = pathlib.Path(tempfile.mkdtemp())
    plain = plans.run(_FLAGS, folder / "plain.json", "without a teacher")
    taught = {}
    for loss in _LOSSES:
        flags = [*_FLAGS, "--config.distil.teacher=qwen2p5_7b", f"--config.distil.loss={loss}"]
        taught[loss] = plans.run(flags, folder / f"{loss}.json", loss)
    stored = plans.run([*_FLAGS, "--config.distil.targets=not_there_yet"], folder / "stored.json", "stored targets")
    kept = ("target", "mesh", "rows", "block_size", "memory", "model_flops", "executed_flops", "seconds", "settings")
    base, shard = plain["memory"]["peak"], next(iter(taught.values()))["memory"]["teacher"]
    all_plans = {"cross_entropy": plain, **taught, "stored_targets": stored}
    peaks = {loss: plan["memory"]["peak"] for loss, plan in taught.items()}
    within = max(peaks.values()) <= base + shard + _ROOM
    result = {
        "peak_bytes": {"cross_entropy": base, **peaks},
        "stored_targets_peak_bytes": stored["memory"]["peak"],
        "teacher_shard_bytes": shard,
        "allowed_bytes": base + shard + _ROOM,
        "within": within,
        "plans": {name: {key: plan[key] for key in kept} for name, plan in all_plans.items()},
    }
    record.write("distil_memory", result)
    if not within:
        sys.exit("the peak grows by more than the teacher's shard and 2 GB.")


if __name__ == "__main__":
    main()
