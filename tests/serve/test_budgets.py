import dataclasses
import itertools
import random

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import sequence
from s1jax.serve import budgets
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from tests.serve.replies import DELIMITERS

DEFAULTS = Defaults(model="m", context_length=10_000)


def read(**body):
    return budgets.read(Reader(body), DEFAULTS)


# The path of every name of the budget, and a body with a value there.
NAMES = {
    **{name: lambda value, name=name: {name: value} for name in budgets.MAXIMUM},
    **{
        f"{group}.{name}": lambda value, group=group, name=name: {group: {name: value}}
        for group, name in itertools.product(budgets.GROUPS, budgets.MAXIMUM)
    },
    "reasoning.max_tokens": lambda value: {"reasoning": {"max_tokens": value}},
    "thinking.budget_tokens": lambda value: {"thinking": {"type": "enabled", "budget_tokens": value}},
}  # fmt: skip
OFF = {
    "enable_thinking": {"enable_thinking": False},
    "chat_template_kwargs.enable_thinking": {"chat_template_kwargs": {"enable_thinking": False}},
    "chat_template_kwargs.thinking": {"chat_template_kwargs": {"thinking": False}},
    "think": {"think": False},
    "reasoning_effort": {"reasoning_effort": "none"},
    "reasoning.effort": {"reasoning": {"effort": "none"}},
    "reasoning.enabled": {"reasoning": {"enabled": False}},
    "thinking.type": {"thinking": {"type": "disabled"}},
}


@pytest.mark.parametrize("path", NAMES)
def test_a_budget_counts_wherever_it_is_written(path):
    assert read(**NAMES[path](64)).given == {"max_thinking_tokens": 64}
    assert read(**NAMES[path](-1)).given == {"max_thinking_tokens": 10_000}
    assert read(**NAMES[path](None)).given == {"max_thinking_tokens": 10_000}
    assert read(**NAMES[path](10**9)).given == {"max_thinking_tokens": 10_000}


@pytest.mark.parametrize("path", NAMES)
@pytest.mark.parametrize("value", [True, False, 1.5, 64.0, "64", -2, [64], {}, 2**40, float("nan")])
def test_a_bad_budget_is_refused_by_its_name(path, value):
    with pytest.raises(ApiError, match=path) as error:
        read(**NAMES[path](value))
    assert (error.value.status, error.value.param) == (400, path)


@pytest.mark.parametrize("one,other", itertools.combinations(NAMES, 2))
def test_two_budgets_agree_or_are_refused(one, other):
    if one.split(".")[0] == other.split(".")[0]:
        return
    assert read(**NAMES[one](64), **NAMES[other](64)).given == {"max_thinking_tokens": 64}
    assert read(**NAMES[one](64), **NAMES[other](None)).given == {"max_thinking_tokens": 64}
    for value in (65, -1):
        with pytest.raises(ApiError) as error:
            read(**NAMES[one](64), **NAMES[other](value))
        assert one in error.value.message and other in error.value.message


@pytest.mark.parametrize("path", OFF)
def test_thinking_is_switched_off_under_every_name(path):
    assert read(**OFF[path]).given == {"max_thinking_tokens": 0}
    assert read(**OFF[path], thinking_token_budget=0).given == {"max_thinking_tokens": 0}
    for value in (1, -1):
        with pytest.raises(ApiError) as error:
            read(**OFF[path], thinking_token_budget=value)
        assert path in error.value.message and "thinking_token_budget" in error.value.message


@pytest.mark.parametrize(
    "body,number",
    [
        ({"reasoning_effort": "low"}, 1024),
        ({"reasoning": {"effort": "minimal"}}, 128),
        ({"think": "medium"}, 2048),
        ({"reasoning_effort": "max"}, 10_000),  # 16,384, but the context is shorter
        ({"reasoning_effort": "low", "thinking_budget": 7}, 7),
        ({"reasoning_effort": "low", "thinking_budget": 0}, 0),
        ({"reasoning_effort": "low", "enable_thinking": True}, 1024),
        ({"reasoning_effort": "low", "thinking_budget": None}, 1024),
    ],
)
def test_an_effort_is_a_number_and_a_number_wins(body, number):
    assert read(**body).given == {"max_thinking_tokens": number}


