"""The ways in which test-time compute is controlled, as named strategies: "s1: Simple test-time scaling" (arXiv
2501.19393), section 3 and appendix E.1.

A strategy is an instruction in the question (or none), the controls of budget forcing, and a choice among samples (or
one sample). It is written as parts joined by `+`, where case matters in STRING only:

    none                       thinking ends by itself
    forcing:max=64             thinking is cut at 64 tokens; also min=N, waits=N and wait=STRING (wait=none: no string,
                               the end is masked)
    token:64                   token-conditional: the question bounds the thinking tokens
    step:8                     step-conditional: it bounds the steps, of at most 100 tokens each (step:8:tokens=30: 30)
    class:short                class-conditional: it asks for short or long thinking
    token:64+forcing           the same, and thinking is cut at the bound
    reject:max=64:samples=16   the first of at most 16 samples whose thinking has at most 64 tokens
    majority:8                 the answer most samples give; forcing:waits=2+majority:8 votes over extended thinking
    effort:high                the prompt has this word of the chat format for how long to think (gpt-oss)
    none+handoff:q=0.3         the share of 0.3 whose answers are the least sure goes to a remote model

`reject` and `majority` take temperature=T. A wait with `,`, `:` or `+` in it has to be the one that holds for all runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.tasks.task import Row

Sample = Row  # what was sampled, as in samples.jsonl
STEP_TOKENS = 100  # at most in one step, by which the paper judges the control of steps
MOST = 2**31 - 1  # of whole numbers: samplers count in int32
MOST_VOTES = 10_000  # all samples of a vote are asked for at one time
REJECT_SAMPLES = 16  # at most, where a strategy names no number


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What the question says of thinking: at most `amount` tokens or steps, or the class `short` or `long`."""

    control: Literal["token", "step", "class"]
    amount: int | str
    step_tokens: int = STEP_TOKENS

    @property
    def most_tokens(self) -> int | None:
        """The bound in thinking tokens, headers of steps included; None for a class, which has none."""
        if isinstance(self.amount, str):
            return None
        return self.amount * (self.step_tokens if self.control == "step" else 1)


@dataclasses.dataclass(frozen=True)
class Forcing:
    """Budget forcing, with fields of `SamplingParams`; None stands for what holds for all runs."""

    max_thinking_tokens: int | None = None
    min_thinking_tokens: int = 0
    num_waits: int = 0
    wait: str | None = None

    def acted(self, sample: Sample) -> bool:
        """Whether the thinking of a sample was cut or extended because this asks for it."""
        cut = self.max_thinking_tokens is not None and sample["thinking_end"] == "cut"
        return cut or bool((self.num_waits or self.min_thinking_tokens) and sample.get("waits"))


