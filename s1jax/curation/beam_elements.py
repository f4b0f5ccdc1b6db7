"""What a pipeline of Apache Beam does to one element: functions that can be sent to workers.

An element on its way is a row. After each rule it is a pair: the row, and its `Drop` or None.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from s1jax.curation import choice, clean, output, plan, reading, report
from s1jax.curation.answers import question_of
from s1jax.curation.choice import Chooser
from s1jax.curation.near_duplicates import NearDuplicates, Pair, Text
from s1jax.curation.row import Drop, Row
from s1jax.curation.selection import Candidate
from s1jax.curation.stages import encoded
from s1jax.curation.steps import SetRule
from s1jax.io import readers

Judged = tuple[Row, Drop | None]
Fact = tuple[str, Any]  # a name in JSON, and something that is added up over all rows


def read(source: str, traces: str, tokenizer: str, open_remote: Callable[[str], Any]) -> Iterator[Row]:
    """Yields the rows of a source, which may be a file of a bucket."""
    aliases: collections.Counter[tuple[str, str]] = collections.Counter()
    for place, record in _records(source, open_remote):
        yield reading.marked(*reading.row(record, traces, place, aliases), tokenizer)


def _records(source: str, open_remote: Callable[[str], Any]) -> Iterator[readers.Named]:
    if "://" not in source:
        yield from readers.read(source)
        return
    with tempfile.TemporaryDirectory() as folder:  # readers need a file: parquet and Arrow seek
        copy = os.path.join(folder, source.rpartition("/")[2])
        with open_remote(source) as remote, open(copy, "wb") as file:
            while block := remote.read(1 << 20):
                file.write(block)
        for place, record in readers.read_file(copy):
            yield source + place.removeprefix(copy), record


def question(row: Row) -> tuple[str, Row]:
    """Keys a row by its question."""
    return row.id, row


def identified(group: tuple[str, Iterable[Row]], preset: str, traces: bool) -> Iterator[Judged]:
    """Gives the rows of one question ids of their own, see `reading.numbered`."""
    for row, drop in reading.numbered(list(group[1])):
        yield row, drop or (reading.without_trace(row, preset) if traces else None)


def judged(row: Row, rule: Callable[[Row], Drop | None]) -> Judged:
    """Applies a rule of one row."""
    return row, rule(row)


def keyed(row: Row, by: Callable[[Row], str]) -> tuple[str, Row]:
    """Keys a row for a rule of a set."""
    return by(row), row


def grouped(group: tuple[str, Iterable[Row]], rule: SetRule) -> Iterator[Judged]:
    """Applies a rule of a set to the rows of one key."""
    rows = sorted(group[1], key=lambda row: row.id)
    _, drops = rule(rows)
    return ((row, drops.get(row.id)) for row in rows)


def text(row: Row, rule: NearDuplicates) -> tuple[str, Text]:
    """Returns what is compared of a row, keyed by its question."""
    found = rule.text(row)
    return found.id, found


def first(group: tuple[str, Iterable[Text]]) -> list[Text]:
    """Returns one of the equal texts of a question with several answers."""
    return [next(iter(group[1]))]


def bands(one: Text, rule: NearDuplicates) -> list[tuple[str, str]]:
    """Returns the bands of a text with its id; near-duplicates share a band."""
    return [(key.hex(), one.id) for key in rule.keys(one)]


def shared(group: tuple[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Returns the band of each id of a group, if there are several."""
    ids = list(group[1])
    return [(one, group[0]) for one in ids] if len(ids) > 1 else []


def by_id(one: Text) -> tuple[str, Text]:
    """Keys a text by its id."""
    return one.id, one


def by_band(group: tuple[str, tuple[Iterable[Text], Iterable[str]]]) -> Iterator[tuple[str, Text]]:
    """Keys a text by each of the bands that it shares."""
    for one in group[1][0]:
        for band in group[1][1]:
            yield band, one


def same(pair: tuple[str, Text]) -> tuple[str, Text]:
    """Returns a pair that is keyed already."""
    return pair


def pairs(group: tuple[str, Iterable[Text]], rule: NearDuplicates) -> list[Pair]:
    """Returns near-duplicates of a group."""
    found = list(group[1])
    return rule.pairs(found) if len(found) > 1 else []


def connected(_: object, found: Iterable[Pair], rule: NearDuplicates) -> dict[str, Drop]:
    """Returns why questions are dropped, by all pairs; there are few."""
    return rule.drops(found)


