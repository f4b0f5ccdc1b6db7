"""Tries questions on a student as the flags of `s1jax measure` ask, in one process or several."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from s1jax.cli import engine_flags, progress
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError

if TYPE_CHECKING:
    from s1jax.curation.difficulty import Graded
    from s1jax.curation.pass_rate import Plan, Problem, Rate, Tries
    from s1jax.io.journals import Journals, Share

STUDENT = flags.DEFINE_string(
    "student", "", "Checkpoint, training workdir or package:NAME whose pass rates are measured."
)
TRIES = flags.DEFINE_integer("tries", 8, "Answers of the student to each question, at most.", 1)
STOP_ABOVE = flags.DEFINE_float(
    "stop_above", None, "Stop trying a question once its pass rate is certain to be above this.", 0.0
)
THINKING = flags.DEFINE_integer("max_thinking_tokens", None, "Thinking is cut here; by default that of the task.", 0)
ANSWER = flags.DEFINE_integer("max_answer_tokens", None, "Limit of an answer; by default that of the task.", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Above 0 where there is more than one try.", 0.0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Smallest set of tokens with at least this probability.")
TOP_K = flags.DEFINE_integer("top_k", 0, "The k most probable tokens; 0: all.", 0)
SEED = flags.DEFINE_integer("seed", 0, "Of tries, together with the question and the number of a try; of clusters.", 0)
BATCH = flags.DEFINE_integer("batch_size", 16, "Tries, or questions of the encoder, that are run at one time.", 1)
SYSTEM = flags.DEFINE_string("system", "", "System prompt; empty: that of the chat format.")


def check() -> None:
    """Refuses flags that make no sense.

    Raises:
      UserError: names the flag.
    """
    if STOP_ABOVE.value is not None and STOP_ABOVE.value >= 1:
        raise UserError(f"--stop_above is {STOP_ABOVE.value:g}, which no rate exceeds; give less than 1.")
    if STUDENT.value and TRIES.value > 1 and not TEMPERATURE.value:
        raise UserError(f"--temperature=0 gives {TRIES.value} equal tries; raise it, or give --tries=1.")


def rates(folder: pathlib.Path, graded: Graded, out: pathlib.Path, share: Share) -> list[Rate | None] | None:
    """Returns the rate of each row; None in all processes but the first.

    Args:
      folder: of the student.
      graded: rows as problems.
      out: folder of the tries.
      share: of this process.
    """
    from s1jax.checkpoint import digests
    from s1jax.curation import pass_rate
    from s1jax.parallel import shares

    if share.is_first:
        engine_flags.say_step(STUDENT.value, folder)
    params = SamplingParams(
        max_thinking_tokens=graded.task.max_thinking_tokens if THINKING.value is None else THINKING.value,
        max_answer_tokens=graded.task.max_answer_tokens if ANSWER.value is None else ANSWER.value,
        temperature=TEMPERATURE.value, top_p=TOP_P.value, top_k=TOP_K.value, seed=SEED.value,
    )  # fmt: skip
    dtypes = (engine_flags.dtype(), engine_flags.CACHE_DTYPE.value, engine_flags.WEIGHT_DTYPE.value)
    run = pass_rate.settings(digests.fingerprint(folder), params, SYSTEM.value, dtypes)
    plan = pass_rate.Plan(TRIES.value, STOP_ABOVE.value)
    problems = [problem for problem in graded.problems if problem is not None]
    with shares.open_journals(out / "tries.jsonl", run, share) as journals:
        _sample(folder, problems, pass_rate.Tries(graded.task, journals.rows), plan, params, journals, share)
        if not share.is_first:
            return None
        journals.gather(lambda rows: _lacks(pass_rate.Tries(graded.task, rows), problems, plan))
        tries = pass_rate.Tries(graded.task, journals.rows)
    return [None if problem is None else tries.rate(problem, plan) for problem in graded.problems]


def _lacks(tries: Tries, problems: Sequence[Problem], plan: Plan) -> bool:
    return any(tries.missing(problem, plan) for problem in problems)


def _sample(
    folder: pathlib.Path,
    problems: Sequence[Problem],
    tries: Tries,
    plan: Plan,
    params: SamplingParams,
    journals: Journals,
    share: Share,
) -> None:
    """Samples the tries of this process that the journals lack."""
    from s1jax.checkpoint import store
    from s1jax.curation import pass_rate
    from s1jax.engine import limits
    from s1jax.engine.encoding import Encoder

    keys = sorted({problem.key for problem in problems})
    own = {key for place, key in enumerate(keys) if place in share}
    mine = [problem for problem in problems if problem.key in own]
    if not _lacks(tries, mine, plan):
        return
    about = store.load_metadata(folder)
    requests = [pass_rate.request(problem, 0, params) for problem in mine]
    longest = limits.longest(Encoder(about), requests, params, about.config.context_length)
    length = min(-(-longest // 64) * 64, about.config.context_length)
    engine = engine_flags.engine(os.fspath(folder), BATCH.value, length)
    begun = time.monotonic()
    with progress.Bar("trying", len(own) * plan.tries, shown=share.is_first) as bar:

        def report(done: int, tokens: int) -> None:
            bar.update(before + done, f"{tokens / max(time.monotonic() - begun, 1e-9):,.0f} tokens/s")

        before = tries.count(own)
        bar.update(before)
        pass_rate.sample(engine, mine, tries, plan, params, journals.append, system=SYSTEM.value, progress=report)
