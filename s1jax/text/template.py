"""Writes a chat format as a Jinja chat template for transformers, vLLM, Ollama and llama.cpp."""

from __future__ import annotations

import json
import re

from s1jax.errors import UserError
from s1jax.text import chat, conversation
from s1jax.text import tools as tools_lib
from s1jax.text.chat import ChatFormat
from s1jax.text.conversation import Turns

# Tags strip the white space around them. Only statements that the small Jinja engines of C++ programs support.
_TEMPLATE = """\
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] in ['system', 'developer'] -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
@TOOLS@ messages and messages[0]['role'] in ['system', 'developer'] and messages[0]['content'] -%}
@SYSTEM@
{%- else -%}
{{- @START@ -}}
{%- endif -%}
{%- set ns = namespace(last_user=turns | length) -%}
{%- for message in turns -%}
{%- if message['role'] == 'user'@NO_RESULT@ -%}
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
{%- set content = message['content'] or '' -%}
{%- set begun = content -%}
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
@ANSWER@
{{- content -}}
@CALLS@
{{- @TURN_END@ -}}
@RESULT@
{%- else -%}
{{- raise_exception('this chat format has no role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- @ASSISTANT@ + @THINK_START@ -}}
{%- endif -%}
"""

# What a format with tools has at three of the places above.
_TOOLS = {
    "TOOLS": """\
{%- if tools -%}
{{- @SYSTEM_START@ -}}
{%- if turns | length < messages | length and messages[0]['content'] -%}
{{- messages[0]['content'] + '\\n\\n' -}}
{%- else -%}
{{- @DEFAULT_SYSTEM@ -}}
{%- endif -%}
{{- @BEFORE_TOOLS@ -}}
{%- for tool in tools -%}
{{- '\\n' -}}{{- tool | tojson -}}
{%- endfor -%}
{{- @AFTER_TOOLS@ + @SYSTEM_END@ -}}
{%- elif""",
    "CALLS": """\
{%- if message['tool_calls'] -%}
{%- for call in message['tool_calls'] -%}
{%- if call['function'] -%}
{%- set call = call['function'] -%}
{%- endif -%}
{%- if begun or not loop.first -%}
{{- '\\n' -}}
{%- endif -%}
{{- '<tool_call>\\n{"name": "' + call['name'] + '", "arguments": ' -}}
{%- if call['arguments'] is string -%}
{{- call['arguments'] -}}
{%- else -%}
{{- call['arguments'] | tojson -}}
{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}""",
    "RESULT": """\
{%- elif message['role'] == 'tool' -%}
{%- if loop.first or turns[loop.index0 - 1]['role'] != 'tool' -%}
{{- @RESULTS_START@ -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' -}}
{%- if loop.last or turns[loop.index0 + 1]['role'] != 'tool' -%}
{{- @USER_END@ -}}
{%- endif -%}""",
    "NO_RESULT": " and not (message['content'].startswith('<tool_response>')"
    " and message['content'].endswith('</tool_response>'))",
}
_REFUSE_TOOLS = "{{- raise_exception('this chat format has no tools') -}}\n"
_NO_TOOLS = {
    "TOOLS": "{%- if tools -%}\n" + _REFUSE_TOOLS + "{%- elif",
    "CALLS": "{%- if message['tool_calls'] -%}\n" + _REFUSE_TOOLS + "{%- endif -%}",
    "RESULT": "",
    "NO_RESULT": "",
}

# Of a format that writes a system prompt into the first question.
_FIRST_IS_USER = """\
{%- if turns and turns[0]['role'] != 'user' -%}
{{- raise_exception('the first message after a system prompt must be of the user') -}}
{%- endif -%}
"""
_OPENED = """\
{%- if not loop.first or turns | length == messages | length or not messages[0]['content'] -%}
@USER@
{%- endif -%}"""

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
{%- set begun = content -%}
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
    row is; one without has its content alone. Where the format has efforts, `reasoning_effort` of the call chooses one.
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
    }
    values = {name: _quoted(value) for name, value in values.items()}
    values |= {"START": _with_effort(fmt, strings.start), "TURN_END": _quoted(strings.end), "ANSWER": ""}
    if fmt.earlier_end:
        values["TURN_END"] = f"({_quoted(fmt.turn_end + fmt.after_turn)} if loop.last else {_quoted(strings.end)})"
    if strings.answer:  # such formats drop the thinking of earlier messages
        written = f"{{{{- {_quoted(strings.answer)} -}}}}"
        values["ANSWER"] = "{%- if not loop.last or trace is not string -%}" + written + "{%- endif -%}"
    values |= _system_and_user(fmt, strings)
    tools = _NO_TOOLS
    if conversation.has_tools(fmt):
        tools = _TOOLS
        values |= _about_tools(fmt, strings)
    text = _TEMPLATE.replace("@EARLIER@\n", _EARLIER[conversation.earlier_thinking(fmt)])
    for name, statements in tools.items():
        text = text.replace(f"@{name}@", statements)
    # In one pass, because a value may hold what reads like a name.
    text = re.sub("@([A-Z_]+)@", lambda found: values[found[1]], text)
    return text.replace("-%}\n", "-%}").replace("-}}\n", "-}}")


def _about_tools(fmt: ChatFormat, strings: Turns) -> dict[str, str]:
    """Returns the strings around tools."""
    start, end = chat.system_turn(fmt)
    default = conversation.default_system(fmt)
    before, *_, after = tools_lib.description([{}])
    values = {
        "SYSTEM_START": start,
        "DEFAULT_SYSTEM": default and default + "\n\n",
        "BEFORE_TOOLS": before.text,
        "AFTER_TOOLS": after.text,
        "SYSTEM_END": end.removesuffix(strings.user),
        "RESULTS_START": strings.user.removesuffix("\n"),
    }
    return {name: _quoted(value) for name, value in values.items()}


def _system_and_user(fmt: ChatFormat, strings: Turns) -> dict[str, str]:
    """Returns the statements that write what is not in every format."""
    user = f"{{{{- {_quoted(strings.user)} -}}}}"
    if not strings.user:
        user = "{%- if not loop.first -%}{{- raise_exception('this chat format has one turn') -}}{%- endif -%}"
    system = "{{- raise_exception('this chat format has no system turn') -}}"
    later = "{{- raise_exception('a system message must be the first') -}}"
    try:
        start, end = chat.system_turn(fmt)
        system = _around("messages[0]", _with_effort(fmt, start), _quoted(end.removesuffix(strings.user)))
        if conversation.system_opens_turn(fmt):
            system = _FIRST_IS_USER + system
            user = _OPENED.replace("@USER@", user)
        later = _around("message", _quoted(conversation.later_system(fmt)), _quoted(strings.end))
    except UserError:
        pass
    return {"SYSTEM": system, "USER": user, "LATER_SYSTEM": later}


def _around(message: str, start: str, end: str) -> str:
    return f"{{{{- {start} + {message}['content'] + {end} -}}}}"


def _with_effort(fmt: ChatFormat, text: str) -> str:
    """Returns a string as an expression in which a call's `reasoning_effort` takes the place of the format's effort."""
    before, line, after = (
        text.partition(fmt.effort_line.replace("{effort}", fmt.effort)) if fmt.effort else (text, "", "")
    )
    if not line:
        return _quoted(text)
    ahead, behind = fmt.effort_line.split("{effort}")
    effort = f"(reasoning_effort if reasoning_effort is string else {_quoted(fmt.effort)})"
    return f"{_quoted(before + ahead)} + {effort} + {_quoted(behind + after)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