@pytest.mark.parametrize(
    "body,names",
    [
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, ("reasoning_effort", "reasoning.effort")),
        ({"reasoning_effort": "low", "enable_thinking": False}, ("reasoning_effort", "enable_thinking")),
        ({"think": True, "enable_thinking": False}, ("think", "enable_thinking")),
        ({"think": True, "thinking_budget": 0}, ("think", "thinking_budget")),
        ({"min_thinking_tokens": 3, "thinking_budget": 2}, ("min_thinking_tokens", "thinking_budget")),
        ({"min_thinking_tokens": 3, "think": False}, ("min_thinking_tokens", "think")),
        ({"num_waits": 3, "custom_params": {"num_waits": 2}}, ("num_waits", "custom_params.num_waits")),
        ({"wait": "a", "chat_template_kwargs": {"wait": "b"}}, ("wait", "chat_template_kwargs.wait")),
        ({"include_reasoning": True, "reasoning": {"exclude": True}}, ("include_reasoning", "reasoning.exclude")),
    ],
)
def test_a_contradiction_is_refused_with_both_names(body, names):
    with pytest.raises(ApiError) as error:
        read(**body)
    assert error.value.status == 400 and all(name in error.value.message for name in names)


def test_minimum_and_waits():
    body = {"min_thinking_tokens": 5, "num_waits": 2, "wait": "Hmm", "thinking_token_budget": 9}
    assert read(**body).given == {
        "min_thinking_tokens": 5, "num_waits": 2, "wait": "Hmm", "max_thinking_tokens": 9,
    }  # fmt: skip
    assert read(wait=None).given == read(wait="").given == {"wait": ""}
    assert read(min_thinking_tokens=None, num_waits=None).given == {}
    assert read(min_thinking_tokens=5000).given["max_thinking_tokens"] == 5000  # the default is 4096
    assert read().given == read(enable_thinking=True).given == read(thinking={"type": "adaptive"}).given == {}
    for bad in ({"num_waits": -1}, {"num_waits": True}, {"wait": 3}, {"wait": "\ud800"}, {"think": 1}, {"thinking": 1}):
        with pytest.raises(ApiError, match=next(iter(bad))):
            read(**bad)


def test_the_servers_minimum_gives_way_to_a_requests_maximum():
    defaults = Defaults("m", 1000, SamplingParams(min_thinking_tokens=50))
    found = budgets.read(Reader({"thinking_token_budget": 8}), defaults)
    assert found.given == {"max_thinking_tokens": 8, "min_thinking_tokens": 8}


def test_thinking_is_withheld_under_either_name():
    assert read().include
    assert not read(include_reasoning=False).include
    assert not read(reasoning={"exclude": True}).include
    assert not read(thinking={"type": "enabled", "display": "omitted"}).include


def test_what_is_fitted_fits_and_always_has_an_answer():
    rng, refused = random.Random(0), 0
    closing = 4  # newline, think_end, final_answer of the test's delimiters
    for _ in range(3000):
        least = rng.choice([0, 0, rng.randrange(40)])
        params = SamplingParams(
            max_thinking_tokens=least + rng.choice([0, rng.randrange(200)]), min_thinking_tokens=least,
            max_answer_tokens=rng.randrange(1, 200),
        )  # fmt: skip
        total, prompt, length = rng.choice([0, rng.randrange(1, 200)]), rng.randrange(150), rng.randrange(1, 300)
        room = min(length - prompt - 2, total or 10**9)
        reserve = min(params.max_answer_tokens, max(room // 4, 1))
        try:
            found = budgets.fit(params, total, prompt, DELIMITERS, length)
        except ApiError as error:
            refused += 1
            assert error.status == 400 and room < closing + least + reserve
            assert (error.param is None) == (prompt + 2 + total > length or not total)
            continue
        encoded = sequence.EncodedRequest((9,) * prompt, found)
        assert sequence.longest(encoded, DELIMITERS) <= min(length, prompt + 2 + (total or length))
        assert sequence.bounded(found, DELIMITERS, "") == found  # the engine lowers nothing more
        assert closing + found.max_thinking_tokens + reserve <= room
        assert least <= found.max_thinking_tokens <= params.max_thinking_tokens
        assert 1 <= found.max_answer_tokens <= params.max_answer_tokens
        if closing + params.max_thinking_tokens + params.max_answer_tokens <= room:
            assert found == dataclasses.replace(params, max_completion_tokens=total)  # nothing is lowered without need
    assert 100 < refused < 2900
