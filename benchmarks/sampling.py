"""What the engine makes of many rows and of waits, on the model of benchmarks/models.py; needs torch, transformers.

    python -m benchmarks.sampling [--rounds 3] [--only mixed,waits,forcing]

mixed    64 prompts of 16 to 256 ids with 16 to 256 new ids each, in one random order: through 16 slots of the engine,
         and in static batches of 16 of transformers' generate, each as long as its longest row.
waits    one row of about 2,000 thinking ids, sampled at temperature 1, with four waits that the engine forces; and the
         paper's way, stop, append the wait, prefill all again, with the same lengths, by the engine (`reprefill`) and
         by transformers.
forcing  the engine's loop against a loop that only runs the model and takes the best id: what budget forcing costs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import decode as decode_lib
from benchmarks import models, record
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts
from s1jax.text.delimiters import Delimiters

SLOTS, ROWS = 16, 64
WAIT = (7,)


def mixed(rounds: int) -> dict[str, Any]:
    """See the module's text."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, models.CONFIG.vocab_size, rng.integers(16, 257)).tolist() for _ in range(ROWS)]
    new = np.exp(rng.uniform(np.log(16), np.log(256), ROWS)).astype(int).tolist()
    engine = Engine(jax.tree.map(jnp.asarray, models.random_params()), config=models.CONFIG, slots=SLOTS)
    generate = decode_lib.generator()

    def ours() -> None:
        samples = dict(engine.sample(decode_lib.requests(prompts, new), decode_lib.DELIMITERS))
        assert all(len(samples[i].ids) == n for i, n in enumerate(new))

    def theirs() -> None:
        for start in range(0, ROWS, SLOTS):
            part = slice(start, start + SLOTS)
            generate(prompts[part], max(new[part]))

    seconds = record.alternate({"s1jax": ours, "transformers": theirs}, rounds)
    return {
        "new_ids": sum(new),
        "steps_of_static_batches": sum(max(new[i : i + SLOTS]) for i in range(0, ROWS, SLOTS)),
        "steps_of_the_engine": engine.counts.steps // (rounds + 1),
        **record.comparisons(seconds),
    }


def waits(rounds: int) -> dict[str, Any]:
    """See the module's text."""
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, models.CONFIG.vocab_size, 128).tolist()
    # Random weights choose nearly evenly, so one of 80 of 32,000 ids comes every 400 ids or so.
    end = tuple(rng.choice(np.arange(10, models.CONFIG.vocab_size), 80, replace=False).tolist())
    delimiters = Delimiters((1,), (2,), (3,), (4,), end, end, (), num_ids=models.CONFIG.vocab_size)
    params = jax.tree.map(jnp.asarray, models.random_params())
    engine = Engine(params, config=models.CONFIG, slots=1, cache_length=3072)
    controls = SamplingParams(max_thinking_tokens=2600, num_waits=4, max_answer_tokens=1, temperature=1.0, seed=4)
    (sample,) = dict(engine.sample([EncodedRequest(tuple(prompt), controls, WAIT)], delimiters)).values()
    forced = np.flatnonzero(sample.forced).tolist()
    borders = [0, *(i for i in forced[1:] if sample.ids[i] == WAIT[0]), len(sample.ids)]
    pieces = np.diff(borders).tolist()
    assert len(pieces) == 5 and sample.waits == 4
    ids = [*prompt, *sample.ids.tolist()]
    generate = decode_lib.generator()

    def ours() -> None:
        list(engine.sample([EncodedRequest(tuple(prompt), controls, WAIT)], delimiters))

    def reprefill() -> None:
        for begin, piece in zip(borders, pieces, strict=False):
            rows = decode_lib.requests([ids[: len(prompt) + begin + 1]], [piece], 1.0)
            list(engine.sample(rows, decode_lib.DELIMITERS))

    def transformers() -> None:
        for begin, piece in zip(borders, pieces, strict=False):
            generate([ids[: len(prompt) + begin + 1]], piece, sampled=True)

    seconds = record.alternate({"s1jax": ours, "reprefill": reprefill, "transformers": transformers}, rounds)
    return {
        "ids_between_waits": pieces,
        **record.comparisons(seconds),
    }


def forcing(rounds: int) -> dict[str, Any]:
    """See the module's text."""
    found = {}
    params = jax.tree.map(jnp.asarray, models.random_params())
    for batch in (1, SLOTS):
        prompts = np.random.default_rng(2).integers(0, models.CONFIG.vocab_size, (batch, 64)).tolist()
        engine = Engine(params, config=models.CONFIG, slots=batch, cache_length=384)
        rows = decode_lib.requests(prompts, [256] * batch)
        plain = _plain_loop(params, np.array(prompts, np.int32), 256)

        def forced(engine: Engine = engine, rows: list[EncodedRequest] = rows) -> None:
            list(engine.sample(rows, decode_lib.DELIMITERS))

        seconds = record.alternate({"forced": forced, "plain": plain}, rounds)
        shares = [a / b - 1 for a, b in zip(seconds["forced"], seconds["plain"], strict=True)]
        found[f"batch {batch}"] = {"slower_than_plain": statistics.median(shares), "seconds": seconds}
    return found


def _plain_loop(params: Any, prompts: np.ndarray, new: int) -> Callable[[], None]:
    """Prefill, then `new` steps of model and argmax in one program; same cache and weights as the engine's."""
    batch, length = prompts.shape

    @jax.jit
    def start(params: Any, prompts: jax.Array) -> cache_lib.Cache:
        empty = cache_lib.init_cache(models.CONFIG, batch, 384)
        full = jnp.full(batch, length - 1)
        _, cache = decoder.forward_cached(params, models.CONFIG, prompts, empty, full)
        assert isinstance(cache.pages, cache_lib.Pages)
        return cache_lib.Cache(cache_lib.unstack(cache.pages), cache.table, cache.lengths)

    @jax.jit
    def loop(params: Any, cache: cache_lib.Cache, last: jax.Array) -> jax.Array:
        def step(i: jax.Array, carry: Any) -> Any:
            cache, last, ids = carry
            hidden, cache = decoder.forward_cached(
                params, models.CONFIG, last[:, None], cache, jnp.ones(batch, jnp.int32)
            )
            last = jnp.argmax(decoder.logits(params, models.CONFIG, hidden[:, 0]), axis=-1).astype(jnp.int32)
            return cache, last, ids.at[:, i].set(last)

        return jax.lax.fori_loop(0, new, step, (cache, last, jnp.zeros((batch, new), jnp.int32)))[2]

    unstacked = jax.jit(layouts.unstack, static_argnums=(1, 2))(params, models.CONFIG, True)
    return lambda: jax.block_until_ready(loop(unstacked, start(params, prompts), prompts[:, -1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="mixed,waits,forcing")
    args = parser.parse_args()
    parts = {"mixed": mixed, "waits": waits, "forcing": forcing}
    for name in args.only.split(","):
        found = parts[name](args.rounds)
        found = {"dtype": "float32", "parameters": models.CONFIG.num_params, **found}
        record.write(f"sampling_{name}", found, speed=True)


if __name__ == "__main__":
    main()
