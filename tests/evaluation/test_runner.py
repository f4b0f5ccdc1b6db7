"""An evaluation with stand-ins for the engine: its seconds, its progress, its notes, what it refuses."""

import collections
import dataclasses
import hashlib
import json
import sys
import time
import types

import jax
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine.description import Description
from s1jax.engine.request import Output
from s1jax.errors import UserError
from s1jax.evaluation import evaluate as evaluate_lib
from s1jax.evaluation import setup as setup_lib
from s1jax.evaluation import strategies
from s1jax.evaluation.evaluate import evaluate
from s1jax.evaluation.strategies import Strategy
from s1jax.tasks.task import Task
from s1jax.text import chat

SLOW = 0.5
TASK = Task("sums", [{"question": "q"}] * 3, lambda text, row: text, str.__eq__, lambda answer, row: answer == "1")
DESCRIPTION = Description("runs/s1", "f00d", 7, "float32", "", "", 4, ("cpu",))
NO_TEXT = types.SimpleNamespace(special_tokens_in=lambda text: [])


def output(params, **fields):
    """An output with the answer "1" after 3 tokens of thinking, but for `fields`."""
    end = {"answer_tokens": 1, "answer_end": "stop", "stop_reason": None}
    given = {"thinking_tokens": 3, "waits": 0, "thinking_end": "natural", **end, **fields}
    return Output("", "1", (), (), (), 0.0, params=params, **given)


class StandIn:
    """Answers "1" after 3 tokens of thinking, or after the budget if that is lower."""

    def __init__(self, description=DESCRIPTION, control=""):
        provenance = {"experiment": {"data": {"control": control}}}
        self.model = types.SimpleNamespace(tokenizer=NO_TEXT, chat=chat.FORMATS["s1"], provenance=provenance)
        self.description, self.checked, self.sampled = description, [], 0

    def describe(self):
        return self.description

    def check(self, requests, params):
        self.checked += [request.name for request in requests]
        return 9

    def stream(self, requests, params, *, system, progress):
        for i, request in enumerate(requests):
            self.sampled += 1
            limit, waits = request.params.max_thinking_tokens, request.params.num_waits
            end = "cut" if limit < 3 + waits else "natural"
            yield i, output(request.params, thinking_tokens=min(3 + waits, limit), waits=waits, thinking_end=end)
        progress(len(requests), 40, 30)


