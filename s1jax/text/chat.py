"""Encodes question, trace and answer in a chat format (`s1jax.text.formats`).

In every format the text is

    before_question QUESTION after_question think_start after_think_start TRACE before_think_end think_end
    after_think_end ANSWER turn_end after_turn

The parts are encoded separately: the prompt (up to and including the assistant header), think_start, the trace with its
newlines, think_end, the answer, turn_end. Sampling forces or samples the same parts. So training sees exactly the
tokens that the sampler produces, and the supervised part starts at a token boundary. If the delimiters are special
tokens, as in the formats below, the parts give the same tokens as the whole text (tests/text/test_chat.py).

Only strings of the format become special tokens. Questions, traces, answers, system prompts, instructions and wait
strings are encoded as text, so a `</think>` inside a trace cannot end it.

The tokens after the assistant header are supervised, up to and including turn_end. The newline after turn_end stays in
the tokens, as in the paper's text, but carries no loss: a sampled answer ends before it. (The paper's collator
supervises that token as well.)
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from s1jax.errors import UserError
from s1jax.text.backends import Piece
from s1jax.text.delimiters import Delimiters
from s1jax.text.formats import FORMATS as FORMATS
from s1jax.text.formats import ChatFormat as ChatFormat
from s1jax.text.formats import system_turn as system_turn
from s1jax.text.formats import with_effort as with_effort
from s1jax.text.formats import with_system as with_system
from s1jax.text.tokenizer import Tokenizer


def check(tokenizer: Tokenizer, fmt: ChatFormat) -> None:
    """Raises UserError unless the tokenizer has one id for every special token of the format."""
    for token in (*fmt.special, fmt.turn_end):
        if not tokenizer.knows(token):
            raise UserError(
                f"delimiter {token!r} is not in the tokenizer; choose a chat format whose delimiters it has, or a"
                " tokenizer with this one added."
            )


def with_delimiters(tokenizer: Tokenizer, fmt: ChatFormat, think_start: str = "", think_end: str = "") -> ChatFormat:
    """Returns a format with other delimiters around the trace; an empty argument keeps the delimiter.

    They need not be special tokens: any text that the vocabulary can write will do.

    Raises:
      UserError: if one cannot be written, or think_end begins with white space, which would end thinking everywhere.
    """
    replaced = {fmt.think_start} if think_start else set()
    replaced |= {fmt.think_end} if think_end else set()
    fmt = dataclasses.replace(
        fmt,
        think_start=think_start or fmt.think_start,
        think_end=think_end or fmt.think_end,
        special=tuple(token for token in fmt.special if token not in replaced),
    )
    first = delimiters(tokenizer, fmt).think_end[0]
    if not tokenizer.decode([first]).strip():
        raise UserError(
            f"think_end {fmt.think_end!r} begins with white space, and thinking ends where the model samples the first"
            " id of think_end; choose one that begins otherwise."
        )
    return fmt


def instruct(tokenizer: Tokenizer, fmt: ChatFormat, question: str, control: str, amount: int | str) -> str:
    """Returns a question that says how long to think.

    Args:
      tokenizer: the model's.
      fmt: has the instructions.
      question: without an instruction.
      control: `token`, `step` or `class`.
      amount: the limit of thinking tokens or steps; for `class` either `short` or `long`.

    Raises:
      UserError: if the tokenizer or the format cannot write the instruction.
    """
    if control == "class":
        template = fmt.short_instruction if amount == "short" else fmt.long_instruction
        numbers: dict[str, int] = {}
    else:
        template, bound = getattr(fmt, f"{control}_instruction"), int(amount)
        numbers = {"tokens": bound, "steps": bound, "log2": bound.bit_length() - 1}
        if "{log2}" in template and bound & (bound - 1):
            raise UserError(f"this chat format can ask for powers of two only, not for {bound}; choose one of them.")
    text = _fill(template, numbers)
    try:
        _encode_whole(tokenizer, text, "instruction")
    except UserError as error:
        raise UserError(
            f"the tokenizer cannot write the instruction {text!r}; choose a chat format whose {control} instruction it"
            " can write, for Countdown `countdown`."
        ) from error
    return question + text


def headed(fmt: ChatFormat, steps: list[str]) -> list[str]:
    """Returns the steps of a trace, each after a header with the number of steps left, itself included."""
    return [_fill(fmt.step_header, {"steps": len(steps) - i}) + step for i, step in enumerate(steps)]


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    """Replaces names in braces by their numbers; not `str.format`, because a checkpoint may come from a stranger."""
    return re.sub(r"\{(\w+)\}", lambda found: str(numbers.get(found[1], found[0])), template)


def thinking_tokens(tokenizer: Tokenizer, fmt: ChatFormat, trace: str) -> int:
    """Returns the number of thinking tokens of a trace, as the sampler counts them: all between the delimiters."""
    return len(tokenizer.encode_pieces(trace_pieces(fmt, trace), tokenizer.last_special(fmt.think_start)))


def encode_prompt(tokenizer: Tokenizer, fmt: ChatFormat, question: str, system: str = "") -> list[int]:
    """Returns the token ids from the start of the text up to and including the assistant header.

    Args:
      tokenizer: has the format's special tokens, see `check`.
      fmt: the strings around the question.
      question: encoded as text: special tokens written in it stay text.
      system: system prompt in place of the format's own, encoded as text. Empty: the format's own turn, or none.

    Raises:
      UserError: if `system` is given and the format has no system turn, or the tokenizer cannot encode a text.
    """
    return tokenizer.encode_pieces(_prompt(fmt, question, system), after="")


def encode_row(
    tokenizer: Tokenizer, fmt: ChatFormat, question: str, trace: str, answer: str, system: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes one training example.

    Args:
      tokenizer: has the format's special tokens, see `check`.
      fmt: the strings around the three parts.
      question: encoded as text, like trace, answer and system prompt.
      trace: the thinking; white space at both ends is removed.
      answer: white space at both ends is removed; `fmt.answer_prefix` is put before it unless it contains that.
      system: as for `encode_prompt`.

    Returns:
      token ids int32 [n], and bool [n]: the tokens that carry loss (see the docstring of this file).

    Raises:
      UserError: as `encode_prompt`.
    """
    return with_response(tokenizer, fmt, [_prompt(fmt, question, system)], trace, answer)


