"""Finds question, trace, answer, system prompt and earlier turns in a row of reasoning data, whatever its columns are.

    s1K             question; thinking_trajectories (a list of strings, or one string) and attempt, or
                    {gemini,deepseek}_thinking_trajectory and _attempt (s1K-1.1)
    messages        a list of {role, content}, or the same under `conversations`
    conversations   ShareGPT's list of {from, value}
    prompt          prompt and completion, each a text or a list of messages (TRL)
    metadata        problem, deepseek_reasoning and deepseek_solution (OpenThoughts)
    generations     problem and a list of answers (open-r1); the first that is marked right and complete
    question        question or problem, with an answer that has tags, or with a column of its own for the thinking

The first shape that a row has is used. `s1jax.data.turns` says where thinking may be. A system prompt comes from the
messages or from a column `system` (or `system_prompt`).

Of several turns, the loss is on the last answer, or on each with `loss_on` `all`: then each is an example with the
messages before it as its history. An answer that a field excludes from the loss (`weight: 0`, `train`, `training` or
`loss` false) stays history.

A row is refused if it has content that would change the example and is not used: tools, images, thinking of a user, an
answer marked wrong (`correct`, `is_correct`), messages after the last answer, or the rest of a question in `input`,
`context` or `history` next to the column of the question.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from s1jax.data import turns
from s1jax.errors import UserError
from s1jax.io import readers
from s1jax.text.messages import Message

LossOn = Literal["last", "all"]
_SYSTEM = ("system", "system_prompt")
_QUESTIONS = ("question", "problem", "prompt")
_ANSWERS = ("completion", "response", "attempt", "answer", "solution", "output")
_BESIDE = ("input", "context", "history")  # columns with the rest of a question, as in Alpaca
_JUDGED = ("correct", "is_correct")
_FORMS = (
    "give s1K's columns (question, thinking_trajectories, attempt), messages, conversations, prompt and completion, or"
    " question with an answer that has <think> tags"
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of one example.

    Attributes:
      question: the question, unchanged.
      trace: the thinking.
      answer: the text after the thinking.
      system: system prompt; empty if there is none.
      used: the columns that these come from.
      history: the messages between the system prompt and the question.
      num_turns: answers in the row, each to a user's message.
    """

    question: str
    trace: str
    answer: str
    system: str
    used: tuple[str, ...]
    history: tuple[Message, ...] = ()
    num_turns: int = 1


class Tally:
    """Counts which columns the rows of a source use; `str` gives one phrase for a note."""

    def __init__(self) -> None:
        self._used: collections.Counter[tuple[str, ...]] = collections.Counter()
        self._unused: dict[str, None] = {}
        self._several = self._turns = self._examples = 0  # rows of several turns, their turns, their examples

    def add(self, found: Parts, record: Mapping[str, Any], num_examples: int = 1) -> None:
        """Counts a row; `found` is the last of its `num_examples` examples."""
        if found.num_turns > 1:
            self._several += 1
            self._turns += found.num_turns
            self._examples += num_examples
        self._used[found.used] += 1
        self._unused |= dict.fromkeys(str(key) for key in record if key not in found.used)

    def __str__(self) -> str:
        many = [f"{count:,} row{'s' * (count != 1)} with {', '.join(used)}" for used, count in self._used.items()]
        unused = sorted(set(self._unused) - {column for used in self._used for column in used})
        return "; ".join(many) + (f"; not used: {', '.join(unused)}" if unused else "")

    def turns(self, source: str, loss_on: LossOn) -> list[str]:
        """A sentence on the rows of several turns, if there are any."""
        if not self._several:
            return []
        begun = f"{source}: {self._several:,} row{'s have' if self._several > 1 else ' has'} several turns;"
        without = self._turns - self._examples
        if loss_on == "last":
            return [
                f"{begun} the loss is on the last answer of each, and {without:,} earlier answers are history"
                " (data.loss_on last)."
            ]
        rest = f"; {without:,} without thinking, or with weight 0, are history" if without else ""
        return [f"{begun} {self._examples:,} of their {self._turns:,} answers carry loss (data.loss_on all){rest}."]


def parts(record: Mapping[str, Any], traces: str, name: str) -> Parts:
    """Takes an example out of a row of one turn, of any shape.

    Args:
      record: columns; None counts as missing, because parquet fills missing columns with it.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      name: what messages call the row.

    Raises:
      UserError: if a column is missing, not text, empty or too long, if there is no thinking, or if the row has content
        that cannot be used, such as earlier turns; the message starts with `name`.
    """
    (found,) = examples(record, traces, name)
    if found.history:
        roles = ", ".join([*(message.role for message in found.history), "user", "assistant"])
        raise UserError(
            f"{name}: {found.used[0]} holds {roles}; one turn is read here, a user's and then an assistant's, with or"
            " without a system turn before them; divide or remove the row."
        )
    return found


