"""`s1jax.evaluate`: measures strategies on a task into a folder, which a stopped evaluation resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s1jax.config.sampling import SamplingParams
from s1jax.errors import MissingPackageError
from s1jax.evaluation import handoff as handoff_lib
from s1jax.evaluation import handoff_plot, outcomes, plot, results, runner
from s1jax.evaluation import metrics as metrics_lib
from s1jax.evaluation import setup as setup_lib
from s1jax.evaluation.runner import Engine, Finished, Plan, Progress
from s1jax.evaluation.strategies import Forcing, Strategy
from s1jax.io import files
from s1jax.io.journals import ALONE, Share
from s1jax.remote import confidence
from s1jax.tasks.task import Task
from s1jax.text import chat

if TYPE_CHECKING:
    from s1jax.engine.description import Description

_SCALES = (
    "accuracy, error, interval (95 %, Wilson), control, cut, performance: %; scaling: percentage points per 1,000"
    " thinking tokens; tokens, seconds_per_problem, dollars_per_problem: means over problems; seconds of a run: without"
    " loading and compiling"
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation has found.

    Attributes:
      title: names model, task and number of problems.
      runs: one a strategy, in their order.
      metrics: the paper's figures of all runs, under `all`, and of each family of runs.
      notes: sentences on what was ignored, defaulted or unusual.
      folder: holds what was written.
      files: names in it: results.json and samples.jsonl, with matplotlib also scaling.png and scaling.svg; with
        hand-offs also a fit for each local strategy, handoff.png and handoff.svg.
      studies: one for each local strategy that hands off.
    """

    title: str
    runs: tuple[metrics_lib.Run, ...]
    metrics: Mapping[str, metrics_lib.Metrics]
    notes: tuple[str, ...]
    folder: pathlib.Path
    files: tuple[str, ...]
    studies: tuple[handoff_lib.Study, ...] = ()


