"""What an evaluation finds in its folder: its own results, those of another one, and damaged ones."""

import json

import pytest

from s1jax.errors import UserError
from s1jax.evaluation import results

ROWS = [{"run": "no limit", "problem": problem, "attempt": 0, "answer": "5"} for problem in range(3)]


@pytest.fixture
def folder(tmp_path):
    def write(rows=ROWS, fingerprint="mine"):
        if rows is not None:
            (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if fingerprint is not None:
            (tmp_path / "results.json").write_text(json.dumps({"fingerprint": fingerprint}))
        return tmp_path

    return write


def test_nothing_and_a_finished_evaluation(tmp_path, folder):
    assert results.read(tmp_path, "mine", 3, []) == ({}, [])
    assert results.read(folder(), "mine", 3, []) == ({"fingerprint": "mine"}, ROWS)


def test_samples_without_results_are_those_of_the_journal_or_somebody_elses(folder):
    out = folder(fingerprint=None)
    assert results.read(out, "mine", 3, [*ROWS, ROWS[0] | {"attempt": 1}]) == ({}, [])
    for journal in ([], ROWS[:2]):
        with pytest.raises(UserError, match=r"samples\.jsonl belongs to another evaluation"):
            results.read(out, "mine", 3, journal)


def test_another_evaluation_and_damage(folder):
    with pytest.raises(UserError, match=r"results\.json belongs to another evaluation"):
        results.read(folder(fingerprint="other"), "mine", 2, [])
    for rows in ([*ROWS, ROWS[0] | {"problem": 999}], [{"run": "x"}], [ROWS[0] | {"problem": "0"}], None):
        out = folder(rows)
        if rows is None:
            (out / "samples.jsonl").unlink()
        with pytest.raises(UserError, match="is damaged or missing; remove both"):
            results.read(out, "mine", 3, [])
