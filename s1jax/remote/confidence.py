"""How sure a model is of its own answer, by the log-probabilities of what it sampled.

Measured on one sample: the mean over all sampled tokens, the lowest mean of 16 in a row, the mean of the answer alone.
A `Fit` turns these into the probability that the answer is wrong. It is a logistic regression on problems whose answers
were graded, kept as a JSON file. Windows are short because traces of small models are: DeepConf (arXiv 2508.15260) has
windows of 2,048.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.config import schema
from s1jax.errors import UserError
from s1jax.io import files

WINDOW = 16  # sampled tokens
FEATURES = ("mean", "lowest_window", "answer", "cut")
_AGREES = "agrees"
_FOLDS = 5
_RIDGE = 1.0  # weight of the squared coefficients, in problems; keeps them finite where one feature separates all
_LEAST = 20  # problems of a fit
_QUANTILES = 100


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How sure a model is of one answer. Means are over log-probabilities in nats, of sampled tokens only.

    Attributes:
      mean: over thinking and answer.
      lowest_window: the lowest mean of `WINDOW` tokens in a row; of shorter samples `mean`.
      answer: over the answer.
      cut: whether thinking was cut.
      agrees: whether the answer is that of the same model with fewer waits; None where that is not known.
    """

    mean: float
    lowest_window: float
    answer: float
    cut: bool = False
    agrees: bool | None = None


def measure(logprobs: Sequence[float], forced: Sequence[bool], answer_tokens: int, *, cut: bool = False) -> Confidence:
    """Returns the confidence of one sample; whether it agrees with another is not known.

    Args:
      logprobs: [n] of each token in nats, as in `s1jax.Output`.
      forced: [n], tokens that were forced and not sampled.
      answer_tokens: sampled tokens of the answer, which are the last ones.
      cut: whether thinking was cut.

    Returns:
      The confidence; 0 stands for a mean of nothing.
    """
    sampled = np.asarray(logprobs, np.float64)[~np.asarray(forced, bool)]
    if not sampled.size:
        return Confidence(0.0, 0.0, 0.0, cut)
    mean = float(sampled.mean())
    lowest = mean
    if sampled.size > WINDOW:
        sums = np.cumsum(np.concatenate([[0.0], sampled]))
        lowest = float((sums[WINDOW:] - sums[:-WINDOW]).min() / WINDOW)
    answer = float(sampled[-answer_tokens:].mean()) if answer_tokens else 0.0
    return Confidence(mean, lowest, answer, cut)


