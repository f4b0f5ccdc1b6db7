"""Control, Scaling and Performance against hand-computed values and brute-force loops."""

import json
import math
import random

import pytest
import scipy.stats

from s1jax.errors import UserError
from s1jax.evaluation import metrics


def run(tokens, accuracy, problems=100, **more):
    values = dict(
        name=f"{tokens}", label=f"{tokens}", families=("budgets",), parallel=False, problems=problems,
        accuracy=accuracy, error=1.0, thinking_tokens=tokens, answer_tokens=5.0, total_tokens=tokens + 5.0,
        samples=1.0, control=100.0, in_range=True, cut=0.0, seconds=2.0,
    )  # fmt: skip
    return metrics.Run(**{**values, **more})


def test_accuracy_and_its_error_by_hand():
    assert metrics.accuracy([True, False, True, True]) == (75.0, pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4)))
    assert metrics.accuracy([True] * 3) == (100.0, 0.0)
    assert metrics.accuracy([False]) == (0.0, 0.0)


def test_the_error_is_the_spread_of_repeated_draws():
    rng = random.Random(0)
    shares = [sum(rng.random() < 0.3 for _ in range(200)) / 2 for _ in range(4000)]
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    assert metrics.accuracy([True] * 60 + [False] * 140)[1] == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (0, 10), (10, 10), (3, 7), (57, 400), (399, 400)])
def test_wilson_intervals_are_those_of_scipy(right, count):
    reference = scipy.stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    low, high = metrics.wilson(right / count, count)
    assert (low, high) == pytest.approx((100 * reference.low, 100 * reference.high), abs=1e-4)
    assert 0 <= low <= 100 * right / count <= high + 1e-9 <= 100 + 1e-9 and high - low > 0.1


def test_control_by_hand():
    assert metrics.control([0, 5, 10, 11], 0, 10) == 75.0
    assert metrics.control([0, 5, 10, 11], 5, 10) == 50.0
    assert metrics.control([3, 4], [3, 0], [3, 3]) == 50.0
    assert metrics.control([0], 0, 0) == 100.0


def test_control_wants_a_range_for_each_row():
    with pytest.raises(ValueError):
        metrics.control([1, 2, 3], [0, 0], 5)


def test_scaling_by_hand():
    # Slopes 10/100, 30/300 and 20/200 are all 0.1 points a token: 100 points per 1,000 tokens.
    assert metrics.scaling([0, 100, 300], [10, 20, 40]) == pytest.approx(100)
    # Slopes 0.2, 0.0 and -0.2.
    assert metrics.scaling([0, 100, 200], [10, 30, 10]) == pytest.approx(0)
    # Unsorted input, slopes 0.1, 0.075 and 0.05.
    assert metrics.scaling([400, 0, 200], [40, 10, 30]) == pytest.approx(75)
    assert metrics.scaling([1000, 2000], [50, 40]) == pytest.approx(-10)


def test_scaling_against_a_brute_force_loop():
    rng = random.Random(1)
    for _ in range(50):
        count = rng.randint(2, 9)
        tokens = rng.sample(range(5000), count)
        accuracies = [rng.uniform(0, 100) for _ in tokens]
        total, pairs = 0.0, 0
        for a in range(count):
            for b in range(count):
                if tokens[a] < tokens[b]:
                    total += (accuracies[b] - accuracies[a]) / (tokens[b] - tokens[a])
                    pairs += 1
        assert pairs == count * (count - 1) // 2
        assert metrics.scaling(tokens, accuracies) == pytest.approx(1000 * total / pairs)


def test_scaling_leaves_out_pairs_with_equal_tokens():
    assert metrics.scaling([10, 10, 20], [5, 7, 8]) == pytest.approx(1000 * (0.3 + 0.1) / 2)
    assert metrics.scaling([10, 10], [5, 7]) is None


def test_nothing_to_measure():
    assert metrics.scaling([], []) is None
    assert metrics.scaling([5], [50]) is None
    assert metrics.performance([]) is None
    nothing = {"control": None, "control_of_runs": None, "scaling": None, "performance": None}
    assert metrics.metrics([]) == nothing
    assert metrics.metrics([run(5, 50)]) == nothing | {"control": 100.0, "control_of_runs": 100.0, "performance": 50.0}
    unasked = run(5, 50, control=None, in_range=None)
    assert metrics.metrics([unasked]) == nothing | {"performance": 50.0}
    with pytest.raises(UserError, match="at least one problem"):
        metrics.accuracy([])
    with pytest.raises(UserError, match="at least one problem"):
        metrics.control([], 0, 5)


def test_control_of_several_runs_is_over_their_rows():
    runs = [run(0, 10, problems=100, control=50.0, in_range=False), run(100, 20, problems=300, control=100.0)]
    runs.append(run(100, 20, problems=900, control=None, in_range=None))
    found = metrics.metrics(runs)
    assert found == {
        "control": 87.5, "control_of_runs": 50.0, "scaling": pytest.approx(100), "performance": 20
    }  # fmt: skip


def test_families_are_the_curves():
    plain, cut, vote = run(9, 1, families=("budgets", "waits")), run(5, 1), run(20, 1, families=("majority",))
    assert metrics.families([vote, plain, cut]) == {"budgets": [plain, cut], "waits": [plain], "majority": [vote]}
    assert list(metrics.families([])) == ["budgets", "waits"]


def test_a_record_says_what_a_problem_costs():
    record = metrics.record(run(5, 50, families=("waits",), dollars=0.25))
    assert json.loads(json.dumps(record)) == record
    assert (record["budgets"], record["waits"], record["families"]) == (False, True, ["waits"])
    assert record["seconds_per_problem"] == 0.02 and record["dollars_per_problem"] == 0.25
    assert metrics.record(run(5, 50))["dollars_per_problem"] is None
    for given in (run(5, 50), run(5, 50, dollars=0.25, families=("budgets", "waits"), control=None, undecided=2)):
        assert metrics.from_record(json.loads(json.dumps(metrics.record(given)))) == given