def examples(record: Mapping[str, Any], traces: str, name: str, loss_on: LossOn = "last") -> list[Parts]:
    """Takes the examples out of a row of any shape and of any number of turns.

    Args:
      record: columns; None counts as missing, because parquet fills missing columns with it.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      name: what messages call the row.
      loss_on: `last` makes one example, of the last turn. `all` makes one of each turn whose answer has thinking and
        is not excluded by a weight of 0; of `prompt` and `completion`, those of the completion only.

    Returns:
      at least one, in the order of the turns. Each has the messages before its question as its history.

    Raises:
      UserError: if a column is missing, not text, empty or too long, if there is no thinking, or if the row has content
        that cannot be used; the message starts with `name`.
    """
    for column in turns.UNUSABLE:
        if record.get(column):
            raise UserError(f"{name}: column {column} is not empty and cannot be used; remove the column or the row.")
    own = f"{traces}_thinking_trajectory"
    others = any(record.get(column) is not None for column in ("messages", "conversations", "completion"))
    if own in record and not (others and record[own] is None):
        found = [_columns(record, "question", own, f"{traces}_attempt", name)]
    elif "thinking_trajectories" in record and not (others and record["thinking_trajectories"] is None):
        found = [_columns(record, "question", "thinking_trajectories", "attempt", name)]
    elif record.get("messages") is not None:
        found = _conversation(record["messages"], "messages", name, loss_on)
    elif record.get("conversations") is not None:
        found = _conversation(record["conversations"], "conversations", name, loss_on)
    elif record.get("prompt") is not None and record.get("completion") is not None:
        found = _prompt(record, name, loss_on)
    elif record.get("deepseek_reasoning") is not None:
        found = [_columns(record, "problem", "deepseek_reasoning", "deepseek_solution", name)]
    else:
        found = [_loose(record, own, name)]
    for each in found:
        _check_beside(record, each, name)
    return [_checked(_with_system(record, each, name), name) for each in found]


def _check_beside(record: Mapping[str, Any], found: Parts, name: str) -> None:
    """Refuses columns that are not used but change the meaning of the example."""
    for column in _JUDGED:
        if str(record.get(column)).strip().lower() == "false":
            raise UserError(f"{name}: column {column} says that the answer is wrong; remove the row or the column.")
    if record.get(found.used[0]) != found.question:  # of messages, which hold all that was said
        return
    for column in _BESIDE:
        value = record.get(column)
        blank = not value.strip() if isinstance(value, str) else not value
        if column in found.used or blank or (isinstance(value, str) and value.strip() in found.question):
            continue
        raise UserError(
            f"{name}: column {column} is not empty and not used, as the question is in {found.used[0]}; write it into"
            " the question, or remove the column."
        )


def _columns(record: Mapping[str, Any], question: str, trace: str, answer: str, name: str) -> Parts:
    """s1K's form: each part in a column of its own."""
    first, second, third = (_text(record, column, name) for column in (question, trace, answer))
    return Parts(first, second, third, "", (question, trace, answer))


def _text(record: Mapping[str, Any], column: str, name: str) -> str:
    """The text of a column that must be there."""
    if column not in record:
        raise UserError(f"{name} has no column {column}, but {', '.join(sorted(map(str, record)))}; add it.")
    value = record[column]
    if column == "thinking_trajectories":
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        elif isinstance(value, str) and value.startswith(("['", '["')) and value.rstrip().endswith(("']", '"]')):
            raise UserError(f"{name}: column {column} is a list that was written as text; write the thinking alone.")
    if not isinstance(value, str):
        raise UserError(f"{name}: column {column} is {type(value).__name__}, not text; write it as a string.")
    return value


def _conversation(messages: Any, column: str, name: str, loss_on: LossOn, prompt: int = 0) -> list[Parts]:
    """The examples of `messages` or of ShareGPT's `conversations`; the first `prompt` messages carry no loss."""
    read = turns.read(messages, column, name)
    system = ""
    if read and read[0].role == "system":
        system, prompt = read.pop(0).content, prompt - 1
    roles = [turn.role for turn in read]
    if roles[-2:] != ["user", "assistant"]:
        has = ", ".join(roles) or "nothing"
        raise UserError(
            f"{name}: {column} holds {has}; the last two messages must be a user's and the assistant's answer to it;"
            " repair or remove the row."
        )
    asked = [i for i, role in enumerate(roles) if role == "assistant" and i and roles[i - 1] == "user"]
    wanted = [i for i in asked if i >= prompt and not read[i].excluded and read[i].has_thinking]
    if loss_on == "last" or not wanted:  # an answer without thinking is refused below
        wanted = asked[-1:]
    if read[wanted[-1]].excluded:
        raise UserError(
            f"{read[-1].name} has {read[-1].excluded:.60}; the assistant's last message is trained on with weight 1;"
            " remove the field or the row."
        )
    history = [turn.message() for turn in read[:-1]]
    found, used = [], dict.fromkeys((column,))
    for i in wanted:
        trace, answer, _ = turns.split(read[i].content, read[i].fields, read[i].name)
        found.append(Parts(read[i - 1].content, trace, answer, system, (), tuple(history[: i - 1]), len(asked)))
    for turn in read:
        if turn.role == "assistant":
            used |= dict.fromkeys(f"{column}.{key}" for key in turns.THINKING if turn.fields.get(key))
    return [dataclasses.replace(each, used=tuple(used)) for each in found]


