"""Shows on the embedded task what curation and logit distillation bring: `s1jax curation_story [--out=DIR]`.

Makes a pool of Countdown questions with planted defects. Measures how hard they are for a student of 0.2 million
weights, and asks a teacher that our own server serves on this machine. Curates the answers. Then trains students on
1,000 curated rows, on 1,000 random ones and on the whole pool, by cross-entropy and by a teacher's logits, and
evaluates them on held-out problems. The same command goes on where it was stopped.

DIR gets story.json with every figure, story.md with the tables and, where matplotlib is installed, story.png; also the
pool, the answers, the report of the curation in curated-0/, and all students in students/.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from s1jax.cli import progress, story_report, story_runs, subcommand, terminal
from s1jax.cli.story_runs import Run
from s1jax.data import identity
from s1jax.errors import UserError
from s1jax.io import files, paths
from s1jax.tasks.countdown import pool as pool_lib
from s1jax.tasks.countdown import problems

_OUT = flags.DEFINE_string("out", "runs/curation", "Folder of everything that the story makes.")
_POOL = flags.DEFINE_integer("pool", 4000, "Questions in the pool.", 60)
_SIZE = flags.DEFINE_integer("size", 1000, "Rows to train on.", 1)
_PROBLEMS = flags.DEFINE_integer("problems", 541, "Held-out problems of the evaluation, from the front.", 1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the choice of rows and of their order.", 1)
_STEPS = flags.DEFINE_integer("steps", 0, "Optimizer steps of a student; 0: five passes over --size rows.", 0)
_WORKERS = flags.DEFINE_integer("workers", 2, "Students that are trained at one time, each on a core of its own.", 1)
_MORE = flags.DEFINE_bool("more", False, "Also train on random right rows, and five passes over the whole pool.")
_PRICE = flags.DEFINE_string("dollars_per_million", "0.55,2.19", "What the teacher's tokens are said to cost.")

TEACHER = "package:countdown_base"
BASES = ("package:countdown_base_quarter", "package:countdown_base_quarter_1")
MAX_TOKENS = 160  # of an answer; the server keeps a quarter of them for the text after the thinking
_URL = re.compile(r"serving (\S+) on (http://\S+)")


def main() -> int:
    out = paths.local(_OUT.value, "--out")
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    heading("1/6  A pool of questions with planted defects")
    planted = make_pool(out)
    heading("2/6  How hard are they for the student? (s1jax measure), and which are worth an answer? (s1jax curate)")
    for command in (measure(out), choose_questions(out)):
        if code := subcommand.run(command):
            return code
    heading("3/6  Answers of a teacher that is served on this machine (s1jax serve, s1jax distil)")
    if code := ask_teacher(out):
        return code
    heading("4/6  Verdicts on the answers (s1jax measure), and the choice of rows (s1jax curate)")
    collected = collect(out)
    for command in (grade(out), *(choose_rows(out, seed) for seed in [None, *range(_SEEDS.value)])):
        if code := subcommand.run(command):
            return code
    draw_rows(out, collected)
    heading("5/6  A teacher of logits, and the students that need none (s1jax train, s1jax evaluate)")
    every = students(out)
    found = make(out, [teacher_of_logits(out), *(run for run in every if not run.targets)])
    heading("6/6  Its most probable tokens (s1jax teacher_logits), and the students that learn them")
    if code := subcommand.run(score(out)):
        return code
    found |= make(out, [run for run in every if run.targets])
    results = story_report.results(out, planted, found, _PRICE.value)
    with files.replace(out / "story.json") as file:
        file.write(json.dumps({**results, "seconds": round(time.monotonic() - begun, 1)}, indent=1).encode())
    text = story_report.text(results)
    with files.replace(out / "story.md") as file:
        file.write(text.encode())
    print(terminal.safe(f"\n{text}"))
    picture = f"The picture: {out}/story.png; the" if story_report.draw(results, out / "story.png") else "The"
    seconds = time.monotonic() - begun
    print(f"Done in {seconds:.0f} s. {picture} numbers: {out}/story.json; the curation: {out}/curated-0/report.md")
    return 0


def heading(text: str) -> None:
    """Prints the name of a stage."""
    print(f"\n{text}", flush=True)


def make_pool(out: pathlib.Path) -> list[pool_lib.Planted]:
    """Writes the pool and the evaluation's questions; returns the pool with the truth."""
    evaluation = problems.problems("test")[: _PROBLEMS.value]
    planted = pool_lib.make(_POOL.value, evaluation)
    write(out / "pool.jsonl", [one.row for one in planted])
    write(out / "truth.jsonl", [{"question": one.question, "kind": one.kind, "of": one.of} for one in planted])
    write(out / "evaluation.jsonl", problems.prompt_rows("test", _PROBLEMS.value))
    counts = {kind: sum(one.kind == kind for one in planted) for kind in pool_lib.KINDS}
    print(f"{len(planted):,} questions: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    return planted


def measure(out: pathlib.Path) -> list[str]:
    """The student's pass rate: whether it solves a question within its first branches."""
    return [
        "measure", f"--rows={out}/pool.jsonl", f"--out={out}/measured", f"--student={BASES[0]}", "--task=countdown",
        "--tries=2", "--max_thinking_tokens=64", "--max_answer_tokens=12", "--batch_size=64",
    ]  # fmt: skip


def choose_questions(out: pathlib.Path) -> list[str]:
    """What would be paid for if the questions were chosen first. The story pays for all, to compare."""
    return [
        "curate", f"--rows={out}/measured/rows.jsonl", f"--out={out}/questions", "--preset=questions", "--size=0",
        f"--against={out}/evaluation.jsonl",
    ]  # fmt: skip


def ask_teacher(out: pathlib.Path) -> int:
    """Distils the whole pool from a server that runs as long; returns the exit code."""
    port = out / "port.txt"  # a part of the requests' keys: another one would ask for everything again
    if not port.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            write_text(port, str(free.getsockname()[1]))
    with serving(out, port.read_text()) as url:
        return subcommand.run([
            "distil", f"--questions={out}/measured/rows.jsonl", f"--out={out}/answers", f"--endpoint={url}/v1",
            "--model=countdown_base", f"--max_tokens={MAX_TOKENS}", "--temperature=1", "--max_in_flight=96",
            f"--dollars_per_million={_PRICE.value}", "--max_dollars=10",
        ])  # fmt: skip


@contextlib.contextmanager
def serving(out: pathlib.Path, port: str) -> Iterator[str]:
    """Serves the teacher; gives the URL of the server when it takes requests.

    Raises:
      UserError: it has ended before; its messages are in server.log.
    """
    command = subcommand.line(["serve", f"--checkpoint={TEACHER}", f"--port={port}", "--slots=64"])
    log = out / "server.log"
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream, stdout=stream) as server:
        try:
            while not (found := _URL.search(log.read_text(errors="replace"))):
                if server.poll() is not None:
                    raise UserError(f"the server of the teacher did not start; {log} says why.")
                time.sleep(0.2)
            yield found[2]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def collect(out: pathlib.Path) -> list[dict[str, Any]]:
    """Writes the pool with every answer that was paid for, cut ones too, as s1's collection kept them; returns it."""
    states: dict[str, dict[str, Any]] = {}
    for line in (out / "answers" / "answers.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("state") in ("done", "cut"):
            states[entry["id"]] = entry
    rows = []
    for line in (out / "measured" / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        # A question that stands there twice is asked once.
        entry = states.pop(identity.question_id(row["question"]), None)
        if entry is None or not entry["reasoning"].strip() or not entry["content"].strip():
            continue
        answer = {"thinking_trajectories": [entry["reasoning"]], "attempt": entry["content"]}
        end = {"finish_reason": "length" if entry["state"] == "cut" else "stop", "dollars": entry["dollars"]}
        rows.append({**row, **answer, **end})
    write(out / "collected.jsonl", rows)
    return rows


def grade(out: pathlib.Path) -> list[str]:
    """Verdicts of Countdown's exact checker."""
    return ["measure", f"--rows={out}/collected.jsonl", f"--out={out}/graded", "--grade", "--task=countdown"]


def choose_rows(out: pathlib.Path, seed: int | None) -> list[str]:
    """The rows of one seed; of None all that pass the rules. The checker of Countdown is exact: wrong answers go."""
    size, name = (0, "all") if seed is None else (_SIZE.value, seed)
    return [
        "curate", f"--rows={out}/graded/rows.jsonl", f"--out={out}/curated-{name}", "--preset=ours", "--only_right",
        f"--size={size}", f"--seed={seed or 0}", f"--against={out}/evaluation.jsonl",
    ]  # fmt: skip


def draw_rows(out: pathlib.Path, collected: Sequence[Mapping[str, Any]]) -> None:
    """Writes the random rows of every seed, and the rows that the teacher of logits has to score."""
    right = [row for row in read(out / "graded" / "rows.jsonl") if row["correct"]]
    finished = [row for row in collected if row["finish_reason"] == "stop"]
    union: dict[str, Mapping[str, Any]] = {}
    for seed in range(_SEEDS.value):
        for name, rows in (("random", collected), ("finished", finished), ("right", right)):
            rng = random.Random(f"{name} rows {seed}")
            drawn = rng.sample([_shown(row) for row in rows], min(_SIZE.value, len(rows)))
            write(out / f"{name}-{seed}.jsonl", drawn)
            union |= {row["question"]: row for row in drawn if name == "random"}
        union |= {row["question"]: _shown(row) for row in read(out / f"curated-{seed}" / "rows.jsonl")}
    write(out / "whole.jsonl", [_shown(row) for row in collected])
    write(out / "scored.jsonl", list(union.values()))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """What training reads of a row: a column that calls its answer wrong would be refused."""
    return {name: row[name] for name in ("question", "thinking_trajectories", "attempt")}


def teacher_of_logits(out: pathlib.Path) -> Run:
    """The model with four times the weights, fine-tuned on the curated rows: the students' teacher."""
    return Run("teacher", 0, TEACHER, f"{out}/curated-0/rows.jsonl", _STEPS.value, rate=4e-4)


def score(out: pathlib.Path) -> list[str]:
    """The teacher's most probable tokens at every position of the rows."""
    folder = out / "students" / teacher_of_logits(out).name
    return [
        "teacher_logits", "--config=countdown_s1", f"--teacher={folder}", f"--out={out}/targets",
        f"--config.data.source={out}/scored.jsonl", "--config.data.num_rows=0",
        f"--config.data.block_size={story_runs.BLOCK}",
    ]  # fmt: skip


def students(out: pathlib.Path) -> list[Run]:
    """All students; those of both bases for logits, of the first one for curation."""
    targets, found = f"{out}/targets", []
    steps = _STEPS.value or five_passes(_SIZE.value)
    fewer = story_report.equal_flops(steps)
    for seed in range(_SEEDS.value):
        curated, drawn = f"{out}/curated-{seed}/rows.jsonl", f"{out}/random-{seed}.jsonl"
        for base in BASES:
            found += [
                Run("random", seed, base, drawn, steps),
                Run("random, logits", seed, base, drawn, steps, targets),
                Run("random, logits, equal FLOPs", seed, base, drawn, fewer, targets),
            ]
            if base == BASES[0] or _MORE.value:
                found.append(Run("curated", seed, base, curated, steps))
                found.append(Run("curated, logits", seed, base, curated, steps, targets))
        found.append(Run("finished", seed, BASES[0], f"{out}/finished-{seed}.jsonl", steps))
        found.append(Run("whole pool", seed, BASES[0], f"{out}/whole.jsonl", steps))
        if _MORE.value:
            found.append(Run("right", seed, BASES[0], f"{out}/right-{seed}.jsonl", steps))
            found.append(Run("whole pool, five passes", seed, BASES[0], f"{out}/whole.jsonl", _STEPS.value))
    return found


def five_passes(rows: int) -> int:
    """Optimizer steps of five passes over so many rows."""
    return 5 * -(-rows // story_runs.BATCH)


def make(out: pathlib.Path, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Makes students with a progress bar; returns their figures by name."""
    found = {}
    with progress.Bar("students", len(runs)) as bar:

        def done(run: Run, figures: Mapping[str, Any]) -> None:
            found[run.name] = dict(figures)
            right = 100 * sum(figures["right"]) / len(figures["right"])
            bar.say(f"{run.name}: {right:.1f} % of {len(figures['right'])} problems")
            bar.update(len(found))

        story_runs.make(runs, out / "students", _PROBLEMS.value, _WORKERS.value, done)
    return found


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to a file, whole."""
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text to a file, whole."""
    with files.replace(path) as file:
        file.write(text.encode())
