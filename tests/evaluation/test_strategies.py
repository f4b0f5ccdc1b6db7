"""Strategies: what their texts mean, the rows they ask for, and which sample counts, against plain counting."""

import collections
import dataclasses
import math
import random

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import fields
from s1jax.errors import UserError
from s1jax.evaluation import strategies
from s1jax.evaluation.strategies import Forcing, Instruction, Selection, Strategy

ALL = SamplingParams(max_thinking_tokens=384, temperature=0.5)
LABELS = {
    "token 64": "64", "token 64, cut at 64": "64", "token 64, Wait x1": "64", "token 64, cut at 20": "64",
    "step 8": "8", "step 8, cut at 240": "8", "class long": "long", "majority of 8": "8", "majority of 8 at 0.7": "8",
    "Wait x2, majority of 4": "4", "rejected above 64, 5 tries": "64", "rejected above 6, 16 tries": "6",
    "effort high": "high", "effort low, cut at 64": "low",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "strategy", "name", "families"),
    [
        ("none", Strategy(), "no limit", ("budgets", "waits")),
        ("forcing:waits=0", Strategy(), "no limit", ("budgets", "waits")),
        ("forcing:max=32", Strategy(forcing=Forcing(32)), "cut at 32", ("budgets",)),
        ("forcing:max=0", Strategy(forcing=Forcing(0)), "cut at 0", ("budgets",)),
        ("forcing:min=9", Strategy(forcing=Forcing(None, 9)), "at least 9", ("minimum",)),
        ("forcing:waits=2", Strategy(forcing=Forcing(None, 0, 2)), "Wait x2", ("waits",)),
        ("Forcing:waits=2:wait=Hmm", Strategy(forcing=Forcing(None, 0, 2, "Hmm")), "Hmm x2", ('waits with "Hmm"',)),
        ("forcing:waits=2:wait=Wait", Strategy(forcing=Forcing(None, 0, 2, "Wait")), "Wait x2", ("waits",)),
        (
            "forcing:waits=2:wait=none",
            Strategy(forcing=Forcing(None, 0, 2, "")),
            "masked end x2",
            ("waits without a string",),
        ),
        (
            "forcing:waits=2:max=50",
            Strategy(forcing=Forcing(50, 0, 2)),
            "cut at 50, Wait x2",
            ("waits, cut at 50",),
        ),
        ("token:64", Strategy(Instruction("token", 64)), "token 64", ("token-conditional",)),
        (
            "token:64+forcing",
            Strategy(Instruction("token", 64), Forcing(64)),
            "token 64, cut at 64",
            ("token-conditional + forcing",),
        ),
        (
            " token:64 + forcing:waits=1 ",
            Strategy(Instruction("token", 64), Forcing(None, 0, 1)),
            "token 64, Wait x1",
            ("token-conditional, Wait x1",),
        ),
        (
            "token:64+forcing:max=20",
            Strategy(Instruction("token", 64), Forcing(20)),
            "token 64, cut at 20",
            ("token-conditional, cut at 20",),
        ),
        ("step:8", Strategy(Instruction("step", 8, 100)), "step 8", ("step-conditional",)),
        (
            "step:8:tokens=30+forcing",
            Strategy(Instruction("step", 8, 30), Forcing(240)),
            "step 8, cut at 240",
            ("step-conditional + forcing",),
        ),
        ("class:long", Strategy(Instruction("class", "long")), "class long", ("class-conditional",)),
        ("Class: Long", Strategy(Instruction("class", "long")), "class long", ("class-conditional",)),
        ("TOKEN: 64 ", Strategy(Instruction("token", 64)), "token 64", ("token-conditional",)),
        ("forcing: Max = 32", Strategy(forcing=Forcing(32)), "cut at 32", ("budgets",)),
        ("majority:8", Strategy(selection=Selection("majority", 8)), "majority of 8", ("majority",)),
        (
            "majority:8:temperature=0.7",
            Strategy(selection=Selection("majority", 8, 0, 0.7)),
            "majority of 8 at 0.7",
            ("majority",),
        ),
        (
            "forcing:waits=2+majority:4",
            Strategy(forcing=Forcing(None, 0, 2), selection=Selection("majority", 4)),
            "Wait x2, majority of 4",
            ("majority, Wait x2",),
        ),
        (
            "reject:max=64:samples=5",
            Strategy(selection=Selection("reject", 5, 64)),
            "rejected above 64, 5 tries",
            ("rejection",),
        ),
        ("effort:high", Strategy(effort="high"), "effort high", ("reasoning effort",)),
        (
            "effort:low+forcing:max=64",
            Strategy(forcing=Forcing(64), effort="low"),
            "effort low, cut at 64",
            ("reasoning effort, cut at 64",),
        ),
        ("reject:max=6", Strategy(selection=Selection("reject", 16, 6)), "rejected above 6, 16 tries", ("rejection",)),
    ],
)  # fmt: skip
def test_texts_mean_strategies(text, strategy, name, families):
    assert strategies.parse(text) == strategy
    assert strategy.name("Wait") == name and strategy.families("Wait") == families
    assert strategy.label("Wait") == (LABELS.get(name) or name)
    assert strategy.parallel == ("majority" in name or "rejected" in name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is none of none, forcing"),
        ("budget:3", "'budget:3' is none of none, forcing"),
        ("token", "names no bound; write for example token:8"),
        ("token:0", "'0' where a whole number of 1 to 2147483647"),
        ("token:-3", "'-3' where a whole number"),
        ("token:2147483648", "'2147483648' where a whole number"),
        ("forcing:max=" + "9" * 5000, "9' where a whole number of 0 to 2147483647"),
        ("forcing:waits=", "'' where a whole number"),
        ("majority:99999999999:temperature=1", "'99999999999' where a whole number of 1 to 10000 belongs"),
        ("step:x", "'x' where a whole number"),
        ("token:8:tokens=3", "'tokens', which means nothing"),
        ("none:3", "'3', which means nothing"),
        ("class:medium", "neither class:short nor class:long"),
        ("effort", "names no effort; write for example effort:high"),
        ("effort:low+effort:high", "'effort:high' says a second time"),
        ("forcing", "forces nothing"),
        ("class:short+forcing", "forces nothing"),
        ("forcing:max=3:min=4", "min above max"),
        ("forcing:wait=Hmm", "add waits=N or min=N"),
        ("forcing:budget=3", "'budget', which means nothing"),
        ("token:3+step:4", "'step:4' says a second time"),
        ("majority:3+reject:max=3", "says a second time"),
        ("majority", "names no number of samples"),
        ("majority:2:3", "names something twice"),
        ("majority:2:temperature=0", "temperature '0'; give a number above 0"),
        ("majority:2:temperature=warm", "temperature 'warm'"),
        ("reject:4", "names no limit"),
        ("reject:max=4+forcing:max=3", "cuts what it would reject"),
    ],
)
def test_texts_that_mean_nothing(text, message):
    with pytest.raises(UserError, match=message):
        strategies.parse(text)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("000", 0), ("007", 7), ("2147483647", 2**31 - 1)])
