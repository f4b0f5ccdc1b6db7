"""Runs a curation: reads a pool, applies the rules of a preset stage by stage, writes what is left and why."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from s1jax.curation import presets, reading, report, stages
from s1jax.curation.report import Report, Stage
from s1jax.curation.row import Drop, Row
from s1jax.curation.settings import Settings
from s1jax.curation.stages import Stages
from s1jax.curation.steps import MEASURED_BY, Step
from s1jax.errors import UserError
from s1jax.io import files, paths

Note = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # the stage, its number from 0, the number of stages

_HIDDEN = ("_content", "_drop", "trace_characters")  # columns of the pool's stage alone
_LONGEST_COLUMN = 200  # characters of a text column that is kept in memory for all rows


def curate(
    rows: Sequence[str],
    out: str | pathlib.Path,
    *,
    preset: str = "ours",
    size: int = 1000,
    seed: int = 0,
    skip: Sequence[str] = (),
    traces: str = "deepseek",
    block_size: int = 0,
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
      preset: `ours`, `questions`, `s1_paper` or `s1_code`, see `s1jax.curation.presets`.
      size: rows to choose; 0 keeps all that pass the rules. Fewer are chosen if fewer are left, with a note.
      seed: of the draws; the same rows in any order and the same seed give the same choice.
      skip: names of rules that are left out.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      block_size: of a training run; the report says how many rows are longer. 0: it does not.
      on_note: gets sentences about what is ignored, guessed or left out.
      on_progress: is called before each stage with its name, its number from 0 and the number of stages.

    Raises:
      UserError: there are no rows, a column is missing that a rule needs, or no row is left.
    """
    settings = Settings(preset, size, seed, tuple(skip), traces, block_size)
    out = paths.local(out, "--out")
    steps = presets.steps(settings)
    with _held(out):
        run = _Run(tuple(rows), out, settings, steps, on_note or (lambda _: None), on_progress or (lambda *_: None))
        return run.all()


@contextlib.contextmanager
def _held(out: pathlib.Path) -> Iterator[None]:
    """Holds the folder for this process."""
    out.mkdir(parents=True, exist_ok=True)
    with files.append(out / ".lock") as lock:
        if not files.take(lock):
            raise UserError(f"another process curates into {out}; wait until it has ended, or choose another folder.")
        yield


