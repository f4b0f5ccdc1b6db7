"""Nanoseconds a weight to write GGUF's blocks, beside llama.cpp's C code, and to read quantised checkpoints.

    S1JAX_LLAMA_CPP=FOLDER python -m benchmarks.blocks [--rows=4096] [--width=4096] [--rounds=5]

Needs a folder with llama.cpp's libggml-base.so in or below it for the comparison; without it, only our own times are
taken. The C code runs on one core, ours on all. Records blocks.json in the folder of this processor; other sizes only
print.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks import record
from s1jax.checkpoint.codecs import blocks
from s1jax.checkpoint.quantized import method as method_lib
from s1jax.checkpoint.quantized.held import Held
from tests.checkpoint import llama_cpp

_GROUP = 128


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="Outputs of the matrix.")
    parser.add_argument("--width", type=int, default=4096, help="Inputs of the matrix; a multiple of 256.")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    values = np.random.default_rng(0).standard_normal((args.rows, args.width)).astype(np.float32) * np.float32(0.02)
    found: dict[str, dict[str, float]] = {}
    for kind in llama_cpp.TYPES:
        encoded = blocks.encode(values, kind)
        contenders: dict[str, Callable[[], object]] = {
            "encode": functools.partial(blocks.encode, values, kind),
            "decode": functools.partial(blocks.decode, encoded, kind),
        }
        if "S1JAX_LLAMA_CPP" in os.environ and kind != "F32":
            size = encoded.shape[1]
            contenders["llama_cpp"] = functools.partial(llama_cpp.quantize, values, kind, size)
        found[kind] = _measured(kind, contenders, args.rounds, values.size)
    for name, (config, tensors) in _checkpoints(args.rows, args.width).items():
        method = method_lib.read_method({"quantization_config": config}, name)
        (tensor,) = method_lib.restore(method, {held.name: held for held in tensors}, []).values()
        found[name] = _measured(name, {"read": tensor.read}, args.rounds, values.size)
    if (args.rows, args.width) == (4096, 4096) and "S1JAX_LLAMA_CPP" in os.environ:
        record.write("blocks", {"rows": args.rows, "width": args.width, "nanoseconds_a_weight": found}, speed=True)


def _measured(what: str, contenders: dict[str, Callable[[], object]], rounds: int, weights: int) -> dict[str, float]:
    """Medians in nanoseconds a weight; prints them."""
    seconds = record.alternate(contenders, rounds)
    found = {name: round(statistics.median(times) / weights * 1e9, 2) for name, times in seconds.items()}
    print(f"{what}: {', '.join(f'{name} {value}' for name, value in found.items())} ns a weight")
    return found


def _checkpoints(outputs: int, inputs: int) -> dict[str, tuple[dict[str, object], list[Held]]]:
    """Method -> its configuration and the tensors of one module, of random codes."""
    rng = np.random.default_rng(0)

    def words(*shape: int) -> np.ndarray:
        return rng.integers(-(2**31), 2**31, size=shape).astype(np.int32)

    def held(name: str, kind: str, array: np.ndarray) -> Held:
        return Held(name, name, kind, array.shape, lambda: array)

    scales = rng.standard_normal((inputs // _GROUP, outputs)).astype(np.float16)
    eight = rng.integers(0, 120, size=(outputs, inputs)).astype(np.uint8)
    return {
        "gptq": (
            {"quant_method": "gptq", "bits": 4, "group_size": _GROUP},
            [
                held("m.qweight", "I32", words(inputs // 8, outputs)),
                held("m.qzeros", "I32", words(inputs // _GROUP, outputs // 8)),
                held("m.scales", "F16", scales),
            ],
        ),
        "awq": (
            {"quant_method": "awq", "bits": 4, "group_size": _GROUP},
            [
                held("m.qweight", "I32", words(inputs, outputs // 8)),
                held("m.qzeros", "I32", words(inputs // _GROUP, outputs // 8)),
                held("m.scales", "F16", scales),
            ],
        ),
        "fp8": (
            {"quant_method": "fp8", "weight_block_size": [_GROUP, _GROUP]},
            [
                held("m.weight", "F8_E4M3", eight),
                held("m.weight_scale_inv", "F32", np.ones([-(-outputs // _GROUP), inputs // _GROUP], np.float32)),
            ],
        ),
    }


if __name__ == "__main__":
    main()
