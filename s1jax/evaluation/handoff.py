"""How well a score of the local answer chooses the questions that go to a remote model: accuracy against dollars.

Every problem has a local and a remote answer, both graded. The questions with the highest scores (most surely wrong)
are handed off, from none to all. AUROC says how well the score finds wrong answers. APGR (average performance gap
recovered, of RouteLLM, arXiv 2406.18665) is the mean over all shares of (accuracy - local) / (remote - local): 0.5 for
random mixing. It can exceed 1, because a mixture can be better than the remote alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.errors import UserError
from s1jax.evaluation import metrics
from s1jax.evaluation.outcomes import Outcome
from s1jax.evaluation.remote import RemoteEngine
from s1jax.evaluation.strategies import Strategy
from s1jax.remote import confidence
from s1jax.remote.confidence import Confidence, Fit
from s1jax.tasks.task import Task

MEAN, ANSWER = "mean log-probability", "log-probability of the answer"
FITTED, AGREEING, GIVEN = "fit", "fit with agreement", "given fit"
_BOOTSTRAPS = 400
_SHARES = 20  # of the curve in results.json, from 0 to 1


@dataclasses.dataclass(frozen=True)
class Price:
    """USD per million tokens of prompts and of outputs. Thinking is output."""

    prompt: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= number < math.inf for number in (self.prompt, self.output)):
            raise UserError(f"a price is {self.prompt}, {self.output}; give USD per million tokens, 0 or more.")

    def of(self, prompt_tokens: float, output_tokens: float) -> float:
        """Returns the price of a sample in USD."""
        return (prompt_tokens * self.prompt + output_tokens * self.output) / 1e6


@dataclasses.dataclass(frozen=True)
class Setup:
    """Whom questions are handed to, and for how much.

    Attributes:
      remote: the strategy whose samples are the remote's: one of the same checkpoint, or one with `Strategy.remote`.
      local_price: of the local model; what a machine costs by the hour comes on top.
      remote_price: of the remote.
      fit: made on other problems; None: each problem is scored by a fit to the others.
      engine: asks the endpoint of a remote with `Strategy.remote`.
    """

    remote: Strategy
    local_price: Price = Price()
    remote_price: Price = Price()
    fit: Fit | None = None
    engine: RemoteEngine | None = None

    @property
    def has_price(self) -> bool:
        """Whether anything has a price."""
        return Price() != self.local_price or Price() != self.remote_price


@dataclasses.dataclass(frozen=True)
class Side:
    """The answers of one model to all problems.

    Attributes:
      name: of its run.
      right: bool [n].
      dollars: float64 [n], of each answer.
      thinking: float64 [n], thinking tokens.
      answering: float64 [n], answer tokens.
      cut: bool [n], whether thinking was cut.
    """

    name: str
    right: np.ndarray
    dollars: np.ndarray
    thinking: np.ndarray
    answering: np.ndarray
    cut: np.ndarray


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good a score is, with standard errors: AUROC's by Hanley and McNeil, APGR's by a bootstrap over problems."""

    auroc: float
    auroc_error: float
    apgr: float
    apgr_error: float


