"""Calls of tools in answers: the whole text, text in pieces, and what is not a call."""

import dataclasses
import json

import numpy as np
import pytest

from s1jax.errors import UserError
from s1jax.text import tools
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall

ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CALL = ToolCall("add", '{"a": 1}')
# answer -> its text, its calls
ANSWERS = {
    "": ("", []),
    "No call\n": ("No call\n", []),
    ADD: ("", [CALL]),
    f"I add.\n{ADD}": ("I add.", [CALL]),
    f"I add.\n\n{ADD}\n{ADD}\n": ("I add.\n", [CALL, CALL]),
    f"{ADD} so \n{ADD}": (" so ", [CALL, CALL]),
    '<tool_call>{"arguments":{ "a" :[1 , "}"] } , "name":"f"}</tool_call>': ("", [ToolCall("f", '{ "a" :[1 , "}"] }')]),
    '<tool_call>{"name": "f"}</tool_call>': ("", [ToolCall("f", "{}")]),
    '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>': (
        "", [ToolCall("f", '{"x": "</tool_call>"}')],
    ),
    '<tool_call>{"name": "f", "arguments": {}}': ("", [ToolCall("f", "{}")]),  # a stop string before the end
    '\n<tool_call>{"name": "f", "arguments": {"a": 1': ('\n<tool_call>{"name": "f", "arguments": {"a": 1', []),
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call>.': (
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>.', [],
    ),
    f"<tool_call>no\n{ADD}": ("<tool_call>no", [CALL]),
    f"<tool_call>no</tool_call>\n{ADD} <tool_ca": ("<tool_call>no</tool_call> <tool_ca", [CALL]),
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>': ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
    "<tool_call>[]</tool_call><tool_call>": ("<tool_call>[]</tool_call><tool_call>", []),
    "<tool_call>" + "[" * 100_000: ("<tool_call>" + "[" * 100_000, []),
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_in_one_piece_and_in_many(answer):
    assert tools.parse(answer) == ANSWERS[answer]
    whole = tools.Reader()
    want = _joined(whole.add(answer) + whole.finish())
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 30) if len(answer) < 1000 else (30_000,):
        reader, found, at = tools.Reader(), [], 0
        while at < len(answer):
            step = int(rng.integers(1, size + 1))
            found += reader.add(answer[at : at + step])
            at += step
        assert _joined(found + reader.finish()) == want


def _joined(parts):
    """Parts with neighbouring texts made one."""
    found = []
    for part in parts:
        if found and isinstance(part, str) and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


def test_text_is_held_back_only_where_it_may_become_a_call():
    reader = tools.Reader()
    assert reader.add("I a") == ["I a"] and reader.add("dd\n") == ["dd"] and reader.add("<tool") == []
    assert reader.add("s>") == ["\n<tools>"] and reader.add("\n\n") == ["\n"] and reader.add("b") == ["\nb"]
    assert reader.add(f"\n{ADD[:20]}") == [] and reader.add(ADD[20:]) == [CALL]
    assert reader.add("\n") == [] and reader.finish() == []


def test_a_call_is_read_as_it_was_written():
    rng = np.random.default_rng(1)
    for _ in range(200):
        values = {str(rng.integers(9)): rng.choice(["é\n", '"}', "</tool_call>", "\\"]) for _ in range(3)}
        arguments = json.dumps(values, indent=rng.choice([None, 2]), ensure_ascii=bool(rng.integers(2)))
        asked = [ToolCall("f", arguments), ToolCall("g.h", "{}")][: int(rng.integers(1, 3))]
        text = rng.choice(["", "Text", "Text\n"])
        answer = text + "".join(piece.text for piece in tools.calls(text, asked))
        assert tools.parse(answer) == (text, asked)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ToolCall("", "{}"), "the name ''; it must be a string that is not empty"),
        (lambda: ToolCall("f", "[1]"), r"the tool 'f' has the arguments '\[1\]'; they must be a JSON object"),
        (lambda: ToolCall("f", {"a": 1}), "must be a JSON object, written as a string"),
        (lambda: tools.check({"name": "f"}), "give a list of JSON objects"),
        (lambda: tools.check(["f"]), "a tool is 'f'; it must be a JSON object"),
        (lambda: tools.check([{"f": {1, 2}}]), "cannot be written as JSON"),
        (lambda: Message("user", "a", tool_calls=(CALL,)), "has tool_calls; only those of the assistant may"),
        (lambda: Message("assistant", "a", tool_calls=["f"]), r"has the tool_calls \['f'\]; give a list of"),
    ],
)
def test_bad_tools_and_calls(make, said):
    with pytest.raises(UserError, match=said):
        make()
    message = Message("assistant", "", tool_calls=[CALL])
    assert dataclasses.replace(message, content="a").tool_calls == (CALL,)
