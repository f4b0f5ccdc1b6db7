"""The OpenAPI document of the server, from the parsers themselves: what they read is what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from s1jax.serve import anthropic, budgets, chat, completions, responses, tool_blocks, tool_calls
from s1jax.serve.protocol import Call, Defaults
from s1jax.serve.reader import Reader

_USER = [{"role": "user", "content": "What is 1+1?"}]
# Path, parser, the smallest body, the fields that must be there, and what the route does.
_APIS: tuple[tuple[str, Callable[[Reader, Defaults], Call], dict[str, Any], tuple[str, ...], str], ...] = (
    ("/v1/chat/completions", chat.read, {"messages": _USER}, ("messages",), "Answers a chat."),
    ("/v1/completions", completions.read, {"prompt": "1+1="}, ("prompt",), "Answers prompts without a chat template."),
    ("/v1/responses", responses.read, {"input": "What is 1+1?"}, ("input",), "Answers a chat; nothing is stored."),
    ("/v1/messages", anthropic.read, {"messages": _USER, "max_tokens": 512}, ("messages", "max_tokens"),
     "Answers a chat, with the API of Anthropic."),
)  # fmt: skip
_BOUND = "Most tokens of thinking, delimiters and answer together; lowered to what the context leaves."
_LIMIT = "Most thinking tokens; -1 or null: no limit. All names of it must agree."
_GROUP = "Fields of thinking may stand here as well."
_SPOKEN = "Text that ends an answer; never looked for in thinking."
DESCRIPTIONS = {
    "model": "Name of the served model; missing or empty: that one.",
    "messages": "The conversation. The last message is the user's, or the result of a tool.",
    "tool_choice": "auto, or none: the prompt does not speak of the tools.",
    "tools": "Functions that the answer may call; they become part of the prompt, as they are written here.",
    "parallel_tool_calls": "false: only the first call of an answer counts.",
    "prompt": "A text, a list of token ids, or a list of those.",
    "input": "A question, or a list of messages and of earlier reasoning.",
    "instructions": "System prompt.",
    "system": "System prompt.",
    "metadata": "Repeated in the reply.",
    "text": "Format of the answer; only text is.",
    **dict.fromkeys(budgets.MAXIMUM, _LIMIT),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), _BOUND),
    **dict.fromkeys(budgets.GROUPS, _GROUP),
    **dict.fromkeys(("stop", "stop_sequences"), _SPOKEN),
    "max_answer_tokens": "Most sampled tokens of the answer.",
    "min_thinking_tokens": "An earlier end of thinking is replaced by the wait string.",
    "num_waits": "Ends of thinking beyond the minimum that are replaced by the wait string.",
    "wait": "What replaces an end of thinking; empty or null: the end is masked.",
    "enable_thinking": "false: no thinking.",
    "think": "false: no thinking; a word: as reasoning_effort.",
    "reasoning_effort": "A number of thinking tokens that the server has for this word; a number in the request wins. "
    "Where the chat format has the word (gpt-oss: low, medium, high), it is written into the prompt instead.",
    "reasoning": "Effort, most thinking tokens (max_tokens), and whether thinking is withheld (exclude).",
    "thinking": "Whether to think, and most thinking tokens (budget_tokens).",
    "output_config": "Effort of thinking.",
    "include_reasoning": "false: thinking is counted and not sent.",
    "temperature": "0 is greedy. Missing: the server's, which is 1 unless its operator sets another.",
    "top_p": "Smallest set of tokens with at least this probability.",
    "top_k": "The most probable tokens; 0 or -1: all.",
    "min_p": "Tokens at least this fraction as probable as the best.",
    "repetition_penalty": "1 changes nothing.",
    "seed": "Of the noise, modulo 2**32. Missing: drawn. The reply has it.",
    "n": "Answers to each prompt; more than 1 need a temperature above 0.",
    "best_of": "Only as n.",
    "logprobs": "Log-probabilities of the answer's tokens. A number other than 0 needs echo.",
    "echo": "Repeats the prompt. With logprobs and max_tokens 0 or 1 it is scored and nothing is sampled.",
    "stream": "Whether the reply is a stream of server-sent events.",
    "stream_options": "Only with stream.",
    "priority": "Lower goes first; equal ones in order of arrival.",
    "cache_salt": "Separates the prefix cache of this request from others.",
    "think_longer": "Goes on with the thinking of a finished reply; messages are missing or empty then.",
    "handoff": "Whether a hard question may be answered by another model.",
    "max_cost": "Most US dollars for that.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"enum": ["error"]},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
# Fields that every reply of an API has.
_REPLIES = {
    "/v1/chat/completions": ("id", "object", "created", "model", "choices", "usage"),
    "/v1/completions": ("id", "object", "created", "model", "choices", "usage"),
    "/v1/responses": ("id", "object", "created_at", "model", "status", "output", "usage"),
    "/v1/messages": ("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"),
}
# The other routes: method, path, what it does, fields of its body, those that must be there.
_TEXT = {"type": "string", "minLength": 1}
_OTHERS: tuple[tuple[str, str, str, dict[str, Any], tuple[str, ...]], ...] = (
    ("post", "/v1/chat/completions/control", "Ends the thinking of a reply that is on its way.",
     {"id": _TEXT, "action": {"enum": ["reasoning_end"]}}, ("id", "action")),
    ("post", "/v1/handoffs", "Accepts the offer of a hand-off to another model.", {"offer": _TEXT}, ("offer",)),
    ("post", "/tokenize", "Encodes a text.",
     {"prompt": {"type": "string"}, "return_token_strs": {"type": ["boolean", "null"]}}, ("prompt",)),
    ("post", "/detokenize", "Decodes token ids.",
     {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}}, ("tokens",)),
    ("get", "/v1/models", "Lists the served model.", {}, ()),
    ("get", "/v1/curve", "Accuracy against thinking tokens, of the checkpoint's own evaluation.", {}, ()),
    ("get", "/health", "Whether requests are taken.", {}, ()),
    ("get", "/metrics", "Figures in the format of Prometheus.", {}, ()),
    ("get", "/version", "The version of s1jax.", {}, ()),
    ("get", "/tokenizer_info", "What lm-evaluation-harness asks of a tokenizer.", {}, ()),
)  # fmt: skip
_STATUSES = {
    400: "A field is refused; the error names it.",
    401: "The API key is missing or wrong.",
    403: "The host or the origin is not allowed.",
    404: "The model is not served.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    429: "The key has reached a limit.",
    500: "The server has failed.",
    503: "The server is loading, full, or stopping; see the header retry-after.",
}


def body(path: str, defaults: Defaults) -> dict[str, Any]:
    """Returns the JSON schema of the body of an API.

    It says of each field alone what is accepted. Fields that disagree are refused as well: descriptions say which.

    Args:
      path: of the API.
      defaults: of the server.
    """
    _, read, smallest, required, _ = next(api for api in _APIS if api[0] == path)
    reader = Reader(smallest)
    read(reader, defaults)
    schema = reader.schema()
    fields = schema["properties"]
    if "messages" in smallest:
        fields["messages"] = {"type": "array", "minItems": 1, "items": _message(reader.groups["messages[0]"], defaults)}
    if "input" in smallest:
        fields["input"] = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "object"}}]}
    if "max_tokens" in required:
        fields["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": fields["max_tokens"]["maximum"]}
    fields["model"] = {"enum": [defaults.model, *defaults.aliases, *defaults.adapters, "", None]}
    if "think_longer" in fields:
        required = ()
    for name, field in fields.items():
        if name in DESCRIPTIONS and "description" not in field:
            field["description"] = DESCRIPTIONS[name]
    return {**schema, "required": list(required)}


def _message(reader: Reader, defaults: Defaults) -> dict[str, Any]:
    """The schema of a message of the assistant, which may have thinking, or of another role."""
    schema = {**reader.schema(), "required": ["role", "content"]}
    fields = schema["properties"]
    assistant = {**fields, "role": {"enum": ["assistant"]}}
    if "reasoning" not in fields:  # Anthropic's thinking is a block of the content
        user = {**fields, "role": {"enum": ["user"]}}
        kinds = [{**schema, "properties": user}, _with_blocks(assistant, defaults.tools)]
        return {"anyOf": kinds + ([_with_results(user)] if defaults.tools else [])}
    roles = [role for role in fields["role"]["enum"] if role not in ("assistant", "tool", None)]
    nothing = {name: {"type": "null"} for name in ("reasoning", "reasoning_content")}
    other = {**fields, "role": {"enum": roles}, **nothing}
    kinds = [{**schema, "properties": other}, {**schema, "properties": assistant}]
    return {"anyOf": kinds + (_with_tools(fields, nothing) if "tool_call_id" in fields else [])}


def _with_tools(fields: Mapping[str, Any], nothing: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas of OpenAI's messages that call tools, and of their results."""
    calls = {"type": "array", "minItems": 1, "items": tool_calls.CALL}
    content = {"anyOf": [*fields["content"]["anyOf"], {"type": "null"}]}
    caller = {**fields, "role": {"enum": ["assistant"]}, "content": content, "tool_calls": calls}
    called = {**fields, "role": {"enum": ["tool"]}, **nothing, "tool_call_id": {"type": "string", "minLength": 1}}
    return [
        {"type": "object", "required": ["role", "tool_calls"], "properties": caller},
        {"type": "object", "required": ["role", "content", "tool_call_id"], "properties": called},
    ]


