"""Duplicates: one row for each id, whatever the order."""

import random

from s1jax.curation.duplicates import exact
from s1jax.curation.row import Row
from s1jax.data.identity import question_id


def row(question: str, trace: str = "", name: str = "a.jsonl:1", answer: int = 0) -> Row:
    number = f"#{answer}" if answer else ""
    return Row(question_id(question) + number, question, trace, "", name)


def test_one_row_for_each_id_in_any_order():
    rows = [
        row("What is 2 + 3?"),
        row("What  is 2 + 3?", name="b.jsonl:4"),
        row("What is 2 + 3?", "I add.", name="c.jsonl:9"),
        row("What is 2 + 3?", "I count.", answer=2),
        row("What is 2 + 4?"),
    ]
    kept, dropped = exact(rows)
    assert {one.name for one in kept if one.id == rows[0].id} == {"c.jsonl:9"}  # the row with a trace
    assert {one.id for one in kept} == {one.id for one in rows}
    assert len(kept) + len(dropped) == len(rows)
    assert {(one.name, drop.evidence) for one, drop in dropped} == {
        ("a.jsonl:1", "c.jsonl:9"),
        ("b.jsonl:4", "c.jsonl:9"),
    }
    draw = random.Random(0)
    for _ in range(20):
        draw.shuffle(rows)
        assert exact(rows) == (kept, dropped)
