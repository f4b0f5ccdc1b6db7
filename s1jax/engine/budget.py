"""Budget forcing: a pure function from (state, sampled id) to (state, emitted id), for all batch slots at once.

At each step the rules hold in this order, for each slot:

1. Tokens in the queue of the slot come first: the rest of a wait string or of the sequence that closes thinking. They
   are forced, one a step, from a small table, so they cost what sampled tokens cost, without a second prefill.
2. Otherwise a token is sampled. End ids are masked for the first token after think_start and after each wait, also if
   thinking was cut in between: a sequence without thinking does not begin its answer with a stop id.
3. A sampled end id of thinking is replaced: by the wait string, if the minimum is not reached or waits are left; by the
   sequence that closes thinking otherwise. A wait that does not fit whole into what is left of the maximum is not
   emitted, and thinking is cut. An empty wait forces nothing: the end ids are masked, and the slot samples again with
   the noise of the same step.
4. Thinking that reaches the maximum is cut: the closing sequence is queued, with a newline before it unless the text
   of the last token ends in one. Without thinking and think_start that is the last token of the prompt.
5. The answer ends at a stop id, at its maximum, or at the maximum of all tokens. A wait counts as thinking; the closing
   sequence counts as neither.

`waits` counts every wait; those that the minimum asks for do not use up `num_waits`.

All delimiters, budgets and waits are arrays, so they cause no recompilation. The module knows token ids and no strings.
Source: "s1: Simple test-time scaling" (arXiv 2501.19393), section 3.

Axis letters: B batch, V vocabulary rows, Q capacity of a forced sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.text.delimiters import Delimiters

# Phases of a sequence.
THINKING, ANSWERING, FINISHED = 0, 1, 2
# Kinds of forced sequences: the wait; what closes thinking that ended by itself, that was cut, was cut after a newline.
WAIT, NATURAL, CUT, CUT_AFTER_NEWLINE = 0, 1, 2, 3

_CAPACITY = 64  # tokens of a forced sequence; a longer one doubles it, and only then a program is compiled again


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Budgets:
    """The budgets of each slot; see `s1jax.config.sampling.SamplingParams`.

    Attributes:
      max_thinking: int32 [B].
      min_thinking: int32 [B].
      num_waits: int32 [B].
      max_answer: int32 [B].
      max_count: int32 [B], of all tokens after the prompt; the answer ends there.
    """

    max_thinking: jax.Array
    min_thinking: jax.Array
    num_waits: jax.Array
    max_answer: jax.Array
    max_count: jax.Array

    @classmethod
    def of(cls, controls: Sequence[SamplingParams], num_start: int = 0) -> Budgets:
        """Takes the budgets of one slot from each of `controls`; `num_start` is the number of ids of think_start."""

        def column(name: str) -> np.ndarray:
            # No sequence has 2**30 tokens, and the sum of two such numbers is still an int32.
            return np.array([min(getattr(c, name), 2**30) for c in controls], np.int32)

        total = column("max_completion_tokens")
        return cls(
            max_thinking=column("max_thinking_tokens"),  # type: ignore[arg-type]
            min_thinking=column("min_thinking_tokens"),  # type: ignore[arg-type]
            num_waits=column("num_waits"),  # type: ignore[arg-type]
            max_answer=column("max_answer_tokens"),  # type: ignore[arg-type]
            max_count=np.where(total > 0, num_start + total, 2**30).astype(np.int32),  # type: ignore[arg-type]
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """Forced sequences and the meaning of token ids.

    Attributes:
      forced: int32 [B, 4, Q], the sequences `WAIT`, `NATURAL`, `CUT` and `CUT_AFTER_NEWLINE` of each slot.
      forced_length: int32 [B, 4].
      legal: bool [V], ids that the tokenizer knows.
      end: bool [V], ids that mean "I have finished thinking", the stop ids among them.
      stop: bool [V], ids that end the answer.
      newline: bool [V], ids whose text ends in a newline.
      pad: int32 scalar, emitted by finished slots.
    """

    forced: jax.Array
    forced_length: jax.Array
    legal: jax.Array
    end: jax.Array
    stop: jax.Array
    newline: jax.Array
    pad: jax.Array

    @classmethod
    def of(cls, delimiters: Delimiters, vocab_size: int, waits: Sequence[Sequence[int]]) -> Rules:
        """Lays the delimiters out as arrays.

        Args:
          delimiters: shared by all slots.
          vocab_size: V.
          waits: the wait of each slot.

        Raises:
          UserError: if the delimiters hold an id beyond V, nothing closes thinking, or no id is left to sample.
        """
        closing = (*delimiters.think_end, *delimiters.final_answer)
        table = [[tuple(wait), delimiters.think_end, (*delimiters.newline, *closing), closing] for wait in waits]
        end = {*delimiters.end, *delimiters.stop}
        check_ids({i for row in table for each in row for i in each} | end | set(delimiters.think_start), vocab_size)
        if not delimiters.think_end:
            raise UserError("the chat format has no think_end, so thinking could never be ended; give it one.")
        capacity = capacity_for(max(len(sequence) for row in table for sequence in row))
        forced = np.zeros((len(table), 4, capacity), np.int32)
        for b, row in enumerate(table):
            for kind, sequence in enumerate(row):
                forced[b, kind, : len(sequence)] = sequence
        legal = np.arange(vocab_size) < delimiters.num_ids
        legal[[i for i in delimiters.illegal if i < vocab_size]] = False
        if not (legal & ~_members(end, vocab_size)).any():
            raise UserError("every id of the tokenizer ends thinking, so none is left to sample; check the delimiters.")
        return cls(
            forced=forced,  # type: ignore[arg-type]
            forced_length=np.array([[len(s) for s in row] for row in table], np.int32),  # type: ignore[arg-type]
            legal=legal,  # type: ignore[arg-type]
            end=_members(end, vocab_size),  # type: ignore[arg-type]
            stop=_members(delimiters.stop, vocab_size),  # type: ignore[arg-type]
            newline=_members(delimiters.ends_in_newline, vocab_size),  # type: ignore[arg-type]
            pad=np.int32(delimiters.pad),  # type: ignore[arg-type]
        )


def check_ids(ids: Iterable[int], vocab_size: int) -> None:
    """Raises a `UserError` for the first of the delimiter ids that is outside the vocabulary."""
    beyond = sorted(i for i in ids if not 0 <= i < vocab_size)
    if beyond:
        raise UserError(
            f"delimiter id {beyond[0]} is outside the model's vocabulary of {vocab_size} ids; "
            "give the tokenizer that belongs to the model."
        )


def capacity_for(length: int) -> int:
    """Returns Q, the capacity of the table of forced sequences if the longest has `length` ids."""
    capacity = _CAPACITY
    while capacity < length:
        capacity *= 2
    return capacity


def _members(ids: Sequence[int] | set[int], vocab_size: int) -> np.ndarray:
    flags = np.zeros(vocab_size, bool)
    flags[[i for i in ids if i < vocab_size]] = True
    return flags


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """How far the sequence in each slot is; every array is [B].

    Attributes:
      phase: int32, `THINKING`, `ANSWERING` (from the first id of the closing sequence on) or `FINISHED`.
      sequence: int32, row of the table that forced ids are taken from.
      position: int32, next id in that sequence; at or past its length nothing is forced.
      fresh: bool, nothing has been sampled since think_start or the last wait.
      last: int32, the id that was emitted last, which the model has not seen yet.
      count: int32, ids after the prompt so far, think_start included.
      thinking: int32, thinking tokens so far.
      answer: int32, sampled ids of the answer so far.
      waits: int32, waits so far.
      waits_left: int32, waits that `num_waits` still allows.
      cut: bool, thinking was cut.
      stopped: bool, the answer ended in a stop id.
    """

    phase: jax.Array
    sequence: jax.Array
    position: jax.Array
    fresh: jax.Array
    last: jax.Array
    count: jax.Array
    thinking: jax.Array
    answer: jax.Array
    waits: jax.Array
    waits_left: jax.Array
    cut: jax.Array
    stopped: jax.Array


def init(rules: Rules, budgets: Budgets, last: jax.Array, count: jax.Array, real: jax.Array) -> State:
    """Returns the state right after think_start.

    Args:
      rules: what the ids mean.
      budgets: what the rows may spend.
      last: int32 [B], last id of think_start (of the prompt if there is none).
      count: int32 [B], number of ids of think_start.
      real: bool [B]; False for rows that only fill the batch, which are finished from the beginning.
    """
    zeros = jnp.zeros_like(last)
    no = jnp.zeros_like(real)
    state = State(
        phase=jnp.where(real, THINKING, FINISHED).astype(jnp.int32),
        sequence=zeros + WAIT,
        position=rules.forced_length[:, WAIT],
        fresh=real,
        last=last,
        count=count,
        thinking=zeros,
        answer=zeros,
        waits=zeros,
        waits_left=budgets.num_waits,
        cut=no,
        stopped=no,
    )
    return _cut_at_maximum(state, budgets, rules)


def on_host(last: int, count: int, **fields: int) -> State:
    """Returns the state of one sequence as NumPy scalars.

    Args:
      last: id that was emitted last; last id of the prompt if there is none.
      count: number of tokens after the prompt.
      **fields: of `State`; those that are not given are 0. With none of them it is what `init` reads of a new sequence.
    """
    values = {"phase": THINKING, "last": last, "count": count, **fields}
    flags = ("fresh", "cut", "stopped")
    names = (field.name for field in dataclasses.fields(State))
    found = {n: np.bool_(values.get(n, 0)) if n in flags else np.int32(values.get(n, 0)) for n in names}
    return State(**found)  # type: ignore[arg-type]


def finished(batch: int) -> State:
    """The state of `batch` slots without a row."""
    zeros, no = jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)
    return State(
        phase=zeros + FINISHED, sequence=zeros, position=zeros, fresh=no, last=zeros, count=zeros, thinking=zeros,
        answer=zeros, waits=zeros, waits_left=zeros, cut=no, stopped=no,
    )  # fmt: skip


def allowed(fresh: jax.Array, rules: Rules) -> jax.Array:
    """Returns which ids may be sampled, bool [B, V]: no end id in the rows `fresh` (bool [B]), no illegal id in any."""
    return rules.legal & ~(fresh[:, None] & rules.end)


def lacks_wait(state: State, sampled: jax.Array, budgets: Budgets, rules: Rules) -> jax.Array:
    """Returns the rows, bool [B], whose end of thinking is to be replaced by an empty wait.

    The caller samples for them again without the end ids and passes them to `step` as `resampled`.
    """
    return _ends(state, sampled, rules) & _goes_on(state, budgets) & (rules.forced_length[:, WAIT] == 0)


def step(
    state: State, sampled: jax.Array, resampled: jax.Array, budgets: Budgets, rules: Rules
) -> tuple[State, jax.Array, jax.Array]:
    """Takes one step with every row.

    Args:
      state: where the rows stand.
      sampled: int32 [B], what each row samples from the `allowed` ids; not looked at where an id is forced.
      resampled: bool [B], rows of `lacks_wait`, in which `sampled` is already the second choice.
      budgets: what the rows may spend.
      rules: what the ids mean.

    Returns:
      The new state; the emitted ids, int32 [B], padding for finished rows; bool [B], whether they were forced.
    """
    active = state.phase != FINISHED
    # Rule 3: an end id is replaced by a wait, by the closing sequence or, if the wait does not fit, by the cut's.
    ends = _ends(state, sampled, rules)
    goes_on = _goes_on(state, budgets)
    fits = state.thinking + rules.forced_length[:, WAIT] <= budgets.max_thinking
    waits = ends & goes_on & fits
    cut = ends & goes_on & ~fits
    closes = ends & ~(goes_on & fits)
    sequence = jnp.where(waits, WAIT, jnp.where(cut, _cut_sequence(state, rules), NATURAL))
    sequence = jnp.where(ends, sequence, state.sequence)
    position = jnp.where(ends, 0, state.position)
    phase = jnp.where(closes, ANSWERING, state.phase)

    # Rule 1: what is queued goes first.
    forced = active & (position < _length(rules, sequence))
    queued = rules.forced[jnp.arange(sampled.shape[0]), sequence, jnp.minimum(position, rules.forced.shape[2] - 1)]
    emitted = jnp.where(active, jnp.where(forced, queued, sampled), rules.pad).astype(jnp.int32)
    free = active & ~forced

    # Rule 5: the answer ends. A wait is thinking, the closing sequence is neither thinking nor answer.
    answer = state.answer + (free & (phase == ANSWERING))
    stopped = free & (phase == ANSWERING) & rules.stop[emitted]
    full = (answer >= budgets.max_answer) | (state.count + 1 >= budgets.max_count)
    over = stopped | (free & (phase == ANSWERING) & full)
    waited = waits | resampled
    state = State(
        phase=jnp.where(over, FINISHED, phase),
        sequence=sequence,
        position=position + forced,
        fresh=jnp.where(waits, True, state.fresh & ~free),
        last=jnp.where(active, emitted, state.last),
        count=state.count + active,
        thinking=state.thinking + (phase == THINKING),
        answer=answer,
        waits=state.waits + waited,
        waits_left=state.waits_left - (waited & (state.thinking >= budgets.min_thinking)),
        cut=state.cut | cut,
        stopped=state.stopped | stopped,
    )
    return _cut_at_maximum(state, budgets, rules), emitted, forced


def _cut_at_maximum(state: State, budgets: Budgets, rules: Rules) -> State:
    """Rule 4: queues the closing sequence of a cut in the rows whose thinking tokens have reached the maximum.

    No wait is under way then, because a wait starts only if it fits whole.
    """
    return cut(state, state.thinking >= budgets.max_thinking, rules)


def cut(state: State, rows: jax.Array, rules: Rules) -> State:
    """Cuts thinking in those of the rows, bool [B], that think: queues the closing sequence."""
    cut = rows & (state.phase == THINKING)
    return dataclasses.replace(
        state,
        phase=jnp.where(cut, ANSWERING, state.phase),
        sequence=jnp.where(cut, _cut_sequence(state, rules), state.sequence),
        position=jnp.where(cut, 0, state.position),
        cut=state.cut | cut,
    )


def _ends(state: State, sampled: jax.Array, rules: Rules) -> jax.Array:
    """Rows, bool [B], that sample an id and whose id ends thinking."""
    samples = state.position >= _length(rules, state.sequence)
    return (state.phase == THINKING) & samples & rules.end[sampled]


def _goes_on(state: State, budgets: Budgets) -> jax.Array:
    """Rows, bool [B], in which an end of thinking is replaced by a wait if it fits."""
    return (state.thinking < budgets.min_thinking) | (state.waits_left > 0)


def _cut_sequence(state: State, rules: Rules) -> jax.Array:
    return jnp.where(rules.newline[state.last], CUT_AFTER_NEWLINE, CUT)


def _length(rules: Rules, sequence: jax.Array) -> jax.Array:
    return jnp.take_along_axis(rules.forced_length, sequence[:, None], axis=1)[:, 0]
