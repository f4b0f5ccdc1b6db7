"""Writes a chat format as a Jinja chat template for transformers, vLLM, Ollama and llama.cpp."""

from __future__ import annotations

import json
import re

from s1jax.errors import UserError
from s1jax.text import chat, conversation
from s1jax.text.chat import ChatFormat
from s1jax.text.conversation import Turns

# Tags strip the white space around them. Only statements that the small Jinja engines of C++ programs support.
_TEMPLATE = """\
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] in ['system', 'developer'] -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- if messages and messages[0]['role'] in ['system', 'developer'] and messages[0]['content'] -%}
@SYSTEM@
{%- else -%}
{{- @START@ -}}
{%- endif -%}
{%- set ns = namespace(last_user=-1) -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{%- set ns.last_user = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
@USER@
{{- message['content'] + @USER_END@ -}}
{%- elif message['role'] in ['system', 'developer'] -%}
@LATER_SYSTEM@
{%- elif message['role'] == 'assistant' -%}
{{- @ASSISTANT@ -}}
{%- set content = message['content'] -%}
{%- set trace = message['reasoning_content'] -%}
{%- if not loop.last -%}
@EARLIER@
{%- elif trace is string -%}
{{- @THINK_START@ + @AFTER_THINK_START@ + trace | trim + @THINK_END@ -}}
{%- if @PREFIX_WORD@ not in content -%}
{{- @PREFIX@ -}}
{%- endif -%}
{%- set content = content | trim -%}
{%- endif -%}
{{- content + @TURN_END@ -}}
{%- else -%}
{{- raise_exception('the roles are system, developer, user and assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- @ASSISTANT@ + @THINK_START@ -}}
{%- endif -%}
"""

# How an assistant message that is not the last one is written, by `ChatFormat.earlier_thinking`.
_EARLIER = {
    "keep": """\
{%- if trace is string -%}
{{- @THINK_START@ -}}
{%- if trace | trim -%}
{{- @AFTER_THINK_START@ + trace | trim -}}
{%- endif -%}
{{- @THINK_END@ -}}
{%- set content = content | trim -%}
{%- endif -%}
""",
    "last_turn": """\
{%- if @DELIMITER@ in content and trace is not string -%}
{%- set trace = content.split(@DELIMITER@)[0].split(@THINK_START@)[-1].strip('\\n') -%}
{%- set content = content.split(@DELIMITER@)[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if trace and loop.index0 > ns.last_user -%}
{{- @THINK_START@ + @AFTER_THINK_START@ + trace.strip('\\n') + @THINK_END@ -}}
{%- set content = content.lstrip('\\n') -%}
{%- endif -%}
""",
    "drop": """\
{%- if @DELIMITER@ in content -%}
{%- set content = content.split(@DELIMITER@)[-1] -%}
{%- endif -%}
""",
}


def to_jinja(fmt: ChatFormat) -> str:
    """Returns the template of a format, which writes conversations as `s1jax.text.conversation` does.

    With `add_generation_prompt` it ends with think_start, which s1jax forces after every prompt. A `system` message
    replaces the format's own system prompt. A last assistant message with `reasoning_content` is rendered as a training
    row is; one without has its content alone.
    """
    strings = conversation.turns(fmt)
    values = {
        "USER_END": strings.user_end,
        "ASSISTANT": strings.assistant,
        "THINK_START": fmt.think_start,
        "AFTER_THINK_START": fmt.after_think_start,
        "THINK_END": fmt.before_think_end + fmt.think_end + fmt.after_think_end,
        "DELIMITER": fmt.think_end,
        "PREFIX_WORD": fmt.answer_prefix.strip(),
        "PREFIX": fmt.answer_prefix,
        "TURN_END": strings.end,
        "START": strings.start,
    }
    values = {name: _quoted(value) for name, value in values.items()}
    values |= _system_and_user(fmt, strings)
    text = _TEMPLATE.replace("@EARLIER@\n", _EARLIER[conversation.earlier_thinking(fmt)])
    # In one pass, because a value may hold what reads like a name.
    text = re.sub("@([A-Z_]+)@", lambda found: values[found[1]], text)
    return text.replace("-%}\n", "-%}").replace("-}}\n", "-}}")


def _system_and_user(fmt: ChatFormat, strings: Turns) -> dict[str, str]:
    """Returns the statements that write what is not in every format."""
    user = f"{{{{- {_quoted(strings.user)} -}}}}"
    if not strings.user:
        user = "{%- if not loop.first -%}{{- raise_exception('this chat format has one turn') -}}{%- endif -%}"
    system = "{{- raise_exception('this chat format has no system turn') -}}"
    later = "{{- raise_exception('a system message must be the first') -}}"
    try:
        start, end = chat.system_turn(fmt)
        system = _around("messages[0]", start, end.removesuffix(strings.user))
        later = _around("message", conversation.later_system(fmt), strings.end)
    except UserError:
        pass
    return {"SYSTEM": system, "USER": user, "LATER_SYSTEM": later}


def _around(message: str, start: str, end: str) -> str:
    return f"{{{{- {_quoted(start)} + {message}['content'] + {_quoted(end)} -}}}}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
