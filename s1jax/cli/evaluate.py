"""Draws scaling curves: `python -m launch.evaluate --checkpoint=CKPT --task=TASK --out=DIR --strategies=S,S,...`.

TASK is countdown, countdown_easy, countdown_hard or countdown_four; gsm8k, math500, aime24, aime25 or gpqa, from the
hub or from a local copy as gsm8k:FILE; choices:FILE for other multiple choice; or a FILE of questions and answers. FILE
may be a folder: its test split is taken.

All problems are answered once for each strategy (`s1jax.evaluation.strategies`), for example

    none  forcing:max=64  forcing:waits=2  forcing:waits=2:wait=Hmm  token:64  token:64+forcing  step:8  class:long
    majority:8:temperature=1  reject:max=64:samples=16:temperature=1

`--budgets=0,64,none` is short for forcing:max=0,forcing:max=64,none; `--waits=1,2` for forcing:waits=1,forcing:waits=2.
DIR gets samples.jsonl, every answer; results.json, the table with all settings; scaling.png, accuracy against average
thinking tokens. The same command goes on where it was stopped. It grades the answers of a finished evaluation again
where reference or grader have changed. `correct` is null where the comparison of an answer did not end.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from s1jax.cli import engine_flags, table, terminal
from s1jax.cli import results as results_lib
from s1jax.config.sampling import SamplingParams
from s1jax.errors import MissingPackageError, UserError
from s1jax.evaluation import metrics as metrics_lib
from s1jax.evaluation import outcomes, strategies
from s1jax.evaluation import plot as plot_lib
from s1jax.evaluation.strategies import Strategy
from s1jax.io import files, paths
from s1jax.tasks import benchmarks
from s1jax.tasks.task import Task

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint, training workdir or package:NAME.")
_TASK = flags.DEFINE_string(
    "task",
    "countdown",
    "Name of a task, NAME:FILE, or a file or folder of questions and answers (JSONL, JSON, CSV, parquet, Arrow).",
)
_OUT = flags.DEFINE_string("out", None, "Folder for results.json, samples.jsonl and scaling.png.")
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

# Up to this many cache slots all runs share one compiled program: for short rows compiling takes longer than sampling.
_SHARED_SLOTS = 1024
# Parameters that results.json does not record among its controls: the first have no flag here, wait is recorded by it.
_NOT_AMONG_CONTROLS = ("repetition_penalty", "stop", "n", "wait")


def main() -> None:
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
    controls = SamplingParams(
        max_thinking_tokens=task.max_thinking_tokens if _LIMIT.value is None else _LIMIT.value,
        max_answer_tokens=task.max_answer_tokens if _ANSWER.value is None else _ANSWER.value,
        temperature=_TEMPERATURE.value, top_p=_TOP_P.value, top_k=_TOP_K.value, min_p=_MIN_P.value, seed=_SEED.value,
        wait=_WAIT.value,
    )  # fmt: skip
    check_limits(chosen, controls)
    engine_flags.parse_mesh(engine_flags.MESH.value)
    from s1jax.checkpoint import store

    store.using(_CHECKPOINT.value, lambda folder: evaluate(folder, chosen, task, controls))


def evaluate(folder: pathlib.Path, chosen: Sequence[Strategy], task: Task, controls: SamplingParams) -> None:
    """Evaluates the checkpoint in `folder`, see the module's text."""
    from s1jax.checkpoint import store
    from s1jax.text import written

    assert _CHECKPOINT.value and _OUT.value  # main has looked
    engine_flags.say_step(_CHECKPOINT.value, folder)
    about = store.load_metadata(folder)
    check_trained(chosen, about.provenance)
    waits = "\n".join(dict.fromkeys(s.forcing.wait or "" for s in chosen)) + f"\n{controls.wait}"
    texts = ((task.place(i), f"{row['question']}\n{row.get('system', '')}\n{waits}") for i, row in enumerate(task.rows))
    for note in (*task.notes, *written.notes(about.tokenizer, about.chat, texts, "sent")):
        terminal.note(note)
    questions = [ask(strategy, task, about) for strategy in chosen]
    out = pathlib.Path(_OUT.value)
    asked = _asked(controls)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out {out} is a file; choose another folder.") from error
    # Only now, so that a mistyped flag is answered at once.
    import jax

    from s1jax.checkpoint import digests
    from s1jax.io import journal as journal_lib

    begun = time.monotonic()
    dtype = engine_flags.dtype()
    weights = digests.fingerprint(folder)
    systems = [row.get("system", "") for row in task.rows]
    prompts = {"questions": questions, **({"systems": systems} if any(systems) else {})}
    run = journal_lib.fingerprint({**asked, "dtype": dtype, "checkpoint": weights, **prompts})
    slots = check_rows(about, task, chosen, questions, controls)
    # Loaded with the first sample that is missing.
    engine = functools.cache(functools.partial(engine_flags.engine, os.fspath(folder), _BATCH.value, slots))
    samples = out / "samples.jsonl.partial"
    title = f"{pathlib.Path(_CHECKPOINT.value).name.removeprefix('package:')} on {task.title}"
    with files.named(out), journal_lib.Journal(out / "samples.journal", run) as journal:
        earlier, rows = results_lib.read(out, run, len(task.rows), journal.rows)
        runs = sample_all(engine, task, chosen, questions, controls, journal, [*rows, *journal.rows], samples)
        curves = {"all": runs, **metrics_lib.families(runs)}
        metrics = {family: metrics_lib.metrics(some) for family, some in curves.items()}
        results = {
            "asked": asked,
            "fingerprint": run,
            "problems": len(task.rows),
            "notes": list(task.notes),  # which rows of a folder, which revision of the hub
            "grader": task.grader,
            "runs": [metrics_lib.record(run) for run in runs],
            "metrics": metrics,
            "scales": "accuracy, error, interval (95 %, Wilson), control, cut, performance: %; scaling: percentage"
            " points per 1,000 thinking tokens; tokens, seconds_per_problem, dollars_per_problem: means over problems;"
            " seconds of a run: without loading and compiling",
            "seconds": round(time.monotonic() - begun, 1),
            "dollars_per_hour": _DOLLARS.value,
            "dtype": dtype,
            "batch_size": _BATCH.value,
            "checkpoint": about.provenance,
            "step": store.step_of(folder),  # of the run whose checkpoint was loaded
            "versions": engine_flags.versions(),
            "machine": {
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "devices": [device.device_kind for device in jax.devices()],
            },
        }
        # Where nothing was left to sample, how and where it was sampled stays what it was.
        results |= {name: earlier[name] for name in ("seconds", "batch_size", "machine") if name in earlier}
        samples.rename(out / "samples.jsonl")
        files.write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
        journal.remove()
        made = ["results.json", "samples.jsonl"]
        try:
            plot_lib.plot(runs, out / "scaling.png", title, controls.wait)
            made.append("scaling.png")
        except MissingPackageError as error:
            terminal.note(f"{error} The same command then draws it without sampling again.")
    table.show(runs, metrics, title)
    print(f"wrote {', '.join(made[:-1])} and {made[-1]} to {out}")


