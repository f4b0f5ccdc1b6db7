"""Decontamination: s1's rule as released, and rules that find more with fewer false alarms."""

import dataclasses
import json
import math
import pathlib
import pickle
import random

import pytest

from benchmarks import curation_leaks
from s1jax.curation import clean
from s1jax.curation.decontamination import LIGHT_R1, OURS, S1, Decontaminate, Decontamination, Evaluated
from s1jax.curation.ngrams import Index, ngrams
from s1jax.curation.overlap import Overlap
from s1jax.curation.row import Row
from s1jax.curation.words import size
from s1jax.errors import UserError

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared/data"
# An AIME 2017 question of s1K, which stands in MATH500 as well.
AIME_2017 = (
    "Find the number of integer values of $k$ in the closed interval $[-500,500]$ for which the equation"
    " $\\log(kx)=2\\log(x+2)$ has exactly one real solution."
)


def row(question: str) -> Row:
    return Row("id", question, "", "", "pool.jsonl:1")


def evaluated(*questions: str) -> list[Evaluated]:
    return [Evaluated("math500", f"math500.jsonl:{number}", text) for number, text in enumerate(questions, 1)]


def gsm8k(split: str) -> list[str]:
    file = DATA / f"gsm8k_{split}.jsonl"
    if not file.exists():
        pytest.skip(f"needs ../shared/data/{file.name}, which is not here")
    return [json.loads(line)["question"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("words", "counts"),
    [("white_space", (70, 10, 4, 1)), ("letters", (94, 11, 4, 1)), ("number_blind", (217, 31, 8, 4))],
)
def test_counts_of_gsm8k_train_against_test(words, counts):
    rows = [row(text) for text in gsm8k("train")]
    against = [Evaluated("gsm8k", f"test:{number}", text) for number, text in enumerate(gsm8k("test"))]
    assert (len(rows), len(against)) == (7473, 1319)
    for n, count in zip((8, 10, 13, 20), counts, strict=True):
        rule = Decontaminate(Decontamination(words=words, match="any", n=n, short=0), against)
        assert sum(rule(one) is not None for one in rows) == count


def test_the_rule_of_s1():
    rule = Decontaminate(S1, evaluated("One two three four five six seven EIGHT nine ten"))
    found = rule(row("zero  two three\nfour five six seven eight nine"))
    assert found is not None
    assert found.rule == "decontamination"
    assert found.evidence == "math500, math500.jsonl:1: two three four five six seven eight nine"
    assert rule(row("two three four five six seven, eight nine")) is None  # punctuation hides it
    assert rule(row("two three four five six seven eight")) is None
    assert Decontaminate(S1, evaluated("How much is 2 + 3?"))(row("How much is 2 + 3?")) is None  # shorter than 8


def test_short_questions_are_matched_whole_with_their_numbers():
    rule = Decontaminate(OURS, evaluated("How much is $2 + 3$?", "Compute $x^2 - 12x + 20$ for $x = 1$ and $x = 2$."))
    found = rule(row("how much is 2+3"))
    assert found is not None
    assert found.evidence == "math500, math500.jsonl:1: how much is 2 3"
    assert rule(row("how much is 2+4")) is None
    assert rule(row("Explain to a friend how much is 2+3")) is None
    assert rule(row("Compute x^2-12x+20 for x=1 and x=2")) is not None  # formulas are no words
    assert rule(row("Compute x^2-13x+20 for x=1 and x=2")) is None


def test_the_question_that_s1k_shares_with_math500_is_found_by_every_rule():
    elsewhere = AIME_2017.replace("\\log(kx)=2\\log(x+2)", "\\log (k x) = 2\\,\\log\\left(x + 2\\right)")
    blind = Decontamination(words="number_blind", match="any", n=8)
    for settings, text in ((S1, elsewhere), (OURS, elsewhere), (blind, elsewhere), (LIGHT_R1[0], AIME_2017)):
        found = Decontaminate(settings, evaluated("What is 1 + 1?", AIME_2017))(row(text))
        assert found is not None
        assert found.evidence.startswith("math500, math500.jsonl:2")
        assert "find the number of integer values" in found.evidence


def test_light_r1_finds_changed_numbers_in_whole_questions_alone():
    rule = Decontaminate(LIGHT_R1[0], evaluated(AIME_2017))
    changed = AIME_2017.replace("500", "750")
    assert rule(row(changed)) is not None
    assert rule(row(f"Think first. {changed}")) is None
    assert Decontaminate(LIGHT_R1[1], evaluated(AIME_2017 * 2))(row(f"Think. {AIME_2017 * 2}")) is not None


def test_a_part_of_an_evaluation_question_is_found():
    tail = " The final answer is written in the form $m + n$ where $m$ and $n$ are coprime. Find it in three steps."
    rule = Decontaminate(OURS, evaluated(AIME_2017 + tail * 4, *(f"{w} {w}s are here.{tail}" for w in ("Ox", "Elk"))))
    assert rule(row(AIME_2017)) is not None
    assert rule(row(tail)) is None  # stands in every question


SETTINGS = (
    (
        r"Let $\left(x_1,y_1\right)$ be on the curve $y=\dfrac{1}{2}x^2$ with $\angle{ABC}=60^\circ$ and find $\pi r$.",
        "Let (x1, y1) be on the curve y = 1/2 x² with ∠ABC = 60° and find πr.",
    ),
    (
        r"How many triples $A B C$ of numbers below $10{,}000$ have $\frac12 \cdot A\,B \le C$, if $A\neq B$?",
        r"How many triples $ABC$ of numbers below $10\,000$ have $\tfrac{1}{2} A~B \leq C$, if $A \ne B$?",
    ),
    (
        "一个长方形的长是12厘米，宽是8厘米，它的面积是多少平方厘米？",
        "请回答：一个长方形的长是 15 厘米，宽是 9 厘米，它的面积是多少平方厘米？谢谢",
    ),
)


@pytest.mark.parametrize(("one", "other"), SETTINGS)
def test_mathematics_is_the_same_in_other_settings(one, other):
    for first, second in ((one, other), (other, one)):
        found = Decontaminate(OURS, evaluated(first))(row(second))
        assert found is not None


def test_an_instruction_that_all_evaluation_questions_share_drops_nothing():
    """A shared template flagged a third of a clean pool elsewhere."""
    template = "Solve this problem carefully and put the final answer into a box after all of your reasoning. "
    problems = (
        "a farmer has hens and rabbits with heads and legs",
        "the train leaves Rome at noon and travels north",
        "which of these triangles has the largest area",
    )
    against = evaluated(*(f"{template}{text}" for text in problems))
    clean = row(f"{template}one shop sells pens in boxes of twelve")
    s1 = Decontamination(words="letters", match="any", n=8)
    assert Decontaminate(s1, against)(clean) is not None
    for settings in (dataclasses.replace(s1, common=2), OURS):
        rule = Decontaminate(settings, against)
        assert rule(clean) is None
        assert rule(row(f"{template}{problems[1]} to Milan")) is not None


def test_questions_that_differ_in_names_and_numbers_are_found_among_many_of_their_kind():
    """Their n-grams stand in many questions, so rules that leave those out find nothing."""
    names = [f"{first}{last}" for first in ("Al", "Bo", "Cy", "Di", "Ed", "Fay", "Gus") for last in ("la", "ra", "nie")]
    question = "{} buys {} apples and {} pears at the market for his {} friends; how many pieces does each friend get?"
    against = evaluated(*(question.format(name, 3 + i, 4, 2) for i, name in enumerate(names)))
    draw = random.Random(0)
    against += evaluated(*(" ".join("".join(draw.choices("bdfkmnou", k=4)) for _ in range(20)) for _ in range(200)))
    assert Decontaminate(OURS, against)(row(question.format("Zoe", 90, 80, 70))) is not None


def test_a_question_that_stands_in_two_sets_is_one():
    question = "A farmer has some hens and rabbits with 50 heads in all"
    again = Evaluated("gsm8k", "gsm8k.jsonl:7", f"{question}.")
    rule = Decontaminate(Decontamination(words="letters", match="any", n=8, common=2), [*evaluated(question), again])
    assert rule(row(question)) is not None


def test_planted_leaks_of_gsm8k_are_found_and_named():
    """A tenth of what `benchmarks/curation_leaks.py` plants."""
    train, test = gsm8k("train"), gsm8k("test")
    against = [Evaluated(curation_leaks.SET, str(number), text) for number, text in enumerate(test[:132])]
    rule = Decontaminate(OURS, against)
    for kind, texts in curation_leaks.planted(test[:132], train).items():
        least = {"exact": 0.99, "punctuation": 0.99, "reworded": 0.8}.get(kind, 0.95)
        assert curation_leaks.recall([rule], texts)["named"] >= least, kind


def test_what_it_drops_of_gsm8k_train_has_been_read():
    against = [Evaluated(curation_leaks.SET, str(number), text) for number, text in enumerate(gsm8k("test"))]
    rule = Decontaminate(OURS, against)
    assert {i for i, text in enumerate(gsm8k("train")) if rule(row(text))} == set(curation_leaks.READ)


def test_the_question_that_leads_to_no_ngram_is_found_as_by_a_search_through_all():
    """What leads from a text to a question is a part of its n-grams; none may be missed for that."""
    draw = random.Random(0)
    vocabulary = [f"w{letter}" for letter in "abcdefghij"]
    questions = [[draw.choice(vocabulary) for _ in range(draw.randint(3, 12))] for _ in range(200)]
    overlap = Overlap(questions, 2, 0.6, 4, 10)
    index = Index(questions, 2)
    hits = 0
    for _ in range(200):
        words = [draw.choice([*vocabulary, "other"]) for _ in range(draw.randint(2, 20))]
        grams = set(ngrams(words, 2))

        def weight(found):
            return sum(math.log(201 / max(1, len(index.holders(gram)))) for gram in found)

        shares = {}
        for number, question in enumerate(questions):
            own = set(index.grams(number))
            if len(own & grams) >= 3:
                for text, all_of_it, least in ((question, own, 0), (words, grams, 3 * math.log(201))):
                    needed = 0.6 + 0.4 * min(max((10 - size(text)) / 6, 0), 1)
                    share = weight(own & grams) / weight(all_of_it)
                    if share >= needed - 1e-9 and weight(own & grams) >= least - 1e-9:
                        shares[number] = max(shares.get(number, 0), share)
        found = overlap.find(words)
        hits += found is not None
        assert (found is None) == (not shares)
        if found is not None:
            assert found.share == pytest.approx(max(shares.values()))
    assert 10 < hits < 190


def test_the_rule_travels_to_other_processes():
    rule = pickle.loads(pickle.dumps(Decontaminate(OURS, evaluated(AIME_2017))))
    assert rule(row(AIME_2017)) is not None


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="words='letter' of decontamination is unknown; choose from white_space"):
        Decontamination(words="letter")
    with pytest.raises(UserError, match="match='some'"):
        Decontamination(match="some")
    for wrong in ({"n": 0}, {"share": 0.0}, {"share": 1.5}, {"short": -1}):
        with pytest.raises(UserError, match="n of at least 1"):
            Decontamination(**wrong)
    with pytest.raises(UserError, match="no evaluation questions"):
        Decontaminate(S1, [])


def test_a_question_with_its_numbers_in_another_order_is_found():
    rule = clean.Clean(clean.OURS, [Evaluated("countdown", "1", "Make 21 from 3 7 1")])
    found = [
        rule(row(text))
        for text in ("Make 21 from 7 1 3", "make 21 from 1, 3, 7.", "Make 21 from 3 7", "Make 3 from 21 7 1")
    ]
    assert [drop and drop.reason for drop in found] == ["equals an evaluation question"] * 2 + [None] * 2
