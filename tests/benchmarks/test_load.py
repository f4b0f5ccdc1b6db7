"""The load generator's definitions, on made-up timelines."""

import json

import numpy as np
import pytest

from benchmarks import load, serving_budgets
from s1jax.config.sampling import SamplingParams


def data(**chunk):
    return f"data: {json.dumps(chunk)}"


def delta(**fields):
    return data(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


END = data(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = {
    "prompt_tokens": 9, "completion_tokens": 21, "completion_tokens_details": {"reasoning_tokens": 16},
    "prompt_tokens_details": {"cached_tokens": 8},
}  # fmt: skip
LINES = [
    (0.1, ": keep-alive"), (0.2, delta(role="assistant", content="")), (0.5, ""),
    (0.5, delta(reasoning="a", reasoning_content="a")), (0.9, delta(reasoning="bc", reasoning_content="bc")),
    (1.5, delta(content="d")), (2.4, END), (2.5, data(choices=[], usage=USAGE)), (2.5, "data: [DONE]"),
]  # fmt: skip


def read(lines, sent=0.0, status=200, end=2.5):
    reading = load.Reading(sent)
    reading.timeline.status = status
    for now, line in lines:
        reading.line(line, now)
    return reading.end(end)


def test_the_first_thinking_token_is_the_first_token():
    found = read(LINES)
    assert (found.ttft, found.ttfa, found.e2el) == (0.5, 1.5, 2.5)
    assert found.gaps == pytest.approx([0.4, 0.6]) and found.ok
    assert found.text == ("abc", "d")


def test_tokens_are_those_of_usage_and_not_chunks():
    found = read(LINES)
    assert (found.output_tokens, found.reasoning_tokens, found.prompt_tokens, found.cached_tokens) == (21, 16, 9, 8)
    assert found.tpot == pytest.approx((2.5 - 0.5) / 20)
    assert read([(1.0, delta(content="a")), (1.0, data(choices=[], usage={"completion_tokens": 1}))]).tpot is None


def test_streams_of_other_apis_and_servers():
    """Completions have `text`; transformers sends no [DONE]; llama.cpp has `reasoning_content` alone."""
    found = read([(1.0, data(choices=[{"text": "a", "finish_reason": None}])), (2.0, END)])
    assert found.ok and found.ttfa == 1.0
    found = read([(1.0, delta(reasoning_content="a")), (2.0, END)])
    assert found.ok and found.ttft == 1.0 and found.ttfa is None


@pytest.mark.parametrize("last", [data(error={"message": "x", "code": "shutdown"}), data(error="x"), ": bye"])
def test_a_stream_that_breaks_off_is_no_answer(last):
    assert not read([*LINES[:5], (2.0, last)]).ok


def test_goodput_counts_requests_that_meet_all_objectives():
    refused = load.Timeline(0.0, status=503, ended=0.1)
    runs = [read(LINES), read(LINES, sent=-7.5), refused]  # the second one waited for 8 s
    found = load.summary(runs, {"ttft": 1.0, "tpot": 0.2})
    assert (found["requests"], found["complete"], found["rejected"]) == (3, 2, 1)
    assert found["seconds"] == 10 and found["goodput"] == pytest.approx(1 / 10)
    assert found["output_tokens_per_second"] == pytest.approx(42 / 10)
    assert load.summary(runs, {"ttft": 1.0, "tpot": 0.01})["goodput"] == 0
    assert load.summary(runs, {"ttft": 9.0})["goodput"] == pytest.approx(2 / 10)
    assert load.summary([], {"ttft": 1.0})["goodput"] == 0


def test_percentiles_are_numpys():
    values = np.random.default_rng(0).exponential(size=237)
    for percent in (50, 90, 99, 100):
        assert load.percentile(values, percent) == np.percentile(values, percent, method="inverted_cdf")


def test_arrivals_are_a_poisson_process():
    times = np.array(load.arrivals(50, 400, seed=0))
    gaps = np.diff(times)
    assert (gaps > 0).all() and times[-1] < 400
    assert len(times) == pytest.approx(50 * 400, abs=5 * np.sqrt(50 * 400))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution
    assert load.arrivals(50, 400, seed=0) == times.tolist() != load.arrivals(50, 400, seed=1)


def test_one_token_over_a_bound_is_seen():
    limits = SamplingParams(
        max_thinking_tokens=8, min_thinking_tokens=2, max_answer_tokens=4, max_completion_tokens=20, num_waits=1
    )
    kept = {
        "thinking": 8,
        "answer": 4,
        "total": 20,
        "waits": 3,
        "wait": 1,
    }  # below the minimum any number of waits is right
    assert serving_budgets.excess(limits, **kept) == ""
    for change in ({"thinking": 9}, {"thinking": 1}, {"answer": 5}, {"total": 21}):
        assert serving_budgets.excess(limits, **{**kept, **change})
    assert serving_budgets.excess(SamplingParams(num_waits=1), **{**kept, "waits": 2})
    assert serving_budgets.excess(limits, **{**kept, "thinking": 1, "wait": 8}) == ""  # the wait did not fit
