"""Runs a curation: reads a pool, applies the rules of a preset stage by stage, writes what is left and why."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from s1jax.curation import against as against_lib
from s1jax.curation import checks, output, presets, report, stages
from s1jax.curation.choice import NAME as CHOICE
from s1jax.curation.pool import Pool
from s1jax.curation.report import Report, Stage
from s1jax.curation.row import Drop, Row
from s1jax.curation.settings import Settings
from s1jax.curation.stages import Stages
from s1jax.curation.steps import Step
from s1jax.errors import UserError
from s1jax.io import files, paths

Note = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # the stage, its number from 0, the number of stages


def curate(
    rows: Sequence[str],
    out: str | pathlib.Path,
    *,
    against: Sequence[str],
    preset: str = "ours",
    size: int = 1000,
    seed: int = 0,
    skip: Sequence[str] = (),
    traces: str = "deepseek",
    templates: str = "keep",
    tokenizer: str = "",
    block_size: int = 0,
    tokens_per_answer: float = 0.0,
    dollars_per_million: float = 0.0,
    only_right: bool = False,
    beam: str | None = None,
    on_note: Note | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Chooses rows out of a pool.

    The folder gets rows.jsonl (in s1K's form, in the order of the draws), dropped.parquet (each row that was dropped,
    with rule, reason and evidence), report.md, report.json, funnel.png, and stages/. The same call again reads the
    stages that nothing has changed for.

    Args:
      rows: files, folders or published sets, see `s1jax.curation.reading`.
      out: the folder.
      against: evaluation sets that no chosen row may hold, see `s1jax.curation.against`; `["none"]` for none.
      preset: `ours`, `questions`, `s1_paper` or `s1_code`, see `s1jax.curation.presets`.
      size: rows to choose; 0 keeps all that pass the rules, in the order of the pool. Fewer are chosen if
        fewer are left, with a note.
      seed: of the draws; the same rows in any order and the same seed give the same choice.
      skip: names of rules that are left out.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      templates: `keep` keeps questions that differ in their numbers alone, `one` keeps one of each template (`ours` and
        `questions`).
      tokenizer: folder, file or checkpoint; counts the tokens of traces without a column `trace_tokens`.
      block_size: of a training run; the report says how many rows are longer. 0: it does not.
      tokens_per_answer: what a teacher writes per question on average, for the plan in the report; 0: as measured from
        the rows that have an answer.
      dollars_per_million: price of a million tokens that a teacher writes, for that plan.
      only_right: also drop rows whose column `correct` says that the answer is wrong.
      beam: run on Apache Beam (extra `beam`) with these options of it, such as `--runner=DataflowRunner ...`; empty
        takes its DirectRunner. Stages are not kept then.
      on_note: gets sentences about what is ignored, guessed or left out.
      on_progress: is called before each stage with its name, its number from 0 and the number of stages.

    Raises:
      UserError: there are no rows, a column is missing that a rule needs, or no row is left.
    """
    settings = Settings(
        preset,
        size,
        seed,
        tuple(skip),
        traces,
        templates,
        tokenizer,
        block_size,
        tokens_per_answer,
        dollars_per_million,
        only_right,
    )
    out = paths.local(out, "--out")
    files.check_not_read(rows, out / "rows.jsonl", "--out")
    notes: list[str] = []
    steps = presets.steps(settings, against_lib.read(against, notes))
    with _held(out):
        run = _Run(tuple(rows), out, settings, steps, on_note or (lambda _: None), on_progress or (lambda *_: None))
        if presets.GATE not in (step.name for step in steps):
            notes.append("the rows are not compared with any evaluation set.")
        for sentence in notes:
            run.note(sentence)
        if beam is not None:
            from s1jax.curation import beam_run

            return beam_run.run(rows, out, settings, steps, beam, run.note, run.notes)
        return run.all()


@contextlib.contextmanager
def _held(out: pathlib.Path) -> Iterator[None]:
    """Holds the folder for this process."""
    out.mkdir(parents=True, exist_ok=True)
    with files.append(out / ".lock") as lock:
        if not files.take(lock):
            raise UserError(f"another process curates into {out}; wait until it has ended, or choose another folder.")
        for folder in (out, out / "stages"):
            files.remove_parts(folder)
        yield