class SlowEngine(StandIn):
    """Takes time to load and to compile: one program for every length of thinking."""

    def stream(self, requests, params, *, system, progress):
        assert all(request.name for request in requests) and params.wait == "Wait"
        if not self.sampled:
            time.sleep(SLOW)
            jax.devices()  # the backend starts

            def compiling(x):
                time.sleep(SLOW)
                return x

            self._program = jax.jit(compiling)
        return self._grow(requests, progress)

    def _grow(self, requests, progress):
        for i, request in enumerate(requests):
            self.sampled += 1
            self._program(jax.numpy.zeros(request.params.max_thinking_tokens))
            progress(i, 40 * i, 30 * i)
            yield i, output(request.params)
        time.sleep(0.01)
        progress(len(requests), 40 * len(requests), 30 * len(requests))


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Drawing takes a second."""
    monkeypatch.setattr(evaluate_lib.plot, "draw", lambda *_: None)
    monkeypatch.setattr(evaluate_lib.plot, "save", lambda *_: None)


@pytest.mark.parametrize("order", [("none", "forcing:max=8"), ("forcing:max=8", "none")])
def test_seconds_are_of_sampling_alone_in_any_order(order, tmp_path):
    reports = []
    begun = time.monotonic()
    result = evaluate(
        SlowEngine(), TASK, order, tmp_path, params=SamplingParams(max_thinking_tokens=16), on_progress=reports.append
    )
    assert time.monotonic() - begun > 3 * SLOW  # it was loaded, and two programs were compiled
    assert len(result.runs) == 2 and all(0 <= run.seconds < SLOW / 2 for run in result.runs)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in samples] == [0, 1, 2, 0, 1, 2]
    totals = collections.Counter()
    for row in samples:
        totals[row["run"]] += row["seconds"]
    assert {run.name: run.seconds for run in result.runs} == {name: round(total, 2) for name, total in totals.items()}
    # Tokens of the last report in 10 ms and more.
    last = [report for report in reports if report.tokens_per_second is not None][-1]
    assert last.thinking_share == 0.75 and 0 < last.tokens_per_second <= 12_000


def test_nothing_is_sampled_if_nothing_is_wanted(tmp_path):
    first, second = StandIn(), StandIn()
    for engine in (first, second):
        result = evaluate(engine, TASK, ["none", "majority:2:temperature=1"], tmp_path)
        assert [run.accuracy for run in result.runs] == [100, 100]
    assert (first.sampled, second.sampled) == (9, 0)


def test_progress_counts_problems_of_all_runs(tmp_path):
    reports = []
    evaluate(StandIn(), TASK, [Strategy(), "forcing:max=2"], tmp_path, on_progress=reports.append)
    assert [(r.run, r.name, r.done, r.accuracy) for r in reports] == [
        (0, "no limit", 0, None), (0, "no limit", 3, None), (0, "no limit", 3, 100),
        (1, "cut at 2", 3, None), (1, "cut at 2", 6, None), (1, "cut at 2", 6, 100),
    ]  # fmt: skip
    assert {(r.num_runs, r.total) for r in reports} == {(2, 6)}


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["none", "forcing:max=3", "forcing:min=2"], '"cut at 3", "at least 2"'),
        (["none", "forcing:max=2", "forcing:max=3"], ""),
        (["none", "forcing:waits=1", "forcing:max=3"], ""),
        (["none", "majority:2:temperature=1"], ""),
    ],
)
def test_budget_forcing_that_never_acted_is_said_once(tmp_path, texts, names):
    told = []
    result = evaluate(StandIn(), TASK, texts, tmp_path, on_note=told.append)
    assert told == list(result.notes) and len(told) == bool(names)
    assert all(note.startswith(f"budget forcing never acted in {names}: ") for note in told)


def test_a_folder_of_another_evaluation_names_what_differs(tmp_path):
    asked = dict(params=SamplingParams(max_thinking_tokens=16), name="m")
    evaluate(StandIn(), TASK, ["none"], tmp_path, **asked)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["asked"]["strategies"] == ["no limit"] and results["asked"]["checkpoint"] == "runs/s1"
    assert (results["model"], results["task"], results["weights"], results["step"]) == ("m", "sums", "f00d", 7)

    def fault(engine=None, task=TASK, texts=("none",), **more):
        with pytest.raises(UserError, match=r"results\.json belongs to another evaluation") as caught:
            evaluate(engine or StandIn(), task, texts, tmp_path, **asked | more)
        return str(caught.value).partition(" (")[2].rpartition("); choose another folder")[0]

    assert fault(texts=["forcing:max=2"]) == "strategies was ['no limit'] and is ['cut at 2']"
    warm = SamplingParams(max_thinking_tokens=9, temperature=0.5, stop=("x",), wait="Hmm")
    assert fault(params=warm) == (
        "wait was 'Wait' and is 'Hmm', max_thinking_tokens was 16 and is 9, temperature was 0.0 and is 0.5,"
        " stop was not set and is ['x']"
    )
    other = Description("elsewhere/s1", "bad", 7, "bfloat16", "", "", 8, ("cpu",))
    assert fault(StandIn(other)) == "dtype was 'float32' and is 'bfloat16', the checkpoint has other weights"
    questions = Task("sums", [{"question": "other"}] * 3, TASK.answer, TASK.same, TASK.right)
    assert fault(task=questions) == "its questions were others"


def test_fingerprints_are_those_of_earlier_versions(tmp_path):
    """Else an evaluation that an earlier version began could not be resumed."""
    params = SamplingParams(max_thinking_tokens=16, wait="Hmm")
    values = {
        "max_thinking_tokens": 16, "min_thinking_tokens": 0, "num_waits": 0, "max_answer_tokens": 1024,
        "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0,
    }  # fmt: skip
    assert setup_lib.controls(params) == values and list(setup_lib.controls(params)) == list(values)
    stopping = dataclasses.replace(params, stop=("x",), repetition_penalty=1.1)
    assert setup_lib.controls(stopping) == {**values, "stop": ("x",), "repetition_penalty": 1.1}
    asked = {"checkpoint": "runs/s1", "task": "sums.jsonl", "wait": "Hmm", "controls": values}
    evaluate(StandIn(), TASK, ["none", "forcing:max=2"], tmp_path, params=params, asked=asked)
    found = json.loads((tmp_path / "results.json").read_text())
    whole = {**asked, "dtype": "float32", "checkpoint": "f00d", "questions": [["q"] * 3] * 2}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    assert found["fingerprint"] == digest == "d00a35bc8a61dd8b" and found["asked"] == asked


def test_weights_of_no_checkpoint_are_evaluated_once(tmp_path):
    told, engine = [], StandIn(Description("", "", None, "float32", "", "", 4, ("cpu",)))
    result = evaluate(engine, TASK, ["none"], tmp_path, on_note=told.append)
    assert result.title == "model on sums" and told == [
        "the engine's weights come from no checkpoint, so a stopped evaluation cannot be resumed"
    ]
    with pytest.raises(UserError, match="belongs to another evaluation"):
        evaluate(engine, TASK, ["none"], tmp_path, on_note=told.append)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(strategies=[]), "strategies is empty"),
        (dict(strategies="none"), "strategies is 'none'; give a list"),
        (dict(strategies=["none", 5]), "strategies has 5"),
        (dict(strategies=["token"]), "'token' names no bound"),
        (dict(strategies=["step:4", "step:4:tokens=3"]), 'have "step 4" in 2 ways that look alike'),
        (dict(strategies=["forcing:max=40"]), '"cut at 40" needs 40 thinking tokens, more than max_thinking_tokens 16'),
        (dict(strategies=["forcing:min=40"]), '"at least 40" needs 40 thinking tokens'),
        (dict(strategies=["reject:max=40:temperature=1"]), "needs 40 thinking tokens"),
        (dict(strategies=["majority:4"]), '"majority of 4" has samples that are all alike at temperature 0'),
        (dict(strategies=["token:8"]), r'"token 8" needs .*control=token, and this one was trained without any'),
        (dict(params=5), "params is 5; give SamplingParams"),
        (dict(params=SamplingParams(n=3, temperature=1)), "n is 3, .* write majority:3"),
        (dict(task="nothing.jsonl"), "nothing.jsonl does not exist"),
        (dict(out="gs://bucket/x"), "out=gs://bucket/x is a URL"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, more, words):
    engine = StandIn()
    given = dict(strategies=["none"], task=TASK, out=tmp_path / "out", params=SamplingParams(max_thinking_tokens=16))
    with pytest.raises(UserError, match=words):
        evaluate(engine, **given | more)
    assert not engine.sampled and not list(tmp_path.iterdir())
    engine.model = None
    with pytest.raises(UserError, match="made from weights alone"):
        evaluate(engine, **given)


def test_without_matplotlib_nothing_but_the_pictures_is_missing(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    result = evaluate(StandIn(), TASK, ["none"], tmp_path)
    assert result.files == ("results.json", "samples.jsonl") == tuple(sorted(f.name for f in tmp_path.iterdir()))
    assert len(result.notes) == 1 and "matplotlib, which is not installed" in result.notes[0]
    assert result.notes[0].endswith("The same call then draws it without sampling again.")


def test_every_row_is_checked_by_the_name_of_its_run(tmp_path):
    engine = StandIn(control="token")
    evaluate(engine, TASK, ["none", "forcing:max=2"], tmp_path)
    assert engine.checked == [f'"{name}", problem {i} of sums' for name in ("no limit", "cut at 2") for i in range(3)]
    assert strategies.parse("forcing:max=2").forcing.acted({"thinking_end": "cut"})
