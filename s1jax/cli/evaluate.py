"""Draws scaling curves: `s1jax evaluate --checkpoint=CKPT --task=TASK --out=DIR --strategies=S,S,...`.

TASK is countdown, countdown_easy, countdown_hard or countdown_four; gsm8k, math500, aime24, aime25 or gpqa, from the
hub or from a local copy as gsm8k:FILE; choices:FILE for other multiple choice; or a FILE of questions and answers. FILE
may be a folder: its test split is taken.

All problems are answered once for each strategy (`s1jax.evaluation.strategies`), for example

    none  forcing:max=64  forcing:waits=2  forcing:waits=2:wait=Hmm  token:64  token:64+forcing  step:8  class:long
    majority:8:temperature=1  reject:max=64:samples=16:temperature=1  none+handoff:q=0.3

`--budgets=0,64,none` is short for forcing:max=0,forcing:max=64,none; `--waits=1,2` for forcing:waits=1,forcing:waits=2.
DIR gets samples.jsonl, every answer; results.json, the table with all settings; scaling.png and scaling.svg, accuracy
against average thinking tokens. The same command resumes an evaluation that was stopped. It grades the answers of a
finished one again if reference or grader have changed. `correct` is null if the comparison of an answer did not end.
With `handoff` in a strategy, the share q of the problems whose answers are the least sure goes to `--remote`: an
endpoint (https://HOST/v1, with `--remote_model`) or another strategy of this checkpoint. DIR then also gets
handoff.png, accuracy against dollars, and the fit of each local strategy for `s1jax serve --handoff`. docs/handoff.md
has more.
`s1jax.evaluate` does the same from Python; `s1jax plot` draws several results on one picture.

The same command may run in several processes, on hosts that see the same files: process I of N answers problems I,
I + N, ... on the devices of its host, with the tokens that one process gives, and process 0 writes the results. The
seconds of a run are summed over processes, and --dollars_per_hour is the price of what one of them has. How processes
find each other, and how they go on after one was lost (exit code 75), is as with `s1jax sample`.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from s1jax.cli import engine_flags, handoff_flags, processes, progress, table, terminal
from s1jax.cli.lazy_engine import LazyEngine
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.evaluation import evaluate as evaluate_lib
from s1jax.evaluation import setup as setup_lib
from s1jax.evaluation import strategies
from s1jax.evaluation.handoff import Setup
from s1jax.evaluation.runner import Progress
from s1jax.evaluation.strategies import Strategy
from s1jax.io import paths
from s1jax.tasks import benchmarks
from s1jax.tasks.task import Task

if TYPE_CHECKING:
    from s1jax.io.journals import Share

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint, training workdir or package:NAME.")
_TASK = flags.DEFINE_string(
    "task",
    "countdown",
    "Name of a task, NAME:FILE, or a file or folder of questions and answers (JSONL, JSON, CSV, parquet, Arrow).",
)
_OUT = flags.DEFINE_string("out", None, "Folder for results.json, samples.jsonl, scaling.png and scaling.svg.")
_STRATEGIES = flags.DEFINE_list("strategies", [], "Runs to make, for example token:64+forcing,majority:8; see above.")
_BUDGETS = flags.DEFINE_list("budgets", [], "Thinking tokens at which thinking is cut, one run each; none: not cut.")
_WAITS = flags.DEFINE_list("waits", [], "Numbers of waits, one run each; 0 is the same run as the budget none.")
_UNTRAINED = flags.DEFINE_bool(
    "allow_untrained", False, "Token, step and class also for a checkpoint that was not trained for them."
)
_PROBLEMS = flags.DEFINE_integer("num_problems", 0, "Problems from the front of the task; 0 takes all.", 0)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["dev", "test"], "Held-out problems of countdown: dev to choose, test to report."
)
_HARD = flags.DEFINE_bool("hard", False, "Only countdown problems that one first move solves, as countdown_hard.")
_LIMIT = flags.DEFINE_integer(
    "max_thinking_tokens", None, "Limit of the runs without a budget; by default 384 for countdown, 4096 for a file.", 0
)
_ANSWER = flags.DEFINE_integer(
    "max_answer_tokens", None, "Limit of an answer; by default 24 for countdown, 1024 for a file.", 1
)
_WAIT = flags.DEFINE_string("wait", "Wait", "What takes the place of an end of thinking; empty: the end is masked.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Smallest set of ids with this probability; 1 keeps all.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "The k most probable ids; 0 keeps all.")
_MIN_P = flags.DEFINE_float("min_p", 0.0, "Ids at least this fraction as probable as the best; 0 keeps all.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Sample j of problem i of n is sampled with seed + i + j n; equal for all runs."
)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Samples that are drawn at one time.", 1)
_DOLLARS = flags.DEFINE_float("dollars_per_hour", 0.0, "Price of the machine; 0: dollars are left out.", 0.0)


def main() -> int:
    chosen = parse_strategies(_STRATEGIES.value, _BUDGETS.value, _WAITS.value, _WAIT.value)
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is missing; give a checkpoint, a training workdir or package:NAME.")
    if not _OUT.value:
        raise UserError("--out is missing; name the folder for the results.")
    paths.local(_CHECKPOINT.value, "--checkpoint")
    paths.local(_OUT.value, "--out")
    if not math.isfinite(_DOLLARS.value):
        raise UserError(f"--dollars_per_hour is {_DOLLARS.value}; give a price, or 0 to leave dollars out.")
    if _HARD.value and _TASK.value not in ("countdown", "countdown_hard"):
        raise UserError(f"--hard is for --task=countdown, not for {_TASK.value}; drop it.")
    task = benchmarks.load("countdown_hard" if _HARD.value else _TASK.value, _PROBLEMS.value, _SPLIT.value)
    params = SamplingParams(
        max_thinking_tokens=task.max_thinking_tokens if _LIMIT.value is None else _LIMIT.value,
        max_answer_tokens=task.max_answer_tokens if _ANSWER.value is None else _ANSWER.value,
        temperature=_TEMPERATURE.value, top_p=_TOP_P.value, top_k=_TOP_K.value, min_p=_MIN_P.value, seed=_SEED.value,
        wait=_WAIT.value,
    )  # fmt: skip
    check_limits(chosen, params)
    handoff = handoff_flags.setup(chosen, params.wait)
    engine_flags.parse_mesh(engine_flags.MESH.value)
    return processes.run(lambda: _evaluate(chosen, task, params, handoff))


def _evaluate(chosen: Sequence[Strategy], task: Task, params: SamplingParams, handoff: Setup | None) -> int:
    from s1jax.checkpoint import store
    from s1jax.parallel import shares

    share = shares.share()

    def assist(folder: pathlib.Path) -> None:
        evaluate_lib.assist(
            _engine(folder), task, chosen, _OUT.value or "", share, params=params, allow_untrained=_UNTRAINED.value,
            handoff=handoff, asked=_asked(params),
        )  # fmt: skip

    def first(folder: pathlib.Path) -> None:
        evaluate(folder, chosen, task, params, handoff, share)

    store.using(_CHECKPOINT.value or "", first if share.is_first else assist)
    return 0


def evaluate(
    folder: pathlib.Path,
    chosen: Sequence[Strategy],
    task: Task,
    params: SamplingParams,
    handoff: Setup | None,
    share: Share,
) -> None:
    """Evaluates the checkpoint in `folder`, then prints the table; see `s1jax.evaluation.evaluate`."""
    engine_flags.say_step(_CHECKPOINT.value or "", folder)
    with contextlib.ExitStack() as stack:
        bars: list[progress.Bar] = []  # the bar, once something is to be shown
        shown: list[int] = []  # the runs whose name it has shown

        def note(sentence: str) -> None:
            stack.close()  # the bar would be drawn over it
            terminal.note(sentence)

        def report(now: Progress) -> None:
            if not bars:
                bars.append(stack.enter_context(progress.Bar("evaluating", now.total)))
            if now.run in shown:
                bars[0].update(now.done, _detail(now))
            else:
                shown.append(now.run)
                bars[0].phase(f"run {now.run + 1} of {now.num_runs}: {now.name}")

        result = evaluate_lib.evaluate(
            _engine(folder), task, chosen, _OUT.value or "", params=params, dollars_per_hour=_DOLLARS.value,
            allow_untrained=_UNTRAINED.value, handoff=handoff, asked=_asked(params), on_note=note, on_progress=report,
            share=share,
        )  # fmt: skip
    table.show(list(result.runs), result.metrics, result.title)
    if result.studies:
        table.show_handoffs(result.studies)
    print(f"wrote {', '.join(result.files[:-1])} and {result.files[-1]} to {_OUT.value}")


def _engine(folder: pathlib.Path) -> LazyEngine:
    return LazyEngine(folder, _CHECKPOINT.value or "", _BATCH.value)


def _detail(now: Progress) -> str:
    """Returns what the bar says of a run: how fast it is, or how well it did."""
    if now.accuracy is not None:
        return f"{now.name}: {now.accuracy:.1f} % right"
    share = "" if now.thinking_share is None else f", {100 * now.thinking_share:.0f} % thinking"
    return f"{now.tokens_per_second or 0:,.0f} tokens/s{share}"


def parse_strategies(texts: list[str], budgets: list[str], waits: list[str], wait: str) -> list[Strategy]:
    """Returns the runs that three lists of flags ask for: budgets, waits, strategies, each as given, none twice.

    Raises:
      UserError: all are empty, something makes no sense, or two runs would have the same name.
    """
    found: list[Strategy] = []
    for flag, given in (("--budgets", budgets), ("--waits", waits)):
        for text in (text.strip().lower() for text in given):
            if text == "none" and flag == "--budgets":
                found.append(Strategy())
            elif (number := strategies.whole(text)) is None:
                also = ' or "none"' if flag == "--budgets" else ""
                wanted = f"numbers of 0 to {strategies.MOST}{also}, separated by commas"
                raise UserError(f'{flag} has "{text:.40}"; give {wanted}.')
            else:
                found.append(strategies.parse(f"forcing:{'max' if flag == '--budgets' else 'waits'}={number}"))
    found += map(strategies.parse, texts)
    if not found:
        raise UserError(
            "--budgets, --waits and --strategies are all empty; give at least one, for example --budgets=0,64,none."
        )
    return strategies.distinct(found, wait)


def check_limits(chosen: Sequence[Strategy], params: SamplingParams) -> None:
    """Makes the checks of `strategies.check`, with the names of the flags in their sentences."""
    most = params.max_thinking_tokens
    for strategy in chosen:
        needed = strategy.needed(most)
        if needed > most:
            flag = "--budgets" if str(needed) in _BUDGETS.value else "--strategies"
            raise UserError(f"{flag} has {needed}, more than --max_thinking_tokens {most}; raise the limit.")
        if strategy.samples_alike(params.temperature):
            raise UserError(
                f'--strategies has "{strategy.name(params.wait)}", whose samples are all alike at --temperature=0; give'
                " the strategy temperature=1, or raise --temperature."
            )


def _asked(params: SamplingParams) -> dict[str, Any]:
    """The flags that determine the answers, for results.json; how many are sampled at one time does not."""
    about = (_CHECKPOINT, _TASK, _STRATEGIES, _BUDGETS, _WAITS, _PROBLEMS, _SPLIT, _HARD, _WAIT)
    how = (engine_flags.DTYPE, engine_flags.CACHE_DTYPE, engine_flags.WEIGHT_DTYPE)
    return (
        {flag.name: flag.value for flag in (*about, *how)}
        | handoff_flags.asked()
        | {"controls": setup_lib.controls(params)}
    )
