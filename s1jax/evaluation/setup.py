"""Checks what an evaluation is asked for, before it begins."""

from __future__ import annotations

import dataclasses
import pathlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.errors import UserError
from s1jax.evaluation import handoff as handoff_lib
from s1jax.evaluation import strategies as strategies_lib
from s1jax.evaluation.runner import Engine, Plan
from s1jax.evaluation.strategies import Strategy
from s1jax.io import journal as journal_lib
from s1jax.io import paths
from s1jax.io.journals import ALONE, Journals, Share
from s1jax.tasks import benchmarks
from s1jax.tasks.task import Task
from s1jax.text import chat, written

if TYPE_CHECKING:
    import os

    from s1jax.checkpoint.store import Metadata, Model
    from s1jax.engine.description import Description

# These entered SamplingParams later than the first results. At their defaults they leave fingerprints alone.
_LATER_PARAMS = ("repetition_penalty", "stop", "n", "max_completion_tokens", "reasoning_effort")


@dataclasses.dataclass(frozen=True)
class Setup:
    """An evaluation that is checked and not begun.

    Attributes:
      plan: what to sample.
      wanted: the strategies that were asked for; those of `plan` are what has to be sampled for them.
      folder: for the results; it exists.
      described: what it is sampled with.
      settings: for results.json.
      run: fingerprint of the evaluation.
    """

    plan: Plan
    wanted: Sequence[Strategy]
    folder: pathlib.Path
    described: Description
    settings: dict[str, Any]
    run: str

    def open_journals(self, share: Share) -> Journals:
        """Opens the journals of the evaluation; all its processes call this at the same place."""
        path = self.folder / "samples.journal"
        if share == ALONE:
            return Journals(path, self.run, share)
        from s1jax.parallel import shares  # needs jax, which has connected the processes

        return shares.open_journals(path, self.run, share)


def check(
    engine: Engine,
    task: Task | str,
    strategies: Iterable[Strategy | str],
    out: str | os.PathLike[str],
    params: SamplingParams | None,
    allow_untrained: bool,
    handoff: handoff_lib.Setup | None,
    asked: Mapping[str, Any] | None,
    note: Callable[[str], None],
) -> Setup:
    """Checks the arguments of `s1jax.evaluation.evaluate.evaluate`, which explains them, and makes the folder."""
    task = benchmarks.load(task) if isinstance(task, str) else task
    params = _params(params, task)
    wanted = strategies_lib.distinct(strategies, params.wait)
    chosen = handoff_lib.sampled(wanted, handoff, params.wait)
    strategies_lib.check(chosen, params)
    folder = paths.local(out, "out")
    if engine.model is None:
        raise UserError("this engine was made from weights alone; make it from a checkpoint to evaluate it.")
    if not allow_untrained:
        _check_trained(chosen, params.wait, strategies_lib.trained_for(engine.model.provenance))
    for sentence in (*task.notes, *_written(engine.model, task, chosen, params.wait)):
        note(sentence)
    questions = [_questions(strategy, task, engine.model, params.wait) for strategy in chosen]
    plan = Plan(task, params, chosen, questions, handoff.engine if handoff else None)
    _make_folder(folder)
    described = engine.describe()
    if not described.weights:
        note("the engine's weights come from no checkpoint, so a stopped evaluation cannot be resumed")
    asked = _asked(described, plan, wanted) if asked is None else asked
    settings = {
        "asked": asked,
        "dtype": described.dtype,
        "checkpoint": engine.model.provenance,
        "step": described.step,
        "weights": described.weights,
    }
    rows, names = plan.rows()
    engine.check(rows_lib.requests(rows, params, names), params)
    return Setup(plan, wanted, folder, described, settings, _fingerprint(asked, described, plan))


def _params(given: SamplingParams | None, task: Task) -> SamplingParams:
    if given is None:
        return SamplingParams(max_thinking_tokens=task.max_thinking_tokens, max_answer_tokens=task.max_answer_tokens)
    rows_lib.check_params(given)
    if given.n > 1:
        raise UserError(f"n is {given.n}, but an evaluation asks for its samples itself; write majority:{given.n}.")
    return given


def _check_trained(chosen: Sequence[Strategy], wait: str, trained: str) -> None:
    """Raises if the instruction of a strategy is one that the checkpoint was not trained to follow."""
    for strategy in chosen:
        control = strategy.instruction.control if strategy.instruction else trained
        if control != trained:
            raise UserError(
                f'"{strategy.name(wait)}" needs a checkpoint trained with config.data.control={control}, and this one'
                f" was trained {f'with {trained}' if trained else 'without any'}; train one, or ask it all the same"
                " with allow_untrained."
            )


def _written(about: Metadata | Model, task: Task, chosen: Sequence[Strategy], wait: str) -> list[str]:
    """Returns a sentence on questions that hold special tokens as text, if there are any."""
    waits = "\n".join(dict.fromkeys(s.forcing.wait or "" for s in chosen)) + f"\n{wait}"
    texts = ((task.place(i), f"{row['question']}\n{row.get('system', '')}\n{waits}") for i, row in enumerate(task.rows))
    return written.notes(about.tokenizer, about.chat, texts, "sent")


def _questions(strategy: Strategy, task: Task, about: Metadata | Model, wait: str) -> list[str]:
    """Returns the questions of the task with the instruction of a strategy."""
    what = strategy.instruction
    if what is None:
        return [row["question"] for row in task.rows]
    try:
        return [
            chat.instruct(about.tokenizer, about.chat, row["question"], what.control, what.amount) for row in task.rows
        ]
    except UserError as error:
        raise UserError(f'"{strategy.name(wait)}": {error}') from error


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"out: {folder} is a file; choose another folder.") from error


def controls(params: SamplingParams) -> dict[str, Any]:
    """Returns the sampling parameters as results.json records them among its settings.

    `wait` has a place of its own there. Parameters that were added later are left out at their defaults, so that
    evaluations which began before them can still be resumed.
    """
    values, defaults = dataclasses.asdict(params), dataclasses.asdict(SamplingParams())
    values.pop("wait")
    return {name: value for name, value in values.items() if name not in _LATER_PARAMS or value != defaults[name]}


def _asked(described: Description, plan: Plan, wanted: Sequence[Strategy]) -> dict[str, Any]:
    remote = {} if plan.remote is None else {"remote": plan.remote.endpoint.base_url}
    return {
        "checkpoint": described.checkpoint,
        "task": plan.task.title,
        "strategies": [plan.name(strategy) for strategy in wanted],
        **remote,
        "wait": plan.params.wait,
        "cache_dtype": described.cache_dtype,
        "weight_dtype": described.weight_dtype,
        "controls": controls(plan.params),
    }


def _fingerprint(asked: Mapping[str, Any], described: Description, plan: Plan) -> str:
    systems = [row.get("system", "") for row in plan.task.rows]
    prompts = {"questions": plan.questions, **({"systems": systems} if any(systems) else {})}
    weights = described.weights or secrets.token_hex()
    return journal_lib.fingerprint({**asked, "dtype": described.dtype, "checkpoint": weights, **prompts})