@dataclasses.dataclass(frozen=True)
class Selection:
    """One answer out of several samples.

    Attributes:
      kind: `majority` votes over `samples`; `reject` samples again, up to `samples` times, until thinking fits.
      samples: maximum number of samples.
      max_thinking_tokens: limit of thinking for `reject`; 0 for a vote.
      temperature: temperature of these samples; None: that of all runs.
    """

    kind: Literal["majority", "reject"]
    samples: int
    max_thinking_tokens: int = 0
    temperature: float | None = None


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One run to make over all problems.

    Attributes:
      instruction: what the question says of thinking.
      forcing: of budgets.
      selection: of one answer out of several samples.
      handoff: share of the problems, 0 to 1, that goes to a remote model, see `s1jax.evaluation.handoff`.
      remote: model of an endpoint that answers all problems in place of the engine; empty: the engine does.
      effort: `reasoning_effort` of `SamplingParams`.
    """

    instruction: Instruction | None = None
    forcing: Forcing = Forcing()
    selection: Selection | None = None
    handoff: float | None = None
    remote: str = ""
    effort: str = ""

    def name(self, wait: str) -> str:
        """What the run is called in tables, files and plots; `wait` is the string of strategies that name none."""
        parts = [f"remote {self.remote}"] if self.remote else []
        if self.instruction:
            parts.append(f"{self.instruction.control} {self.instruction.amount}")
        parts += [f"effort {self.effort}"] if self.effort else []
        if self.forcing.max_thinking_tokens is not None:
            parts.append(f"cut at {self.forcing.max_thinking_tokens}")
        if self.forcing.min_thinking_tokens:
            parts.append(f"at least {self.forcing.min_thinking_tokens}")
        if self.forcing.num_waits:
            parts.append(f"{self._wait(wait) or 'masked end'} x{self.forcing.num_waits}")
        if self.selection:
            samples, most, warm = self.selection.samples, self.selection.max_thinking_tokens, self.selection.temperature
            majority = self.selection.kind == "majority"
            parts.append(f"majority of {samples}" if majority else f"rejected above {most}, {samples} tries")
            parts[-1] += "" if warm is None else f" at {warm:g}"
        handoff = "" if self.handoff is None else f", hand-off {self.handoff:g}"
        return (", ".join(parts) or "no limit") + handoff

    def families(self, wait: str) -> tuple[str, ...]:
        """The curves that the run is a point of. The run without any control belongs to `budgets` and to `waits`."""
        if self == Strategy():
            return ("budgets", "waits")
        if self.remote:
            return ("remote",)
        if self.handoff is not None:
            return (f"hand-off of {dataclasses.replace(self, handoff=None).name(wait)}",)
        if self.selection:
            base = dataclasses.replace(self, selection=None)
            kind = "majority" if self.selection.kind == "majority" else "rejection"
            return (kind if base == Strategy() else f"{kind}, {base.name(wait)}",)
        if self.effort:
            others = dataclasses.replace(self, effort="")
            return ("reasoning effort" if others == Strategy() else f"reasoning effort, {others.name(wait)}",)
        if self.instruction:
            family = f"{self.instruction.control}-conditional"
            if self.forcing == Forcing():
                return (family,)
            if self.forcing == Forcing(self.instruction.most_tokens):
                return (f"{family} + forcing",)
            return (f"{family}, {dataclasses.replace(self, instruction=None).name(wait)}",)
        if self.forcing.min_thinking_tokens:
            return ("minimum",)
        if not self.forcing.num_waits:
            return ("budgets",)
        own = self._wait(wait)
        family = "waits" if own == wait else f'waits with "{own}"' if own else "waits without a string"
        cut = self.forcing.max_thinking_tokens
        return (family if cut is None else f"{family}, cut at {cut}",)

    @property
    def parallel(self) -> bool:
        """Whether compute goes into more samples rather than longer ones."""
        return self.selection is not None

    def _wait(self, wait: str) -> str:
        return wait if self.forcing.wait is None else self.forcing.wait

    def label(self, wait: str) -> str:
        """What the run is called beside its point, where the legend names the curve."""
        if self.handoff is not None:
            return f"{self.handoff:g}"
        if self.selection:
            return str(self.selection.samples if self.selection.kind == "majority" else self.limit(0) - 1)
        if self.effort:
            return self.effort
        return str(self.instruction.amount) if self.instruction else self.name(wait)

    def row(self, row: Row, question: str, seed: int, params: SamplingParams) -> dict[str, Any]:
        """Returns the prompt row of one sample.

        Args:
          row: of the task.
          question: the task's question with this strategy's instruction, if it has one.
          seed: of this sample.
          params: sampling parameters that hold for all runs.
        """
        own: dict[str, Any] = {"num_waits": self.forcing.num_waits, "wait": self._wait(params.wait)}
        own["min_thinking_tokens"] = self.forcing.min_thinking_tokens
        own["max_thinking_tokens"] = self.limit(params.max_thinking_tokens)
        if self.effort:
            own["reasoning_effort"] = self.effort
        if self.selection and self.selection.temperature is not None:
            own["temperature"] = self.selection.temperature
        return {**row, "question": question, "seed": seed % 2**32, **own}

    def limit(self, most: int) -> int:
        """Thinking tokens at which a sampler cuts; `most` holds for all runs.

        A sample to be rejected is given one token more than fits and is cut there: what it would have thought beyond
        is never sampled. A cut sample never fits, not even one that was cut earlier because a wait of several ids had
        no room any more: it might have thought on.
        """
        if self.selection and self.selection.kind == "reject":
            return self.selection.max_thinking_tokens + 1
        return most if self.forcing.max_thinking_tokens is None else self.forcing.max_thinking_tokens

    def needed(self, most: int) -> int:
        """The thinking tokens that the limit of all runs, `most`, has to allow for this strategy."""
        rejects = self.selection is not None and self.selection.kind == "reject"
        return max(self.limit(most) - rejects, self.forcing.min_thinking_tokens)

    def samples_alike(self, temperature: float) -> bool:
        """Whether it draws several samples that are all the same; `temperature` holds for all runs."""
        several = self.selection is not None and self.selection.samples > 1
        return several and not ((self.selection and self.selection.temperature) or temperature)

    def wanted(self, samples: Sequence[Sample]) -> int:
        """How many more samples a problem needs, given those it has; 0 where it is done."""
        if self.selection is None:
            return 1 - len(samples)
        if self.selection.kind == "majority":
            return self.selection.samples - len(samples)
        return int(len(samples) < self.selection.samples and not any(map(self._fits, samples)))

    def _fits(self, sample: Sample) -> bool:
        assert self.selection is not None
        return sample["thinking_end"] != "cut" and sample["thinking_tokens"] <= self.selection.max_thinking_tokens

    def choose(
        self, samples: Sequence[Sample], answers: Sequence[str | None], same: Callable[[str, str], bool]
    ) -> int | None:
        """Returns which sample's answer counts.

        Args:
          samples: of one problem, in the order of their attempts.
          answers: what each answers; None where it answers nothing.
          same: whether two answers mean the same.

        Returns:
          The place of the earliest sample that gives the answer of most samples, the earliest such answer where
          several have as many, the first sample where none answers; for rejection the one that fits, or None.
        """
        if self.selection and self.selection.kind == "reject":
            return next((i for i, sample in enumerate(samples) if self._fits(sample)), None)
        groups: list[list[int]] = []
        for i, answer in enumerate(answers):
            if answer is None:
                continue
            for group in groups:
                if same(str(answers[group[0]]), answer):
                    group.append(i)
                    break
            else:
                groups.append([i])
        return max(groups, key=len)[0] if groups else 0

    def counted(self, samples: Sequence[Sample], chosen: int | None) -> list[Sample]:
        """The samples whose thinking is the run's point on its curve: all that vote, or the one that counts.

        Where nothing fits it is the last one. Tokens of rejected samples are part of the costs, not of the curve.
        """
        if self.selection and self.selection.kind == "reject":
            return [samples[-1 if chosen is None else chosen]]
        return list(samples)

    def range(self, most: int, plain: Sequence[int] | None) -> tuple[list[float] | float, list[float] | float] | None:
        """Returns the fewest and the most thinking tokens asked for, for Control; None where nothing says.

        Args:
          most: limit of all runs.
          plain: thinking tokens of the same problems without any control, one a problem, by which the paper judges
            classes (short: fewer, long: more); None where they were not sampled.
        """
        if self.remote:
            return None
        low: float = self.forcing.min_thinking_tokens
        own: float | None = self.forcing.max_thinking_tokens
        if self.selection and self.selection.kind == "reject":
            own = self.selection.max_thinking_tokens
        high = most if own is None else own
        if self.instruction is None:
            return low, high
        if self.instruction.most_tokens is not None:
            return low, min(high, self.instruction.most_tokens)
        if plain is None:
            return None
        # Strictly fewer or more, of single counts as of their means.
        if self.instruction.amount == "short":
            return low, [min(high, math.nextafter(count, -math.inf)) for count in plain]
        return [max(low, math.nextafter(count, math.inf)) for count in plain], math.inf if own is None else own


def whole(text: str) -> int | None:
    """Returns the whole number of 0 to `MOST` that a text is; None where it is none."""
    digits = text.lstrip("0") or text[:1]
    if not digits.isascii() or not digits.isdecimal() or len(digits) > len(str(MOST)):  # int() refuses very long ones
        return None
    return int(digits) if int(digits) <= MOST else None


def parse(text: str) -> Strategy:
    """Returns the strategy that a text names, see the module's text.

    Raises:
      UserError: names the text and the part of it that is wrong.
    """
    instruction: Instruction | None = None
    forcing: Forcing | None = None
    selection: Selection | None = None
    handoff: float | None = None
    effort, bare = "", False
    for piece in text.strip().split("+"):
        part = _Part(text, piece.strip())
        if part.kind in ("token", "step", "class") and instruction is None:
            instruction = _instruction(part)
        elif part.kind == "forcing" and forcing is None:
            bare = not part.values
            forcing = _forcing(part)
        elif part.kind in ("majority", "reject") and selection is None:
            selection = _selection(part)
        elif part.kind == "handoff" and handoff is None:
            handoff = _handoff(part)
        elif part.kind == "effort" and not effort:
            effort = part.values.pop("", "").strip()
            if not effort:
                raise part.error("names no effort; write for example effort:high")
        elif part.kind in ("token", "step", "class", "forcing", "majority", "reject", "handoff", "effort"):
            raise part.error("says a second time what another part says; drop one")
        elif part.kind != "none":
            raise part.error("is none of none, forcing, token, step, class, effort, reject, majority and handoff")
        part.done()
    if forcing and bare:
        most = instruction.most_tokens if instruction else None
        if most is None:
            raise UserError(f"strategy {text!r} forces nothing; write forcing:max=N, forcing:min=N or forcing:waits=N.")
        forcing = Forcing(max_thinking_tokens=most)
    if forcing and forcing.max_thinking_tokens is not None and selection and selection.kind == "reject":
        raise UserError(f"strategy {text!r} cuts what it would reject; drop forcing:max.")
    least = forcing.min_thinking_tokens if forcing else 0
    if selection and selection.kind == "reject" and least > selection.max_thinking_tokens:
        raise UserError(f"strategy {text!r} rejects all that has its minimum; lower min or raise reject's max.")
    if handoff is not None and selection:
        raise UserError(f"strategy {text!r} hands off one of several samples; drop reject or majority, or handoff.")
    return Strategy(instruction, forcing or Forcing(), selection, handoff, effort=effort)


def distinct(strategies: Iterable[Strategy | str], wait: str) -> list[Strategy]:
    """Returns the strategies in their order, each once; texts are parsed.

    Args:
      strategies: at least one.
      wait: the string of strategies that name none.

    Raises:
      UserError: there is none, a text is wrong, or two strategies would have the same name.
    """
    if isinstance(strategies, str) or not isinstance(strategies, Iterable):
        raise UserError(f'strategies is {strategies!r:.80}; give a list, such as ["none", "forcing:max=64"].')
    found = list(dict.fromkeys(parse(each) if isinstance(each, str) else each for each in strategies))
    if not found:
        raise UserError('strategies is empty; give at least one, such as "none" or "forcing:max=64".')
    for each in found:
        if not isinstance(each, Strategy):
            raise UserError(f"strategies has {each!r:.80}; give strategies or their texts, such as forcing:max=64.")
    for name, count in collections.Counter(strategy.name(wait) for strategy in found).items():
        if count > 1:
            raise UserError(f'the strategies have "{name}" in {count} ways that look alike; drop one.')
    return found


def check(strategies: Iterable[Strategy], params: SamplingParams) -> None:
    """Checks strategies against the sampling parameters that hold for all runs.

    Raises:
      UserError: a strategy needs more thinking tokens than these allow, or its samples would all be alike.
    """
    for strategy in strategies:
        name, most = strategy.name(params.wait), params.max_thinking_tokens
        if strategy.needed(most) > most:
            raise UserError(
                f'strategy "{name}" needs {strategy.needed(most)} thinking tokens, more than max_thinking_tokens'
                f" {most}; raise the limit."
            )
        if strategy.samples_alike(params.temperature):
            raise UserError(
                f'strategy "{name}" has samples that are all alike at temperature 0; give it temperature=1, or raise'
                " the temperature of all runs."
            )


class _Part:
    """One part of a strategy, `kind:value:name=value`; values are taken out of it as they are understood."""

    def __init__(self, text: str, piece: str):
        self._text, self._piece = text, piece
        kind, *rest = piece.split(":")
        self.kind = kind.strip().lower()
        # The value without a name goes by the empty one; of two such values the first is not understood.
        named = (item.partition("=") if "=" in item else ("", "", item) for item in rest)
        self.values = {name.strip().lower(): value for name, _, value in named}
        if len(self.values) < len(rest):
            raise self.error("names something twice; drop one")

    def error(self, fault: str) -> UserError:
        return UserError(f"strategy {self._text!r}: {self._piece!r} {fault}.")

    def whole(self, name: str, least: int = 0, most: int = MOST) -> int | None:
        """Takes out a whole number."""
        value = self.values.pop(name, None)
        if value is None:
            return None
        number = whole(value.strip())
        if number is None or not least <= number <= most:
            raise self.error(f"has {value!r} where a whole number of {least} to {most} belongs; give one")
        return number

    def done(self) -> None:
        """Raises where something was not understood."""
        if self.values:
            name, value = next(iter(self.values.items()))
            raise self.error(f"has {name or value!r}, which means nothing there; drop it")


def _instruction(part: _Part) -> Instruction:
    if part.kind == "class":
        name = part.values.pop("", "").strip().lower()
        if name not in ("short", "long"):
            raise part.error("is neither class:short nor class:long; write one of them")
        return Instruction("class", name)
    amount = part.whole("", least=1)
    if amount is None:
        raise part.error(f"names no bound; write for example {part.kind}:8")
    if part.kind == "token":
        return Instruction("token", amount)
    return Instruction("step", amount, part.whole("tokens", least=1) or STEP_TOKENS)


def _forcing(part: _Part) -> Forcing:
    most, least = part.whole("max"), part.whole("min") or 0
    waits, wait = part.whole("waits") or 0, part.values.pop("wait", None)
    if most is not None and least > most:
        raise part.error("has min above max; exchange them")
    if wait is not None and not waits and not least:
        raise part.error("has a string and no wait that it could stand for; add waits=N or min=N")
    return Forcing(most, least, waits, "" if wait == "none" else wait)


def _selection(part: _Part) -> Selection:
    warm = part.values.pop("temperature", None)
    try:
        temperature = None if warm is None else float(warm)
    except ValueError:
        temperature = math.nan
    if temperature is not None and not 0 < temperature < math.inf:
        raise part.error(f"has temperature {warm!r}; give a number above 0")
    if part.kind == "majority":
        samples = part.whole("", least=1, most=MOST_VOTES)
        if samples is None:
            raise part.error("names no number of samples; write for example majority:8")
        return Selection("majority", samples, 0, temperature)
    most = part.whole("max")
    if most is None:
        raise part.error("names no limit; write for example reject:max=64:samples=16")
    return Selection("reject", part.whole("samples", least=1) or REJECT_SAMPLES, most, temperature)


def _handoff(part: _Part) -> float:
    text = part.values.pop("q", None)
    try:
        share = math.nan if text is None else float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise part.error("names no share of 0 to 1; write for example handoff:q=0.3")
    return share


def trained_for(provenance: Mapping[str, Any]) -> str:
    """Returns the control that a checkpoint's rows were made for, `token`, `step` or `class`; empty for none."""
    experiment = provenance.get("experiment")
    data = experiment.get("data") if isinstance(experiment, Mapping) else None
    control = data.get("control") if isinstance(data, Mapping) else None
    return control if control in ("token", "step", "class") else ""