def parse_strategies(texts: list[str], budgets: list[str], waits: list[str], wait: str) -> list[Strategy]:
    """Returns the runs that three lists of flags ask for: budgets, waits, strategies, each as given, none twice.

    Raises:
      UserError: all are empty, something makes no sense, or two runs would have the same name.
    """
    found = []
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
    found = list(dict.fromkeys(found))
    for name, count in collections.Counter(strategy.name(wait) for strategy in found).items():
        if count > 1:
            raise UserError(f'--strategies asks for "{name}" in {count} ways that look alike; drop one.')
    return found


def check_limits(chosen: Sequence[Strategy], controls: SamplingParams) -> None:
    """Raises where a strategy needs more thinking than the limit of all runs, or samples that would all be alike."""
    most = controls.max_thinking_tokens
    for strategy in chosen:
        selection, name = strategy.selection, strategy.name(controls.wait)
        wanted = max(strategy.limit(most) - (selection is not None and selection.kind == "reject"),
                     strategy.forcing.min_thinking_tokens)  # fmt: skip
        if wanted > most:
            flag = "--budgets" if str(wanted) in _BUDGETS.value else "--strategies"
            raise UserError(f"{flag} has {wanted}, more than --max_thinking_tokens {most}; raise the limit.")
        if selection and selection.samples > 1 and (selection.temperature or controls.temperature) == 0:
            raise UserError(
                f'--strategies has "{name}", whose samples are all alike at --temperature=0; give the strategy'
                " temperature=1, or raise --temperature."
            )


