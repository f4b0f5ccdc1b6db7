"""Finds question, trace, answer and system prompt in a row of reasoning data, whatever its columns are.

    s1K             question; thinking_trajectories (a list of strings, or one string) and attempt, or
                    {gemini,deepseek}_thinking_trajectory and _attempt (s1K-1.1)
    messages        a list of {role, content}, or the same under `conversations`; one turn
    conversations   ShareGPT's list of {from, value}; one turn
    prompt          prompt and completion, each a text or a list of messages (TRL)
    generations     problem and a list of answers (open-r1); the first that is marked right and complete
    question        question or problem, with an answer that has tags, or with a column of its own for the thinking

The first shape that a row has is used. Thinking is in `<think>...</think>` at the start of the answer (the first tag
may be missing, because R1's template puts it into the prompt), in `<|begin_of_thought|>...<|end_of_thought|>`
(OpenThoughts, Bespoke-Stratos), or in a field `reasoning_content`, `reasoning` or `thinking` next to the answer. A
system prompt comes from the messages or from a column `system` (or `system_prompt`).

A row is refused if it has content that would change the example and is not used: several turns, tools, images, thinking
of a user, an answer without loss (`weight: 0`) or marked wrong (`correct`, `is_correct`), or the rest of a question in
`input`, `context` or `history` next to the column of the question.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.io import readers

_TAGS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_SOLUTION = "<|begin_of_solution|>", "<|end_of_solution|>"  # around the answer, where the second tags are used
_THINKING = ("reasoning_content", "reasoning", "thinking")
_SYSTEM = ("system", "system_prompt")
_QUESTIONS = ("question", "problem", "prompt")
_ANSWERS = ("completion", "response", "attempt", "answer", "solution", "output")
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_UNUSABLE = ("tools", "functions", "tool_calls", "function_call", "images", "image", "audio", "videos")
# Fields that exclude an assistant's message from the loss: of OpenAI and Mistral, of Axolotl, of ms-swift.
_LOSS = ("weight", "train", "training", "loss")
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
    """

    question: str
    trace: str
    answer: str
    system: str
    used: tuple[str, ...]


class Tally:
    """Counts which columns the rows of a source use; `str` gives one phrase for a note."""

    def __init__(self) -> None:
        self._used: collections.Counter[tuple[str, ...]] = collections.Counter()
        self._unused: dict[str, None] = {}

    def add(self, found: Parts, record: Mapping[str, Any]) -> None:
        """Counts a row."""
        self._used[found.used] += 1
        self._unused |= dict.fromkeys(str(key) for key in record if key not in found.used)

    def __str__(self) -> str:
        many = [f"{count:,} row{'s' * (count != 1)} with {', '.join(used)}" for used, count in self._used.items()]
        unused = sorted(set(self._unused) - {column for used in self._used for column in used})
        return "; ".join(many) + (f"; not used: {', '.join(unused)}" if unused else "")


def parts(record: Mapping[str, Any], traces: str, name: str) -> Parts:
    """Takes an example out of a row of any shape.

    Args:
      record: columns; None counts as missing, because parquet fills missing columns with it.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      name: what messages call the row.

    Raises:
      UserError: if a column is missing, not text, empty or too long, if there is no thinking, or if the row has content
        that cannot be used; the message starts with `name`.
    """
    for column in _UNUSABLE:
        if record.get(column):
            raise UserError(f"{name}: column {column} is not empty and cannot be used; remove the column or the row.")
    own = f"{traces}_thinking_trajectory"
    others = any(record.get(column) is not None for column in ("messages", "conversations", "completion"))
    if own in record and not (others and record[own] is None):
        found = _columns(record, "question", own, f"{traces}_attempt", name)
    elif "thinking_trajectories" in record and not (others and record["thinking_trajectories"] is None):
        found = _columns(record, "question", "thinking_trajectories", "attempt", name)
    elif record.get("messages") is not None:
        found = _conversation(record["messages"], "messages", name)
    elif record.get("conversations") is not None:
        found = _conversation(record["conversations"], "conversations", name)
    elif record.get("prompt") is not None and record.get("completion") is not None:
        found = _prompt(record, name)
    else:
        found = _loose(record, own, name)
    _check_beside(record, found, name)
    return _checked(_with_system(record, found, name), name)


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


def _conversation(messages: Any, column: str, name: str) -> Parts:
    """One turn of `messages` or of ShareGPT's `conversations`."""
    turns = [_message(message, f"{name}: {column}[{i}]") for i, message in enumerate(_list(messages, column, name))]
    last = f"{name}: {column}[{len(turns) - 1}]"
    for i, (said_by, _, fields) in enumerate(turns):
        thought = next((key for key in _THINKING if fields.get(key)), None)
        if said_by != "assistant" and thought:
            where = f"{name}: {column}[{i}]"
            raise UserError(f"{where} has {thought}, which cannot be used in a {said_by} turn; remove it or the row.")
    system = ""
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    roles = [role for role, _, _ in turns]
    if roles != ["user", "assistant"]:
        has = ", ".join(roles) or "nothing"
        raise UserError(
            f"{name}: {column} holds {has}; one turn is read, a user's and then an assistant's, with or without a"
            " system turn before them; divide or remove the row."
        )
    trace, answer, used = _thinking(turns[1][1], turns[1][2], last)
    return Parts(turns[0][1], trace, answer, system, (column, *(f"{column}.{key}" for key in used)))


