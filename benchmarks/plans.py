"""What the train step takes on machines that aren't here, for the rows that other frameworks have been measured on.

    python -m benchmarks.plans [ROW ...]

Compiles ahead of time by launch.plan (extras tpu-aot and gpu-aot), minutes a row; rows that aren't named keep their
place in the record. One sequence per chip, AdamW, fp32 master weights and moments, bf16 compute.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import record

_PADDED = ("data.batching=padded", "train.batch_tokens=0", "train.batch_size=16")
# Half of a row on each of two devices, and two micro-batches: as many rows a step as devices. Or quarters.
_HALVES = ("mesh.sequence=2", "train.accumulation=2")
_QUARTERS = ("mesh.sequence=4", "train.accumulation=4")
_PARTS = "train.mlp_parts=4"  # of the MLP's width, one after the other
ROWS: dict[str, tuple[str, str, list[str]]] = {  # target, model, settings
    "v5p_8k": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=8192"]),
    "v5p_8k_save_dots": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=8192", "train.remat=save_dots"]),
    "v5p_8k_sequence_4": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=8192", *_QUARTERS]),
    "v5p_32k": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=32768"]),
    "v5p_32k_parts": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=32768", _PARTS]),
    "v5p_32k_sequence": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=32768", *_HALVES]),
    "v5p_32k_sequence_4": ("v5p:2x2x4", "qwen2p5_7b", ["data.block_size=32768", *_QUARTERS]),
    "v6e_32k": ("v6e:4x4", "qwen2p5_7b", ["data.block_size=32768"]),
    "v6e_32k_parts": ("v6e:4x4", "qwen2p5_7b", ["data.block_size=32768", _PARTS]),
    "v6e_32k_sequence": ("v6e:4x4", "qwen2p5_7b", ["data.block_size=32768", *_HALVES]),
    "v5p_32b_32k": ("v5p:4x4x4", "qwen2p5_32b", ["data.block_size=32768", "train.batch_size=64"]),
    "v5p_32b_32k_parts": (
        "v5p:4x4x4",
        "qwen2p5_32b",
        ["data.block_size=32768", "train.batch_size=64", _PARTS],
    ),
    "v5p_32b_32k_sequence": (
        "v5p:4x4x4",
        "qwen2p5_32b",
        ["data.block_size=32768", "train.batch_size=64", *_HALVES],
    ),
    "h100_32b_32k": ("h100:16", "qwen2p5_32b", ["data.block_size=32768"]),
    "h100_32b_32k_parts": ("h100:16", "qwen2p5_32b", ["data.block_size=32768", _PARTS]),
    "h100_32b_32k_sequence": ("h100:16", "qwen2p5_32b", ["data.block_size=32768", *_HALVES]),
    "h100_3b_32k": ("h100:1", "qwen2p5_3b", ["data.block_size=32768", "train.accumulation=16"]),
    "h100_7b_32k": (
        "h100:1",
        "qwen2p5_7b",
        [
            "data.block_size=32768",
            "train.batch_size=1",
            "train.param_dtype=bfloat16",
            "optimizer.moment_dtype=bfloat16",
        ],
    ),
}


def run(arguments: list[str], out: pathlib.Path, what: str) -> dict[str, Any]:
    """Runs launch.plan with these arguments and returns the JSON it wrote; `what` names it in a failure."""
    done = subprocess.run([sys.executable, "-m", "launch.plan", *arguments, f"--out={out}"])
    if not out.exists():
        sys.exit(f"{what}: launch.plan ended with {done.returncode}; see above.")
    return json.loads(out.read_text())


def plan(name: str, out: pathlib.Path) -> dict[str, Any]:
    """Runs launch.plan for a row and returns its JSON."""
    target, model, settings = ROWS[name]
    flags = [f"--config.{setting}" for setting in [*_PADDED, *settings, "train.loss_chunk=256"]]
    return run([f"--config=configs/s1_{model}.py", f"--model={model}", f"--target={target}", *flags], out, name)


def keep(found: dict[str, Any]) -> None:
    """Adds plans to the record by name; others keep their place."""
    file = record.RESULTS / "plans.json"
    plans = json.loads(file.read_text())["plans"] if file.exists() else {}
    record.write("plans", {"plans": plans | found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--outputs", type=pathlib.Path, help="folder of ROW.json; what is there is not compiled again")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"{unknown[0]} is no row; choose from {', '.join(ROWS)}")
    folder = arguments.outputs or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    for name in arguments.rows or ROWS:
        out = folder / f"{name}.json"
        keep({name: json.loads(out.read_text()) if out.exists() else plan(name, out)})


if __name__ == "__main__":
    main()