def with_response(
    tokenizer: Tokenizer, fmt: ChatFormat, prompt: Sequence[list[Piece]], trace: str, answer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes one training example whose prompt is given in parts, up to the assistant header; see `encode_row`."""
    answer = answer.strip()
    if fmt.answer_prefix.strip() not in answer:
        answer = fmt.answer_prefix + answer
    parts = encode_parts(
        tokenizer,
        *prompt,
        [own(fmt.think_start)],
        trace_pieces(fmt, trace),
        [own(fmt.think_end)],
        [own(fmt.after_think_end), Piece(answer)],
        [own(fmt.turn_end)],
        [own(fmt.after_turn)],
    )
    ids = np.array([*itertools.chain(*parts)], np.int32)
    supervised = np.zeros(len(ids), bool)
    supervised[sum(map(len, parts[: len(prompt)])) : len(ids) - len(parts[-1])] = True
    return ids, supervised


def own(text: str) -> Piece:
    """Returns a string of the format as a piece: special tokens in it become their ids."""
    return Piece(text, is_user_text=False)


def _prompt(fmt: ChatFormat, question: str, system: str) -> list[Piece]:
    if not system:
        return [own(fmt.before_question), Piece(question), own(fmt.after_question)]
    start, end = system_turn(fmt)
    return [own(start), Piece(system), own(end), Piece(question), own(fmt.after_question)]


def trace_pieces(fmt: ChatFormat, trace: str) -> list[Piece]:
    """Returns a trace, stripped of white space, with what stands between it and the delimiters."""
    return [own(fmt.after_think_start), Piece(trace.strip()), own(fmt.before_think_end)]


def encode_parts(tokenizer: Tokenizer, *parts: list[Piece]) -> list[list[int]]:
    """Encodes the parts of one text one by one; each part knows what precedes it."""
    after: str | None = ""
    encoded = []
    for part in parts:
        encoded.append(tokenizer.encode_pieces(part, after))
        written = [piece for piece in part if piece.text]
        if written:
            after = None if written[-1].is_user_text else tokenizer.last_special(written[-1].text)
    return encoded


def delimiters(tokenizer: Tokenizer, fmt: ChatFormat) -> Delimiters:
    """Encodes everything that budget forcing needs.

    Args:
      tokenizer: the model's.
      fmt: the chat format the model was trained with.

    Raises:
      UserError: if the tokenizer lacks a delimiter, or cannot write a newline or one of the strings.
    """
    check(tokenizer, fmt)
    legal = tokenizer.legal_ids(tokenizer.num_ids)
    newline = tokenizer.encode("\n")
    ends_in_newline = tokenizer.ends_in_newline()
    if not newline or newline[-1] not in ends_in_newline:
        raise UserError("the tokenizer has no id for a newline, which the delimiters need; give another tokenizer.")
    think_end = _encode_whole(tokenizer, fmt.think_end, "think_end")
    stop = _stop_ids(tokenizer, fmt)
    end = {think_end[0], *stop}
    before = tokenizer.last_special(fmt.after_question)
    think_start = _encode_whole(tokenizer, fmt.think_start, "think_start", before)
    final_answer = _encode_whole(tokenizer, fmt.final_answer, "final_answer", tokenizer.last_special(fmt.think_end))
    return Delimiters(
        think_start=think_start,
        think_end=think_end,
        newline=tuple(newline),
        final_answer=final_answer,
        end=tuple(sorted(end)),
        stop=tuple(sorted(stop)),
        ends_in_newline=tuple(ends_in_newline),
        num_ids=tokenizer.num_ids,
        illegal=tuple(int(i) for i in np.flatnonzero(~legal)),
        pad=tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.id_of(fmt.turn_end),
    )


def encode_wait(tokenizer: Tokenizer, fmt: ChatFormat, delimiters: Delimiters, wait: str) -> tuple[int, ...]:
    """Encodes a wait string.

    Args:
      tokenizer: the model's.
      fmt: the chat format the model was trained with.
      delimiters: of both.
      wait: may be several ids or empty. It is encoded as text: special tokens in it stay text.

    Raises:
      UserError: if the tokenizer cannot write it, or one of its ids would end thinking or the answer.
    """
    ids = _encode_whole(tokenizer, wait, "wait", is_user_text=True) if wait else ()
    ending = next((i for i in ids if i in delimiters.think_end[:1] or i in delimiters.stop), None)
    if ending is not None:
        ends_thinking = ending == delimiters.think_end[0]
        what = f"the end of thinking {fmt.think_end!r} begins" if ends_thinking else "an answer ends"
        raise UserError(
            f"wait {wait!r} holds {tokenizer.decode([ending])!r}, with which {what}; choose another string."
        )
    return ids


def _encode_whole(
    tokenizer: Tokenizer, text: str, what: str, after: str | None = None, *, is_user_text: bool = False
) -> tuple[int, ...]:
    """Returns the token ids of a forced string; refuses one that the vocabulary cannot write, ignoring white space."""
    try:
        ids = tokenizer.encode_text(text, after) if is_user_text else tokenizer.encode(text, after)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    want, got = ("".join(unicodedata.normalize("NFKC", part).split()) for part in (text, tokenizer.decode(ids)))
    if not ids or got != want:
        raise UserError(f"{what} {text!r} cannot be written in the tokenizer's ids (they say {got!r}); change it.")
    return tuple(ids)


def with_stops(fmt: ChatFormat, tokenizer: Tokenizer, ids: Iterable[int]) -> ChatFormat:
    """Returns the format with the tokens `ids` added to those that end an answer."""
    more = sorted(set(ids) - _stop_ids(tokenizer, fmt))
    return dataclasses.replace(fmt, stop=(*fmt.stop, *tokenizer.tokens(more)))


def _stop_ids(tokenizer: Tokenizer, fmt: ChatFormat) -> set[int]:
    """Returns the ids that end an answer: turn_end, the format's other stops and the tokenizer's end of sequence."""
    stop = {tokenizer.id_of(token) for token in fmt.stop if tokenizer.knows(token)}
    if tokenizer.eos_id is not None:
        stop.add(tokenizer.eos_id)
    return stop | {tokenizer.id_of(fmt.turn_end)}
