"""Chooses a chat format for a model from its tokenizer's chat template."""

from __future__ import annotations

import dataclasses
import json
import re

from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.chat import FORMATS, ChatFormat
from s1jax.text.tokenizer import Tokenizer

# A literal system turn without placeholders: the template adds it if no message is a system message.
_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)((?:\\.|[^'\"\\{}]|\{\})+?)<\|im_end\|>")
_ESCAPES = {"n": "\n", "t": "\t"}
_PROBE = "What is 12 plus 30?"
# ChatML's prompt for one question as a template renders it, up to the start of the answer.
_PROMPT = re.compile(
    r"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n)?<\|im_start\|>user\n"
    + re.escape(_PROBE)
    + r"<\|im_end\|>\n"
    r"<\|im_start\|>assistant\n.*",
    re.DOTALL,
)


# Chat formats and texts that only their models' templates hold, or those that s1jax exports; the first that fit.
_MARKS = (
    ("deepseek_v3", ("<｜Assistant｜>", "thinking is defined")),
    ("deepseek_v3", ("<｜Assistant｜>", '{{- "</think>" -}}')),
    ("think_r1", ("<｜Assistant｜>",)),
    ("deepseek_v2", ("User: ", "Assistant:")),
    ("harmony", ("<|channel|>analysis<|message|>",)),
    ("gemma2", ("<start_of_turn>", "System role not supported")),
    ("gemma2", ("<start_of_turn>", "this chat format has no system turn")),
    ("gemma3", ("<start_of_turn>",)),
    ("llama3", ("<|start_header_id|>",)),
    ("phi4", ("<|im_sep|>",)),
    ("phi4_mini", ("<|assistant|>", "<|end|>")),
    ("ministral3", ("[THINK]", "[INST]")),
    ("smollm3", ("<|im_start|>", "Reasoning Mode")),
    ("olmo3", ("<|im_start|>", "<think>", "<functions>")),
)
_DATES = re.compile(r"(Current date|Today Date): .*\n")


def choose(tokenizer: Tokenizer) -> tuple[str, ChatFormat, str]:
    """Returns the name of a chat format, the format, and one sentence on why it was chosen.

    A template that holds the marks of a published one gives that format, with what the template writes before a
    question. Another template with ChatML's tokens gives `think` if it ends thinking with `</think>`, else `s1` if its
    default system prompt is Qwen2.5's, else `s1_plain`; the format gets the system prompt that the template adds by
    itself, or none. A tokenizer without a template that has ChatML's tokens gets `s1_plain`. A format is chosen only if
    its delimiters are special or added tokens of the tokenizer.

    The sentence says if the template renders a prompt differently from the format. It also says if jinja2 is missing,
    so that only the source of the template was searched.

    Raises:
      UserError: if none fits; names the formats that the tokenizer can write.
    """
    template = read_template(tokenizer)
    marks = template or ""
    for name, all_of in _MARKS:
        if all(mark in marks for mark in all_of) and _has(tokenizer, name):
            rendered = _render(marks, tokenizer)
            if name == "phi4_mini" and "<|user|>\n" in (marks.replace("\\n", "\n") if rendered is None else rendered):
                name = "phi3"
            fmt, doubt = _as_rendered(FORMATS[name], rendered)
            return name, fmt, f"the tokenizer's chat template is that of `{name}`{doubt}"
    if "<|im_start|>" in marks and _has(tokenizer, "s1_plain"):
        system, doubt = _default_system(marks, tokenizer)
        name = "think" if "</think>" in marks and _has(tokenizer, "think") else "s1_plain"
        fmt = chat.with_system(FORMATS[name], system) if system else FORMATS[name]
        if fmt == FORMATS["s1"]:
            name = "s1"
        tags = " with <think>" if name == "think" else ""
        default = f"the default system prompt {system!r}" if system else "no default system prompt"
        return name, fmt, f"the tokenizer's chat template is ChatML{tags} and has {default}{doubt}"
    if _has(tokenizer, "s1_plain"):
        why = "has no chat template" if template is None else "has a chat template that is not known here"
        return "s1_plain", FORMATS["s1_plain"], f"the tokenizer {why}, but ChatML's tokens"
    able = [name for name in sorted(FORMATS) if _has(tokenizer, name)]
    problem = "has no chat template" if template is None else "has a chat template that s1jax does not know"
    raise UserError(
        f"--chat is needed: the tokenizer {problem}, and it lacks the tokens <|im_start|> and <|im_end|>; "
        + (f"it can write the formats {', '.join(able)}." if able else "add the tokens of a format to the tokenizer.")
    )


def _as_rendered(fmt: ChatFormat, rendered: str | None) -> tuple[ChatFormat, str]:
    """Returns a format with what its template writes before a question, and a phrase on any doubt about it."""
    if rendered is None:
        return fmt, ", by its source alone: it was not rendered"
    before, question, after = rendered.partition(_PROBE)
    if not question or not after.startswith(fmt.after_question.rstrip()):
        begun = rendered if len(rendered) <= 160 else rendered[:160] + "..."
        return fmt, f", but it writes a question as {begun!r}, which this format does not"
    dated, own = (_DATES.sub("", text) for text in (before, fmt.before_question))
    first = next(token for token in fmt.special if fmt.before_question.startswith(token))
    if own in (dated, first + dated):  # without the first token where the tokenizer does not name it
        return fmt, ""
    if not dated.endswith(fmt.user_start) or dated != before:
        return fmt, f", but it begins {before!r}, and this format {fmt.before_question!r}"
    before = before if before.startswith(first) else first + before
    return dataclasses.replace(fmt, before_question=before), f", and begins {before!r}"


def _default_system(template: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """Returns the system prompt that a ChatML template adds by itself, and a phrase on any doubt about the choice."""
    rendered = _render(template, tokenizer)
    if rendered is not None:
        match = _PROMPT.fullmatch(rendered)
        if match:
            return match["system"] or "", ""
        begun = rendered if len(rendered) <= 160 else rendered[:160] + "..."
        return "", f", but it writes a question as {begun!r}, which this format does not"
    found = _SYSTEM.search(template)
    system = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), found[1]) if found else ""
    return system, ", by its source alone: it was not rendered"


def _render(template: str, tokenizer: Tokenizer) -> str | None:
    """Returns the prompt of one question as transformers renders it; None without jinja2 or where that fails."""
    try:
        import jinja2.sandbox
    except ImportError:
        return None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    config = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    named = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        named[name] = token.get("content") if isinstance(token, dict) else token or ""
    messages = [{"role": "user", "content": _PROBE}]
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **named)
    except Exception:  # whatever the code of a template raises
        return None


def read_template(tokenizer: Tokenizer) -> str | None:
    """Returns the chat template among the tokenizer's files, the one named `default` of several, or None.

    As in transformers, `chat_template.jinja` takes precedence over the field of tokenizer_config.json.
    """
    if "chat_template.jinja" in tokenizer.files:
        return tokenizer.files["chat_template.jinja"].decode(errors="replace")
    config = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) and template.strip() else None


def _has(tokenizer: Tokenizer, name: str) -> bool:
    return all(tokenizer.is_special(token) for token in FORMATS[name].special)