@dataclasses.dataclass(frozen=True)
class Fit:
    """P(wrong) = 1 / (1 + exp(-(bias + sum of weight x feature))), with what it was fitted to.

    Attributes:
      features: names of fields of `Confidence`.
      weights: one a feature.
      bias: the constant.
      date: on which it was fitted.
      task: title of the task.
      strategy: of the local samples, such as `no limit`.
      checkpoint: fingerprint of the local model's weights; empty: not known.
      n: number of problems.
      accuracy: share of them that was right, in percent.
      auroc: of P(wrong), each problem scored by a fit to other problems.
      auroc_error: its standard error.
      quantiles: 101 numbers: P(wrong) that 0, 1, ... 100 percent of the problems stay below.
      problems: first 8 hex digits of the SHA-256 of each question, so that nobody tests on them by mistake.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float
    date: str
    task: str
    strategy: str
    checkpoint: str
    n: int
    accuracy: float
    auroc: float
    auroc_error: float
    quantiles: tuple[float, ...]
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (*FEATURES, _AGREES)
        if not self.features or any(name not in known for name in self.features):
            raise UserError(f"features are {self.features!r:.200}; they are names out of {', '.join(known)}.")
        if len(self.weights) != len(self.features):
            raise UserError(f"there are {len(self.weights)} weights for {len(self.features)} features.")
        if len(self.quantiles) != _QUANTILES + 1 or list(self.quantiles) != sorted(self.quantiles):
            raise UserError(f"quantiles are {_QUANTILES + 1} numbers that grow; fit it again.")
        if not all(map(math.isfinite, (*self.weights, self.bias, *self.quantiles))):
            raise UserError("a number is not finite; fit it again.")

    @property
    def needs_agreement(self) -> bool:
        """Whether it can score only samples whose `agrees` is known."""
        return _AGREES in self.features

    def wrong(self, confidence: Confidence) -> float:
        """Returns the probability that the answer is wrong.

        Raises:
          ValueError: the fit needs `agrees`, which is not known.
        """
        x = _matrix([confidence], self.features)[0]
        return float(_logistic(x @ np.asarray(self.weights) + self.bias))

    def threshold(self, share: float) -> float:
        """Returns the P(wrong) that a share (0 to 1) of the fitted problems reaches."""
        return float(np.interp(1 - share, np.linspace(0, 1, _QUANTILES + 1), self.quantiles))


def fit(
    confidences: Sequence[Confidence],
    wrong: Sequence[bool],
    *,
    task: str,
    strategy: str,
    checkpoint: str = "",
    questions: Iterable[str] = (),
    use_agreement: bool = False,
) -> Fit:
    """Fits P(wrong) to problems.

    Args:
      confidences: one a problem.
      wrong: whether its answer was wrong.
      task: title of the task.
      strategy: of the samples.
      checkpoint: fingerprint of the weights.
      questions: one a problem, for `Fit.problems`.
      use_agreement: use `agrees`, which every confidence must know. A server does not know it.

    Raises:
      UserError: see `can_fit`.
    """
    y = np.asarray(wrong, bool)
    if not can_fit(wrong):
        raise UserError(
            f"{len(y)} problems with {int(y.sum())} wrong answers cannot be fitted; give at least {_LEAST}, some right"
            " and some wrong."
        )
    features = (*FEATURES, _AGREES) if use_agreement else FEATURES
    x = _matrix(confidences, features)
    weights, bias = _newton(x, y)
    area, error = auroc(_crossed(x, y).tolist(), y.tolist())
    found = _logistic(x @ weights + bias)
    return Fit(
        features=features,
        weights=tuple(weights.tolist()),
        bias=bias,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        task=task,
        strategy=strategy,
        checkpoint=checkpoint,
        n=len(y),
        accuracy=100 * float(1 - y.mean()),
        auroc=area,
        auroc_error=error,
        quantiles=tuple(np.quantile(found, np.linspace(0, 1, _QUANTILES + 1)).tolist()),
        problems=tuple(digest(question) for question in questions),
    )


def can_fit(wrong: Sequence[bool]) -> bool:
    """Whether there are at least 20 problems, some right and some wrong."""
    return len(wrong) >= _LEAST and any(wrong) and not all(wrong)


def crossed(confidences: Sequence[Confidence], wrong: Sequence[bool], *, use_agreement: bool = False) -> list[float]:
    """Returns P(wrong) of each problem by a fit to other problems: five parts, each scored by a fit to the other four.

    Where the other four parts are all right or all wrong, P(wrong) is their share of wrong answers.
    """
    features = (*FEATURES, _AGREES) if use_agreement else FEATURES
    found: list[float] = _crossed(_matrix(confidences, features), np.asarray(wrong, bool)).tolist()
    return found


def auroc(scores: Sequence[float], wrong: Sequence[bool]) -> tuple[float, float]:
    """Returns how well scores find wrong answers: the area under the ROC curve, and its standard error.

    The area is the probability that a wrong answer has a higher score than a right one; ties count half. The error is
    that of J. A. Hanley and B. J. McNeil, Radiology 143 (1982). Both are NaN where all are right or all are wrong.
    """
    y, s = np.asarray(wrong, bool), np.asarray(scores, np.float64)
    m, n = int(y.sum()), int((~y).sum())
    if not m or not n:
        return math.nan, math.nan
    _, places, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    area = float((ranks[y].sum() - m * (m + 1) / 2) / (m * n))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / (m * n)
    return area, math.sqrt(max(variance, 0.0))


def digest(question: str) -> str:
    """Returns 8 hex digits that stand for a question in `Fit.problems`."""
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()[:8]


def write(fitted: Fit, path: str | os.PathLike[str]) -> None:
    """Writes a fit as a JSON file."""
    files.write_text(path, json.dumps(schema.to_dict(fitted), indent=1) + "\n")


def read(path: str | os.PathLike[str], what: str) -> Fit:
    """Reads the file of a fit.

    Args:
      path: of the file.
      what: its name in messages, such as a flag.

    Raises:
      UserError: the file cannot be read, or it does not contain a fit.
    """
    try:
        values: Any = json.loads(pathlib.Path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise UserError(f"{what}: {path} cannot be read ({reason}); s1jax evaluate with +handoff writes one.") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{what}: {path} is not a JSON object; s1jax evaluate with +handoff writes one.")
    try:
        return schema.from_dict(Fit, values, "fit")
    except UserError as error:
        raise UserError(f"{what}: {path}: {error}") from None


def _matrix(confidences: Sequence[Confidence], features: Sequence[str]) -> np.ndarray:
    """Returns [n, features] float64."""
    if _AGREES in features and any(confidence.agrees is None for confidence in confidences):
        raise ValueError("the fit needs to know whether answers agree")
    return np.array([[float(getattr(each, name)) for name in features] for each in confidences], np.float64)


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


def _newton(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns weights [features] and bias of the ridge logistic regression, by Newton's method on scaled features."""
    shift, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = np.column_stack([(x - shift) / scale, np.ones(len(x))])
    ridge = np.diag([_RIDGE] * x.shape[1] + [1e-9])
    w = np.zeros(z.shape[1])
    for _ in range(100):
        p = _logistic(z @ w)
        gradient = z.T @ (p - y) + ridge @ w
        hessian = (z * (p * (1 - p))[:, None]).T @ z + ridge
        step = np.linalg.solve(hessian, gradient)
        w = w - step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ shift)


def _crossed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = np.zeros(len(y))
    for fold in range(_FOLDS):
        own = np.arange(len(y)) % _FOLDS == fold
        others = y[~own]
        if not len(others) or others.all() or not others.any():
            found[own] = others.mean() if len(others) else 0.5
            continue
        weights, bias = _newton(x[~own], others)
        found[own] = _logistic(x[own] @ weights + bias)
    return found