def evaluate(
    engine: Engine,
    task: Task | str,
    strategies: Iterable[Strategy | str],
    out: str | os.PathLike[str],
    *,
    params: SamplingParams | None = None,
    name: str = "",
    dollars_per_hour: float = 0.0,
    allow_untrained: bool = False,
    handoff: handoff_lib.Setup | None = None,
    asked: Mapping[str, Any] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    share: Share = ALONE,
) -> Result:
    """Answers every problem of a task once for each strategy, grades the answers, draws the curves.

        engine = s1jax.Engine("runs/s1", slots=64)
        result = s1jax.evaluate(engine, "problems.jsonl", ["none", "forcing:max=64", "forcing:waits=2"], "curve")
        for run in result.runs:
            print(run.name, run.accuracy, run.thinking_tokens)

    The folder gets `samples.jsonl`, every answer; `results.json`, the table with all settings; `scaling.png` and
    `scaling.svg`, accuracy against average thinking tokens. Samples are kept in a journal as they finish, so that the
    same call resumes an evaluation that was stopped. The same call for a finished evaluation grades its answers again
    if a reference or the grader has changed. `correct` is null if the comparison of an answer did not end.

    Sample j of problem i of n has the seed `params.seed` + i + j n, in all runs.

    Args:
      engine: made from a checkpoint. With a `cache_length` that holds the longest sequence, all runs share one compiled
        program.
      task: a task, or what `s1jax.tasks.benchmarks.load` takes: the name of one, or a file of questions with answers.
      strategies: one a run, or their texts, see `s1jax.evaluation.strategies`.
      out: folder to write; may exist.
      params: for what a strategy does not say itself; by default greedy, with the limits of the task.
      name: of the model, for titles; by default that of the checkpoint.
      dollars_per_hour: price of the machine; 0 leaves dollars out.
      allow_untrained: allow instructions (token, step, class) that the checkpoint was not trained to follow.
      handoff: the remote of strategies with `handoff`, and prices.
      asked: JSON values that results.json records as the settings. They identify the evaluation, together with the
        weights, dtype and questions. By default the arguments of this call.
      on_note: called with every note at once; by default it is logged as a warning.
      on_progress: called while the evaluation goes on.
      share: of process 0, if several processes of a run share the problems; the others call `assist`.

    Returns:
      runs with their figures.

    Raises:
      UserError: an argument makes no sense, a problem does not fit the model, the folder holds another evaluation, or
        another process writes it.
    """
    begun = time.monotonic()
    notes: list[str] = []

    def note(sentence: str) -> None:
        notes.append(sentence)
        (on_note or logging.getLogger(__name__).warning)(sentence)

    setup = setup_lib.check(engine, task, strategies, out, params, allow_untrained, handoff, asked, note)
    plan, folder, task, params = setup.plan, setup.folder, setup.plan.task, setup.plan.params
    wanted, described = setup.wanted, setup.described
    model = name or results.model_name(described.checkpoint) or "model"
    progress = on_progress or (lambda _: None)
    with files.named(folder), setup.open_journals(share) as journals:
        earlier, there = results.read(folder, setup.run, len(task.rows), journals.rows, setup.settings)
        if share.num_processes > 1:
            runner.sample_share(engine, plan, journals, there, progress, share)
            journals.gather(lambda rows: plan.lacks([*there, *rows]))
        partial = folder / "samples.jsonl.partial"
        finished = runner.run_all(engine, plan, journals, there, partial, progress, share)
        runs = _summaries(finished, params, dollars_per_hour)
        studies = _studies(wanted, finished, handoff, plan, engine, dollars_per_hour) if handoff else {}
        has_price = bool(dollars_per_hour or (handoff and handoff.has_price))
        runs += _handed_off(wanted, studies, finished, params.wait, has_price)
        metrics = {
            family: metrics_lib.metrics(some) for family, some in ({"all": runs} | metrics_lib.families(runs)).items()
        }
        found = setup.settings | {
            "fingerprint": setup.run,
            "problems": len(task.rows),
            "notes": list(task.notes),  # which rows of a folder, which revision of the hub
            "grader": task.grader,
            "runs": [metrics_lib.record(run) for run in runs],
            "metrics": metrics,
            "scales": _SCALES,
            "seconds": round(time.monotonic() - begun, 1),
            "dollars_per_hour": dollars_per_hour,
            "batch_size": described.batch_size,
            "model": model,
            "task": task.title,
            "versions": _versions(),
            "machine": _machine(described, share),
        }
        # If nothing was left to sample, how and where it was sampled stays what it was.
        found |= {name: earlier[name] for name in ("seconds", "batch_size", "machine") if name in earlier}
        if studies:
            found["handoff"] = [study.record() for study in studies.values()]
        partial.rename(folder / "samples.jsonl")
        fits = _write_fits(studies.values(), folder)
        files.write_text(folder / "results.json", json.dumps(found, indent=2) + "\n")
        journals.remove()
        title = f"{model} on {task.title}"
        try:
            pictures = _draw(runs, studies.values(), params.wait, has_price, title, folder)
        except MissingPackageError as error:
            pictures = ()
            note(f"{error} The same call then draws it without sampling again.")
    idle = _never_forced(finished, params.wait)
    if idle:
        note(idle)
    written = ("results.json", "samples.jsonl", *fits, *pictures)
    return Result(title, tuple(runs), metrics, tuple(notes), folder, written, tuple(studies.values()))


def assist(
    engine: Engine,
    task: Task | str,
    strategies: Iterable[Strategy | str],
    out: str | os.PathLike[str],
    share: Share,
    *,
    params: SamplingParams | None = None,
    allow_untrained: bool = False,
    handoff: handoff_lib.Setup | None = None,
    asked: Mapping[str, Any] | None = None,
) -> None:
    """Samples the share of a process other than the first, and returns when that has written the results.

    Arguments and errors are those of `evaluate`, which process 0 calls.
    """
    setup = setup_lib.check(engine, task, strategies, out, params, allow_untrained, handoff, asked, lambda _: None)
    count = len(setup.plan.task.rows)
    with files.named(setup.folder), setup.open_journals(share) as journals:
        _, there = results.read(setup.folder, setup.run, count, journals.rows, setup.settings)
        runner.sample_share(engine, setup.plan, journals, there, lambda _: None, share)
        journals.wait()