def test_whole_numbers(text, number):
    assert strategies.whole(text) == number


@pytest.mark.parametrize("text", ["none", "forcing:max=3:waits=1", "token:8+forcing", "majority:3", "reject:max=5"])
def test_rows_are_what_a_sampler_takes(text):
    strategy = strategies.parse(text)
    row = strategy.row({"question": "q", "target": 4}, "q?", 2**32 + 5, ALL)
    assert row["question"] == "q?" and row["target"] == 4
    controls = fields.row_controls(row, SamplingParams(max_thinking_tokens=384, temperature=0.5), "row")
    limits = {"none": 384, "forcing:max=3:waits=1": 3, "token:8+forcing": 8, "majority:3": 384, "reject:max=5": 6}
    assert controls.max_thinking_tokens == limits[text] and controls.seed == 5 and controls.temperature == 0.5
    assert controls.num_waits == (1 if "waits" in text else 0)


def test_rows_have_the_wait_and_the_temperature_of_their_strategy():
    row = strategies.parse("forcing:waits=2:wait=Hmm").row({}, "q", 0, ALL)
    assert row["wait"] == "Hmm"
    assert strategies.parse("forcing:waits=2:wait=none").row({}, "q", 0, ALL)["wait"] == ""
    assert strategies.parse("forcing:waits=2").row({}, "q", 0, ALL)["wait"] == "Wait"
    assert strategies.parse("effort:low").row({}, "q", 0, ALL)["reasoning_effort"] == "low"
    assert "reasoning_effort" not in row
    assert strategies.parse("majority:2:temperature=0.9").row({}, "q", 0, ALL)["temperature"] == 0.9


def samples(*tokens, end="natural"):
    return [{"thinking_tokens": count, "thinking_end": end} for count in tokens]


def test_one_sample_or_as_many_as_vote():
    for text, count in (("none", 1), ("token:8+forcing", 1), ("majority:5", 5)):
        strategy = strategies.parse(text)
        assert [strategy.wanted(samples(*[3] * n)) for n in range(count + 1)] == [count - n for n in range(count + 1)]


