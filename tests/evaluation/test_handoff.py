"""Hand-offs in an evaluation: figures against plain loops, baselines, the files, an endpoint in place of the engine."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest

from s1jax.engine.description import Description
from s1jax.engine.request import Output
from s1jax.errors import UserError
from s1jax.evaluation import handoff, strategies
from s1jax.evaluation.evaluate import evaluate
from s1jax.evaluation.handoff import Price, Setup, Side, Study
from s1jax.evaluation.remote import RemoteEngine
from s1jax.evaluation.strategies import Strategy
from s1jax.remote import client, confidence
from s1jax.remote.client import Endpoint
from s1jax.tasks.task import Task
from s1jax.text import chat
from tests.remote.fake_server import Server, completion

COUNT = 60
NONE, WAITS = strategies.parse("none"), strategies.parse("forcing:waits=2")
ROWS = [{"question": f"q{i}", "sum": str(i)} for i in range(COUNT)]
TASK = Task("sums", ROWS, lambda text, row: text or None, str.__eq__, lambda answer, row: answer == row["sum"])
HARD = [i for i in range(COUNT) if i % 3 == 0]


TOKENIZER = types.SimpleNamespace(special_tokens_in=lambda text: [], encode_pieces=lambda pieces, after: [1] * 5)


class Local:
    """Is right on two problems of three; mostly less sure where it is wrong; "Wait" makes it right on all but one."""

    model = types.SimpleNamespace(tokenizer=TOKENIZER, chat=chat.FORMATS["s1"], provenance={})

    def describe(self):
        return Description("runs/s1", "f00d", 7, "float32", "", "", 4, ("cpu",))

    def check(self, requests, params):
        return 9

    def stream(self, requests, params, *, system, progress):
        for place, request in enumerate(requests):
            i, waits = int(request.prompt[1:]), request.params.num_waits
            wrong = (i in HARD and not waits) or i == 1
            unsure = (i in HARD) != (i % 10 == 4)
            logprobs = (0.0, -2.0 - i / 100 if unsure else -0.1 - i / 100, -0.1)
            tokens = dict(thinking_tokens=10 + 20 * waits, answer_tokens=1, waits=waits, thinking_end="natural")
            end = dict(answer_end="stop", stop_reason=None, params=request.params)
            answer = "wrong" if wrong else str(i)
            yield place, Output("", answer, (1, 2, 3), (True, False, False), logprobs, sum(logprobs), **tokens, **end)


def study(random, count=200):
    local, remote = random.random(count) < 0.4, random.random(count) < 0.8
    empty = np.zeros(count)
    sides = [
        Side(name, right, random.random(count), empty, empty, empty > 0)
        for name, right in (("l", local), ("r", remote))
    ]
    return Study(*sides, handoff.MEAN, {handoff.MEAN: random.normal(size=count) - local}, None)


def test_the_curve_is_what_a_loop_counts():
    found = study(np.random.default_rng(0))
    accuracy, dollars = found.curve(found.order())
    ranked = sorted(range(200), key=lambda i: (-found.scores[handoff.MEAN][i], i))
    for k in (0, 1, 77, 200):
        away = set(ranked[:k])
        right = [found.remote.right[i] if i in away else found.local.right[i] for i in range(200)]
        cost = [found.local.dollars[i] + (found.remote.dollars[i] if i in away else 0) for i in range(200)]
        assert accuracy[k] == pytest.approx(100 * np.mean(right)) and dollars[k] == pytest.approx(np.mean(cost))
    gap = (accuracy - accuracy[0]) / (accuracy[-1] - accuracy[0])
    area = np.mean([(a + b) / 2 for a, b in itertools.pairwise(gap)])
    quality = found.quality()
    assert quality.apgr == pytest.approx(area) and quality.auroc_error > 0 and quality.apgr_error > 0
    at = found.at(0.25)
    assert at["accuracy"] == accuracy[50] and at["random"] == pytest.approx(0.75 * accuracy[0] + 0.25 * accuracy[-1])


def test_the_oracle_is_above_every_order_and_random_is_a_half():
    random = np.random.default_rng(1)
    found = study(random)
    best, _ = found.curve(found.oracle())
    for _ in range(5):
        accuracy, _ = found.curve(random.permutation(200))
        assert (accuracy <= best + 1e-9).all()
    areas = [handoff.apgr(random.random(200), found.local.right, found.remote.right) for _ in range(400)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.02)
    assert np.isnan(handoff.apgr(np.zeros(2), np.array([True, False]), np.array([False, True])))
    cheapest = found.dollars_for(0.95)
    accuracy, dollars = found.curve(found.order())
    assert cheapest == min(d for a, d in zip(accuracy, dollars, strict=True) if a >= 0.95 * accuracy[-1] - 1e-9)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    setup = Setup(WAITS, Price(), Price(0, 100.0))
    texts = ["none", "none+handoff:q=0.25", "none+handoff:q=0.5", "forcing:waits=1+handoff:q=0.5"]
    return evaluate(Local(), TASK, texts, out, handoff=setup), out


def test_a_handoff_takes_the_least_sure_answers(evaluated):
    result, _ = evaluated
    runs = {run.name: run for run in result.runs}
    assert list(runs) == [
        "no limit", "Wait x1", "Wait x2", "no limit, hand-off 0.25", "no limit, hand-off 0.5", "Wait x1, hand-off 0.5",
    ]  # fmt: skip
    wrong = len(HARD) + 1
    assert runs["no limit"].accuracy == pytest.approx(100 * (1 - wrong / COUNT))
    assert runs["no limit"].accuracy < runs["no limit, hand-off 0.25"].accuracy
    # 24 and 54 are wrong with confidence, 1 is wrong in all runs.
    assert runs["no limit, hand-off 0.5"].accuracy == pytest.approx(100 * (COUNT - 3) / COUNT)
    half = runs["no limit, hand-off 0.5"]
    assert half.samples == 1.5 and half.thinking_tokens == 10 + 50 / 2
    assert half.dollars == pytest.approx(0.5 * 51 * 100 / 1e6) and runs["no limit"].dollars is None
    assert half.families == ("hand-off of no limit",) and half.label == "0.5"


def test_the_files_say_all_of_it(evaluated):
    result, out = evaluated
    found = json.loads((out / "results.json").read_text())["handoff"]
    first, second = found
    assert (first["local"], first["remote"], first["score"]) == ("no limit", "Wait x2", "fit")
    assert set(first["scores"]) == {handoff.MEAN, handoff.ANSWER, handoff.FITTED}  # no run with fewer waits
    assert set(second["scores"]) == {handoff.MEAN, handoff.ANSWER, handoff.FITTED, handoff.AGREEING}
    assert first["always_local"]["accuracy"] < first["always_remote"]["accuracy"]
    assert len(first["curve"]) == 21 and first["curve"][-1]["share"] == 1
    assert {"handoff_no_limit.json", "handoff.png", "scaling.png"} < set(result.files)
    assert all((out / name).stat().st_size for name in result.files)
    fit = confidence.read(out / "handoff_no_limit.json", "fit")
    assert (fit.task, fit.strategy, fit.checkpoint, fit.n) == ("sums", "no limit", "f00d", COUNT)


def test_the_same_call_samples_nothing_again(evaluated, monkeypatch):
    result, out = evaluated
    monkeypatch.setattr(Local, "stream", lambda *_, **__: pytest.fail("it samples"))
    texts = ["none", "none+handoff:q=0.25", "none+handoff:q=0.5", "forcing:waits=1+handoff:q=0.5"]
    again = evaluate(Local(), TASK, texts, out, handoff=Setup(WAITS, Price(), Price(0, 10.0)))
    assert [run.accuracy for run in again.runs] == [run.accuracy for run in result.runs]
    assert again.runs[-1].dollars == pytest.approx(result.runs[-1].dollars / 10)  # prices are not part of the samples


def test_a_fit_of_other_problems_scores_these_and_no_tested_ones(evaluated, tmp_path):
    _, out = evaluated
    fit = confidence.read(out / "handoff_no_limit.json", "fit")
    other = dataclasses.replace(TASK, rows=[{**row, "question": row["question"] + " please"} for row in ROWS])
    setup = Setup(WAITS, fit=fit)
    monkey = Local()
    monkey.stream = lambda requests, *a, **k: Local.stream(
        monkey, [dataclasses.replace(r, prompt=r.prompt.split()[0]) for r in requests], *a, **k
    )
    result = evaluate(monkey, other, ["none+handoff:q=0.5"], tmp_path / "a", handoff=setup)
    assert result.studies[0].score == handoff.GIVEN
    with pytest.raises(UserError, match="60 of the 60 problems are among those of the fit"):
        evaluate(Local(), TASK, ["none+handoff:q=0.5"], tmp_path / "b", handoff=setup)


def test_answers_agree_with_those_of_fewer_waits():
    chosen = [strategies.parse(text) for text in ("none", "forcing:waits=1", "forcing:waits=4", "forcing:max=9")]
    assert handoff.cheaper(chosen[2], chosen) == chosen[1] and handoff.cheaper(chosen[1], chosen) == chosen[0]
    assert handoff.cheaper(chosen[0], chosen) is handoff.cheaper(chosen[3], chosen) is None
    hmm = strategies.parse("forcing:waits=2:wait=Hmm")
    assert handoff.cheaper(hmm, chosen) == chosen[0]  # "Wait" once is another way, none is the same


@pytest.mark.parametrize(
    ("texts", "setup", "says"),
    [
        (["none+handoff:q=0.5"], None, "hands off, but to nobody"),
        (["none"], Setup(WAITS), "no strategy hands off"),
        (["none+handoff:q=0.5"], Setup(NONE), "hands off to itself"),
        (["none+handoff:q=0.5"], Setup(strategies.parse("majority:2:temperature=1")), "one sample a problem"),
        (["none+handoff"], Setup(WAITS), "names no share"),
        (["none+handoff:q=1.5"], Setup(WAITS), "names no share"),
        (["none+handoff:q=0.5:p=1"], Setup(WAITS), "means nothing there"),
        (["majority:2:temperature=1+handoff:q=0.5"], Setup(WAITS), "one of several samples"),
        (["handoff:q=0.5+handoff:q=0.6"], Setup(WAITS), "a second time"),
    ],
)
def test_a_handoff_that_makes_no_sense_is_refused(tmp_path, texts, setup, says):
    with pytest.raises(UserError, match=says):
        evaluate(Local(), TASK, texts, tmp_path, handoff=setup)


def test_an_endpoint_is_asked_once_and_billed_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_WAIT", 0.01)

    def answer(_):
        question = server.requests[-1][2]["messages"][-1]["content"]
        usage = {"prompt_tokens": 7, "completion_tokens": 9, "cost": 0.5}
        return 200, completion(question[1:]) | {"usage": usage}, {}

    def run():
        return evaluate(Local(), TASK, ["none+handoff:q=0.5"], tmp_path, handoff=setup)

    with Server() as server:
        engine = RemoteEngine(Endpoint(server.url, "big"), max_tokens=99, at_once=1)
        setup = Setup(Strategy(remote="big"), remote_price=Price(1, 1), engine=engine)
        server.script = [*[answer] * 20, (400, {"error": {"message": "no"}}, {})]
        with pytest.raises(UserError, match=r"the remote does not answer: .* 400: no; the same command goes on"):
            run()
        server.script = [answer] * COUNT
        result = run()
    assert len(server.requests) == COUNT + 1 and server.requests[0][2]["max_completion_tokens"] == 99
    remote, mixed = result.runs[1:]
    assert (remote.name, remote.accuracy, remote.families) == ("remote big", 100, ("remote",))
    assert (remote.answer_tokens, remote.thinking_tokens, mixed.dollars) == (9, 0, pytest.approx(0.25))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["usage"]["cost"] for row in samples if row["run"] == "remote big"] == [0.5] * COUNT
