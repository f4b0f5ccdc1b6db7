"""Encodes question, trace and answer in a chat format; the only file with template strings.

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
from typing import Literal

import numpy as np

from s1jax.errors import UserError
from s1jax.text.backends import Piece
from s1jax.text.delimiters import Delimiters
from s1jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The strings around a question, a trace and an answer.

    Attributes:
      before_question: from the start of the text to the question.
      after_question: from the question to the end of the assistant header.
      think_start: delimiter before the trace; forced when sampling. May be several tokens.
      think_end: delimiter between trace and answer. When its first token is sampled, thinking ends.
      turn_end: the single token that ends the answer.
      special: strings that the tokenizer must have as single tokens; otherwise the format is refused.
      after_think_start: between think_start and the trace.
      before_think_end: between the trace and think_end.
      after_think_end: between think_end and the answer.
      after_turn: after turn_end, unsupervised.
      answer_prefix: put before an answer that does not contain it.
      final_answer: forced after think_end when thinking is cut.
      stop: more tokens that end an answer, if the tokenizer has them.
      system_start: from the start of the text to a system prompt. If it and `system_end` are empty, a format with
        ChatML's user turn uses ChatML's system turn; other formats refuse a system prompt.
      system_end: from a system prompt to the question. The two replace before_question, which contains the format's
        default system turn.
      earlier_thinking: what becomes of the thinking of earlier assistant messages of a conversation. `keep`: all of it
        stays. `last_turn`: only what follows the last user message. `drop`: nothing. Empty, as in checkpoints of
        earlier releases: decided by `earlier_thinking`.
      token_instruction: appended to a question to limit the thinking tokens; `{tokens}` is replaced by the limit,
        `{log2}` by its base-2 logarithm.
      step_instruction: appended to a question to limit the steps; `{steps}` is replaced by the limit.
      step_header: before each step of a trace; counts down to 1 with `{steps}`.
      short_instruction: appended to a question to ask for short thinking.
      long_instruction: appended to a question to ask for long thinking.

    The instructions are those of the paper (arXiv 2501.19393, appendix E.1 and figure 10) as its released evaluation
    has them (github.com/simplescaling/s1, eval/lm-evaluation-harness/lm_eval/tasks/aime). There a step begins with
    `<|im_start|>` as well. Here that token ends thinking, so the header is plain text.
    """

    before_question: str
    after_question: str
    think_start: str
    think_end: str
    turn_end: str
    special: tuple[str, ...]
    after_think_start: str = "\n"
    before_think_end: str = "\n"
    after_think_end: str = "\n"
    after_turn: str = "\n"
    answer_prefix: str = ""
    final_answer: str = "\nFinal Answer:"
    stop: tuple[str, ...] = ("<|endoftext|>",)
    system_start: str = ""
    system_end: str = ""
    earlier_thinking: Literal["", "keep", "last_turn", "drop"] = ""
    token_instruction: str = "\n\nThink for up to {tokens} tokens."
    step_instruction: str = "\n\nThink for up to {steps} steps."
    step_header: str = "{steps} steps left\n"
    short_instruction: str = (
        "\n\nAnswer after a short amount of thinking. Do not spend excessive time double-checking your work."
    )
    long_instruction: str = (
        "\n\nAnswer after a long amount of thinking. If you feel like you are finished early, spend the extra time"
        " trying to double-check your work until you are absolutely sure that you have the correct answer."
    )


_CHATML_USER = "<|im_start|>user\n"
_CHATML_SYSTEM = ("<|im_start|>system\n", f"<|im_end|>\n{_CHATML_USER}")
_CHATML = ChatFormat(
    before_question=_CHATML_USER,
    after_question="<|im_end|>\n<|im_start|>assistant\n",
    think_start="<|im_start|>think",
    think_end="<|im_start|>answer",
    turn_end="<|im_end|>",
    special=("<|im_start|>", "<|im_end|>"),
    answer_prefix="Answer: ",
    system_start=_CHATML_SYSTEM[0],
    system_end=_CHATML_SYSTEM[1],
    earlier_thinking="keep",
)


def system_turn(fmt: ChatFormat) -> tuple[str, str]:
    """Returns the strings around a system prompt: from the start of the text to it, and from it to the question.

    Formats of checkpoints from earlier releases lack these fields; ChatML is recognised by its user turn.

    Raises:
      UserError: if the format has no system turn.
    """
    if fmt.system_start or fmt.system_end:
        return fmt.system_start, fmt.system_end
    if fmt.before_question.endswith(_CHATML_USER):
        return _CHATML_SYSTEM
    raise UserError(
        f"the chat format, whose prompts begin {fmt.before_question + '...'!r}, has no system turn; leave out `system`,"
        " or write it into the question."
    )


def with_system(fmt: ChatFormat, system: str) -> ChatFormat:
    """Returns the format with another default system prompt.

    Raises:
      UserError: if the format has no system turn.
    """
    start, end = system_turn(fmt)
    return dataclasses.replace(fmt, before_question=start + system + end)


_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

FORMATS: dict[str, ChatFormat] = {
    # The paper's: ChatML with the system turn that Qwen2.5's template adds by default.
    "s1": with_system(_CHATML, _QWEN_SYSTEM),
    # The same without a system turn: Countdown, SmolLM2.
    "s1_plain": _CHATML,
    # Countdown with instructions in its own few symbols, which have no number above 99.
    "countdown": dataclasses.replace(
        _CHATML,
        token_instruction="\nthink {log2}",
        step_instruction="\ntry {steps}",
        step_header="{steps}:\n",
        short_instruction="\nthink no Wait",
        long_instruction="\nthink Wait",
    ),
    # Qwen3: ChatML with <think>...</think>.
    "think": dataclasses.replace(
        _CHATML,
        think_start="<think>",
        think_end="</think>",
        special=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        after_think_end="\n\n",
        answer_prefix="",
        earlier_thinking="last_turn",
    ),
    # DeepSeek-R1 and its distillations.
    "think_r1": ChatFormat(
        before_question="<｜begin▁of▁sentence｜><｜User｜>",
        after_question="<｜Assistant｜>",
        think_start="<think>",
        think_end="</think>",
        turn_end="<｜end▁of▁sentence｜>",
        special=(
            "<｜begin▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜end▁of▁sentence｜>",
            "<think>",
            "</think>",
        ),
        after_think_end="\n\n",
        after_turn="",
        # DeepSeek's template puts a system prompt between the first token and the user's.
        system_start="<｜begin▁of▁sentence｜>",
        system_end="<｜User｜>",
        earlier_thinking="drop",
    ),
    # The plain text that the Countdown base model was trained on: it has never seen a chat symbol.
    "countdown_base": ChatFormat(
        before_question="",
        after_question="",
        think_start="\n",
        think_end="Final",
        turn_end="<|endoftext|>",
        special=("<|endoftext|>",),
        after_think_start="",
        after_think_end=" ",
        after_turn="",
        answer_prefix="Answer: ",
        final_answer=" Answer:",
    ),
}


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
