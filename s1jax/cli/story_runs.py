"""Trains and evaluates the students of the curation story, several at a time, each in one process of its own.

All of it goes on where it was stopped: a run that has its figures is not made again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import runpy
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import process
from typing import Any

from s1jax.errors import UserError

BLOCK = 320  # the longest row has about 180 tokens; rows of 320 waste less than rows of 192 do
RATE = (
    1e-3  # chosen on the dev split for the small student; configs/countdown_s1.py has 4e-4 for four times the weights
)
LIMIT = 256  # thinking tokens in an evaluation
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Run:
    """One student.

    Attributes:
      arm: what it was trained on and how, as the table calls it.
      seed: of the choice of rows and of their order.
      base: checkpoint it starts from.
      rows: file of its rows.
      steps: optimizer steps of 16 rows; 0: five passes over the rows.
      targets: folder of a teacher's targets; empty: cross-entropy.
      rate: peak of the learning rate.
    """

    arm: str
    seed: int
    base: str
    rows: str
    steps: int = 0
    targets: str = ""
    rate: float = RATE

    @property
    def name(self) -> str:
        """Name of its folder."""
        base = self.base.rpartition(":")[2].rpartition("/")[2]
        return f"{'_'.join(self.arm.replace(',', '').split())}-{base}-{self.seed}"


def make(
    runs: Sequence[Run],
    out: pathlib.Path,
    problems: int,
    workers: int,
    on_done: Callable[[Run, Mapping[str, Any]], None],
) -> None:
    """Makes all runs that have no figures yet.

    Args:
      runs: names must differ.
      out: gets a folder for each.
      problems: of the evaluation, from the front of Countdown's test split.
      workers: processes, each on a core of its own.
      on_done: gets each run with its figures, as they come in, and at once those of an earlier call.

    Raises:
      UserError: a run failed; says which.
    """
    left = []
    for run in runs:
        found = figures(run, out)
        if found is None:
            left.append(run)
        else:
            on_done(run, found)
    if not left:
        return
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for number in range(workers):
        places.put(cores[number % len(cores)])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(out / "compiled")  # of the processes: most runs share programs
    with concurrent.futures.ProcessPoolExecutor(workers, context, _settle, (places,)) as pool:
        waiting = {pool.submit(_run, run, out, problems): run for run in left}
        for future in concurrent.futures.as_completed(waiting):
            try:
                found = future.result()
            except UserError as error:
                raise UserError(f"{waiting[future].name}: {error}") from None
            except process.BrokenProcessPool:
                raise UserError(
                    "the process of a student has ended; give the same command again, with --workers=1 if memory is"
                    " short."
                ) from None
            on_done(waiting[future], found)


def figures(run: Run, out: pathlib.Path) -> dict[str, Any] | None:
    """Returns the figures of a run that was made; None if it was not."""
    file = out / run.name / "figures.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    return found if found["run"] == dataclasses.asdict(run) else None


def _settle(places: Any) -> None:
    """Gives this process one core, as two students on a core each are faster than two on both."""
    os.sched_setaffinity(0, [places.get()])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the story's has ended, however that was."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(143)


def _run(run: Run, out: pathlib.Path, problems: int) -> dict[str, Any]:
    from s1jax.io import files

    folder = out / run.name
    tokens = train(run, folder)
    found = {"run": dataclasses.asdict(run), "trained_tokens": tokens, **evaluate(folder, problems)}
    with files.replace(folder / "figures.json") as file:
        file.write(json.dumps(found).encode())
    return found


def settings(run: Run) -> dict[str, Any]:
    """Returns the experiment of a run: configs/countdown_s1.py on its rows."""
    from s1jax.cli import configs

    config = runpy.run_path(os.fspath(configs.files()["countdown_s1"]))["get_config"]()
    config.init_from, config.data.source, config.data.seed = run.base, run.rows, run.seed
    config.data.num_rows, config.data.block_size = 0, BLOCK
    config.optimizer.learning_rate = run.rate
    config.train.steps, config.train.batch_size = run.steps, BATCH
    config.checkpoint.every, config.log.tensorboard = 0, False
    if run.targets:
        config.distil.targets, config.distil.weight = run.targets, 1.0
    found: dict[str, Any] = config.to_dict()
    return found


def train(run: Run, folder: pathlib.Path) -> int:
    """Trains a student; returns the tokens that it has seen."""
    import s1jax

    s1jax.train(settings(run), folder, s1jax.Callbacks(on_note=lambda note: None))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["tokens"] for line in lines)


def evaluate(checkpoint: str | os.PathLike[str], problems: int, out: pathlib.Path | None = None) -> dict[str, Any]:
    """Answers problems of the test split, greedily; returns the verdicts and what the thinking was like."""
    import s1jax
    from s1jax.tasks import benchmarks

    engine = s1jax.Engine(os.fspath(checkpoint), slots=64, cache_length=448)
    task = benchmarks.load("countdown", problems)
    folder = out or pathlib.Path(checkpoint) / "evaluation"
    params = s1jax.SamplingParams(max_thinking_tokens=LIMIT, max_answer_tokens=24)
    s1jax.evaluate(engine, task, ["none"], folder, params=params, on_note=lambda note: None)
    samples = list(_samples(folder))
    return {
        "right": [int(sample["correct"]) for sample in samples],
        "thinking_tokens": sum(sample["thinking_tokens"] for sample in samples) / len(samples),
        "cut": 100 * sum(sample["thinking_end"] == "cut" for sample in samples) / len(samples),
    }


def _samples(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The answers of an evaluation in the order of the problems."""
    for line in (folder / "samples.jsonl").read_text().splitlines():
        yield json.loads(line)
