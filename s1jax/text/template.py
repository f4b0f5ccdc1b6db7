"""Writes a chat format as a Jinja chat template for transformers, vLLM, Ollama and llama.cpp."""

from __future__ import annotations

import json
import re

from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.chat import ChatFormat

# Tags strip the white space around them. Only statements that the small Jinja engines of C++ programs support.
_TEMPLATE = """\
{%- if messages and messages[0]['role'] == 'system' and messages[0]['content'] -%}
@SYSTEM@
{%- set turns = messages[1:] -%}
{%- else -%}
{{- @BEFORE@ -}}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set turns = messages -%}
{%- endif -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('the turns must be user, assistant, user, ... after at most one system turn') -}}
{%- elif message['role'] == 'user' -%}
{%- if not loop.first -%}
@USER@
{%- endif -%}
{{- message['content'] + @USER_END@ -}}
{%- else -%}
{{- @ASSISTANT@ -}}
{%- if message['reasoning_content'] is string -%}
{%- set trace = message['reasoning_content'] | trim -%}
{{- @THINK_START@ + trace + @THINK_END@ -}}
{%- if @PREFIX_WORD@ not in message['content'] -%}
{{- @PREFIX@ -}}
{%- endif -%}
{%- endif -%}
{{- message['content'] | trim + @TURN_END@ -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- @ASSISTANT@ + @THINKING@ -}}
{%- endif -%}
"""


def to_jinja(fmt: ChatFormat) -> str:
    """Returns the template of a format.

    With `add_generation_prompt` it ends with think_start, which s1jax forces after every prompt. A `system` message
    replaces the format's own system prompt. An assistant message with `reasoning_content` is rendered as a training
    row is; one without has its content alone.
    """
    turn = fmt.turn_end + fmt.after_turn
    try:
        start, end = chat.system_turn(fmt)
        system = f"{{{{- {_quoted(start)} + messages[0]['content'] + {_quoted(end)} -}}}}"
        header = end.removeprefix(turn)
    except UserError:
        system = "{{- raise_exception('this chat format has no system turn') -}}"
        header = fmt.before_question
    user = f"{{{{- {_quoted(header)} -}}}}" if header else "{{- raise_exception('this chat format has one turn') -}}"
    user_end = turn if fmt.after_question.startswith(turn) else ""
    strings = {
        "BEFORE": fmt.before_question,
        "USER_END": user_end,
        "ASSISTANT": fmt.after_question.removeprefix(user_end),
        "THINK_START": fmt.think_start + fmt.after_think_start,
        "THINK_END": fmt.before_think_end + fmt.think_end + fmt.after_think_end,
        "PREFIX_WORD": fmt.answer_prefix.strip(),
        "PREFIX": fmt.answer_prefix,
        "TURN_END": turn,
        "THINKING": fmt.think_start,
    }
    values = {"SYSTEM": system, "USER": user, **{name: _quoted(value) for name, value in strings.items()}}
    # In one pass, because a value may hold what reads like a name.
    text = re.sub("@([A-Z_]+)@", lambda found: values[found[1]], _TEMPLATE)
    return text.replace("-%}\n", "-%}").replace("-}}\n", "-}}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
