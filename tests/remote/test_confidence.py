"""How sure a model is: means against a plain loop, the fit against its defining equations, the file."""

import dataclasses
import json
import math

import numpy as np
import pytest

from s1jax.errors import UserError
from s1jax.remote import confidence
from s1jax.remote.confidence import Confidence


def problems(count=600, seed=0):
    """Confidences, and whether the answer was wrong, drawn from a known logistic model."""
    random = np.random.default_rng(seed)
    found, wrong = [], []
    for _ in range(count):
        mean = -random.exponential(0.3)
        each = Confidence(mean, 3 * mean + random.normal() / 10, random.normal(), bool(random.random() < 0.3), True)
        found.append(each)
        wrong.append(bool(random.random() < 1 / (1 + math.exp(-(-1 - 4 * mean + 1.5 * each.cut)))))
    return found, wrong


def test_the_means_are_of_sampled_tokens_only():
    random = np.random.default_rng(0)
    logprobs, forced = -random.random(60), random.random(60) < 0.3
    forced[-7:] = False
    found = confidence.measure(np.where(forced, 0.0, logprobs).tolist(), forced.tolist(), 7, cut=True)
    sampled = [value for value, skip in zip(logprobs, forced, strict=True) if not skip]
    windows = [sum(sampled[i : i + 16]) / 16 for i in range(len(sampled) - 15)]
    assert found.mean == pytest.approx(sum(sampled) / len(sampled))
    assert found.lowest_window == pytest.approx(min(windows)) and found.lowest_window < found.mean
    assert found.answer == pytest.approx(sum(sampled[-7:]) / 7)
    assert found.cut and found.agrees is None


def test_short_and_empty_samples_have_a_confidence():
    assert confidence.measure([-1.0, -3.0], [False, False], 1) == Confidence(-2, -2, -3)
    assert confidence.measure([0.0], [True], 0) == confidence.measure([], [], 0) == Confidence(0, 0, 0)


def test_the_fit_is_where_the_penalised_likelihood_is_flat():
    found, wrong = problems()
    fit = confidence.fit(found, wrong, task="t", strategy="no limit", checkpoint="f00d")
    x = np.array([[c.mean, c.lowest_window, c.answer, c.cut] for c in found], float)
    p = np.array([fit.wrong(each) for each in found])
    # At the optimum the bias makes the mean of P(wrong) the share of wrong answers; ridge pulls each weight a little.
    assert p.mean() == pytest.approx(np.mean(wrong), abs=1e-9)
    slope = ((x - x.mean(0)) / x.std(0)).T @ (p - wrong)
    assert slope == pytest.approx(-np.array(fit.weights) * x.std(0), abs=1e-6)
    assert fit.n == 600 and fit.accuracy == pytest.approx(100 * (1 - np.mean(wrong)))
    assert np.mean(p >= fit.threshold(0.3)) == pytest.approx(0.3, abs=0.01)
    assert not fit.needs_agreement


def test_a_feature_that_separates_everything_gives_finite_weights():
    found = [Confidence(-float(i % 2), 0.0, 0.0) for i in range(40)]
    fit = confidence.fit(found, [bool(i % 2) for i in range(40)], task="t", strategy="s")
    assert fit.auroc == 1 and fit.wrong(found[1]) > 0.9 > 0.1 > fit.wrong(found[0])


def test_cross_fitted_scores_do_not_know_their_own_answers():
    found, _ = problems(200)
    random = np.random.default_rng(1).random(200) < 0.5  # nothing to find
    scores = confidence.crossed(found, random.tolist())
    again = random.copy()
    again[0::5] = ~again[0::5]
    assert confidence.crossed(found, again.tolist())[0::5] == pytest.approx(scores[0::5])
    area, error = confidence.auroc(scores, random.tolist())
    assert abs(area - 0.5) < 4 * error


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    random = np.random.default_rng(2)
    scores, wrong = random.integers(0, 6, 50).tolist(), (random.random(50) < 0.4).tolist()
    pairs = [(a > b) + (a == b) / 2 for a, w in zip(scores, wrong, strict=True) if w
             for b, v in zip(scores, wrong, strict=True) if not v]  # fmt: skip
    assert confidence.auroc(scores, wrong)[0] == pytest.approx(np.mean(pairs))
    assert math.isnan(confidence.auroc([1, 2], [True, True])[0])


def test_a_file_gives_the_same_fit(tmp_path):
    found, wrong = problems(100)
    fit = confidence.fit(found, wrong, task="t", strategy="s", questions=["a", "b"], use_agreement=True)
    confidence.write(fit, tmp_path / "fit.json")
    assert confidence.read(tmp_path / "fit.json", "--fit") == fit and fit.needs_agreement
    assert fit.problems == (confidence.digest("a"), confidence.digest("b"))
    with pytest.raises(ValueError, match="whether answers agree"):
        fit.wrong(dataclasses.replace(found[0], agrees=None))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": [1.0]}, "1 weights for 4 features"),
        ({"features": ["mean", "x", "answer", "cut"]}, "names out of mean"),
        ({"quantiles": [0.0]}, "101 numbers"),
        ({"bias": "much"}, "bias"),
        ({"more": 1}, "fit.more is not a setting"),
        ({"bias": float("nan")}, "not finite"),
        (None, "not a JSON object"),
        (b"{", "not JSON"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, change, says):
    fit = confidence.fit(*problems(50), task="t", strategy="s")
    values = dataclasses.asdict(fit) | change if isinstance(change, dict) else change
    (tmp_path / "f.json").write_bytes(change if isinstance(change, bytes) else json.dumps(values).encode())
    with pytest.raises(UserError, match=says) as caught:
        confidence.read(tmp_path / "f.json", "--handoff")
    assert "--handoff" in str(caught.value) and "f.json" in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        confidence.read(tmp_path / "none.json", "--handoff")


def test_a_fit_needs_right_and_wrong_answers():
    found, wrong = problems(30)
    for given in ((found[:5], wrong[:5]), (found, [True] * 30), (found, [False] * 30)):
        with pytest.raises(UserError, match="cannot be fitted"):
            confidence.fit(*given, task="t", strategy="s")
