"""Decontamination: s1's rule as released, and rules that find more with fewer false alarms."""

import json
import pathlib

import pytest

from s1jax.curation.decontamination import LIGHT_R1, S1, Decontaminate, Decontamination, Evaluated
from s1jax.curation.row import Row
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
        rule = Decontaminate(Decontamination(words=words, n=n, whole_if_short=False), against)
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


def test_questions_shorter_than_n_are_matched_whole():
    rule = Decontaminate(Decontamination(), evaluated("How much is 2 + 3?"))
    found = rule(row("how much is 2+3"))
    assert found is not None
    assert found.evidence == "math500, math500.jsonl:1: how much is 2 3"
    assert rule(row("how much is 2+4")) is None
    assert rule(row("Explain to a friend how much is 2+3")) is None


def test_the_question_that_s1k_shares_with_math500_is_found_by_every_rule():
    settings = (S1, Decontamination(), Decontamination(words="number_blind"), *LIGHT_R1[:1])
    for one in settings:
        found = Decontaminate(one, evaluated("What is 1 + 1?", AIME_2017))(row(AIME_2017))
        assert found is not None
        assert found.evidence.startswith("math500, math500.jsonl:2: find the number of integer values")


def test_light_r1_finds_changed_numbers_in_whole_questions_alone():
    rule = Decontaminate(LIGHT_R1[0], evaluated(AIME_2017))
    changed = AIME_2017.replace("500", "750")
    assert rule(row(changed)) is not None
    assert rule(row(f"Think first. {changed}")) is None
    assert Decontaminate(LIGHT_R1[1], evaluated(AIME_2017 * 2))(row(f"Think. {AIME_2017 * 2}")) is not None


def test_an_instruction_that_all_evaluation_questions_share_drops_nothing():
    """A shared template flagged a third of a clean pool elsewhere."""
    template = "Solve this problem and put the final answer into a box after your reasoning: "
    against = evaluated(*(f"{template}{text}" for text in ("alpha beta", "gamma delta", "epsilon zeta")))
    clean = row(f"{template}eta theta")
    assert Decontaminate(Decontamination(), against)(clean) is not None
    rule = Decontaminate(Decontamination(common=2), against)
    assert rule(clean) is None
    assert rule(row(f"{template}gamma delta")) is not None


def test_a_question_that_stands_in_two_sets_is_one():
    question = "A farmer has some hens and rabbits with 50 heads in all"
    again = Evaluated("gsm8k", "gsm8k.jsonl:7", f"{question}.")
    rule = Decontaminate(Decontamination(common=2), [*evaluated(question), again])
    assert rule(row(question)) is not None


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="words='letter' of decontamination is unknown; choose from white_space"):
        Decontamination(words="letter")
    with pytest.raises(UserError, match="match='some'"):
        Decontamination(match="some")
    with pytest.raises(UserError, match="n >= 1"):
        Decontamination(n=0)
    with pytest.raises(UserError, match="no evaluation questions"):
        Decontaminate(S1, [])
