"""Distilling where texts have no UTF-8 form, or the questions stand where the rows will."""

import json

import pytest

from s1jax.data import s1k
from s1jax.distillation.distil import distil
from s1jax.errors import UserError
from s1jax.remote.client import Endpoint
from tests.distillation.conftest import rows
from tests.distillation.stand_in import Step


def test_questions_are_not_written_over(teacher, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    for source in (tmp_path / "rows.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"would be read and .*rows.jsonl written over it, which loses rows"):
            distil(source, tmp_path, Endpoint(teacher.url, "big"))
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3 and not teacher.calls


def test_halves_of_surrogate_pairs_cost_no_answer(ask, teacher):
    text = b'{"choices": [{"message": {"content": "x\\ud800y", "reasoning_content": "\\ude00\\ud83d\\ude00"}}]}'
    teacher.default = Step(text, prompt=20, output=40)
    assert ask([{"question": "What is 7 + 7?", "note \ud800": "\udc00"}]).rows == 1
    (row,) = [json.loads(line) for line in (ask.folder / "rows.jsonl").read_text("utf-8").splitlines()]
    assert (row["attempt"], row["thinking_trajectories"]) == ("x\ufffdy", ["\ufffd\U0001f600"])
    assert row["note \ud800"] == "\udc00"
    assert s1k.load_rows(str(ask.folder / "rows.jsonl"))[0].answer == "x\ufffdy"
