"""Control, Scaling and Performance against hand-computed values and brute-force loops; the plot is a picture."""

import math
import random

import pytest

from s1jax.config import InputError
from s1jax.evaluate import scaling


def run(tokens, accuracy, problems=100, **more):
    values = dict(
        name=f"{tokens}", budgets=True, waits=False, problems=problems, accuracy=accuracy, error=1.0,
        thinking_tokens=tokens, answer_tokens=5.0, control=100.0, cut=0.0, seconds=1.0,
    )  # fmt: skip
    return scaling.Run(**{**values, **more})


def test_accuracy_and_its_error_by_hand():
    assert scaling.accuracy([True, False, True, True]) == (75.0, pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4)))
    assert scaling.accuracy([True] * 3) == (100.0, 0.0)
    assert scaling.accuracy([False]) == (0.0, 0.0)


def test_the_error_is_the_spread_of_repeated_draws():
    rng = random.Random(0)
    shares = [sum(rng.random() < 0.3 for _ in range(200)) / 2 for _ in range(4000)]
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    assert scaling.accuracy([True] * 60 + [False] * 140)[1] == pytest.approx(spread, rel=0.05)


def test_control_by_hand():
    assert scaling.control([0, 5, 10, 11], 0, 10) == 75.0
    assert scaling.control([0, 5, 10, 11], 5, 10) == 50.0
    assert scaling.control([3, 4], [3, 0], [3, 3]) == 50.0
    assert scaling.control([0], 0, 0) == 100.0


def test_control_wants_a_range_for_each_row():
    with pytest.raises(ValueError):
        scaling.control([1, 2, 3], [0, 0], 5)


def test_scaling_by_hand():
    # Slopes 10/100, 30/300 and 20/200 are all 0.1 points a token: 100 points per 1,000 tokens.
    assert scaling.scaling([0, 100, 300], [10, 20, 40]) == pytest.approx(100)
    # Slopes 0.2, 0.0 and -0.2.
    assert scaling.scaling([0, 100, 200], [10, 30, 10]) == pytest.approx(0)
    # Unsorted input, slopes 0.1, 0.075 and 0.05.
    assert scaling.scaling([400, 0, 200], [40, 10, 30]) == pytest.approx(75)
    assert scaling.scaling([1000, 2000], [50, 40]) == pytest.approx(-10)


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
        assert scaling.scaling(tokens, accuracies) == pytest.approx(1000 * total / pairs)


def test_scaling_leaves_out_pairs_with_equal_tokens():
    assert scaling.scaling([10, 10, 20], [5, 7, 8]) == pytest.approx(1000 * (0.3 + 0.1) / 2)
    assert scaling.scaling([10, 10], [5, 7]) is None


def test_nothing_to_measure():
    assert scaling.scaling([], []) is None
    assert scaling.scaling([5], [50]) is None
    assert scaling.performance([]) is None
    assert scaling.metrics([]) == {"control": None, "scaling": None, "performance": None}
    assert scaling.metrics([run(5, 50)]) == {"control": 100.0, "scaling": None, "performance": 50.0}
    with pytest.raises(InputError, match="at least one problem"):
        scaling.accuracy([])
    with pytest.raises(InputError, match="at least one problem"):
        scaling.control([], 0, 5)


def test_control_of_several_runs_is_over_their_rows():
    runs = [run(0, 10, problems=100, control=50.0), run(100, 20, problems=300, control=100.0)]
    assert scaling.metrics(runs) == {"control": 87.5, "scaling": pytest.approx(100), "performance": 20}


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("accuracy", [0.0, 40.0])
def test_the_plot_is_a_picture_of_some_size(tmp_path, count, accuracy):
    runs = [run(20 * i, accuracy + i if accuracy else 0.0, waits=i % 2 == 0, budgets=i % 3 == 0) for i in range(count)]
    scaling.plot(runs, tmp_path / "scaling.png", "a model on a task, 100 problems", wait="Wait")
    picture = (tmp_path / "scaling.png").read_bytes()
    width, height = (int.from_bytes(picture[i : i + 4]) for i in (16, 20))
    assert picture.startswith(b"\x89PNG") and width > 1000 and height > 600
