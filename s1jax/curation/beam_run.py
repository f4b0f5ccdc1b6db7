"""Runs a curation on Apache Beam, and writes the files that a run without Beam writes."""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from s1jax.curation import beam, checks, plan, report
from s1jax.curation import beam_elements as elements
from s1jax.curation.report import Counted, Report, Stage
from s1jax.curation.row import Drop, Row
from s1jax.curation.settings import Settings
from s1jax.curation.stages import pyarrow
from s1jax.curation.steps import Step
from s1jax.errors import UserError
from s1jax.io import files

_COLUMNS = ("id", "rule", "reason", "evidence", "name", "question")


def run(
    sources: Sequence[str],
    out: pathlib.Path,
    settings: Settings,
    steps: Sequence[Step],
    options: str,
    note: Callable[[str], None],
    notes: list[str],
) -> Report:
    """Runs a curation.

    Args:
      sources: files and patterns of files, local or of any file system that Beam knows.
      out: a folder that this process and all workers can write to.
      settings: of the curation.
      steps: its rules.
      options: of Beam, see `s1jax.curation.beam.options`.
      note: gets sentences about what is ignored, guessed or left out.
      notes: the sentences so far, for the report.

    Raises:
      UserError: a column is missing that a rule needs, no row is left, or an option is unknown.
    """
    package, pa = beam.package(), pyarrow()
    found = beam.options(options)
    shards = out / "stages" / "beam"
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir(parents=True)
    schema = pa.schema([(name, pa.string()) for name in _COLUMNS])
    try:
        with package.Pipeline(runner=beam.runner(found), options=found) as root:
            outputs = beam.Graph(root, matched(sources), settings, steps).outputs()
            text = package.io.WriteToText
            raw = package.coders.BytesCoder()
            _ = outputs.chosen | "write rows" >> text(f"{shards}/rows", coder=raw)
            _ = (
                outputs.dropped
                | "records" >> package.Map(elements.dropped_record)
                | "write drops" >> package.io.WriteToParquet(f"{shards}/dropped", schema)
            )
            _ = outputs.facts | "f" >> package.Map(elements.fact_line) | "write facts" >> text(f"{shards}/facts")
            _ = (
                outputs.examples
                | "e" >> package.Map(elements.example_line)
                | "write examples" >> text(f"{shards}/leaks")
            )
    except RuntimeError as error:
        if (cause := _user_error(error)) is None:
            raise
        raise UserError(cause) from None
    counted, have = _counted(shards, steps, settings)
    checks.columns(have, sources, settings, steps, note)
    _check_left(counted, out)
    checks.size(counted.stages[-1].kept, settings, note)
    result = report.make(sources, settings, steps, counted, notes)
    _join_drops(shards, out / "dropped.parquet", schema)
    result.write(out)
    with files.replace(out / "rows.jsonl") as file:
        for line in _ordered(shards) if settings.size else _lines(shards, "rows"):
            file.write(line.partition(b"\t")[2] + b"\n")
    shutil.rmtree(shards)
    return result


def matched(sources: Sequence[str]) -> list[str]:
    """Returns the files that patterns such as gs://BUCKET/pool-*.jsonl name; other sources stay as they are.

    Raises:
      UserError: a pattern matches nothing.
    """
    systems = beam.package(".io.filesystems").FileSystems
    found: list[str] = []
    for source in sources:
        if not set("*?[") & set(source):
            found.append(source)
            continue
        some = sorted(one.path for match in systems.match([source]) for one in match.metadata_list)
        if not some:
            raise UserError(f"--rows={source} matches no file; give another pattern.")
        found += some
    return found


def _user_error(error: BaseException) -> str | None:
    """The sentence of a UserError that a worker raised, whose text Beam puts into its own error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    marker = "s1jax.errors.UserError: "
    text = str(error)
    return text.rpartition(marker)[2].partition(" [while running")[0].strip() if marker in text else None


def _lines(shards: pathlib.Path, name: str) -> Iterator[bytes]:
    for shard in sorted(shards.glob(f"{name}-*")):
        with shard.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\n")


def _ordered(shards: pathlib.Path) -> list[bytes]:
    return sorted(_lines(shards, "rows"), key=lambda line: line[:12])


def _counted(shards: pathlib.Path, steps: Sequence[Step], settings: Settings) -> tuple[Counted, set[str]]:
    """Returns what the pipeline counted, and the columns that rows have."""
    facts = [(tuple(json.loads(name)), value) for name, value in map(json.loads, _lines(shards, "facts"))]
    names = ["identity", *(step.name for step in steps)]
    given, done = next((value for name, value in facts if name == ("rows",)), 0), []
    for number, name in enumerate(names):
        reasons = {key[2]: value for key, value in facts if key[:2] == ("drop", number)}
        ordered = dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])))
        done.append(Stage(name, shards, given, ordered))
        given = done[-1].kept

    def named(kind: str) -> dict[Any, int]:
        return {key[1]: value for key, value in facts if key[0] == kind}

    tallies = [
        {key[2]: plan.Lengths(*value) for key, value in facts if key[:2] == ("tally", group)}
        for group in range(len(report.GROUPS))
    ]
    leaks = [record for line in _lines(shards, "leaks") for record in json.loads(line)]
    examples = [
        (Row(one["id"], one["question"], "", "", one["name"]), Drop(one["rule"], one["reason"], one["evidence"]))
        for one in leaks
    ]
    single = {name[0]: value for name, value in facts if len(name) == 1}
    counted = Counted(
        done, named("domain"), named("leak"), examples, tallies, single.get("measured", 0), single.get("longer", 0)
    )
    return counted, set(named("column"))


def _check_left(counted: Counted, out: pathlib.Path) -> None:
    for stage in counted.stages:
        if not stage.kept:
            why = next(iter(stage.reasons), "there were none")
            raise UserError(
                f"the rule {stage.name} dropped all {stage.given:,} rows that were left ({why}); no file of {out} was"
                " changed."
            )


def _join_drops(shards: pathlib.Path, path: pathlib.Path, schema: Any) -> None:
    """Writes the shards of dropped rows as one file, a row group at a time."""
    parquet = importlib.import_module("pyarrow.parquet")
    with files.replace(path) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for shard in sorted(shards.glob("dropped-*")):
            with contextlib.closing(parquet.ParquetFile(shard)) as file:
                for batch in file.iter_batches():
                    writer.write_batch(batch)