def check_trained(chosen: Sequence[Strategy], provenance: Mapping[str, Any]) -> None:
    """Raises where a strategy's instruction is one that the checkpoint was not trained to follow."""
    trained = strategies.trained_for(provenance)
    for strategy in chosen:
        control = strategy.instruction.control if strategy.instruction else trained
        if control != trained and not _UNTRAINED.value:
            raise UserError(
                f'"{strategy.name(_WAIT.value)}" needs a checkpoint trained with config.data.control={control}, and'
                f" {_CHECKPOINT.value} was trained {f'with {trained}' if trained else 'without any'}; train one, or ask"
                " it all the same with --allow_untrained."
            )


def ask(strategy: Strategy, task: Task, about: Any) -> list[str]:
    """Returns the questions of the task with the instruction of a strategy."""
    from s1jax.text import chat

    what = strategy.instruction
    if what is None:
        return [row["question"] for row in task.rows]
    try:
        return [chat.instruct(about.tokenizer, about.chat, row["question"], what.control, what.amount)
                for row in task.rows]  # fmt: skip
    except UserError as error:
        raise UserError(f'"{strategy.name(_WAIT.value)}": {error}') from error


def _asked(controls: SamplingParams) -> dict[str, Any]:
    """The flags that determine the answers, for results.json; how many are drawn at one time does not."""
    about = (_CHECKPOINT, _TASK, _STRATEGIES, _BUDGETS, _WAITS, _PROBLEMS, _SPLIT, _HARD, _WAIT)
    how = (engine_flags.DTYPE, engine_flags.CACHE_DTYPE, engine_flags.WEIGHT_DTYPE)
    # Those that have a flag here; a control that is added elsewhere leaves the fingerprints of finished runs alone.
    asked = {name: value for name, value in dataclasses.asdict(controls).items() if name not in _NOT_AMONG_CONTROLS}
    return {flag.name: flag.value for flag in (*about, *how)} | {"controls": asked}


def sample_all(
    engine: Callable[[], Any],
    task: Task,
    chosen: Sequence[Strategy],
    questions: Sequence[Sequence[str]],
    controls: SamplingParams,
    journal: Any,
    there: Sequence[Mapping[str, Any]],
    file: pathlib.Path,
) -> list[metrics_lib.Run]:
    """Makes every run, writes its rows to `file`, and returns what came of each.

    Args:
      engine: loads it, see `s1jax.engine.engine`.
      task: the problems.
      chosen: the runs.
      questions: of each run, one a problem.
      controls: that hold for all runs.
      journal: of what is sampled.
      there: samples that there are already and that are not drawn again.
      file: JSONL file to write.
    """
    from s1jax import perf
    from s1jax.cli import progress

    count = len(task.rows)
    kept: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    # The same one may stand in samples.jsonl and in a journal that a killed process could not remove any more.
    for record in {results_lib.key(row): row for row in there}.values():
        kept[record["run"]].append({name: value for name, value in record.items() if name != "fingerprint"})
    settled: dict[Strategy, list[outcomes.Outcome]] = {}
    seconds: dict[Strategy, float] = {}
    bar = progress.Bar("evaluating", len(chosen) * count)
    with perf.clock() as clock, bar, io.TextIOWrapper(files.create(file), encoding="utf-8") as stream:
        for number, (strategy, asked) in enumerate(zip(chosen, questions, strict=True)):
            name = strategy.name(controls.wait)
            bar.phase(f"run {number + 1} of {len(chosen)}: {name}")
            rows = kept.pop(name, [])

            def report(done: int, detail: str, before: int = number * count) -> None:
                bar.update(before + done, detail)

            sample_run(engine, task, strategy, asked, controls, journal, rows, report, clock)
            problems: list[list[dict[str, Any]]] = [[] for _ in range(count)]
            for row in sorted(rows, key=lambda row: (row["problem"], row["attempt"])):
                problems[row["problem"]].append(row)
            found = [outcomes.settle(strategy, task, *pair) for pair in zip(task.rows, problems, strict=True)]
            for given, outcome, samples in zip(task.rows, found, problems, strict=True):
                # The references are those that the verdicts are by, which may be newer than the samples.
                own = {key: value for key, value in given.items() if key != "question"}
                for i, sample in enumerate(samples):
                    verdict = {"correct": outcome.correct[i], "chosen": i == outcome.chosen, "mark": outcome.marks[i]}
                    stream.write(json.dumps({**sample, **own, **verdict}, ensure_ascii=False) + "\n")
            stream.flush()
            settled[strategy], seconds[strategy] = found, sum(row["seconds"] for row in rows)
            accuracy, _ = metrics_lib.accuracy([outcome.right for outcome in found])
            bar.update((number + 1) * count, f"{name}: {accuracy:.1f} % right")
    plain = None
    if Strategy() in settled:
        plain = [outcome.samples[0]["thinking_tokens"] for outcome in settled[Strategy()]]
    return [
        outcomes.summarise(strategy, found, controls, seconds[strategy], _DOLLARS.value, plain)
        for strategy, found in settled.items()
    ]


