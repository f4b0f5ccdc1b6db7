"""The pool with planted defects: what is planted is what the truth says."""

import collections

import pytest

from s1jax.errors import UserError
from s1jax.tasks.countdown import pool, problems

TEST = problems.problems("test")


def of(planted, *kinds):
    return [one for one in planted if one.kind in kinds]


@pytest.fixture(scope="module")
def planted():
    return pool.make(2000, TEST)


def test_every_row_is_what_the_truth_says(planted):
    counts = collections.Counter(one.kind for one in planted)
    assert counts == {"good": 1120} | {kind: round(share * 2000) for kind, share in pool.SHARES.items()}
    texts = collections.Counter(one.question for one in planted)
    asked = {problem.question: problem for problem in TEST}
    good = {one.question: one.problem for one in of(planted, "good")}
    for one in planted:
        assert one.row["question"] == one.question and one.row["numbers"] == list(one.problem.numbers)
        reachable = one.problem.target in problems.targets(one.problem.numbers)
        assert reachable == (one.kind != "impossible")
        assert (one.target != one.problem.target) == (one.kind == "reference")
        if one.kind in ("good", "easy", "reference", "impossible"):
            assert problems.split_of(one.problem.numbers) == "train" and not one.of
            assert one.question == one.problem.question
        if one.kind == "easy":
            assert len(one.problem.solving) >= 3
        if one.kind in pool.LEAKS + pool.DUPLICATES:
            original = (asked if one.kind in pool.LEAKS else good)[one.of]
            assert (sorted(one.problem.numbers), one.target) == (sorted(original.numbers), original.target)
            assert (one.problem == original) == (not one.kind.startswith("reordered"))
    assert sum(count - 1 for count in texts.values()) == counts["duplicate"]


def test_another_seed_is_another_pool_and_the_same_seed_the_same(planted):
    assert pool.make(2000, TEST) == planted
    other = pool.make(2000, TEST, seed=1)
    assert other != planted and collections.Counter(o.kind for o in other) == collections.Counter(
        o.kind for o in planted
    )


def test_a_pool_that_countdown_has_no_problems_for_is_refused():
    with pytest.raises(UserError, match=r"too few problems for a pool of 9000 rows and 541 of the evaluation"):
        pool.make(9000, TEST)
    with pytest.raises(UserError, match="2000 rows and 5 of"):
        pool.make(2000, TEST[:5])