def _with_results(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of Anthropic's message of the user that begins with results of tools."""
    text, parts = fields["content"]["anyOf"]
    content = {"anyOf": [text, parts, {"type": "null"}]}
    result = {**tool_blocks.RESULT, "properties": {**tool_blocks.RESULT["properties"], "content": content}}  # type: ignore[dict-item]
    blocks = {"type": "array", "minItems": 1, "items": {"anyOf": [parts["items"], result]}}
    return {"type": "object", "required": ["role", "content"], "properties": {**fields, "content": blocks}}


def _with_blocks(fields: Mapping[str, Any], tools: bool) -> dict[str, Any]:
    """The schema of Anthropic's message of the assistant."""
    string, (text, parts) = {"type": "string"}, fields["content"]["anyOf"]
    thinking = {
        "type": "object", "required": ["type", "thinking"],
        "properties": {"type": {"enum": ["thinking"]}, "thinking": string, "signature": {}},
    }  # fmt: skip
    redacted = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["redacted_thinking"]}}}
    kinds = [parts["items"], thinking, redacted, *([tool_blocks.USE] if tools else [])]
    blocks = {"type": "array", "items": {"anyOf": kinds}}
    properties = {**fields, "content": {"anyOf": [text, blocks]}}
    return {"type": "object", "required": ["role", "content"], "properties": properties}