def sample_run(
    engine: Callable[[], Any],
    task: Task,
    strategy: Strategy,
    questions: Sequence[str],
    controls: SamplingParams,
    journal: Any,
    rows: list[dict[str, Any]],
    report: Callable[[int, str], None],
    clock: Callable[[], float],
) -> None:
    """Draws what a run still wants and adds it to `rows` and to the journal; `seconds` of a row is since the last one.

    They are of sampling alone, whichever run comes first: the engine is loaded before, and `clock` stands still while
    programs are compiled. A strategy that looks at its samples before it wants more is asked again when all that it
    wanted are there. `report` is told how many problems are done.
    """
    name, settings = strategy.name(controls.wait), dataclasses.asdict(controls)
    while wanted := outcomes.wanted(strategy, task, questions, settings, rows):
        left = collections.Counter(place.problem for place in wanted)
        loaded = engine()
        begun = last = clock()

        def told(_: int, ids: int, thinking: int, left: Mapping[int, int] = left, begun: float = begun) -> None:
            seconds = max(clock() - begun, 1e-9)
            share = engine_flags.thinking_share(thinking, ids)
            report(len(task.rows) - len(left), f"{ids / seconds:,.0f} tokens/s{share}")

        stream = loaded.stream(
            [place.row for place in wanted], controls, progress=told,
            names=[task.place(place.problem) for place in wanted],
        )  # fmt: skip
        for index, output in stream:
            now, place = clock(), wanted[index]
            own = {"run": name, "problem": place.problem, "attempt": place.attempt, "seconds": now - last}
            rows.append({**output, **own})
            journal.append(rows[-1])
            last = now
            left[place.problem] -= 1
            if not left[place.problem]:
                del left[place.problem]


def check_rows(
    about: Any, task: Task, chosen: Sequence[Strategy], questions: Sequence[Sequence[str]], controls: SamplingParams
) -> int:
    """Checks every row of every run, so that none is refused after others were sampled.

    Returns:
      cache slots that hold the longest row of any run, or 0 (each run for itself) where those are many.

    Raises:
      UserError: names the run and the problem whose row the model has no room for, or which has a bad setting.
    """
    from s1jax.engine import encoding as encoding_lib
    from s1jax.engine import scheduler

    encode, most = encoding_lib.Encoder(about), 0
    delimiters = encode.delimiters
    settings = dataclasses.asdict(controls)
    for strategy, asked in zip(chosen, questions, strict=True):
        for i, (row, question) in enumerate(zip(task.rows, asked, strict=True)):
            name = f'"{strategy.name(controls.wait)}", {task.place(i)}'
            request = encode.request(strategy.row(row, question, 0, settings), controls, name)
            ids = scheduler.longest(request, delimiters)
            scheduler.check_length(request, ids, about.config.context_length)
            most = max(most, ids)
    slots = -(-most // 64) * 64
    return slots if slots <= min(_SHARED_SLOTS, about.config.context_length) else 0