@dataclasses.dataclass(frozen=True)
class Study:
    """A local strategy beside a remote.

    Attributes:
      local: its answers.
      remote: those of the remote.
      score: name of the score that hands off.
      scores: of each name, float64 [n]: the higher, the more surely the local answer is wrong.
      fit: to all problems, for a server; None where they cannot be fitted.
    """

    local: Side
    remote: Side
    score: str
    scores: Mapping[str, np.ndarray]
    fit: Fit | None

    def order(self, name: str = "") -> np.ndarray:
        """Returns the problems in the order in which a score hands them off; by default that of the study."""
        return np.argsort(-self.scores[name or self.score], kind="stable")

    def oracle(self) -> np.ndarray:
        """Returns the order of who knows all verdicts: gains first, losses last, and the dearest last among equals."""
        gain = self.remote.right.astype(int) - self.local.right.astype(int)
        return np.lexsort((self.remote.dollars, -gain))

    def curve(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns accuracy in percent and USD per problem, float64 [n + 1], for 0 to n problems handed off.

        The local answer is paid for in any case, because its score decides.
        """
        gain = (self.remote.right.astype(float) - self.local.right.astype(float))[order]
        count = len(order)
        accuracy = 100 * (self.local.right.mean() + np.concatenate([[0.0], np.cumsum(gain)]) / count)
        more = np.concatenate([[0.0], np.cumsum(self.remote.dollars[order])]) / count
        return accuracy, self.local.dollars.mean() + more

    def quality(self, name: str = "") -> Quality:
        """Returns how good a score is."""
        scores = self.scores[name or self.score]
        area, error = confidence.auroc(scores.tolist(), (~self.local.right).tolist())
        random = np.random.default_rng(0)
        count = len(scores)
        draws = [random.integers(0, count, count) for _ in range(_BOOTSTRAPS)]
        each = (apgr(scores[draw], self.local.right[draw], self.remote.right[draw]) for draw in draws)
        again = [value for value in each if math.isfinite(value)]
        own = apgr(scores, self.local.right, self.remote.right)
        return Quality(area, error, own, float(np.std(again)) if again else math.nan)

    def at(self, share: float) -> dict[str, float]:
        """Returns accuracies in percent and USD per problem where a share is handed off; the counts are rounded."""
        count = round(share * len(self.local.right))
        accuracy, dollars = self.curve(self.order())
        best, _ = self.curve(self.oracle())
        exact = count / len(self.local.right)
        return {
            "share": exact,
            "accuracy": float(accuracy[count]),
            "random": float((1 - exact) * accuracy[0] + exact * accuracy[-1]),
            "oracle": float(best[count]),
            "dollars": float(dollars[count]),
        }

    def dollars_for(self, part: float = 0.95) -> float | None:
        """Returns the USD per problem at which the mixture first has this part of the remote's accuracy, if ever."""
        accuracy, dollars = self.curve(self.order())
        enough = np.flatnonzero(accuracy >= part * accuracy[-1] - 1e-9)
        return float(dollars[enough[0]]) if enough.size else None

    def record(self) -> dict[str, Any]:
        """Returns the study as JSON values."""
        accuracy, dollars = self.curve(self.order())
        best, _ = self.curve(self.oracle())
        gain = self.remote.right.astype(float) - self.local.right.astype(float)
        return {
            "local": self.local.name,
            "remote": self.remote.name,
            "problems": len(self.local.right),
            "score": self.score,
            "scores": {name: _rounded(dataclasses.asdict(self.quality(name))) for name in self.scores},
            "oracle_apgr": _round(apgr(gain, self.local.right, self.remote.right)),
            "always_local": {"accuracy": _round(accuracy[0]), "dollars": float(dollars[0])},
            "always_remote": {"accuracy": _round(accuracy[-1]), "dollars": float(self.remote.dollars.mean())},
            "oracle": {"accuracy": _round(best.max())},
            "dollars_at_95_percent_of_remote": self.dollars_for(),
            "curve": [_rounded(self.at(i / _SHARES)) for i in range(_SHARES + 1)],
        }


def apgr(scores: np.ndarray, local: np.ndarray, remote: np.ndarray) -> float:
    """Returns the average performance gap recovered, see the module's text; NaN where both are equally accurate.

    Args:
      scores: [n], handed off from the highest down.
      local: bool [n], whether the local answer is right.
      remote: bool [n], likewise.
    """
    gain = (remote.astype(float) - local.astype(float))[np.argsort(-scores, kind="stable")]
    recovered = np.concatenate([[0.0], np.cumsum(gain)])
    if not recovered[-1]:
        return math.nan
    trapezoid = (recovered.sum() - (recovered[0] + recovered[-1]) / 2) / len(gain)
    return float(trapezoid / recovered[-1])


def sampled(chosen: Sequence[Strategy], setup: Setup | None, wait: str) -> list[Strategy]:
    """Returns the strategies to sample: those of `chosen` without a hand-off, local ones of the others, the remote.

    Raises:
      UserError: a strategy hands off, but no remote is given; a remote is given, but no strategy hands off; or the
        given strategy cannot be the remote.
    """
    asking = [strategy for strategy in chosen if strategy.handoff is not None]
    if not asking:
        if setup is not None:
            raise UserError("a remote is given, but no strategy hands off; add +handoff:q=0.3 to one, or drop it.")
        return list(chosen)
    if setup is None:
        name = asking[0].name(wait)
        raise UserError(f'"{name}" hands off, but to nobody; name a remote: an endpoint or another strategy.')
    if setup.remote.handoff is not None or setup.remote.selection is not None:
        raise UserError(f'"{setup.remote.name(wait)}" cannot be the remote; give a strategy with one sample a problem.')
    found: list[Strategy] = []
    for strategy in (*chosen, setup.remote):
        local = dataclasses.replace(strategy, handoff=None)
        if local not in found:
            found.append(local)
    if any(dataclasses.replace(strategy, handoff=None) == setup.remote for strategy in asking):
        raise UserError(f'"{setup.remote.name(wait)}" hands off to itself; give another remote.')
    return found


def cheaper(local: Strategy, others: Sequence[Strategy]) -> Strategy | None:
    """Returns the strategy with the next fewer waits and all else equal, whose answers agree or not; None if none."""
    fewer = [
        other
        for other in others
        if other.forcing.num_waits < local.forcing.num_waits
        and _with_waits(other, 0) == _with_waits(local, 0)
        and (other.forcing.wait == local.forcing.wait or not other.forcing.num_waits)
    ]
    return max(fewer, key=lambda other: other.forcing.num_waits, default=None)


def _with_waits(strategy: Strategy, count: int) -> Strategy:
    return dataclasses.replace(strategy, forcing=dataclasses.replace(strategy.forcing, num_waits=count, wait=None))


def side(name: str, outcomes: Sequence[Outcome], price: Price, prompts: Sequence[int], seconds_usd: float = 0) -> Side:
    """Returns the answers of one run.

    Args:
      name: of the run.
      outcomes: one a problem, of one sample each.
      price: per million tokens.
      prompts: tokens of each prompt, where the sample does not know what it was billed for.
      seconds_usd: what the machine has cost for a problem, in USD.
    """
    dollars = []
    for outcome, prompt in zip(outcomes, prompts, strict=True):
        sample = outcome.samples[0]
        usage = sample.get("usage") or {}
        tokens = usage.get("completion_tokens", sample["thinking_tokens"] + sample["answer_tokens"])
        own = usage.get("cost")
        dollars.append(price.of(usage.get("prompt_tokens", prompt), tokens) if own is None else own)
    return Side(
        name,
        np.array([outcome.right for outcome in outcomes], bool),
        np.array(dollars, np.float64) + seconds_usd,
        np.array([outcome.samples[0]["thinking_tokens"] for outcome in outcomes], np.float64),
        np.array([outcome.samples[0]["answer_tokens"] for outcome in outcomes], np.float64),
        np.array([outcome.samples[0]["thinking_end"] == "cut" for outcome in outcomes], bool),
    )


def confidences(task: Task, outcomes: Sequence[Outcome], fewer: Sequence[Outcome] | None) -> list[Confidence]:
    """Returns the confidence of each answer; `fewer` are the outcomes of the run with fewer waits, if there is one."""
    found = []
    for i, outcome in enumerate(outcomes):
        sample = outcome.samples[0]
        agrees = None
        if fewer is not None:
            mine, other = (task.answer(each.samples[0]["answer"], task.rows[i]) for each in (outcome, fewer[i]))
            agrees = mine is not None and other is not None and task.same(mine, other)
        cut = sample["thinking_end"] == "cut"
        found.append(Confidence(**sample["confidence"], cut=cut, agrees=agrees))
    return found


def study(
    local: Side, remote: Side, sure: Sequence[Confidence], task: Task, checkpoint: str, given: Fit | None
) -> Study:
    """Scores the answers of a local run.

    Without a given fit the score is P(wrong), each problem scored by a fit to others; where nothing can be fitted, it
    is the mean log-probability of all tokens.

    Args:
      local: its answers.
      remote: those of the remote.
      sure: of each local answer.
      task: the problems.
      checkpoint: fingerprint of the local weights, for the file of the fit.
      given: a fit made on other problems.

    Raises:
      UserError: the given fit was made on a problem that is tested, or it needs agreement that is not known.
    """
    wrong = (~local.right).tolist()
    scores = {
        name: -np.array([getattr(each, kind) for each in sure]) for name, kind in ((MEAN, "mean"), (ANSWER, "answer"))
    }
    agreement = all(each.agrees is not None for each in sure)
    questions = [row["question"] for row in task.rows]
    fitted, name = None, MEAN
    if confidence.can_fit(wrong):
        fitted = confidence.fit(
            sure, wrong, task=task.title, strategy=local.name, checkpoint=checkpoint, questions=questions
        )
        scores[FITTED], name = np.array(confidence.crossed(sure, wrong)), FITTED
        if agreement:
            scores[AGREEING] = np.array(confidence.crossed(sure, wrong, use_agreement=True))
    if given is not None:
        known = set(given.problems)
        shared = sum(confidence.digest(question) in known for question in questions)
        if shared:
            raise UserError(
                f"{shared} of the {len(questions)} problems are among those of the fit; test on others, or leave the"
                " fit out."
            )
        if given.needs_agreement and not agreement:
            raise UserError(f'the fit needs a run with fewer waits beside "{local.name}"; add one to the strategies.')
        scores[GIVEN], name = np.array([given.wrong(each) for each in sure]), GIVEN
    return Study(local, remote, name, scores, fitted)


def studies(
    chosen: Sequence[Strategy],
    outcomes: Mapping[Strategy, Sequence[Outcome]],
    setup: Setup,
    task: Task,
    prompts: Sequence[int],
    machine_usd: Mapping[Strategy, float],
    checkpoint: str,
    wait: str,
) -> dict[Strategy, Study]:
    """Returns the study of every local strategy of `chosen`, by that strategy.

    Args:
      chosen: strategies, some with a hand-off.
      outcomes: of every sampled strategy, one a problem.
      setup: whom questions are handed to.
      task: the problems.
      prompts: tokens of each prompt.
      machine_usd: of each strategy, what the machine has cost for a problem.
      checkpoint: fingerprint of the local weights.
      wait: the string of strategies that name none.

    Raises:
      UserError: see `study`.
    """
    away = side(setup.remote.name(wait), outcomes[setup.remote], setup.remote_price, prompts)
    found = {}
    for strategy in chosen:
        local = dataclasses.replace(strategy, handoff=None)
        if strategy.handoff is None or local in found:
            continue
        fewer = cheaper(local, [other for other in outcomes if not other.remote])
        sure = confidences(task, outcomes[local], None if fewer is None else outcomes[fewer])
        here = side(local.name(wait), outcomes[local], setup.local_price, prompts, machine_usd[local])
        found[local] = study(here, away, sure, task, checkpoint, setup.fit)
    return found


def run(found: Study, strategy: Strategy, wait: str, seconds: float, has_price: bool) -> metrics.Run:
    """Returns the line of a strategy with a hand-off in the table.

    Args:
      found: of its local strategy.
      strategy: with the hand-off.
      wait: the string of strategies that name none.
      seconds: that local sampling took.
      has_price: whether the dollars mean something.
    """
    assert strategy.handoff is not None
    count = round(strategy.handoff * len(found.local.right))
    away = np.zeros(len(found.local.right), bool)
    away[found.order()[:count]] = True
    right = np.where(away, found.remote.right, found.local.right)
    accuracy, error = metrics.accuracy(right.tolist())
    both = found.local.thinking + found.local.answering + away * (found.remote.thinking + found.remote.answering)
    return metrics.Run(
        name=strategy.name(wait),
        label=strategy.label(wait),
        families=strategy.families(wait),
        parallel=False,
        problems=len(right),
        accuracy=accuracy,
        error=error,
        thinking_tokens=float((found.local.thinking + away * found.remote.thinking).mean()),
        answer_tokens=float(np.where(away, found.remote.answering, found.local.answering).mean()),
        total_tokens=float(both.mean()),
        samples=1 + float(away.mean()),
        control=None,
        in_range=None,
        cut=100 * float(np.where(away, found.remote.cut, found.local.cut).mean()),
        seconds=seconds,
        dollars=float((found.local.dollars + away * found.remote.dollars).mean()) if has_price else None,
    )


def _round(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if name == "dollars" else _round(value) for name, value in values.items()}