def _prompt(record: Mapping[str, Any], name: str, loss_on: LossOn) -> list[Parts]:
    """TRL's prompt and completion: texts, or lists of messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        one = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else turns.as_list(prompt, "prompt", name)
        )
        two = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        messages = [*one, *turns.as_list(two, "completion", name)]
        found = _conversation(messages, "prompt and completion", name, loss_on, prompt=len(one))
        return [dataclasses.replace(each, used=("prompt", "completion")) for each in found]
    return [_tagged(record, "prompt", "completion", name)]


def _loose(record: Mapping[str, Any], own: str, name: str) -> Parts:
    """A question, and an answer with tags or a column of thinking."""
    there = [key for key, value in record.items() if value is not None]
    question = next((column for column in _QUESTIONS if column in there), None)
    generations = record.get("generations")
    if question and generations is not None:
        if not isinstance(generations, list) or not generations:
            raise UserError(f"{name}: column generations is {generations!r:.40}, not a list of texts; repair it.")
        chosen, judged = _chosen(record, len(generations), name)
        trace, answer, _ = turns.split(generations[chosen], {}, f"{name}: generations[{chosen}]")
        return Parts(_text(record, question, name), trace, answer, "", (question, "generations", *judged))
    thinking = [column for column in turns.THINKING if column in there]
    answers = [column for column in _ANSWERS if column in there and column != question]
    tagged = [
        column
        for column in answers
        if isinstance(record[column], str) and any(end in record[column] for _, end in turns.TAGS)
    ]
    if question and (tagged or (thinking and answers)):
        return _tagged(record, question, (tagged or answers)[0], name)
    has = ", ".join(sorted(map(str, record))) or "none"
    tags = f" (there are no <think> tags in {', '.join(answers)})" if answers else ""
    raise UserError(
        f"{name} has neither column thinking_trajectories nor {own}, but {has}{tags}; rename the column that holds the"
        f" thinking, choose other data.traces, or {_FORMS}."
    )


def _chosen(record: Mapping[str, Any], count: int, name: str) -> tuple[int, tuple[str, ...]]:
    """Returns the index of open-r1's generation that is used, and the columns that decide it."""
    rights = [key for key in ("correctness_math_verify", "correctness_llama") if isinstance(record.get(key), list)]
    ends = [key for key in ("is_reasoning_complete",) if isinstance(record.get(key), list)]
    for key in (*rights, *ends):
        if len(record[key]) != count:
            raise UserError(f"{name}: column {key} has {len(record[key])} values for {count} generations; repair it.")
    for i in range(count):
        if (not rights or any(record[key][i] for key in rights)) and all(record[key][i] for key in ends):
            return i, (*rights, *ends)
    raise UserError(
        f"{name}: none of its {count} generations is marked right and complete by {', '.join((*rights, *ends))}; remove"
        " the row."
    )


def _tagged(record: Mapping[str, Any], question: str, answer: str, name: str) -> Parts:
    fields = {key: value for key, value in record.items() if value is not None}
    trace, text, used = turns.split(_text(record, answer, name), fields, f"{name}: column {answer}")
    return Parts(_text(record, question, name), trace, text, "", (question, answer, *used))


def _with_system(record: Mapping[str, Any], found: Parts, name: str) -> Parts:
    """Adds the system turn of a column."""
    columns = [column for column in _SYSTEM if record.get(column) not in (None, "")]
    for column in columns:
        value = record[column]
        if not isinstance(value, str):
            raise UserError(f"{name}: column {column} is {type(value).__name__}, not text; write it as a string.")
        if found.system and found.system != value:
            raise UserError(f"{name}: column {column} is not the system turn that the row has already; keep one.")
        found = dataclasses.replace(found, system=value)
    return dataclasses.replace(found, used=(*found.used, *columns))


def _checked(found: Parts, name: str) -> Parts:
    """Refuses parts that are empty, not Unicode or too long."""
    whence: Sequence[str] = found.used
    for i, part in enumerate(("question", "trace", "answer", "system")):
        value = getattr(found, part)
        # In s1K's form each part has a column; otherwise the parts have names.
        column = f"column {whence[i]}" if len(whence) > 2 and i < 3 and _is_trace(whence[1]) else f"the {part}"
        if not value.strip() and part != "system":
            raise UserError(f"{name}: {column} is empty; fill it or remove the row.")
        _check_text(value, name, column)
    for message in found.history:
        _check_text(message.content, name, f"the {message.role}'s earlier message")
        _check_text(message.thinking or "", name, "the thinking of an earlier message")
    return found


def _check_text(value: str, name: str, column: str) -> None:
    """Refuses a text that is too long or not Unicode."""
    readers.check_length(value, name, column)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise UserError(f"{name}: {column} is not valid Unicode ({error.reason}); repair it.") from None


def _is_trace(column: str) -> bool:
    """Whether a column holds thinking and nothing else."""
    return "thinking_traj" in column or column == "deepseek_reasoning"
