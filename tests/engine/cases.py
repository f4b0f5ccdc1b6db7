"""Random weights, delimiters, waits and controls for the tests of budget forcing."""

import functools

import jax

from s1jax.config.sampling import SamplingParams
from s1jax.model import decoder
from s1jax.text.delimiters import Delimiters

V = 40


def random_weights(config):
    """Large enough that ids differ clearly from each other and contexts matter."""
    tree = jax.jit(functools.partial(decoder.init_params, config))(jax.random.key(3))
    return jax.tree.map(lambda a: a * 14 if a.ndim > 2 else a, tree)


def random_delimiters(rng) -> Delimiters:
    """Delimiters of up to three ids each, over V ids of which some are unknown to the tokenizer."""

    def ids(low, high):
        return tuple(int(i) for i in rng.integers(0, 30, rng.integers(low, high + 1)))

    stop = tuple(int(i) for i in rng.choice(30, rng.integers(1, 3), replace=False))
    think_end = ids(1, 3)
    think_start, newline, final_answer = ids(0, 3), ids(1, 2), ids(1, 4)
    ids(0, 3)  # not used; the cases of the seeds are chosen with it
    return Delimiters(
        think_start=think_start,
        think_end=think_end,
        newline=newline,
        final_answer=final_answer,
        end=tuple(sorted({think_end[0], *stop, *(int(i) for i in rng.choice(30, 3))})),
        stop=stop,
        ends_in_newline=tuple(sorted({int(i) for i in rng.choice(30, 8)})),
        num_ids=36,
        illegal=(31, 33),
        pad=int(rng.integers(V)),
    )


def random_controls(rng, sampled=True) -> SamplingParams:
    """Small budgets, so that every rule comes into play within some 30 ids."""
    most = int(rng.choice([0, 1, 2, 3, rng.integers(0, 25), rng.integers(0, 25)]))
    return SamplingParams(
        max_thinking_tokens=most,
        min_thinking_tokens=int(rng.choice([0, rng.integers(0, most + 1)])),
        num_waits=int(rng.choice([0, 0, 1, 2, 5])),
        max_answer_tokens=int(rng.integers(1, 7)),
        temperature=float(rng.choice([0.0, 0.7, 1.5])) if sampled else 0.0,
        top_p=float(rng.choice([1.0, 0.9])),
        top_k=int(rng.choice([0, 12])),
        min_p=float(rng.choice([0.0, 0.02])),
        seed=int(rng.integers(2**32)),
    )


def random_wait(rng) -> tuple[int, ...]:
    """A wait of zero to three ids."""
    return tuple(int(i) for i in rng.integers(0, 30, rng.choice([0, 1, 1, 2, 3])))


def check(sample, want, name) -> None:
    """Compares a `Sample` with a `reference.Result`, id for id."""
    assert list(sample.ids) == want.ids, name
    assert list(sample.forced) == want.forced, name
    fields = ("thinking_tokens", "answer_tokens", "waits", "thinking_end", "answer_end")
    assert [getattr(sample, f) for f in fields] == [getattr(want, f) for f in fields], name
    assert abs(sample.logprob - want.logprob) < 2e-3 + 1e-5 * abs(want.logprob), name