class _Run:
    """One curation."""

    def __init__(
        self, rows: tuple[str, ...], out: pathlib.Path, settings: Settings, steps: list[Step], note: Note, on: Progress
    ):
        self.sources, self.out, self.settings, self.steps = rows, out, settings, steps
        self.notes: list[str] = []
        self._say, self._progress = note, on
        self.stages = Stages(out / "stages")
        self.done: list[Stage] = []
        self.drops: list[tuple[Row, Drop]] = []
        self.asked: list[Row] = []  # left before the first rule that reads what a teacher wrote

    def note(self, sentence: str) -> None:
        """Says something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self._say(sentence)

    def all(self) -> Report:
        """Runs every stage and writes the results."""
        self._progress("rows", 0, len(self.steps) + 1)
        wanted = {name for step in self.steps for name in (*step.needs, *step.wants)}
        self.pool = Pool(self.sources, self.settings.traces, self.settings.tokenizer, self.stages, wanted)
        for sentence in self.pool.notes:
            self.note(sentence)
        have = {name for row in self.pool.rows for name in row.columns}
        if len(self.pool.drops) < len(self.pool.rows):  # otherwise that is what to say, see `_usable`
            checks.columns(have, self.sources, self.settings, self.steps, self.note)
        key, rows = self._usable()
        for number, step in enumerate(self.steps, start=2):
            self._progress(step.name, number - 1, len(self.steps) + 1)
            if not self.asked and (step.of_a_teacher or step.name in (CHOICE, presets.GATE)):
                self.asked = rows
            key = stages.key(key, step.name, {**step.settings, "columns": sorted((*step.needs, *step.wants))})
            rows = self._apply(step, self.stages.file(number, step.name), key, rows)
        self.asked = self.asked or rows
        self.stages.forget([self.pool.file, *(stage.file for stage in self.done)])
        return self._write(rows)

    def _usable(self) -> tuple[str, list[Row]]:
        """Drops copies and what cannot be used; returns the stage's key and the other rows."""
        if self.settings.chooses_traces:
            self.pool.drop_without_traces(self.settings.preset)
        drops = [(self.pool.rows[i], drop) for i, drop in sorted(self.pool.drops.items())]
        kept = [row for i, row in enumerate(self.pool.rows) if i not in self.pool.drops]
        if not kept:
            row, drop = drops[0]
            raise UserError(
                f"none of the {len(drops):,} rows can be used; the first, {row.name}, {drop.reason}: {drop.evidence}"
            )
        file = self.stages.file(1, "identity")
        key = stages.key(self.pool.key, "identity", {"traces": self.settings.chooses_traces})
        if self.stages.facts(file, key) is None:
            self.stages.write_drops(file, drops, {"key": key})
        self._record("identity", file, len(self.pool.rows), drops)
        return key, kept

    def _apply(self, step: Step, file: pathlib.Path, key: str, rows: list[Row]) -> list[Row]:
        """Runs one rule, or reads what it did; returns the rows that are left, in its order."""
        by_id = {row.id: row for row in rows}
        facts = self.stages.facts(file, key)
        if facts is not None:
            found = dict(self.stages.read_drops(file))
            kept = [by_id[name] for name in facts["order"]] if "order" in facts else None
        else:
            facts, kept = {"key": key}, None
            if step.row is not None:
                source: Iterable[Row] = self.pool.whole(by_id) if step.whole else rows
                found = {row.id: drop for row in source if (drop := step.row(row)) is not None}
            else:
                assert step.rows is not None
                left, dropped = step.rows(list(self.pool.whole(by_id)) if step.whole else rows)
                found, kept = dict(dropped), [by_id[row.id] for row in left]
                if [row.id for row in kept] != [row.id for row in rows if row.id not in found]:
                    facts["order"] = [row.id for row in kept]
            self.stages.write_drops(file, [(by_id[name], drop) for name, drop in found.items()], facts)
        if kept is None:
            kept = [row for row in rows if row.id not in found]
        if len(kept) + len(found) != len(rows):
            raise AssertionError(f"{step.name}: {len(kept)} kept + {len(found)} dropped is not {len(rows)}")
        self._record(step.name, file, len(rows), [(by_id[name], drop) for name, drop in found.items()])
        if not kept:
            raise UserError(
                f"the rule {step.name} dropped all {len(rows):,} rows that were left"
                f" ({next(iter(found.values())).reason}); {file} says why for each, and no other file was changed."
            )
        return kept

    def _record(self, name: str, file: pathlib.Path, given: int, drops: Sequence[tuple[Row, Drop]]) -> None:
        self.drops += drops
        self.done.append(Stage.of(name, file, given, [drop for _, drop in drops]))

    def _write(self, rows: list[Row]) -> Report:
        """Writes the results; rows.jsonl last, so that it is there only with all others."""
        everything = self.pool.rows
        if len(rows) + len(self.drops) != len(everything):
            raise AssertionError(f"{len(rows)} kept + {len(self.drops)} dropped is not {len(everything)}")
        checks.size(len(rows), self.settings, self.note)
        counted = report.count(self.done, self.settings.block_size, everything, self.asked, rows, self.drops)
        result = report.make(self.sources, self.settings, self.steps, counted, self.notes)
        self.stages.write_drops(self.out / "dropped.parquet", self.drops)
        result.write(self.out)
        whole = self.pool.whole({row.id for row in rows})
        lines = ((row.id, output.line(row, self.settings.chooses_traces)) for row in whole)
        if self.settings.size:  # few, and in the order of the draws
            texts = dict(lines)
            lines = ((row.id, texts[row.id]) for row in rows)
        with files.replace(self.out / "rows.jsonl") as file:
            for _, text in lines:
                file.write(text)
        return result
