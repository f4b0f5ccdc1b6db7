"""Pass rates from the journal of `s1jax distil`: what is a try, what is right, and what is refused."""

import pytest

from s1jax.curation import answered
from s1jax.curation import graded as graded_lib
from s1jax.data import identity
from s1jax.errors import UserError

ROWS = [(f"pool:{i}", {"question": f"{i} plus 1?", "solution": f"#### {i + 1}"}) for i in range(3)]
BARE = ("pool:3", {"question": "no solution"})


def line(number, answer, content="", state="done", model="small"):
    """A line of the journal about question `number`."""
    row_id = identity.question_id(f"{number} plus 1?")
    return {"id": row_id, "answer": answer, "state": state, "content": content, "endpoint": "http://x", "model": model}


LINES = [
    *(line(0, 0, "Answer: 1"), line(0, 1, "Answer: 2"), line(0, 2, "Answer: 1", "cut"), line(0, 3, state="refused")),
    *(line(1, 0, "It is \\boxed{2}"), line(1, 1, state="failed"), line(7, 0, "Answer: 8", model="elsewhere")),
]


def test_cut_and_refused_answers_are_tries_and_failed_requests_are_none():
    found, notes = answered.rates(graded_lib.graded([*ROWS, BARE], ""), LINES, "runs/tries")
    assert [rate and rate.columns for rate in found] == [
        {"pass_rate": 0.25, "pass_tries": 4},
        {"pass_rate": 1.0, "pass_tries": 1},
        None,
        None,
    ]
    assert notes == [
        "1 of 4 rows have no answer in runs/tries, and get no pass rate.",
        "1 requests of runs/tries have failed; they do not count as tries.",
    ]
    assert answered.rates(graded_lib.graded(ROWS[::-1], ""), LINES[::-1], "x")[0] == found[2::-1]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "runs/tries answers none of the 3 rows"),
        ([line(0, 0, state="failed"), line(7, 0)], "answers none of the 3 rows"),
        ([line(0, 0), line(1, 0, model="large")], r"several students or settings \(large, small\)"),
        ([line(0, 0), line(0, 0)], r"several students or settings \(small\)"),
    ],
)
def test_other_folders_are_refused(lines, words):
    with pytest.raises(UserError, match=words):
        answered.rates(graded_lib.graded(ROWS, ""), lines, "runs/tries")