class _Run:
    """One curation."""

    def __init__(
        self, rows: tuple[str, ...], out: pathlib.Path, settings: Settings, steps: list[Step], note: Note, on: Progress
    ):
        self.sources, self.out, self.settings, self.steps = rows, out, settings, steps
        self.notes: list[str] = []
        self._tell, self._progress = note, on
        self.stages = Stages(out / "stages")
        self.pool = self.stages.file(0, "rows")
        self.done: list[Stage] = []
        self.ids: list[str | None] = []  # of the pool's rows in the order of the file; None: dropped
        self.drops: list[tuple[Row, Drop]] = []

    def note(self, sentence: str) -> None:
        """Says something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self._tell(sentence)

    def all(self) -> Report:
        """Runs every stage and writes the results."""
        self._progress("rows", 0, len(self.steps) + 1)
        key, everything = self._read()
        have = {name for row in everything for name in row.columns}
        self._check(have, everything)
        key, rows = self._identify(key, everything)
        rows = self._complete(rows)
        for number, step in enumerate(self.steps, start=2):
            self._progress(step.name, number - 1, len(self.steps) + 1)
            key = stages.key(key, step.name, {**step.settings, "columns": sorted((*step.needs, *step.wants))})
            rows = self._apply(step, self.stages.file(number, step.name), key, rows)
        self.stages.forget([self.pool, self.stages.file(1, "identity"), *(stage.file for stage in self.done)])
        return self._write(rows, everything)

    def _read(self) -> tuple[str, list[Row]]:
        """Reads the pool into its stage; returns its key, and the rows without traces."""
        if not self.sources:
            raise UserError("--rows is empty; name files or folders of rows.")
        local = [path for name in self.sources if (path := reading.source(name)) is not None]
        published = [name for name in self.sources if reading.source(name) is None]
        settings = {"files": stages.content_key(local), "published": published, "traces": self.settings.traces}
        key = stages.key("", "rows", settings)
        facts = self.stages.facts(self.pool, key)
        if facts is None:
            notes: list[str] = []
            facts = {"key": key, "notes": notes}

            def found() -> Iterator[Row]:
                for row, drop in reading.rows(self.sources, self.settings.traces, notes):
                    measured = {"trace_characters": len(row.trace)} if row.trace else {}
                    hidden = {"_content": reading.content(row), "_drop": dataclasses.asdict(drop) if drop else None}
                    yield dataclasses.replace(row, columns={**row.columns, **measured, **hidden})

            if not self.stages.write_rows(self.pool, found(), facts):
                raise UserError(f"--rows={','.join(self.sources)} has no rows; give a source with rows.")
        for sentence in facts["notes"]:
            self.note(sentence)
        wanted = {name for step in self.steps for name in (*step.needs, *step.wants)}
        return key, [_slim(row, wanted) for row in self.stages.read_rows(self.pool, traces=False)]

    def _identify(self, key: str, everything: list[Row]) -> tuple[str, list[Row]]:
        """Gives rows their ids, and drops copies and what cannot be used."""
        ids, copies = reading.numbered([(row, row.columns["_content"]) for row in everything])
        kept, drops = [], []
        for i, row in enumerate(everything):
            everything[i] = row = dataclasses.replace(row, id=ids[i])
            bad = row.columns.get("_drop")
            drop = copies.get(i) or (Drop(**bad) if bad else None)
            if drop is None and not row.columns.get("trace_characters") and self._wants_traces:
                drop = Drop("shape", "has no trace", f"--preset={self.settings.preset} chooses rows to train on")
            if drop is None:
                kept.append(row)
            else:
                drops.append((row, drop))
            self.ids.append(None if drop else row.id)
        if not kept:
            raise UserError(_nothing(drops, self.settings))
        file = self.stages.file(1, "identity")
        key = stages.key(key, "identity", {"traces": self._wants_traces})
        if self.stages.facts(file, key) is None:
            self.stages.write_drops(file, drops, {"key": key})
        self._record("identity", file, len(everything), drops)
        return key, kept

    @property
    def _wants_traces(self) -> bool:
        return self.settings.preset in presets.NEEDS_TRACE

    def _check(self, have: set[str], everything: list[Row]) -> None:
        """Refuses a pool without a column that a rule needs, and says which ones a rule would read."""
        if self._wants_traces and "trace_characters" not in have:
            raise UserError(
                f"no row of --rows={','.join(self.sources)} has a trace, and --preset={self.settings.preset} chooses"
                " rows to train on; choose questions with --preset=questions and have s1jax distil write the traces."
            )
        for step in self.steps:
            for name in step.needs:
                if name not in have:
                    how = MEASURED_BY.get(name, "add it")
                    raise UserError(
                        f"the pool has no column {name}, which the rule {step.name} of --preset={self.settings.preset}"
                        f" needs: {how}; or leave the rule out with --skip={step.name}."
                    )
            for name in step.wants:
                if name not in have and name != "trace_characters":
                    self.note(f"the pool has no column {name}, which the rule {step.name} would read; it goes without.")

    def _complete(self, rows: list[Row]) -> list[Row]:
        """Drops rows that lack a column which other rows have and a rule needs."""
        needs = list(dict.fromkeys(name for step in self.steps for name in step.needs))
        kept, drops = [], []
        for row in rows:
            lacks = next((name for name in needs if row.columns.get(name) is None), None)
            if lacks is None:
                kept.append(row)
            else:
                drops.append((row, Drop("columns", f"has no {lacks}", f"other rows have {lacks}")))
        if needs:
            self._record("columns", None, len(rows), drops)
        return kept

    def _apply(self, step: Step, file: pathlib.Path, key: str, rows: list[Row]) -> list[Row]:
        """Runs one rule, or reads what it did; returns the rows that are left, in its order."""
        facts = self.stages.facts(file, key)
        by_id = {row.id: row for row in rows}
        if facts is not None:
            found = dict(self.stages.read_drops(file))
            kept = [by_id[name] for name in facts["order"]] if "order" in facts else None
        else:
            facts = {"key": key}
            if step.row is not None:
                found = self._each(step.row, rows, step.reads_trace)
                kept = None
            else:
                assert step.rows is not None
                given = list(self._full(by_id)) if step.reads_trace else rows
                left, dropped = step.rows(given)
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

    def _each(self, rule: Callable[[Row], Drop | None], rows: list[Row], traces: bool) -> dict[str, Drop]:
        source: Iterable[Row] = self._full({row.id: row for row in rows}) if traces else rows
        return {row.id: drop for row in source if (drop := rule(row)) is not None}

    def _full(self, wanted: Mapping[str, Row]) -> Iterator[Row]:
        """Reads rows with traces and all columns from the pool's stage, one at a time."""
        for row_id, row in zip(self.ids, self.stages.read_rows(self.pool, traces=True), strict=True):
            if row_id is not None and row_id in wanted:
                yield dataclasses.replace(row, id=row_id)

    def _record(self, name: str, file: pathlib.Path | None, given: int, drops: Sequence[tuple[Row, Drop]]) -> None:
        self.drops += drops
        self.done.append(Stage.of(name, file or self.stages.file(1, "identity"), given, [drop for _, drop in drops]))

    def _write(self, rows: list[Row], everything: list[Row]) -> Report:
        """Writes the results; rows.jsonl last, so that it is there only with all others."""
        if self.settings.size and len(rows) < self.settings.size:
            self.note(
                f"{len(rows):,} rows are left, fewer than --size={self.settings.size:,}; give more rows, or leave a"
                " rule out with --skip."
            )
        result = report.make(self.sources, self.settings, self.steps, self.done, everything, rows, self.notes)
        if len(rows) + len(self.drops) != len(everything):
            raise AssertionError(f"{len(rows)} kept + {len(self.drops)} dropped is not {len(everything)}")
        self.stages.write_drops(self.out / "dropped.parquet", self.drops)
        result.write(self.out)
        places = {row.id: place for place, row in enumerate(rows)}
        texts = {row.id: _line(row, self._wants_traces) for row in self._full({row.id: row for row in rows})}
        with files.replace(self.out / "rows.jsonl") as file:
            for row_id in places:
                file.write(texts[row_id])
        return result


def _slim(row: Row, wanted: set[str]) -> Row:
    """A row without columns that are long and that no rule reads."""
    columns = {
        name: value
        for name, value in row.columns.items()
        if name in wanted
        or name == "_drop"
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and len(value) <= _LONGEST_COLUMN)
    }
    return dataclasses.replace(row, columns=columns)


def _line(row: Row, traces: bool) -> bytes:
    """A row of rows.jsonl: s1K's columns first, then all others but those that would be read in their place."""
    own: dict[str, Any] = {"id": row.id, "question": row.question}
    if traces:
        own |= {"thinking_trajectories": [row.trace], "attempt": row.answer}
    hidden = {*own, *_HIDDEN, *reading.WRITTEN, "attempt"}
    more: dict[str, Any] = {name: value for name, value in row.columns.items() if name not in hidden}
    for judged in ("correct", "is_correct"):  # training refuses rows that such a column calls wrong
        if traces and judged in more:
            more["answer_is_right"] = more.pop(judged)
    return json.dumps({**own, **more}, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


def _nothing(drops: Sequence[tuple[Row, Drop]], settings: Settings) -> str:
    row, drop = drops[0]
    return f"none of the {len(drops):,} rows can be used; the first, {row.name}, {drop.reason}: {drop.evidence}"
