"""Pass rates: how many tries a question gets, with which seeds, whatever the order, the shards and interruptions."""

import dataclasses
import itertools
import random
import statistics

import jax
import pytest

from s1jax.checkpoint import store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.curation import difficulty, pass_rate
from s1jax.curation import graded as graded_lib
from s1jax.data import identity
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.tasks.countdown import problems as countdown
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.test_imports import ROOT

PARAMS = SamplingParams(max_thinking_tokens=6, max_answer_tokens=6, temperature=1.0, seed=3)
HOT = SamplingParams(temperature=1.0)
ROWS = [(f"pool:{i}", row) for i, row in enumerate(countdown.prompt_rows("dev", 7))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with Countdown's tokenizer."""
    config = ModelConfig.dense(
        vocab_size=160, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=96,
    )  # fmt: skip
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    path = tmp_path_factory.mktemp("student") / "model"
    params = decoder.init_params(config, jax.random.key(0))
    store.save_model(path, params, config, tokenizer, chat.FORMATS["s1_plain"], {})
    return path


@pytest.fixture(scope="module")
def engine(folder):
    """Samples it in two batch slots."""
    return Engine(folder, slots=2, cache_length=64)


class Student:
    """Answers a question right in the tries that it is given; counts what it is asked."""

    def __init__(self, right):
        self.right, self.asked = right, []

    def stream(self, requests, params=None, /, *, system="", progress=None):
        """Yields the answers from the last to the first."""
        for place, request in reversed(list(enumerate(requests))):
            number = next(
                number
                for number in itertools.count()
                if request.params.seed == pass_rate.seed_of(0, identity.question_id(request.prompt), number)
            )
            self.asked.append((request.prompt, number))
            yield place, Answer("#### 7" if number in self.right[request.prompt] else "#### 8")


@dataclasses.dataclass
class Answer:
    """What is read of an output."""

    answer: str
    thinking_tokens: int = 0
    answer_tokens: int = 3
    thinking_end: str = "natural"
    answer_end: str = "stop"
    token_ids: tuple = (1, 2, 3)


def measure(student, rows, plan, kept=(), params=PARAMS, kind="countdown"):
    """Returns the rate of each row, and the tries that were made for it."""
    graded = graded_lib.graded(rows, kind)
    tries, new = pass_rate.Tries(graded.task, kept), []
    pass_rate.sample(student, [p for p in graded.problems if p], tries, plan, params, new.append)
    return [None if p is None else tries.rate(p, plan) for p in graded.problems], new


def numbers(*questions):
    """Rows of questions whose answer is 7."""
    return [(f"file:{i}", {"question": question, "solution": "7"}) for i, question in enumerate(questions)]


def test_a_rate_is_that_of_its_tries():
    student = Student({"a": {0, 2, 3}, "b": set(), "c": {0, 1, 2, 3}})
    rates, _ = measure(student, numbers("a", "b", "c"), pass_rate.Plan(4), params=HOT, kind="")
    assert [rate.columns for rate in rates] == [
        {"pass_rate": 0.75, "pass_tries": 4},
        {"pass_rate": 0.0, "pass_tries": 4},
        {"pass_rate": 1.0, "pass_tries": 4},
    ]
    assert sorted(student.asked) == sorted(itertools.product("abc", range(4)))


def test_an_early_stop_never_changes_on_which_side_a_question_is():
    """Against all tries, for random verdicts; and a question that is not above has all tries."""
    rng = random.Random(0)
    saved = 0
    for _ in range(500):
        tries, limit = rng.randint(1, 12), rng.choice([0.0, 0.1, 0.29, 0.5, 0.75, 0.99])
        chance = rng.random()
        right = [rng.random() < chance for _ in range(tries)]
        total = pass_rate.Plan(tries, limit).wanted(right)
        assert pass_rate.Plan(tries).wanted(right) == tries
        above = statistics.fmean(right) > limit
        assert (statistics.fmean(right[:total]) > limit) == above
        assert total == tries or above
        # A round is asked for before its verdicts are known, and the number never shrinks.
        rounds = [pass_rate.Plan(tries, limit).wanted(right[:known]) for known in range(tries + 1)]
        assert rounds == sorted(rounds) and rounds[-1] == total
        saved += tries - total
    assert saved > 500


def test_an_early_stop_asks_for_no_try_that_it_does_not_need():
    student = Student({"easy": set(range(8)), "hard": set(), "half": {0, 2, 4, 6}, "late": {3, 4, 5, 6, 7}})
    plan = pass_rate.Plan(8, 0.5)
    rates, _ = measure(student, numbers("easy", "hard", "half", "late"), plan, params=HOT, kind="")
    assert [(rate.right, rate.tries) for rate in rates] == [(5, 5), (0, 8), (4, 8), (5, 8)]
    assert len(student.asked) == len(set(student.asked)) == 5 + 8 + 8 + 8


def test_seeds_differ_and_depend_on_the_question_the_try_and_the_run_alone():
    ids = [identity.question_id(str(i)) for i in range(200)]
    seeds = {(run, key, n): pass_rate.seed_of(run, key, n) for run in range(2) for key in ids for n in range(4)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds.values())
    assert seeds[0, ids[0], 1] == pass_rate.seed_of(0, identity.question_id(" 0 \n"), 1)


def test_order_shards_and_interruptions_do_not_matter(engine):
    plan = pass_rate.Plan(3)
    rates, tries = measure(engine, ROWS, plan)
    wanted = {(row["id"], row["try"]): row["answer"] for row in tries}
    assert len(wanted) == len(tries) == 21 and len(set(wanted.values())) > 5
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    there = {row["question"]: rate for (_, row), rate in zip(ROWS, rates, strict=True)}
    parts = [measure(engine, part, plan)[1] for part in (shuffled[:3], shuffled[3:])]
    assert {(row["id"], row["try"]): row["answer"] for part in parts for row in part} == wanted
    half = random.Random(2).sample(tries, 10)
    again, rest = measure(engine, shuffled, plan, half)
    assert len(rest) == 11
    assert {(row["id"], row["try"]): row["answer"] for row in half + rest} == wanted
    assert {row["question"]: rate for (_, row), rate in zip(shuffled, again, strict=True)} == there


def test_more_tries_and_more_rows_sample_only_what_is_new(engine):
    _, two = measure(engine, ROWS[:5], pass_rate.Plan(2))
    _, new = measure(engine, ROWS, pass_rate.Plan(3), two)
    assert len(new) == 5 + 2 * 3
    _, all_at_once = measure(engine, ROWS, pass_rate.Plan(3))
    key = lambda row: (row["id"], row["try"])  # noqa: E731
    assert sorted(two + new, key=key) == sorted(all_at_once, key=key)


def test_rows_that_ask_the_same_are_tried_once_and_graded_by_their_own_solutions():
    student = Student({"a": {0, 1, 2}})
    rows = [("x", {"question": "a", "solution": "7"}), ("y", {"question": " a\n", "solution": "8"})]
    rates, tries = measure(student, rows, pass_rate.Plan(4, 0.5), params=HOT, kind="")
    assert [(rate.right, rate.tries) for rate in rates] == [(3, 3), (1, 4)]
    assert len(tries) == 4


def test_a_new_solution_is_graded_without_new_tries():
    student = Student({"a": {0}})
    rows = numbers("a")
    rates, tries = measure(student, rows, pass_rate.Plan(4), params=HOT, kind="")
    assert rates[0].right == 1
    rates, new = measure(student, [("x", {"question": "a", "answer": "8"})], pass_rate.Plan(4), tries, HOT, "")
    assert rates[0].right == 3 and not new


def test_rows_that_cannot_be_graded_are_counted_and_keep_their_place():
    rows = [*numbers("a"), ("bad:2", {"question": "b", "solution": "first\nthen"}), ("bad:3", {"question": "c"})]
    rates, _ = measure(Student({"a": {0}}), rows, pass_rate.Plan(1), params=SamplingParams(), kind="")
    assert rates[0].right == 1 and rates[1:] == [None, None]
    (note,) = graded_lib.graded(rows, "").notes()
    assert note.startswith("2 of 3 rows cannot be graded") and "bad:2: `solution` has several lines" in note


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        (
            [("p:1", {"question": "a"})],
            "",
            "p:1: no answer to grade against; .* `answer` or `solution`",
        ),
        ([], "", "no rows to measure"),
        (ROWS, "sums", "--task=sums is not a task"),
        ([("p:1", {"question": "a", "numbers": [1, 2.5], "target": 3})], "countdown", "give whole numbers"),
        ([("p:1", {"solution": "7"})], "gsm8k", "no text `question`"),
    ],
)
def test_a_pool_without_anything_to_grade_is_refused(rows, kind, words):
    with pytest.raises(UserError, match=words):
        graded_lib.graded(rows, kind)


def test_a_student_that_solves_everything_is_named():
    rates = [pass_rate.Rate(4, 4), None, pass_rate.Rate(4, 4)]
    (note,) = difficulty.notes(rates)
    assert "solves all 2 rows in every try" in note and "0 rows remain" in note
    assert difficulty.notes([*rates, pass_rate.Rate(3, 4)]) == []
    (undecided,) = difficulty.notes([pass_rate.Rate(0, 4, 2)])
    assert undecided.startswith("2 of 4 verdicts are undecided")


def test_the_choices_of_a_question_have_one_order_in_any_order_of_rows():
    rows = [
        (
            f"q:{i}",
            {
                "Question": f"Which? {i}",
                "Correct Answer": "right",
                "Incorrect Answer 1": "x",
                "Incorrect Answer 2": "y",
            },
        )
        for i in range(8)
    ]
    one = {p.name: p.row["reference"] for p in graded_lib.graded(rows, "gpqa").problems}
    other = {p.name: p.row["reference"] for p in graded_lib.graded(rows[::-1], "gpqa").problems}
    assert one == other and len(set(one.values())) > 1
