"""Measures what the rules of `s1jax curate` need to know of rows, before a teacher is paid.

    python -m launch.measure --rows=FILE,FILE --out=FOLDER --student=CKPT --tries=8 [--task=gsm8k] [--stop_above=0.5]
        [--max_thinking_tokens=N] [--max_answer_tokens=N] [--temperature=T] [--seed=N] [--batch_size=B]

FOLDER/rows.jsonl has the rows with all their columns and those that were measured:

    pass_rate, pass_tries    right answers / tries of the student, and the tries

A row needs a question and a column `solution` or `answer` to grade against, as in `s1jax evaluate`: the bare answer, or
a worked solution that ends in a final answer. --task names the grading: mathematics by default, or that of a task of
`s1jax evaluate` (gsm8k, aime24, gpqa, choices, countdown, ...). Rows that cannot be graded are counted and keep their
place without the columns. --stop_above=0.5 stops trying a question once it is certain that the student is right in more
than half of all tries.

A try depends on the question, its number, the student and the sampling flags, never on the place of a row. All tries
are kept in FOLDER/tries.jsonl: the same command goes on after an interruption, and with rows added, removed or
reordered it samples only what is new. The same command may run in several processes, as `s1jax sample` does.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from s1jax.cli import engine_flags, processes, progress, terminal
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.io import files, paths

if TYPE_CHECKING:
    from s1jax.curation.difficulty import Graded, Named
    from s1jax.curation.pass_rate import Plan, Problem, Rate, Tries
    from s1jax.io.journals import Journals, Share

_ROWS = flags.DEFINE_list("rows", [], "Files or folders of rows (JSONL, JSON, CSV, parquet, Arrow).")
_OUT = flags.DEFINE_string("out", "", "Folder for rows.jsonl and tries.jsonl.")
_STUDENT = flags.DEFINE_string(
    "student", "", "Checkpoint, training workdir or package:NAME whose pass rates are measured."
)
_TRIES = flags.DEFINE_integer("tries", 8, "Answers of the student to each question, at most.", 1)
_STOP_ABOVE = flags.DEFINE_float(
    "stop_above", None, "Stop trying a question once its pass rate is certain to be above this.", 0.0
)
_TASK = flags.DEFINE_string("task", "", "Task whose grading the rows get; empty: mathematics.")
_THINKING = flags.DEFINE_integer("max_thinking_tokens", None, "Thinking is cut here; by default that of the task.", 0)
_ANSWER = flags.DEFINE_integer("max_answer_tokens", None, "Limit of an answer; by default that of the task.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Above 0 where there is more than one try.", 0.0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Smallest set of tokens with at least this probability.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "The k most probable tokens; 0: all.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Each try has a seed from this one, its question and its number.", 0)
_SYSTEM = flags.DEFINE_string("system", "", "System prompt; empty: that of the chat format.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Tries that are sampled at one time.", 1)


def main() -> int:
    if not _ROWS.value:
        raise UserError("--rows is missing; give a file of rows, or several with commas between them.")
    if not _OUT.value:
        raise UserError("--out is missing; name the folder for rows.jsonl.")
    if not _STUDENT.value:
        raise UserError("nothing is to be measured; give --student=CKPT for pass rates.")
    for flag in (_OUT, _STUDENT):
        paths.local(flag.value, f"--{flag.name}")
    if _STOP_ABOVE.value is not None and _STOP_ABOVE.value >= 1:
        raise UserError(f"--stop_above is {_STOP_ABOVE.value:g}, which no rate exceeds; give less than 1.")
    if _TRIES.value > 1 and not _TEMPERATURE.value:
        raise UserError(f"--temperature=0 gives {_TRIES.value} equal tries; raise it, or give --tries=1.")
    engine_flags.parse_mesh(engine_flags.MESH.value)
    return processes.run(_measure)


def _measure() -> int:
    from s1jax.checkpoint import store
    from s1jax.curation import difficulty
    from s1jax.parallel import shares
    from s1jax.parallel.processes import together

    notes: list[str] = []
    out = together(_out)
    rows = together(lambda: _read(notes))
    graded = together(lambda: difficulty.graded(rows, _TASK.value))
    share = shares.share()
    for note in (*notes, *graded.notes()) if share.is_first else ():
        terminal.note(note)
    rates = store.using(_STUDENT.value, lambda folder: _rates(folder, graded, out, share))
    if rates is None:
        return 0
    with files.replace(out / "rows.jsonl") as file:
        for (_, row), rate in zip(rows, rates, strict=True):
            columns = dict(row) | (rate.columns if rate else {})
            file.write(json.dumps(columns, ensure_ascii=False).encode() + b"\n")
    print(f"{difficulty.summary(rates)}; wrote {out / 'rows.jsonl'}")
    for note in difficulty.notes(rates):
        terminal.note(note)
    return 0


def _out() -> pathlib.Path:
    """Returns the folder of --out, which exists afterwards."""
    out = pathlib.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is not a folder; give the path of one.")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _read(notes: list[str]) -> list[Named]:
    """Returns the rows of --rows, which JSON can hold."""
    from s1jax.io import readers

    found: list[Named] = []
    for path in _ROWS.value:
        for name, row in readers.read(path, readers.TRAINING, notes):
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except (TypeError, UnicodeEncodeError) as error:
                raise UserError(f"{name} has a value that JSON does not have ({error}); write it as a text.") from None
            found.append((name, row))
    return found


def _rates(folder: pathlib.Path, graded: Graded, out: pathlib.Path, share: Share) -> list[Rate | None] | None:
    """Returns the rate of each row; None in all processes but the first."""
    from s1jax.checkpoint import digests
    from s1jax.curation import pass_rate
    from s1jax.parallel import shares

    if share.is_first:
        engine_flags.say_step(_STUDENT.value, folder)
    params = SamplingParams(
        max_thinking_tokens=graded.task.max_thinking_tokens if _THINKING.value is None else _THINKING.value,
        max_answer_tokens=graded.task.max_answer_tokens if _ANSWER.value is None else _ANSWER.value,
        temperature=_TEMPERATURE.value, top_p=_TOP_P.value, top_k=_TOP_K.value, seed=_SEED.value,
    )  # fmt: skip
    dtypes = (engine_flags.dtype(), engine_flags.CACHE_DTYPE.value, engine_flags.WEIGHT_DTYPE.value)
    run = pass_rate.settings(digests.fingerprint(folder), params, _SYSTEM.value, dtypes)
    plan = pass_rate.Plan(_TRIES.value, _STOP_ABOVE.value)
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
    engine = engine_flags.engine(os.fspath(folder), _BATCH.value, length)
    begun = time.monotonic()
    with progress.Bar("trying", len(own) * plan.tries, shown=share.is_first) as bar:

        def report(done: int, tokens: int) -> None:
            bar.update(before + done, f"{tokens / max(time.monotonic() - begun, 1e-9):,.0f} tokens/s")

        before = tries.count(own)
        bar.update(before)
        pass_rate.sample(engine, mine, tries, plan, params, journals.append, system=_SYSTEM.value, progress=report)
