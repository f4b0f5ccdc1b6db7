"""Decoding and prefill of SmolLM2-135M on a CPU with float32, int8 and int4 weights, against llama.cpp.

    python -m launch.convert --from_gguf=smollm2-135m.gguf --to=CKPT --dtype=float32
    S1JAX_LLAMA_CPP=DIR python -m benchmarks.small_weights --checkpoint=CKPT [--rounds 7] [--prompt 128] [--new 128]
        [--batch 1] [--only speed,quality]

DIR has node-llama-cpp installed (WORKSPACE.md); without it only s1jax is timed. llama.cpp runs files of the
checkpoint's weights in F32, Q8_0 and Q4_0 that this command writes with s1jax's own writer. All have
--threads threads (default 2: start the command with as many cores). A round runs all contenders one after the other;
figures are medians over the rounds, ratios medians of the rounds' ratios.

speed    tokens/s of `--new` greedy ids after a prompt of `--prompt`, and seconds to the first id.
quality  on --tokens ids of docs/budget_forcing.md: perplexity, share of positions with float32's best id, and mean KL
         divergence from float32's probabilities.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.decode import requests
from s1jax.checkpoint.gguf.write import write_model
from s1jax.checkpoint.store import Model, load_model
from s1jax.engine.engine import Engine
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts, quant
from s1jax.text.delimiters import Delimiters

_KINDS = {"float32": "", "int8": "int8", "int4": "int4"}
_FILES = {"F32": "F32", "Q8_0": "Q8_0", "Q4_0": "Q4_0"}
_GOALS = {"int8 / float32": 1.3, "int4 / float32": 1.3, "float32 / llama.cpp F32": 1.15, "int8 / llama.cpp Q8_0": 0.9}
_Run = Callable[[], tuple[float, float]]  # seconds to the first id, seconds of the rest


def speed(model: Model, args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """See the module's text."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, model.config.vocab_size, (args.batch, args.prompt)).tolist()
    runs = {name: _ours(model, kind, prompts, args.new) for name, kind in _KINDS.items()}
    if os.environ.get("S1JAX_LLAMA_CPP") and args.batch == 1:
        runs |= _theirs(model, prompts[0], args, folder)
    times: dict[str, list[tuple[float, float]]] = {name: [run()][:0] for name, run in runs.items()}
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(run())
    rates = {name: [args.batch * args.new / rest for _, rest in found] for name, found in times.items()}
    pairs = [tuple(name.split(" / ")) for name in _GOALS] + [("int4", "llama.cpp Q4_0"), ("int8", "llama.cpp F32")]
    return {
        "prompt": args.prompt, "new": args.new, "batch": args.batch, "threads": args.threads,
        "tokens_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "prefill_seconds": {name: statistics.median(first for first, _ in found) for name, found in times.items()},
        "times_as_fast": {f"{a} / {b}": record.ratios(rates, b, a) for a, b in pairs if a in rates and b in rates},
        "goals": _GOALS,
        "seconds": times,
    }  # fmt: skip


def _ours(model: Model, kind: str, prompts: list[list[int]], new: int) -> _Run:
    """Runs the engine with `new` + 2 ids and with 2; the difference is the decoding."""
    engine = Engine(model.params, config=model.config, slots=len(prompts), weight_dtype=kind)
    delimiters = Delimiters((), (0,), (), (), (), (), (), num_ids=model.config.vocab_size)
    short, long = (requests(prompts, [count] * len(prompts)) for count in (2, new + 2))

    def run() -> tuple[float, float]:
        seconds = []
        for rows, count in ((short, 2), (long, new + 2)):
            start = time.perf_counter()
            samples = list(engine.sample(rows, delimiters))
            seconds.append(time.perf_counter() - start)
            assert all(len(sample.ids) == count for _, sample in samples)
        return seconds[0], seconds[1] - seconds[0]

    return run


def _theirs(model: Model, prompt: list[int], args: argparse.Namespace, folder: pathlib.Path) -> dict[str, _Run]:
    """llama.cpp with files of the same weights."""
    script = pathlib.Path(__file__).with_suffix(".mjs")
    place = pathlib.Path(os.environ["S1JAX_LLAMA_CPP"]).resolve()
    process = subprocess.Popen(
        ["node", str(script), str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip

    def ask(**request: Any) -> Mapping[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply: Mapping[str, Any] = json.loads(process.stdout.readline() or '{"error": "node ended"}')
        assert "error" not in reply, reply["error"]
        return reply

    def run(name: str) -> tuple[float, float]:
        reply = ask(run=name, ids=prompt, count=args.new + 1)
        assert reply["made"] == args.new + 1
        return reply["prefill"], reply["decode"]

    host = jax.tree.map(np.asarray, model.params)
    runs: dict[str, _Run] = {}
    for name, kind in _FILES.items():
        path = folder / f"{kind}.gguf"
        write_model(path, host, model.config, model.tokenizer, model.chat, file_type=kind)
        ask(open=name, path=str(path), length=args.prompt + args.new + 16, threads=args.threads)
        runs[f"llama.cpp {name}"] = functools.partial(run, name)
    return runs


def quality(model: Model, tokens: int) -> dict[str, Any]:
    """See the module's text."""
    text = (pathlib.Path(__file__).parent.parent / "docs" / "budget_forcing.md").read_text()
    ids = model.tokenizer.encode(text)[:tokens]
    logits = {name: _logits(model, kind, ids) for name, kind in _KINDS.items()}
    wide = jax.nn.log_softmax(logits["float32"])
    found = {}
    for name, one in logits.items():
        narrow = jax.nn.log_softmax(one)
        loss = -jnp.mean(jnp.take_along_axis(narrow[:-1], jnp.asarray(ids)[1:, None], 1))
        found[name] = {
            "perplexity": float(jnp.exp(loss)),
            "same_best_id": float(jnp.mean(jnp.argmax(narrow, -1) == jnp.argmax(wide, -1))),
            "kl_divergence": float(jnp.mean(jnp.sum(jnp.exp(wide) * (wide - narrow), -1))),
        }
    return {"tokens": len(ids), **found}


def _logits(model: Model, kind: str, ids: list[int]) -> jax.Array:
    """float32 [T, V] with the weights as an engine on a CPU holds them."""

    @jax.jit
    def logits(params: Any) -> jax.Array:
        small = quant.quantize_params(params, kind, 32 if kind == "int4" else 0) if kind else params  # type: ignore[arg-type]
        small = layouts.unstack(small, model.config, True)
        empty = cache_lib.init_cache(model.config, 1, len(ids))
        empty = cache_lib.Cache(cache_lib.unstack(empty.pages), empty.table, empty.lengths)  # type: ignore[arg-type]
        row = jnp.asarray(ids)[None]
        hidden, _ = decoder.forward_cached(small, model.config, row, empty, jnp.full(1, len(ids)))
        return decoder.logits(small, model.config, hidden[0])

    return logits(model.params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    for name, default in (("rounds", 7), ("prompt", 128), ("new", 128), ("batch", 1), ("threads", 2), ("tokens", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="speed,quality")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = load_model(pathlib.Path(args.checkpoint), dtype="float32")
        about = {"dtype": "float32", "parameters": model.config.num_params}
        for part in args.only.split(","):
            found = speed(model, args, folder) if part == "speed" else quality(model, args.tokens)
            print(json.dumps({key: value for key, value in found.items() if key != "seconds"}, indent=1))
            record.write_part(
                "small_weights", f"{part}, batch {args.batch}" if part == "speed" else part, {**about, **found}
            )


if __name__ == "__main__":
    main()
