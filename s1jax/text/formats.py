"""The chat formats: the strings around a question, a trace and an answer, as published models were trained with.

Every prompt was compared with what the model's published template renders (tests/text/test_published.py). Three things
differ on purpose. Special tokens that a user writes stay text. A line with the current date is left out, so that a
training row and a request have the same tokens on any day. And where a model was not trained to think, the delimiters
are its own special tokens with the words of the paper: `think` and `answer`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from s1jax.errors import UserError


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
      user_start: before a question that is not the first. Empty: found in `system_end` and before_question.
      earlier_start: between the assistant header and an earlier answer whose thinking is left out.
      earlier_end: after an earlier answer. Empty: turn_end and after_turn.
      effort: how long the model shall think, as a word that stands in the system turn; empty: the format has no such
        word. `with_effort` changes it.
      efforts: the words that there are.
      effort_line: what stands there, with `{effort}` in place of the word.
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
    user_start: str = ""
    earlier_start: str = ""
    earlier_end: str = ""
    effort: str = ""
    efforts: tuple[str, ...] = ()
    effort_line: str = ""
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


def with_effort(fmt: ChatFormat, effort: str) -> ChatFormat:
    """Returns the format with another word for how long to think; an empty one changes nothing.

    Raises:
      UserError: if the format has no such word, or not this one.
    """
    if effort == fmt.effort or not effort:
        return fmt
    if effort not in fmt.efforts:
        has = f"has {', '.join(fmt.efforts)}" if fmt.efforts else "writes no effort into its prompts"
        remedy = "choose one of them" if fmt.efforts else "limit the thinking by max_thinking_tokens"
        raise UserError(f"reasoning_effort is {effort!r}, but the chat format {has}; {remedy}.")
    old, new = (fmt.effort_line.replace("{effort}", word) for word in (fmt.effort, effort))
    return dataclasses.replace(
        fmt,
        before_question=fmt.before_question.replace(old, new, 1),
        system_start=fmt.system_start.replace(old, new, 1),
        effort=effort,
    )


_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

_R1_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<think>",
    "</think>",
)
# DeepSeek-R1 and its distillations. The template puts a system prompt between the first token and the user's.
_R1 = ChatFormat(
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
    system_start="<｜begin▁of▁sentence｜>",
    system_end="<｜User｜>",
    earlier_thinking="drop",
)

_HARMONY_SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
)
_HARMONY_USER = "<|start|>user<|message|>"
# gpt-oss. The channel `analysis` is the trace, `final` the answer; a system prompt is a message of the developer.
_HARMONY = ChatFormat(
    before_question=_HARMONY_SYSTEM + _HARMONY_USER,
    after_question="<|end|><|start|>assistant",
    think_start="<|channel|>analysis<|message|>",
    think_end="<|end|><|start|>assistant<|channel|>final<|message|>",
    turn_end="<|return|>",
    special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    after_think_start="",
    before_think_end="",
    after_think_end="",
    after_turn="",
    final_answer="Final Answer:",
    stop=("<|call|>", "<|end|>", "<|endoftext|>"),
    system_start=_HARMONY_SYSTEM + "<|start|>developer<|message|># Instructions\n\n",
    system_end="<|end|>" + _HARMONY_USER,
    user_start=_HARMONY_USER,
    earlier_start="<|channel|>final<|message|>",
    earlier_end="<|end|>",
    effort="medium",
    efforts=("low", "medium", "high"),
    effort_line="Reasoning: {effort}\n",
    earlier_thinking="drop",
)

_GEMMA_USER = "<start_of_turn>user\n"
_GEMMA2 = ChatFormat(
    before_question="<bos>" + _GEMMA_USER,
    after_question="<end_of_turn>\n<start_of_turn>model\n",
    think_start="<start_of_turn>think",
    think_end="<start_of_turn>answer",
    turn_end="<end_of_turn>",
    special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    answer_prefix="Answer: ",
    stop=("<eos>",),
    user_start=_GEMMA_USER,
    earlier_thinking="keep",
)

_LLAMA3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
# The date is the one that the template writes where it is given none.
_LLAMA3_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n"
)
_LLAMA3 = ChatFormat(
    before_question=_LLAMA3_SYSTEM + "<|eot_id|>" + _LLAMA3_USER,
    after_question="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    think_start="<|start_header_id|>think<|end_header_id|>",
    think_end="<|start_header_id|>answer<|end_header_id|>",
    turn_end="<|eot_id|>",
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    after_think_start="\n\n",
    after_think_end="\n\n",
    after_turn="",
    answer_prefix="Answer: ",
    stop=("<|end_of_text|>", "<|eom_id|>"),
    system_start=_LLAMA3_SYSTEM,
    system_end="<|eot_id|>" + _LLAMA3_USER,
    user_start=_LLAMA3_USER,
    earlier_thinking="keep",
)


def _phi(newline: str) -> ChatFormat:
    """Phi-4-mini, and with a newline after every tag Phi-3.5."""
    user, end = f"<|user|>{newline}", f"<|end|>{newline}"
    return ChatFormat(
        before_question=user,
        after_question=f"{end}<|assistant|>{newline}",
        think_start="<|assistant|>think",
        think_end="<|assistant|>answer",
        turn_end="<|end|>",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        after_turn=newline,
        answer_prefix="Answer: ",
        system_start=f"<|system|>{newline}",
        system_end=end + user,
        user_start=user,
        earlier_thinking="keep",
    )


_PHI4_USER = "<|im_start|>user<|im_sep|>"
# As in tokenizer_config.json of microsoft/phi-4.
_PHI4 = ChatFormat(
    before_question=_PHI4_USER,
    after_question="<|im_end|><|im_start|>assistant<|im_sep|>",
    think_start="<|im_start|>think",
    think_end="<|im_start|>answer",
    turn_end="<|im_end|>",
    special=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    after_turn="",
    answer_prefix="Answer: ",
    system_start="<|im_start|>system<|im_sep|>",
    system_end="<|im_end|>" + _PHI4_USER,
    user_start=_PHI4_USER,
    earlier_thinking="keep",
)

# Reasoning models with ChatML: the delimiters are text that need not be one token.
_THINK = dataclasses.replace(
    _CHATML,
    think_start="<think>",
    think_end="</think>",
    special=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    after_think_end="\n\n",
    answer_prefix="",
    earlier_thinking="last_turn",
)
_SMOLLM3_SYSTEM = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face. Your role as an assistant involves "
    "thoroughly exploring questions through a systematic thinking process before providing the final precise and "
    "accurate solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, "
    "reassessment, reflection, backtracking, and iteration to develop well-considered thinking process. Please "
    "structure your response into two main sections: Thought and Solution using the specified format: <think> "
    "Thought section </think> Solution section. In the Thought section, detail your reasoning process in steps. "
    "Each step should include detailed considerations such as analysing questions, summarizing relevant findings, "
    "brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, and revisiting "
    "previous steps. In the Solution section, based on various attempts, explorations, and reflections from the "
    "Thought section, systematically present the final solution that you deem correct. The Solution section should "
    "be logical, accurate, and concise and detail necessary steps needed to reach the conclusion."
)
_SMOLLM3 = with_system(
    dataclasses.replace(
        _THINK,
        after_think_end="\n",
        system_start=(
            "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: /think\n\n"
            "## Custom Instructions\n\n"
        ),
        system_end=f"\n\n<|im_end|>\n{_CHATML_USER}",
        user_start=_CHATML_USER,
        earlier_thinking="drop",
    ),
    _SMOLLM3_SYSTEM,
)
# `<think>` is not one token of OLMo-3's, and nothing stands between it and the trace.
# The Think models of OLMo 3.1, as ollama's model/renderers/olmo3_think.go writes them (`Olmo31Think`).
_OLMO3 = dataclasses.replace(
    _THINK,
    before_question=(
        "<|im_start|>system\nYou are Olmo, a helpful AI assistant built by Ai2. Your date cutoff is December 2024, and "
        f"your model weights are available at https://huggingface.co/allenai.<|im_end|>\n{_CHATML_USER}"
    ),
    special=("<|im_start|>", "<|im_end|>"),
    after_think_start="",
    system_end=(
        f" You do not currently have access to any functions. <functions></functions><|im_end|>\n{_CHATML_USER}"
    ),
    user_start=_CHATML_USER,
    earlier_thinking="drop",
)

_MINISTRAL3_SYSTEM = (
    "# HOW YOU SHOULD THINK AND ANSWER\n\nFirst draft your thinking process (inner monologue) until you arrive at a "
    "response. Format your response using Markdown, and use LaTeX for any mathematical equations. Write both your "
    "thoughts and the response in the same language as the input.\n\nYour thinking process must follow the template "
    "below:[THINK]Your thoughts or/and draft, like working through an exercise on scratch paper. Be as casual and as "
    "long as you want until you are confident to generate the response to the user.[/THINK]Here, provide a "
    "self-contained response."
)
_MINISTRAL3 = with_system(
    ChatFormat(
        before_question="",
        after_question="[/INST]",
        think_start="[THINK]",
        think_end="[/THINK]",
        turn_end="</s>",
        special=("<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
        after_think_start="",
        before_think_end="",
        after_think_end="",
        after_turn="",
        final_answer="Final Answer:",
        stop=(),
        system_start="<s>[SYSTEM_PROMPT]",
        system_end="[/SYSTEM_PROMPT][INST]",
        user_start="[INST]",
        earlier_thinking="keep",
    ),
    _MINISTRAL3_SYSTEM,
)

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
    "think": _THINK,  # Qwen3
    "think_r1": _R1,  # DeepSeek-R1 and its distillations
    # DeepSeek-V3.1, which has no newlines around the thinking and marks earlier answers as ones without.
    "deepseek_v3": dataclasses.replace(
        _R1,
        after_think_start="",
        before_think_end="",
        after_think_end="",
        final_answer="Final Answer:",
        user_start="<｜User｜>",
        earlier_start="</think>",
    ),
    # DeepSeek-V2, whose vocabulary has no tokens for turns or thinking. Turns are as in its tokenizer_config.json and
    # "DeepSeek-V2" of llama.cpp's tests/test-chat-template.cpp.
    "deepseek_v2": ChatFormat(
        before_question="<｜begin▁of▁sentence｜>User: ",
        after_question="\n\nAssistant:",
        think_start=" <think>",
        think_end="</think>",
        turn_end="<｜end▁of▁sentence｜>",
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        after_turn="",
        answer_prefix="Answer: ",
        system_start="<｜begin▁of▁sentence｜>",
        system_end="\n\nUser: ",
        user_start="User: ",
        earlier_start=" ",
        earlier_thinking="drop",
    ),
    "harmony": _HARMONY,
    "gemma2": _GEMMA2,
    # A system prompt stands before the first question, in the same turn, as in google/gemma-3-1b-it's chat template.
    "gemma3": dataclasses.replace(_GEMMA2, system_start="<bos>" + _GEMMA_USER, system_end="\n\n"),
    "llama3": _LLAMA3,
    "phi3": _phi("\n"),
    "phi4": _PHI4,
    "phi4_mini": _phi(""),
    "smollm3": _SMOLLM3,
    "olmo3": _OLMO3,
    "ministral3": _MINISTRAL3,
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