def test_rejection_samples_until_thinking_fits():
    strategy = strategies.parse("reject:max=10:samples=3")
    assert [strategy.wanted(samples(*found)) for found in ([], [11], [11, 11], [11, 11, 11])] == [1, 1, 1, 0]
    assert strategy.wanted(samples(10)) == 0 and strategy.wanted(samples(11, 3)) == 0
    assert strategy.choose(samples(11, 10), ["a", "b"], str.__eq__) == 1
    assert strategy.choose(samples(11, 11), ["a", "b"], str.__eq__) is None
    assert strategy.counted(samples(11, 10), 1) == samples(10)
    assert strategy.counted(samples(11, 12), None) == samples(12)
    assert strategy.limit(384) == 11 and strategy.range(384, None) == (0, 10)
    # Cut at 9, where a wait of three ids had no room under 11: it might have thought on.
    assert strategy.wanted(samples(9, end="cut")) == 1 and strategy.choose(samples(9, end="cut"), ["a"], str) is None


def test_votes_against_plain_counting():
    strategy, rng = strategies.parse("majority:9"), random.Random(0)
    for _ in range(300):
        answers = [rng.choice(["1", "2", "3", None]) for _ in range(rng.randint(1, 9))]
        chosen = strategy.choose(samples(*[1] * len(answers)), answers, str.__eq__)
        counts = collections.Counter(answer for answer in answers if answer is not None)
        if not counts:
            assert chosen == 0
            continue
        winners = {answer for answer, count in counts.items() if count == max(counts.values())}
        assert chosen == next(i for i, answer in enumerate(answers) if answer in winners)


def test_votes_count_answers_that_mean_the_same():
    strategy = strategies.parse("majority:5")
    same = lambda a, b: float(a) == float(b)  # noqa: E731
    assert strategy.choose(samples(*[1] * 5), ["7", "5", "5.0", "7", "05"], same) == 1
    assert strategy.choose(samples(*[1] * 4), [None, "5", "7", "7.0"], same) == 2
    assert strategy.choose(samples(*[1] * 4), ["5", "7", "7.0", "5.0"], same) == 0
    assert len(strategy.counted(samples(1, 2, 3), 1)) == 3


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("none", (0, 384)),
        ("forcing:max=32", (0, 32)),
        ("forcing:min=9:waits=2", (9, 384)),
        ("token:64", (0, 64)),
        ("token:512", (0, 384)),
        ("token:64+forcing:max=32", (0, 32)),
        ("step:2", (0, 200)),
        ("step:2:tokens=30", (0, 60)),
        ("class:short", (0, [2, 6])),
        ("class:long", ([4, 8], math.inf)),
        ("class:short+forcing:max=4", (0, [2, 4])),
        ("class:short+reject:max=4", (0, [2, 4])),
        ("class:short+forcing:min=1", (1, [2, 6])),
        ("class:long+forcing:max=10", ([4, 8], 10)),
        ("class:long+reject:max=10", ([4, 8], 10)),
        ("class:long+forcing:min=6", ([6, 8], math.inf)),
        ("majority:3", (0, 384)),
        ("reject:max=7", (0, 7)),
    ],
)
def test_what_control_asks_for(text, asked):
    found = strategies.parse(text).range(384, [3, 7])
    whole = [i for i in range(1000) if all(low <= i <= high for low, high in [found])] if "class" not in text else None
    if whole is not None:
        assert found == asked and whole == list(range(asked[0], asked[1] + 1))
    else:
        lows, highs = (bound if isinstance(bound, list) else [bound] * 2 for bound in found)
        want = [bound if isinstance(bound, list) else [bound] * 2 for bound in asked]
        for i in range(1000):
            for k in range(2):
                assert (lows[k] <= i <= highs[k]) == (want[0][k] <= i <= want[1][k])


def test_classes_ask_for_nothing_without_runs_to_compare_with():
    assert strategies.parse("class:long").range(384, None) is None


def test_what_a_checkpoint_was_trained_for():
    for control in ("token", "step", "class", ""):
        assert strategies.trained_for({"experiment": {"data": {"control": control}}, "step": 3}) == control
    for provenance in ({}, {"experiment": None}, {"experiment": {"data": {}}}, {"made by": "a test"}):
        assert strategies.trained_for(provenance) == ""
    # A base that was trained for a control, fine-tuned without: the last training counts.
    inner = {"experiment": {"data": {"control": "token"}}}
    assert strategies.trained_for({"experiment": {"data": {"control": ""}}, "init_from": inner}) == ""


def test_strategies_are_values():
    assert len({strategies.parse("token:4"), strategies.parse("token:4"), Strategy()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Strategy().selection = None
