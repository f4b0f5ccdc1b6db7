import json

import pytest

from s1jax.distillation import distil as distil_lib
from s1jax.distillation import limits, run
from s1jax.distillation.settings import DistilSettings
from s1jax.remote.client import Endpoint
from tests.distillation.stand_in import StandIn


@pytest.fixture
def teacher(monkeypatch):
    monkeypatch.setattr(run, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(limits, "_FIRST", 0.01)
    with StandIn() as found:
        yield found


@pytest.fixture
def ask(teacher, tmp_path):
    """Distils questions from the stand-in into one folder; returns the summary. Notes are in `ask.notes`."""

    def found(questions, *, model="big", timeout=20.0, control=None, endpoint=None, **settings):
        endpoint = endpoint or Endpoint(teacher.url, model, timeout=timeout)
        return distil_lib.distil(
            questions, tmp_path / "out", endpoint, DistilSettings(**{"max_tokens": 64} | settings),
            on_note=found.notes.append, on_plan=found.plans.append, control=control,
        )  # fmt: skip

    found.notes, found.plans, found.folder = [], [], tmp_path / "out"
    found.lines = lambda name="answers.jsonl": [json.loads(line) for line in (tmp_path / "out" / name).open()]
    return found


def rows(count, first=0):
    return [{"question": f"What is {i} + {i}?", "solution": str(2 * i)} for i in range(first, first + count)]