def _draw(
    runs: Sequence[metrics_lib.Run],
    studies: Collection[handoff_lib.Study],
    wait: str,
    has_price: bool,
    title: str,
    folder: pathlib.Path,
) -> tuple[str, ...]:
    """Draws the curves and returns the names of their files."""
    figures = {"scaling": plot.draw([plot.Evaluation(runs, wait)], title)}
    if studies:
        figures["handoff"] = handoff_plot.draw(list(studies), title, has_price)
    names = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            plot.save(figure, folder / f"{name}.{kind}")
            names.append(f"{name}.{kind}")
    return tuple(names)


def _studies(
    wanted: Sequence[Strategy],
    finished: Sequence[Finished],
    handoff: handoff_lib.Setup,
    plan: Plan,
    engine: Engine,
    dollars_per_hour: float,
) -> dict[Strategy, handoff_lib.Study]:
    """Returns the study of each local strategy that hands off."""
    task, about = plan.task, engine.model
    prompts = [0] * len(task.rows)
    if handoff.local_price.prompt or handoff.remote_price.prompt:
        prompts = [
            len(chat.encode_prompt(about.tokenizer, about.chat, row["question"], row.get("system") or ""))
            for row in task.rows
        ]
    machine = {run.strategy: run.seconds / 3600 * dollars_per_hour / len(task.rows) for run in finished}
    graded = {run.strategy: run.outcomes for run in finished}
    weights, wait = engine.describe().weights, plan.params.wait
    return handoff_lib.studies(wanted, graded, handoff, task, prompts, machine, weights, wait)


def _handed_off(
    wanted: Sequence[Strategy],
    studies: Mapping[Strategy, handoff_lib.Study],
    finished: Sequence[Finished],
    wait: str,
    has_price: bool,
) -> list[metrics_lib.Run]:
    """Returns the lines of the strategies with a hand-off."""
    seconds = {run.strategy: run.seconds for run in finished}
    found = []
    for strategy in wanted:
        local = dataclasses.replace(strategy, handoff=None)
        if strategy.handoff is not None:
            found.append(handoff_lib.run(studies[local], strategy, wait, round(seconds[local], 2), has_price))
    return found


def _write_fits(studies: Iterable[handoff_lib.Study], folder: pathlib.Path) -> tuple[str, ...]:
    """Writes the fit of each study and returns the names of the files."""
    names = []
    for study in studies:
        if study.fit is not None:
            slug = "_".join(re.findall(r"[a-z0-9]+", study.local.name.lower()))
            names.append(f"handoff_{slug}.json")
            confidence.write(study.fit, folder / names[-1])
    return tuple(names)


def _summaries(finished: Sequence[Finished], params: SamplingParams, dollars_per_hour: float) -> list[metrics_lib.Run]:
    """Returns the line of each run in the table."""
    plain = None
    for run in finished:
        if run.strategy == Strategy():
            plain = [outcome.samples[0]["thinking_tokens"] for outcome in run.outcomes]
    return [
        outcomes.summarise(run.strategy, run.outcomes, params, run.seconds, dollars_per_hour, plain) for run in finished
    ]


def _never_forced(finished: Sequence[Finished], wait: str) -> str:
    """Returns a sentence if some runs ask for budget forcing and it acted in none of them; else nothing."""
    asking = [run for run in finished if run.strategy.forcing != Forcing()]
    if not asking or any(run.forced for run in asking):
        return ""
    names = ", ".join(f'"{run.strategy.name(wait)}"' for run in asking)
    return (
        f"budget forcing never acted in {names}: no thinking was cut at a budget, none was extended; the budgets may be"
        " above what the model thinks, or its thinking may never end before the limit"
    )


def _versions() -> dict[str, str]:
    """Of Python and of the libraries that can change results, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("s1jax", "jax", "jaxlib", "flax", "numpy", "math-verify"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _machine(described: Description, share: Share) -> dict[str, Any]:
    here = {"platform": platform.platform(), "cpus": os.cpu_count(), "devices": list(described.devices)}
    return here | ({} if share == ALONE else {"processes": share.num_processes})
