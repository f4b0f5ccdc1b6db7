"""Rules of one row: strings, missing columns, quality, repetition, given answers."""

import random
import re

import pytest

from s1jax.curation.features import Features
from s1jax.curation.given_answer import GivenAnswer
from s1jax.curation.quality import Quality
from s1jax.curation.repetition import Repetition, loops, repeated_sentences
from s1jax.curation.row import Row
from s1jax.curation.strings import Strings, _bold_before_digit


def row(question="What is 2 + 3?", trace="I add.", answer="5", **columns) -> Row:
    return Row("id", question, trace, answer, "pool.jsonl:1", columns)


@pytest.mark.parametrize(
    ("question", "released", "ours"),
    [
        ("Look at [asy] draw(A--B); [/asy] and find x.", "a figure in Asymptote", "a figure in Asymptote"),
        ("See ![Image](a.png)", "an image", "an image"),
        ("p1. Find x. p2. Find y.", "numbers of parts (p1.)", "numbers of parts (p1.)"),
        ("Solve (p12. of the list)", "numbers of parts (p1.)", "numbers of parts (p1.)"),
        ("As in step1. and exp2., so", "numbers of parts (p1.)", None),
        ("With p1.5 of it", "numbers of parts (p1.)", None),
        ("p0. p1000. p12", None, None),
        ("**1.** Find x.", "bold text with a digit", "bold text with a digit"),
        ("**Note:** find 3 of them.", "bold text with a digit", None),
        ("**Note that** there are 3 of them.", None, None),  # white space in the bold text
        ("**Note:** find\n3 of them.", None, None),
        ("What is 2 + 3?", None, None),
    ],
)
def test_strings(question, released, ours):
    for rule, reason in ((Strings(as_released=True), released), (Strings(), ours)):
        found = rule(row(question))
        assert (found and found.reason) == reason
        assert found is None or found.evidence in " ".join(question.split())


def test_figures_of_aime_are_allowed():
    one = row("p1. See [asy] here.", source_type="qq8933/AIME_1983_2024")
    assert Strings(as_released=True)(one) is None  # and the other tests are skipped
    found = Strings()(one)
    assert found is not None
    assert found.reason == "numbers of parts (p1.)"
    assert Strings()(row("See [asy] here.", source_type="AIME")) is None


def test_bold_text_is_found_as_by_the_expression_of_s1():
    expression = re.compile(r"\*\*(?=.*\d)[^\s\]]*\*\*")
    draw = random.Random(0)
    found = 0
    for _ in range(3000):
        text = "".join(draw.choices("****a1 ]\n", k=draw.randint(0, 20)))
        expected = expression.search(text)
        drop = Strings(as_released=True)(row(text))
        assert (drop is not None) == (expected is not None), text
        found += drop is not None
        if expected is not None:
            assert _bold_before_digit(text) == expected.start(), text
    assert 200 < found < 2800
    Strings(as_released=True)(row("*" * 300_000))  # takes minutes by the expression


def test_missing_features_are_named():
    rule = Features(("domain", "pass_rate", "trace_tokens"))
    assert rule(row(domain="Algebra", pass_rate=0.0, trace_tokens=5, other=None)) is None
    found = rule(row(domain="Algebra", pass_rate=None, trace_tokens=float("nan")))
    assert found is not None
    assert (found.reason, found.evidence) == ("has no pass_rate", "missing: pass_rate, trace_tokens")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"finish_reason": "stop"}, None),
        ({"finish_reason": "length"}, "reached the limit of tokens"),
        ({"finish_reason": "MAX_TOKENS"}, "reached the limit of tokens"),
        ({"finish_reason": "content_filter"}, "was refused"),
        ({"answer": " \n"}, "has no answer"),
        ({"trace": ""}, "has no trace"),
        ({"trace": "", "answer": ""}, None),  # a question alone
        ({"trace": "", "answer": "", "finish_reason": "length"}, None),
        ({"trace": "I add.</think> Or not."}, "tags of a chat template in the trace"),
        ({"answer": "<|im_start|>5"}, "tags of a chat template in the answer"),
        ({"trace": "na\ufffdve"}, "damaged characters in the trace"),
        ({"answer": "\x00"}, "damaged characters in the answer"),
        ({"answer": r"So \boxed{\frac{1}{2} is it."}, "a box that is not closed in the answer"),
        ({"answer": r"So \boxed{\frac{1}{2}} or \boxed{\{1\}} is it."}, None),
        ({"trace": "If a < b then <think harder>.\n\tTab."}, None),
    ],
)
def test_quality(changes, reason):
    found = Quality()(row(**changes))
    assert (found and found.reason) == reason
    assert found is None or found.evidence
    assert Quality(cut=False, refused=False, empty=False, damaged=False)(row(**changes)) is None