def _list(value: Any, column: str, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name}: column {column} is {type(value).__name__}, not a list of messages; repair it.")
    return value


def _message(message: Any, name: str) -> tuple[str, str, Mapping[str, Any]]:
    """Returns role, text and the other fields of a message of either form."""
    if not isinstance(message, dict):
        raise UserError(f"{name} is {type(message).__name__}, not an object with role and content; repair it.")
    fields = {key: value for key, value in message.items() if value is not None}
    for key in _UNUSABLE:
        if fields.get(key):
            raise UserError(f"{name} has {key}, which cannot be used; remove the row.")
    said = fields.get("role", fields.get("from"))
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise UserError(f"{name} has the role {said!r}; system, user and assistant (or human and gpt) are known.")
    for key in _LOSS:
        if role == "assistant" and key in fields and fields[key] != 1:
            raise UserError(
                f"{name} has {key} {fields[key]!r:.40}; an assistant's message is trained on with weight 1; remove the"
                " field or the row."
            )
    content = fields.get("content", fields.get("value", ""))
    if isinstance(content, list):  # of typed parts, as OpenAI's and Anthropic's clients write it
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        other = [kind for kind in kinds if kind not in ("text", "thinking")]
        if other:
            raise UserError(f"{name} has content of type {other[0]!r}; text alone can be used; remove the row.")
        thinking = [part.get("thinking") for part in content if part["type"] == "thinking"]
        if thinking and "thinking" not in fields:
            fields["thinking"] = "\n".join(map(str, thinking))
        content = "".join(str(part.get("text", "")) for part in content if part["type"] == "text")
    if not isinstance(content, str):
        raise UserError(f"{name} has content of type {type(content).__name__}, not text; write it as a string.")
    return role, content, fields


def _prompt(record: Mapping[str, Any], name: str) -> Parts:
    """TRL's prompt and completion: texts, or lists of messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        one = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _list(prompt, "prompt", name)
        two = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        found = _conversation([*one, *_list(two, "completion", name)], "prompt and completion", name)
        return dataclasses.replace(found, used=("prompt", "completion"))
    return _tagged(record, "prompt", "completion", name)


def _loose(record: Mapping[str, Any], own: str, name: str) -> Parts:
    """A question, and an answer with tags or a column of thinking."""
    there = [key for key, value in record.items() if value is not None]
    question = next((column for column in _QUESTIONS if column in there), None)
    generations = record.get("generations")
    if question and generations is not None:
        if not isinstance(generations, list) or not generations:
            raise UserError(f"{name}: column generations is {generations!r:.40}, not a list of texts; repair it.")
        chosen, judged = _chosen(record, len(generations), name)
        trace, answer, _ = _thinking(generations[chosen], {}, f"{name}: generations[{chosen}]")
        return Parts(_text(record, question, name), trace, answer, "", (question, "generations", *judged))
    thinking = [column for column in _THINKING if column in there]
    answers = [column for column in _ANSWERS if column in there and column != question]
    tagged = [
        column
        for column in answers
        if isinstance(record[column], str) and any(end in record[column] for _, end in _TAGS)
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
    trace, text, used = _thinking(_text(record, answer, name), fields, f"{name}: column {answer}")
    return Parts(_text(record, question, name), trace, text, "", (question, answer, *used))


def _thinking(text: Any, fields: Mapping[str, Any], name: str) -> tuple[str, str, tuple[str, ...]]:
    """Splits an assistant's message into trace and answer; also returns the field that contains the trace."""
    if not isinstance(text, str):
        raise UserError(f"{name} is {type(text).__name__}, not text; write it as a string.")
    beside = [key for key in _THINKING if key in fields and fields[key] != ""]
    if len({str(fields[key]) for key in beside}) > 1:
        raise UserError(f"{name}: {' and '.join(beside)} differ; keep one of them.")
    start, end = next(((start, end) for start, end in _TAGS if end in text), ("", ""))
    if beside and end and text.lstrip().startswith(start):
        raise UserError(f"{name} has its thinking in {beside[0]} as well as in {start} tags; keep one of them.")
    if beside:
        trace = fields[beside[0]]
        if not isinstance(trace, str):
            raise UserError(f"{name}: {beside[0]} is {type(trace).__name__}, not text; write it as a string.")
        return trace, text, (beside[0],)
    if not end:
        cut = next((tag for tag, _ in _TAGS if text.lstrip().startswith(tag)), "")
        why = f"begins with {cut}, which is never closed" if cut else f"has no thinking: no {_TAGS[0][0]} tags"
        raise UserError(f"{name} {why} and no field {', '.join(_THINKING)}; add it or remove the row.")
    trace, answer = text.split(end, 1)
    before, tag, inside = trace.partition(start)
    if tag:
        if before.strip():
            raise UserError(f"{name} has text before {start}: {before.strip()[:40]!r}; remove it or the row.")
        trace = inside
    if end == _TAGS[1][1]:
        answer = answer.strip().removeprefix(_SOLUTION[0]).removesuffix(_SOLUTION[1])
    return trace, answer, ()


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
        column = f"column {whence[i]}" if len(whence) > 2 and i < 3 and "thinking" in whence[1] else f"the {part}"
        if not value.strip() and part != "system":
            raise UserError(f"{name}: {column} is empty; fill it or remove the row.")
        readers.check_length(value, name, column)
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair
            raise UserError(f"{name}: {column} is not valid Unicode ({error.reason}); repair it.") from None
    return found