def document(defaults: Defaults, version: str) -> dict[str, Any]:
    """Returns the document.

    Args:
      defaults: of the server.
      version: of s1jax.
    """
    paths = {path: {"post": _operation(path, defaults, about)} for path, _, _, _, about in _APIS}
    paths |= {
        path: {method: _other(path, about, fields, required)} for method, path, about, fields, required in _OTHERS
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "s1jax",
            "version": version,
            "description": "A reasoning model with a budget of thinking tokens, with the APIs of OpenAI and Anthropic.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def _other(path: str, about: str, fields: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    """The operation of a route that is none of the APIs; a route without fields has no body."""
    schema = {"type": "object", "properties": fields, "required": list(required)}
    sent = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}} if fields else {}
    failed = _STATUSES | {404: "Not found: reply, offer or evaluation.", 502: "The remote model does not answer."}
    return {
        "operationId": _name(path),
        "summary": about,
        **sent,
        "responses": {
            "200": {"description": "Done."},
            **{
                str(status): {"description": words, "content": {"application/json": {"schema": _ERROR}}}
                for status, words in failed.items()
            },
        },
    }


def _name(path: str) -> str:
    return re.sub(r"\W+", "_", path).strip("_")


def _operation(path: str, defaults: Defaults, about: str) -> dict[str, Any]:
    error = _ANTHROPIC_ERROR if path == "/v1/messages" else _ERROR
    reply = {"type": "object", "required": list(_REPLIES[path])}
    return {
        "operationId": _name(path),
        "summary": about,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body(path, defaults)}}},
        "responses": {
            "200": {
                "description": "The reply; with stream: true, its events.",
                "headers": {
                    "x-request-id": {"schema": {"type": "string"}},
                    "x-s1jax-ignored": {"schema": {"type": "string"}, "description": "Fields without an effect."},
                },
                "content": {
                    "application/json": {"schema": reply},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **{
                str(status): {"description": words, "content": {"application/json": {"schema": error}}}
                for status, words in _STATUSES.items()
            },
        },
    }
