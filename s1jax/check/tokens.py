"""Greedy tokens of the small model that comes with s1jax, on this device and on the CPU.

Both sample in float32 with exact products. Budgets force some tokens: thinking is extended once and then cut. On a CPU
the same questions are compared in the reverse order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from s1jax.check.report import Check, Figure, NotHereError, Outcome
from s1jax.check.sizes import Sizes
from s1jax.checkpoint import store
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.tasks.countdown import problems

_MODEL = "package:countdown_base"
_LEAST = 95.0  # percent of the tokens: where two tokens are as good as equally probable, rounding decides


def checks(sizes: Sizes) -> list[Check]:
    """One check."""
    return [Check("tokens", "greedy, against the CPU", lambda: _compare(sizes))]


def _compare(sizes: Sizes) -> Outcome:
    device = jax.devices()[0]
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        raise NotHereError("jax has no CPU backend here; unset JAX_PLATFORMS, or add cpu to it") from None
    questions = [example.question for example in problems.sft_examples(sizes.problems, seed=1)]
    ours = _sample(questions, device)
    reference = _sample(questions[::-1], cpu)[::-1]
    same = sum(a == b for ids, others in zip(ours, reference, strict=True) for a, b in zip(ids, others, strict=False))
    count = sum(max(len(ids), len(others)) for ids, others in zip(ours, reference, strict=True))
    whole = sum(ids == others for ids, others in zip(ours, reference, strict=True))
    share = 100 * same / count
    figures = {"equal tokens": Figure(share, "%"), "equal sequences": Figure(100 * whole / len(ours), "%")}
    return Outcome(figures, share >= _LEAST, f"{count} tokens; at least {_LEAST:g} % must be equal")


def _sample(questions: list[str], device: Any) -> list[list[int]]:
    """All tokens after each question."""
    params = SamplingParams(max_thinking_tokens=48, max_answer_tokens=16, num_waits=1)
    model = store.load_model(_MODEL, host=True)
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        model = dataclasses.replace(model, params=jax.device_put(model.params, device))
        engine = Engine(model, slots=len(questions), dtype="float32")
        outputs = engine.generate(questions, params)
    return [list(output.token_ids) for output in outputs]
