"""The column `correct`: the teacher's answer against the solution, in each shape of rows, never against itself."""

import pytest

from s1jax.curation import verdicts
from s1jax.errors import UserError

S1K = {"question": "1+1?", "thinking_trajectories": ["one more"], "attempt": "It is \\boxed{2}."}
OPEN_R1 = {"problem": "1+1?", "generations": ["<think>x</think>Answer: 2", "<think>y</think>Answer: 3"]}
MESSAGES = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>x</think>#### 2"}]


@pytest.mark.parametrize(
    ("row", "kind", "verdict"),
    [
        (S1K | {"solution": "2"}, "", True),
        (S1K | {"solution": "so\n#### 3"}, "", False),
        (S1K | {"answer": "We add.\n#### 2", "correct": False}, "gsm8k", True),
        (S1K | {"answer": 2, "solution": "the answer, see above"}, "", True),
        (OPEN_R1 | {"answer": "2", "solution": "1+1=2"}, "", True),
        ({"messages": MESSAGES, "solution": "2.0"}, "", True),
        ({"messages": MESSAGES, "solution": "12"}, "aime24", False),
        ({"question": "1+1?", "answer": "<think>a</think>Answer: 2", "solution": "3"}, "", False),
        ({"prompt": "1+1?", "completion": "<think>a</think>Answer: 2", "answer": "2"}, "", True),
        (S1K | {"attempt": "Answer: (4-1)*7", "numbers": [4, 1, 7], "target": 21}, "countdown", True),
        (S1K | {"attempt": "Answer: 3*7", "numbers": [4, 1, 7], "target": 21}, "countdown", False),
    ],
)
def test_an_answer_is_compared_with_the_solution(row, kind, verdict):
    assert verdicts.grade([("f:1", row)], kind) == ([verdict], [])


def test_a_teachers_answer_is_not_its_own_solution():
    """The column `answer` holds what the teacher wrote, and there is nothing else."""
    rows = [("f:1", {"question": "1+1?", "answer": "<think>a</think>Answer: 2"}), ("f:2", S1K | {"solution": "2"})]
    found, (note,) = verdicts.grade(rows, "")
    assert found == [None, True]
    assert note.startswith("1 of 2 answers get no verdict; the first: f:1: no answer to grade against")


def test_rows_without_answers_are_refused():
    with pytest.raises(UserError, match=r"none of the 1 answers can be graded; the first: f:1 has neither"):
        verdicts.grade([("f:1", {"question": "1+1?", "solution": "2"})], "")