def near(row: Row, dropped_questions: Mapping[str, Drop]) -> Judged:
    """Drops all answers of a question that is nearly the same as another."""
    return row, dropped_questions.get(question_of(row))


def candidate(row: Row, chooser: Chooser) -> tuple[str, Candidate]:
    """Returns domain and candidate of a row."""
    found = chooser.candidate(row)
    return found.domain, found


def key_of(found: Candidate) -> tuple[tuple[float, ...], str]:
    """Sorts candidates as the selection does."""
    return found.key


def mixed(row: Row) -> list[tuple[str, str]]:
    """Returns benchmark and domain of a row that counts for the mix of the last draws."""
    found = choice.mixed_domain(row)
    return [] if found is None else [found]


def places(
    _: object, candidates: Iterable[Candidate], counts: Iterable[tuple[tuple[str, str], int]], chooser: Chooser
) -> dict[str, int]:
    """Draws: returns id -> place in the order of the draws."""
    different = {found.id: found for found in candidates}
    picks = chooser.draw(different.values(), dict(counts)).picks
    return {pick.id: place for place, pick in enumerate(picks)}


def drawn(row: Row, order: Mapping[str, int], chooser: Chooser) -> Judged:
    """Drops a row that was not drawn."""
    return row, None if row.id in order else chooser.drop(row)


def kept(pair: Judged) -> list[Row]:
    """Yields rows that stay."""
    return [pair[0]] if pair[1] is None else []


def dropped(pair: Judged) -> list[tuple[Row, Drop]]:
    """Yields dropped rows without traces and columns."""
    row, drop = pair
    return [] if drop is None else [(dataclasses.replace(row, trace="", answer=""), drop)]


def line(row: Row, order: Mapping[str, int], traces: bool) -> bytes:
    """Returns the place of a row and its line of rows.jsonl."""
    return b"%012d\t" % order.get(row.id, 0) + output.line(row, traces).rstrip(b"\n")


def dropped_record(pair: tuple[Row, Drop]) -> dict[str, str]:
    """Returns a row of dropped.parquet."""
    row, drop = pair
    values = {"id": row.id, **dataclasses.asdict(drop), "name": row.name, "question": row.question}
    return {name: encoded(value) for name, value in values.items()}


def pool_facts(row: Row) -> Iterator[Fact]:
    """Counts a row of the pool."""
    yield _fact("rows"), 1
    for name in row.columns:
        yield _fact("column", name), 1
    yield tallied(row, 0)


def tallied(row: Row, group: int) -> Fact:
    """Counts a row for the plan of one of `report.GROUPS`."""
    kind, more = plan.lengths(row)
    return _fact("tally", group, kind), dataclasses.astuple(more)


def chosen_facts(row: Row, block_size: int) -> Iterator[Fact]:
    """Counts a chosen row."""
    yield tallied(row, 2)
    yield _fact("domain", choice.domain_of(row)), 1
    if (tokens := row.columns.get("trace_tokens")) is not None:
        yield _fact("measured"), 1
        yield _fact("longer"), int(float(tokens) > block_size)


def dropped_facts(pair: tuple[Row, Drop], stage: int) -> Iterator[Fact]:
    """Counts a dropped row."""
    _, drop = pair
    yield _fact("drop", stage, drop.reason), 1
    if drop.rule == clean.NAME:
        yield _fact("leak", report.set_of(drop)), 1


def is_leak(pair: tuple[Row, Drop]) -> bool:
    """Whether a row was dropped because it holds an evaluation question."""
    return pair[1].rule == clean.NAME


def id_of(pair: tuple[Row, Drop]) -> str:
    """Sorts dropped rows."""
    return pair[0].id


def added(values: Iterable[Any]) -> Any:
    """Adds numbers, or tuples of numbers place by place."""
    total: Any = None
    for value in values:
        if total is None:
            total = value
        elif isinstance(value, tuple):
            total = tuple(one + other for one, other in zip(total, value, strict=True))
        else:
            total += value
    return total


def fact_line(fact: Fact) -> str:
    """Returns a sum as a line of JSON."""
    return json.dumps(fact)


def example_line(pairs: Sequence[tuple[Row, Drop]]) -> str:
    """Returns dropped rows as a line of JSON."""
    return json.dumps([dropped_record(pair) for pair in pairs])


def _fact(*parts: object) -> str:
    return json.dumps(parts)
