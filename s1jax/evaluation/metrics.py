"""The paper's three figures of test-time scaling: Control, Scaling, Performance.

A *run* is one strategy over all problems: thinking cut at 32 tokens, for example, or "Wait" twice. Accuracies are
percentages. Control is a percentage of samples. Scaling is the gain of accuracy in percentage points per 1,000 thinking
tokens. Source: "s1: Simple test-time scaling" (arXiv 2501.19393), section 3.2.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from s1jax.errors import UserError

_Z95 = 1.959964  # 97.5 % quantile of the normal distribution

# One number for all samples, or one a sample.
Bound = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class Run:
    """One strategy over all problems. Tokens and costs are means over problems.

    Attributes:
      name: as in tables, for example `cut at 32` or `Wait x2`.
      label: next to the point of the plot; the legend says the rest.
      families: the curves that the run is a point of. `budgets` is thinking cut at growing budgets, `waits` a growing
        number of waits. The run without any control belongs to both.
      parallel: compute goes into more samples, not into longer ones.
      problems: number of problems.
      accuracy: percentage of problems answered correctly.
      error: one binomial standard error of `accuracy`, in percentage points.
      thinking_tokens: of the sample that counts, or of all samples if all vote: the place on the curve.
      answer_tokens: of the same samples.
      total_tokens: thinking and answers of all samples, including rejected ones.
      samples: number of samples drawn.
      control: percentage of those samples whose thinking tokens are within the range asked for; None without a range.
      in_range: whether their mean is, which is what the paper counts; None without a range.
      cut: percentage of those samples whose thinking was cut instead of ended by the model.
      seconds: wall-clock time of sampling, over all problems, without loading and compiling.
      dollars: for one problem; None if no price is known.
      undecided: problems whose answer counts as not right because its comparison did not end.
    """

    name: str
    label: str
    families: tuple[str, ...]
    parallel: bool
    problems: int
    accuracy: float
    error: float
    thinking_tokens: float
    answer_tokens: float
    total_tokens: float
    samples: float
    control: float | None
    in_range: bool | None
    cut: float
    seconds: float
    dollars: float | None = None
    undecided: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`, in percent."""
        return wilson(self.accuracy / 100, self.problems)


class Metrics(TypedDict):
    """The paper's figures of some runs, each None if it is not defined for them.

    `control` (%) is over the problems of all runs, `control_of_runs` (%) over the runs by their means, as in the
    paper's table 3. `scaling` is in percentage points per 1,000 thinking tokens, `performance` in %.
    """

    control: float | None
    control_of_runs: float | None
    scaling: float | None
    performance: float | None


def record(run: Run) -> dict[str, Any]:
    """Returns a run as JSON values, with its 95 % interval, its place in the two curves and its costs."""
    values = dataclasses.asdict(run)
    dollars = values.pop("dollars")
    return {
        **values,
        "interval": list(run.interval),
        "families": list(run.families),
        "budgets": "budgets" in run.families,
        "waits": "waits" in run.families,
        "seconds_per_problem": run.seconds / run.problems,
        "dollars_per_problem": dollars,
    }


def from_record(values: Mapping[str, Any]) -> Run:
    """Returns the run that `record` gave these JSON values for.

    Raises:
      KeyError: a value is missing.
      TypeError: likewise, or the families are not a list.
    """
    names = {field.name for field in dataclasses.fields(Run)} - {"families", "dollars"}
    given = {name: value for name, value in values.items() if name in names}
    return Run(**given, families=tuple(values["families"]), dollars=values.get("dollars_per_problem"))


def accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """Returns the percentage of True and its binomial standard error, 100 sqrt(p (1 - p) / n).

    The error describes the choice of problems. It is 0 if all answers are right or all are wrong; `wilson` gives a
    sensible interval for these.

    Raises:
      UserError: there are no answers.
    """
    if not right:
        raise UserError("There are no answers to grade; give at least one problem.")
    share = sum(map(bool, right)) / len(right)
    return 100 * share, 100 * math.sqrt(share * (1 - share) / len(right))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval, in percent.

    Unlike the standard error it has a width for 0 of 10 and stays between 0 and 100. Source: E. B. Wilson, "Probable
    inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
      share: right answers / all answers, in [0, 1].
      count: number of answers, at least 1.
    """
    squared = _Z95**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(share * (1 - share) * squared + squared**2 / 4) / (1 + squared)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def control(thinking_tokens: Sequence[int], least: Bound, most: Bound) -> float:
    """Returns Control: the percentage of samples whose thinking tokens are in [least, most], both ends included.

    Args:
      thinking_tokens: one count a sample.
      least: fewest tokens asked for, one number for all samples or one a sample.
      most: as `least`, the most tokens asked for.

    Raises:
      UserError: there are no samples.
    """
    if not thinking_tokens:
        raise UserError("There are no samples to compute Control from; give at least one problem.")
    lows = [least] * len(thinking_tokens) if isinstance(least, (int, float)) else least
    highs = [most] * len(thinking_tokens) if isinstance(most, (int, float)) else most
    inside = [low <= count <= high for low, count, high in zip(lows, thinking_tokens, highs, strict=True)]
    return 100 * sum(inside) / len(inside)


def scaling(tokens: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Returns Scaling: the mean slope over all pairs of runs, in percentage points per 1,000 thinking tokens.

    All pairs have the same weight, however close their runs are. A pair with equal tokens has no slope and is left out.

    Args:
      tokens: x of each run, its average thinking tokens, in any order.
      accuracies: f of each run, in percent.

    Returns:
      the mean slope; None if no pair has one, because there are fewer than two runs or all have equal tokens.
    """
    runs = sorted(zip(tokens, accuracies, strict=True))
    slopes = [(fb - fa) / (xb - xa) for (xa, fa), (xb, fb) in itertools.combinations(runs, 2) if xb > xa]
    return 1000 * sum(slopes) / len(slopes) if slopes else None


def performance(accuracies: Sequence[float]) -> float | None:
    """Returns Performance: the best accuracy of any run; None if there is no run."""
    return max(accuracies, default=None)


def metrics(runs: Sequence[Run]) -> Metrics:
    """Returns the figures of `runs`. Runs without a range of thinking tokens do not count in Control."""
    asked = [run for run in runs if run.control is not None]
    rows = sum(run.problems for run in asked)
    return {
        "control": sum((run.control or 0) * run.problems for run in asked) / rows if rows else None,
        "control_of_runs": 100 * sum(bool(run.in_range) for run in asked) / len(asked) if asked else None,
        "scaling": scaling([run.thinking_tokens for run in runs], [run.accuracy for run in runs]),
        "performance": performance([run.accuracy for run in runs]),
    }


def families(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs of each curve: budgets and waits always, then the others in order of appearance."""
    found: dict[str, list[Run]] = {"budgets": [], "waits": []}
    for run in runs:
        for family in run.families:
            found.setdefault(family, []).append(run)
    return found