WORDS = ("so", "the", "sum", "of", "both", "numbers", "is", "more", "than", "we", "need", "wait", "let", "me", "check")


def prose(draw: random.Random, sentences: int) -> str:
    return " ".join(
        f"{' '.join(draw.choices(WORDS, k=draw.randint(4, 14)))} {draw.randint(1, 999)}." for _ in range(sentences)
    )


@pytest.mark.parametrize("period", [1, 2, 7, 40, 100])
def test_a_loop_at_the_end_is_found(period):
    """Every period: sentences, parts of sentences, single characters."""
    draw = random.Random(period)
    clean = prose(draw, 120)
    assert Repetition()(row(trace=clean)) is None
    sentences = prose(draw, period) + " "
    characters = "".join(draw.choices("abcdefg ", k=period))
    for unit in (sentences, characters):
        times = 2 + max(4, int(len(clean) / len(unit)))
        found = Repetition()(row(trace=clean + " " + unit * times))
        assert found is not None, unit
        assert found.reason == "the trace repeats itself"
        assert int(found.evidence.partition("%")[0]) > 20


def test_what_is_alike_but_not_the_same_is_no_repetition():
    cases = "\n".join(f"Try {n}: {n}^2 + {n} = {n * n + n}, which is not a multiple of 7." for n in range(1, 300))
    assert Repetition()(row(trace=cases)) is None
    draw = random.Random(0)
    waits = "\n\n".join(f"Wait. Let me check the sum again.\n{prose(draw, 4)}" for _ in range(40))
    assert Repetition()(row(trace=waits)) is None
    assert Repetition()(row(trace="")) is None


def test_how_much_is_repeated():
    line = "this line is said again."
    share, example = repeated_sentences("\n".join([line] * 10))
    assert share == pytest.approx(7 * len(line) / (10 * len(line) + 9))
    assert example == line
    assert repeated_sentences("\n".join([line] * 3)) == (0.0, "")
    draw = random.Random(3)
    noise = "".join(chr(draw.randint(33, 126)) for _ in range(3 * 2048))
    assert loops(noise, 1 / 16) == (0.0, "")
    assert loops(noise + "0" * 2048, 1 / 16)[0] == pytest.approx(0.25)
    assert loops("0" * 2047, 1 / 16)[1].startswith("000")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 2 + 3? (Answer: 5)", "5"),
        ("What is 2 + 3?\n**Answer:** 5", "5"),
        ("Show that the final answer is $\\boxed{\\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("Prove that the correct answer should be -5", "-5"),
        ("Find x. The answer equals 1,000.", "1,000"),
        ("Choose a letter. ANSWER: B", "B"),
        ("Answer: (C).\nGive a reason.", "C"),
    ],
)
def test_questions_that_give_their_answer_are_found(question, answer):
    for one in (row(question, answer=answer), row(question, answer="none", solution=f"#### {answer}")):
        found = GivenAnswer()(one)
        assert found is not None
        assert answer in found.evidence


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 2 + 3?", "5"),
        ("Round the answer to 2 decimal places.", "2"),
        ("Is the answer 2 decimal places long?", "2"),
        ("Prove that the answer is 25.", "2"),
        ("Prove that the answer is 2.5.", "2"),
        ("Prove that the answer is -2.", "2"),
        ("What is the correct answer? 3 apples or 4?", "3"),
        ("Choose the correct answer.\nA) 5\nB) 6", "A"),
        ("Answer: A, B or C?", "A"),
        ("The answer to everything has 2 digits.", "2"),
        ("The answers are found in the book.", ""),
        ("5 is what a good answerer finds.", "5"),
    ],
)
def test_questions_that_do_not_give_it_are_kept(question, answer):
    assert GivenAnswer()(row(question, answer=answer)) is None


def test_the_reference_comes_before_what_the_teacher_said():
    question = "The answer is 7, or is it?"
    assert GivenAnswer()(row(question, answer="7", solution="8")) is None
    assert GivenAnswer()(row(question, answer="8", solution="7")) is not None
    assert GivenAnswer()(row(question, answer="7", solution=None)) is not None
    assert GivenAnswer(columns=())(row(question, answer="7", solution="8")) is not None
