"""Draws a scaling curve: `python -m launch.evaluate --checkpoint=CKPT --task=countdown|FILE.jsonl --out=DIR`.

The same problems are answered once for each of `--budgets` (thinking is cut there; `none` lets the model end it) and
once for each of `--waits` (so many ends of thinking are replaced by the wait string). DIR gets samples.jsonl, every
answer; results.json, the table with all settings; scaling.png, accuracy against average thinking tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from launch import cli
from s1jax.config import Controls, InputError
from s1jax.evaluate import grading, scaling

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint, training workdir or package:NAME.")
_TASK = flags.DEFINE_string("task", "countdown", "countdown, or a JSONL file of questions and answers.")
_OUT = flags.DEFINE_string("out", None, "Folder for results.json, samples.jsonl and scaling.png.")
_BUDGETS = flags.DEFINE_list("budgets", [], "Thinking tokens at which thinking is cut, one run each; none: not cut.")
_WAITS = flags.DEFINE_list("waits", [], "Numbers of waits, one run each; 0 is the same run as the budget none.")
_PROBLEMS = flags.DEFINE_integer("num_problems", 0, "Problems from the front of the task; 0 takes all.", 0)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["dev", "test"], "Held-out problems of countdown: dev to choose, test to report."
)
_HARD = flags.DEFINE_bool("hard", False, "Only countdown problems that one first move solves.")
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
_SEED = flags.DEFINE_integer("seed", 0, "Problem i is sampled with seed + i; equal for all runs.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Problems that are sampled at one time.", 1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16"], "Of weights and cache; by default float32 on a CPU, bfloat16 elsewhere."
)

# Up to this many cache slots all runs share one compiled program: for short rows compiling takes longer than sampling.
_SHARED_SLOTS = 1024


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems and how they are graded.

    Attributes:
      title: with the number of problems, for the plot.
      rows: prompt rows, each with a `question` and whatever `grade` needs.
      grade: (text of an answer, its row) -> whether it is right.
      max_thinking_tokens: of runs without a budget, where the flag gives none.
      max_answer_tokens: where the flag gives none.
    """

    title: str
    rows: list[dict[str, Any]]
    grade: Callable[[str, Mapping[str, Any]], bool]
    max_thinking_tokens: int
    max_answer_tokens: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run to make: thinking cut at `budget` (None: at the limit for all), `waits` ends of thinking replaced."""

    budget: int | None
    waits: int

    def name(self, wait: str) -> str:
        """What the run is called in tables, in samples.jsonl and in the plot."""
        if self.budget is not None:
            return f"cut at {self.budget}"
        return f"{wait or 'masked end'} x{self.waits}" if self.waits else "no limit"


def main() -> None:
    settings = parse_settings(_BUDGETS.value, _WAITS.value)
    if not _CHECKPOINT.value:
        raise InputError("--checkpoint is missing; give a checkpoint, a training workdir or package:NAME.")
    if not _OUT.value:
        raise InputError("--out is missing; name the folder for the results.")
    task = countdown_task() if _TASK.value == "countdown" else file_task(pathlib.Path(_TASK.value))
    controls = Controls(
        max_thinking_tokens=task.max_thinking_tokens if _LIMIT.value is None else _LIMIT.value,
        max_answer_tokens=task.max_answer_tokens if _ANSWER.value is None else _ANSWER.value,
        temperature=_TEMPERATURE.value, top_p=_TOP_P.value, top_k=_TOP_K.value, min_p=_MIN_P.value, seed=_SEED.value,
    )  # fmt: skip
    over = [s.budget for s in settings if s.budget is not None and s.budget > controls.max_thinking_tokens]
    if over:
        raise InputError(
            f"--budgets has {over[0]}, more than --max_thinking_tokens {controls.max_thinking_tokens}; raise the limit."
        )
    out = pathlib.Path(_OUT.value)
    asked = _asked(controls)
    # Only now, so that a mistyped flag is answered at once.
    import jax

    from s1jax.checkpoint import store

    store.resolve(_CHECKPOINT.value)
    claim(out, asked)
    begun = time.monotonic()
    dtype = _DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = store.load_model(_CHECKPOINT.value, dtype=dtype)
    samples = out / "samples.jsonl.partial"
    runs = sample_all(model, task, settings, controls, samples, dtype)
    metrics = {
        "all": scaling.metrics(runs),
        "budgets": scaling.metrics([run for run in runs if run.budgets]),
        "waits": scaling.metrics([run for run in runs if run.waits]),
    }
    results = {
        "asked": asked,
        "problems": len(task.rows),
        "runs": [dataclasses.asdict(run) for run in runs],
        "metrics": metrics,
        "scales": "accuracy, error, control, cut, performance: %; scaling: percentage points per 1,000 thinking tokens",
        "seconds": round(time.monotonic() - begun, 1),
        "dtype": dtype,
        "checkpoint": model.provenance,
        "versions": _versions(),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
    }
    name = pathlib.Path(_CHECKPOINT.value).name.removeprefix("package:")
    scaling.plot(runs, out / "scaling.png", f"{name} on {task.title}", _WAIT.value)
    partial = out / "results.json.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    samples.rename(out / "samples.jsonl")
    partial.rename(out / "results.json")
    print_table(runs, metrics, f"{name} on {task.title}")
    print(f"wrote results.json, samples.jsonl and scaling.png to {out}")


def parse_settings(budgets: list[str], waits: list[str]) -> list[Setting]:
    """Returns the runs that two lists of flags ask for: budgets as given, then waits as given, none of them twice.

    Raises:
      InputError: both are empty, or something is no number that makes sense.
    """
    found = []
    for flag, texts in (("--budgets", budgets), ("--waits", waits)):
        for text in (text.strip().lower() for text in texts):
            if text == "none" and flag == "--budgets":
                found.append(Setting(None, 0))
            elif not text.isdecimal():
                also = ' or "none"' if flag == "--budgets" else ""
                raise InputError(f'{flag} has "{text}"; give numbers that are not negative{also}, separated by commas.')
            else:
                found.append(Setting(int(text), 0) if flag == "--budgets" else Setting(None, int(text)))
    if not found:
        raise InputError("--budgets and --waits are both empty; give at least one, for example --budgets=0,64,none.")
    return list(dict.fromkeys(found))


def countdown_task() -> Task:
    """The embedded task: problems whose numbers occur nowhere in training, graded by an exact checker."""
    from s1jax.data import countdown

    rows = countdown.prompt_rows(_SPLIT.value, _PROBLEMS.value, hard=_HARD.value)
    kind = f"{'hard ' if _HARD.value else ''}countdown ({_SPLIT.value})"
    return Task(f"{kind}, {len(rows)} held-out problems", rows, countdown.grade, 384, 24)


def file_task(path: pathlib.Path) -> Task:
    """Questions and answers of a JSONL file, graded as mathematics.

    Raises:
      InputError: names the file, line and field of whatever is wrong.
    """
    from s1jax.sample import rows as rows_lib

    found, names = rows_lib.read_rows(path)
    if len(found) < _PROBLEMS.value:
        raise InputError(f"--num_problems is {_PROBLEMS.value}, but {path} holds {len(found)} rows; ask for fewer.")
    rows = []
    for row, name in list(zip(found, names, strict=True))[: _PROBLEMS.value or None]:
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise InputError(f"{name}: no text `question`; every line is an object with `question` and `answer`.")
        rows.append({"question": row["question"], "reference": grading.reference(row, name)})
    title = f"{path.stem}, {len(rows)} problems"
    return Task(title, rows, lambda answer, row: grading.correct(answer, row["reference"]), 4096, 1024)


def claim(out: pathlib.Path, asked: Mapping[str, Any]) -> None:
    """Makes the folder; refuses one that holds the results of another evaluation."""
    earlier = out / "results.json"
    if earlier.exists():
        try:
            before = json.loads(earlier.read_text())["asked"]
        except (ValueError, KeyError, TypeError):
            before = None
        if before != asked:
            raise InputError(f"{earlier} belongs to another evaluation; choose another --out, or remove that file.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--out {out} is a file; choose another folder.") from error


def _asked(controls: Controls) -> dict[str, Any]:
    """All that determines the answers, for results.json."""
    flag_values = (_CHECKPOINT, _TASK, _BUDGETS, _WAITS, _PROBLEMS, _SPLIT, _HARD, _WAIT, _DTYPE, _BATCH)
    return {flag.name: flag.value for flag in flag_values} | {"controls": dataclasses.asdict(controls)}


def _versions() -> dict[str, str]:
    """Of Python and of the libraries that have a say in the results, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("s1jax", "jax", "jaxlib", "flax", "numpy", "math-verify"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def sample_all(
    model: Any, task: Task, settings: list[Setting], controls: Controls, file: pathlib.Path, dtype: str
) -> list[scaling.Run]:
    """Makes every run, writes its rows to `file`, and returns what came of each."""
    from launch import progress
    from s1jax.sample.engine import Engine

    count = len(task.rows)
    names = [f"problem {i} of {task.title}" for i in range(count)]
    prompts = [{**row, "seed": (controls.seed + i) % 2**32} for i, row in enumerate(task.rows)]
    engine = Engine(model, slots=_BATCH.value, cache_length=_shared_slots(model, prompts, controls), dtype=dtype)
    runs = []
    bar = progress.Bar("evaluating", len(settings) * count)
    with bar, file.open("w", encoding="utf-8") as stream:
        for number, setting in enumerate(settings):
            name = setting.name(_WAIT.value)
            bar.phase(f"run {number + 1} of {len(settings)}: {name}")
            limit = controls.max_thinking_tokens if setting.budget is None else setting.budget
            begun = time.monotonic()

            def report(done: int, ids: int, _: int, before: int = number * count, begun: float = begun) -> None:
                bar.update(before + done, f"{ids / (time.monotonic() - begun):,.0f} tokens/s")

            samples = engine.generate(
                prompts,
                dataclasses.replace(controls, max_thinking_tokens=limit, num_waits=setting.waits),
                wait=_WAIT.value,
                names=names,
                progress=report,
            )
            seconds = time.monotonic() - begun
            right = [task.grade(sample["answer"], row) for sample, row in zip(samples, task.rows, strict=True)]
            for i, (sample, verdict) in enumerate(zip(samples, right, strict=True)):
                record = {"run": name, "problem": i, "correct": verdict, **sample}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            runs.append(_summarise(name, setting, limit, samples, right, seconds))
            bar.update((number + 1) * count, f"{name}: {runs[-1].accuracy:.1f} % right")
    return runs


def _shared_slots(model: Any, prompts: list[dict[str, Any]], controls: Controls) -> int:
    """Cache slots that hold the longest row of any run, or 0 (each run for itself) where those are many."""
    from s1jax.sample import rows as rows_lib
    from s1jax.text import chat

    longest = max(len(rows_lib.prompt_ids(model, prompt, "a problem")) for prompt in prompts)
    parts = chat.delimiters(model.tokenizer, model.chat, _WAIT.value)
    forced = len(parts.think_start) + len(parts.newline) + len(parts.think_end) + len(parts.final_answer)
    slots = -(-(longest + forced + controls.max_thinking_tokens + controls.max_answer_tokens) // 64) * 64
    return slots if slots <= min(_SHARED_SLOTS, model.config.context_length) else 0


def _summarise(
    name: str, setting: Setting, limit: int, samples: list[dict[str, Any]], right: list[bool], seconds: float
) -> scaling.Run:
    thinking = [sample["thinking_tokens"] for sample in samples]
    accuracy, error = scaling.accuracy(right)
    return scaling.Run(
        name=name,
        budgets=setting.waits == 0,
        waits=setting.budget is None,
        problems=len(samples),
        accuracy=accuracy,
        error=error,
        thinking_tokens=sum(thinking) / len(samples),
        answer_tokens=sum(sample["answer_tokens"] for sample in samples) / len(samples),
        control=scaling.control(thinking, 0, limit),
        cut=100 * sum(sample["thinking_end"] == "cut" for sample in samples) / len(samples),
        seconds=round(seconds, 2),
    )


def print_table(runs: list[scaling.Run], metrics: Mapping[str, Mapping[str, float | None]], title: str) -> None:
    """Prints the runs and the paper's three figures for them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("run")
    for heading in ("accuracy %", "thinking tokens", "answer tokens", "cut %", "Control %", "seconds"):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(
            run.name, f"{run.accuracy:.1f} ± {run.error:.1f}", f"{run.thinking_tokens:.1f}",
            f"{run.answer_tokens:.1f}", f"{run.cut:.0f}", f"{run.control:.0f}", f"{run.seconds:.1f}",
        )  # fmt: skip
    figures = Table()
    for heading in ("", "Control %", "Scaling (points per 1,000 tokens)", "Performance %"):
        figures.add_column(heading, justify="right" if heading else "left")
    names = {"all": "all runs", "budgets": "budgets only", "waits": "waits only"}
    for family, name in names.items():
        values = metrics[family]
        texts = ["-" if value is None else f"{value:.1f}" for value in values.values()]
        figures.add_row(name, *texts)
    console = Console(highlight=False)
    console.print(table, figures)


if __name__ == "__main__":
    cli.run(main)
