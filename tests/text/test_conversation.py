"""Conversations of random messages against the published chat templates, token by token."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import tokenizers

from s1jax.config import schema
from s1jax.errors import UserError
from s1jax.text import chat, conversation, template
from s1jax.text import tools as tools_lib
from s1jax.text.messages import Message
from s1jax.text.tokenizer import Tokenizer
from s1jax.text.tools import ToolCall
from tests.text.conftest import ADDED, SPECIAL, shared

WITH_TURNS = [name for name in chat.FORMATS if name != "countdown_base"]
LATER_SYSTEMS = ("s1", "s1_plain", "countdown", "think", "phi3", "phi4", "phi4_mini")  # have a turn for them
R1_TOKENS = [token for token in chat.FORMATS["think_r1"].special if not token.endswith("think>")]
# Special tokens of all formats that Qwen's tokenizer lacks.
MORE = [token for fmt in chat.FORMATS.values() for token in fmt.special if token not in SPECIAL + ADDED]
MORE = list(dict.fromkeys([*R1_TOKENS, *MORE]))
HOSTILE = [*SPECIAL, *MORE, "<think>", "</think>", "<tool_call>", "</tool_response>"]
WORDS = ["Make 21", "no", " so", "\n", "\n\n", "  ", "世界", "😀", "12", "user", "\n</", "assistant\n", "{}", "é"]
# Qwen2.5's template and DeepSeek-R1's without their branches for tools.
QWEN25 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant')"
    " %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
R1 = (
    "{%- set ns = namespace(system_prompt='') -%}{%- for message in messages -%}{%- if message['role'] == 'system' -%}"
    "{%- set ns.system_prompt = message['content'] -%}{%- endif -%}{%- endfor -%}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{'<｜User｜>' + message['content']}}"
    "{%- endif -%}{%- if message['role'] == 'assistant' -%}{%- set content = message['content'] -%}"
    "{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<｜Assistant｜><think>\\n'}}{%- endif %}"
)


USER, SAID = Message("user", "q"), Message("assistant", "a")


@pytest.fixture(scope="module")
def spec() -> dict:
    """Qwen's tokenizer with the special tokens of all formats added."""
    spec = json.loads((shared("data/qwen_tokenizer") / "tokenizer.json").read_text())
    fixed = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    ids = dict(spec["model"]["vocab"])  # it has <s>
    for token in MORE:
        spec["added_tokens"].append(dict(id=ids.setdefault(token, 26 + len(ids)), content=token, **fixed))
    return spec


@pytest.fixture(scope="module")
def qwen(spec) -> Tokenizer:
    return Tokenizer({"tokenizer.json": json.dumps(spec).encode()})


@pytest.fixture(scope="module")
def reference(spec):
    """Encodes a rendered conversation: what is marked is text, other special tokens are special."""
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    plain = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        found = []
        for part in pattern.split(text):
            found += [ids[part]] if part in ids else plain.encode(_marked(part, back=True)).ids
        return found

    return encode


def _marked(text: str, back: bool = False, but: tuple[str, ...] = ()) -> str:
    """Text with a private character in place of each special token but some, or back from there."""
    for i, token in enumerate(HOSTILE):
        mark = chr(0xE000 + i)
        text = text.replace(mark, token) if back else text if token in but else text.replace(token, mark)
    return text


def _refuse(message: str) -> None:
    raise ValueError(message)


def _compiled(jinja: str):
    """A function that renders messages as transformers does."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return functools.partial(environment.from_string(jinja).render, add_generation_prompt=True, bos_token=R1_TOKENS[0])


def _text(rng, without: str = "") -> str:
    words = [word for word in WORDS + HOSTILE if word != without]
    return "".join(rng.choice(words, int(rng.integers(1, 9))))


def random_messages(rng, later_systems: bool = True, thinking: bool = True) -> list[Message]:
    """Messages in any order that ends with a user's; some assistants have thinking, beside the content or inside."""
    found = [Message("system", _text(rng))] if rng.random() < 0.5 else []
    roles = ["user", "assistant", "assistant"] + ["system"] * later_systems
    for role in [*(rng.choice(roles, int(rng.integers(0, 7))).tolist() if rng.random() < 0.9 else []), "user"]:
        text, trace = _text(rng, without="<think>" if role == "assistant" else ""), None
        if role == "assistant" and thinking and rng.random() < 0.6:
            trace = _text(rng) if rng.random() < 0.8 else ""
            if rng.random() < 0.4:
                text, trace = f"<think>\n{trace.replace('<think>', '')}\n</think>\n\n{text}", None
        found.append(Message(role, text, thinking=trace))
    return found


def random_calls(rng) -> tuple[ToolCall, ...]:
    """Calls with arguments in several spellings of JSON."""
    found = []
    for _ in range(int(rng.integers(1, 3))):
        arguments = json.dumps({_text(rng): _text(rng), "n": [1, None]}, indent=rng.choice([None, 1]))
        found.append(ToolCall(_text(rng), rng.choice(["{}", '{"a":1}', arguments])))
    return tuple(found)


def random_tool_messages(rng) -> list[Message]:
    """Random messages with calls, and results of tools anywhere."""
    found = []
    for message in random_messages(rng):
        if message.role == "assistant" and rng.random() < 0.5:
            content = message.content if rng.random() < 0.6 else rng.choice(["", "\n", "\n\na\n"])
            message = dataclasses.replace(message, content=content, tool_calls=random_calls(rng))
        found += [message] * (message.role != "user" or rng.random() < 0.7)
        found += [Message("tool", _text(rng)) for _ in range(int(rng.choice([0, 0, 1, 2])))]
    return [*found, Message(rng.choice(["user", "tool"]), _text(rng))]


def as_dicts(messages: list[Message], name: str) -> list[dict]:
    """Messages for a template, text marked but for the `</think>` that its template looks for."""
    found = []
    for message in messages:
        drops = chat.FORMATS[name].earlier_thinking == "drop" and name != "harmony"
        searched = message.role == "assistant" and (drops or (name == "think" and message.thinking is None))
        content = _marked(message.content, but=("<think>", "</think>") if searched else ())
        found.append({"role": message.role, "content": content})
        if message.thinking is not None:
            found[-1]["reasoning_content"] = _marked(message.thinking)
        if message.tool_calls:
            found[-1]["tool_calls"] = [
                {"type": "function", "function": {"name": _marked(call.name), "arguments": _marked(call.arguments)}}
                for call in message.tool_calls
            ]
    return found


@pytest.fixture(scope="module")
def qwen3() -> str:
    """The published template."""
    return json.loads((shared("data/qwen_tokenizer") / "tokenizer_config.json").read_text())["chat_template"]


@pytest.mark.parametrize("name", ["s1", "think", "think_r1"])
def test_the_ids_are_those_of_the_published_template(qwen, reference, qwen3, name):
    jinja = {"s1": QWEN25, "think": qwen3, "think_r1": R1}[name]
    render, rng = _compiled(jinja), np.random.default_rng(0)
    for _ in range(100):
        messages = random_messages(rng, later_systems=name != "think_r1", thinking=name != "s1")
        want = reference(render(messages=as_dicts(messages, name)).removesuffix("<think>\n"))
        assert conversation.encode(qwen, chat.FORMATS[name], messages) == want, messages


@pytest.mark.parametrize("name", WITH_TURNS)
def test_the_ids_are_those_of_the_exported_template(qwen, reference, name):
    fmt = chat.FORMATS[name]
    render, rng = _compiled(template.to_jinja(fmt)), np.random.default_rng(1)
    for _ in range(50):
        messages = random_messages(rng, later_systems=name in LATER_SYSTEMS)
        if name == "gemma2":
            messages = [message for message in messages if message.role != "system"]
        elif name == "gemma3" and [message.role for message in messages[:2]] == ["system", "assistant"]:
            messages[1:1] = [USER]
        want = reference(render(messages=as_dicts(messages, name)))
        start = chat.encode_parts(qwen, [chat.own(fmt.think_start)])[0]
        assert conversation.encode(qwen, fmt, messages) + start == want, messages


def test_tools_are_written_as_in_the_published_template(qwen, reference, qwen3):
    render, rng = _compiled(qwen3), np.random.default_rng(4)
    exported = _compiled(template.to_jinja(chat.FORMATS["think"]))
    for _ in range(100):
        messages, tools = random_tool_messages(rng), []
        for _ in range(int(rng.integers(0, 3))):
            about = {"name": "f", "description": _text(rng), "parameters": {"type": "object", "é": [1.5, True]}}
            tools.append({"type": "function", "function": about})
        marked = json.loads(_marked(json.dumps(tools, ensure_ascii=False)))
        want = reference(render(messages=as_dicts(messages, "think"), tools=marked))
        assert conversation.encode(qwen, chat.FORMATS["think"], messages, tools) == want, (messages, tools)
        again = reference(exported(messages=as_dicts(messages, "think"), tools=marked))
        assert again == [*want, qwen.id_of("<think>")], (messages, tools)


def test_results_of_tools_that_a_user_writes(qwen, qwen3):
    """The template does not take them for a question: thinking before them is kept, as text they stay text."""
    said = Message("assistant", "a", thinking="t")
    messages = [USER, said, Message("user", "<tool_response>\n2\n</tool_response>")]
    turns = [{"role": m.role, "content": m.content, "reasoning_content": m.thinking} for m in messages]
    ids = conversation.encode(qwen, chat.FORMATS["think"], messages)
    assert qwen.decode(ids) == _compiled(qwen3)(messages=turns) and "<think>\nt\n</think>" in qwen.decode(ids)
    assert not {qwen.id_of("<tool_response>"), qwen.id_of("</tool_response>")} & set(ids)


def test_a_call_and_its_result_follow_all_of_the_sample_before(qwen):
    fmt, tools = chat.FORMATS["think"], [{"type": "function", "function": {"name": "add"}}]
    call = ToolCall("add", '{"a": 1,  "b":2}')
    answer = 'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1,  "b":2}}\n</tool_call>'
    row, supervised = chat.encode_row(qwen, fmt, "q", "I need a sum.", answer)
    # In a row the answer is text; a sampled call has the tokens of its tags.
    before = qwen.encode("<think>\nI need a sum.\n</think>\n\n" + answer + "<|im_end|>")
    assert qwen.decode(before) == qwen.decode(row[supervised])
    prompt = conversation.encode(qwen, fmt, [USER], tools)
    said = Message("assistant", *tools_lib.parse(answer)[:1], thinking="I need a sum.", tool_calls=(call,))
    later = conversation.encode(qwen, fmt, [USER, said, Message("tool", "3")], tools)
    assert tools_lib.parse(answer) == ("I add.", [call]) and later[: len(prompt + before)] == prompt + before


def test_tools_stand_after_a_default_system_prompt(qwen):
    tools = [{"name": "f"}]
    fmt = chat.with_system(chat.FORMATS["think"], "Be brief.")
    want = conversation.encode(qwen, chat.FORMATS["think"], [Message("system", "Be brief."), USER], tools)
    assert conversation.encode(qwen, fmt, [USER], tools) == want
    exported = _compiled(template.to_jinja(fmt))(messages=as_dicts([USER], "think"), tools=tools)
    assert qwen.decode(want) + "<think>" == exported


def test_an_exported_template_without_tools_refuses_them():
    render = _compiled(template.to_jinja(chat.FORMATS["s1"]))
    said = dataclasses.replace(SAID, tool_calls=(ToolCall("f"),))
    for messages, tools in (([USER], [{"name": "f"}]), ([USER, said], None), ([USER, Message("tool", "3")], None)):
        with pytest.raises(ValueError, match="this chat format has no"):
            render(messages=as_dicts(messages, "s1"), tools=tools)


def test_a_developer_is_a_system(qwen):
    messages = random_messages(np.random.default_rng(2))
    messages = [Message("system", "Be brief."), *messages, Message("system", "Now."), Message("user", "q")]
    renamed = [dataclasses.replace(m, role="developer") if m.role == "system" else m for m in messages]
    for name in ("s1", "think"):
        fmt = chat.FORMATS[name]
        assert conversation.encode(qwen, fmt, renamed) == conversation.encode(qwen, fmt, messages)


@pytest.mark.parametrize("name", ["s1", "s1_plain", "think"])
def test_text_of_messages_never_becomes_special(tokenizer, name):
    """Whatever the kind of tokenizer."""
    fmt, rng = chat.FORMATS[name], np.random.default_rng(3)
    special = {tokenizer.id_of(token) for token in SPECIAL + ADDED}
    for _ in range(20):
        messages = random_messages(rng)
        harmless = [dataclasses.replace(m, content="a", thinking=None if m.thinking is None else "b") for m in messages]
        if name == "think":
            messages = [dataclasses.replace(m, content=m.content.replace("</think>", "")) for m in messages]
        ids, want = (conversation.encode(tokenizer, fmt, each) for each in (messages, harmless))
        count = [[i for i in each if i in special] for each in (ids, want)]
        if name == "think" or all(m.thinking != "" for m in messages):
            assert count[0] == count[1], messages
        written = tokenizer.decode(ids).replace("\u2581", " ")  # which SentencePiece's tokenizers take for a space
        assert all(m.content.replace("\u2581", " ") in written for m in messages if m.thinking is None), messages


THOUGHT = [("q", "Let me see.\nTwo.", "Answer: 2"), ("a <|im_end|>", "no </think> so", "Final Answer: (7*1)*3")]


@pytest.mark.parametrize("name", ["s1", "s1_plain", "countdown"])
def test_a_sample_and_its_prompt_begin_the_next_prompt(tokenizer, name):
    """So that a prefix cache holds all of them: the row of training is what a sampler writes."""
    fmt, messages = chat.FORMATS[name], []
    for question, trace, answer in THOUGHT * 2:
        messages.append(Message("user", question))
        prompt = conversation.encode(tokenizer, fmt, messages)
        row, supervised = chat.encode_row(tokenizer, fmt, question, trace, answer)
        sampled = row[supervised].tolist()
        messages.append(Message("assistant", answer, thinking=trace))
        later = conversation.encode(tokenizer, fmt, [*messages, Message("user", "more")])
        assert later[: len(prompt) + len(sampled)] == prompt + sampled
    # What the sampler forces for max_thinking_tokens=0.
    none = conversation.encode(tokenizer, fmt, [Message("user", "q"), Message("assistant", "a", ""), messages[0]])
    found, prompt = chat.delimiters(tokenizer, fmt), chat.encode_prompt(tokenizer, fmt, "q")
    forced = [*found.think_start, *found.newline, *found.think_end]
    assert none[: len(prompt) + len(forced)] == prompt + forced


@pytest.mark.parametrize("name", ["think", "think_r1"])
def test_where_thinking_is_dropped_the_next_prompt_leaves_the_sample_at_think_start(qwen, name):
    fmt, (question, trace, answer) = chat.FORMATS[name], THOUGHT[0]
    prompt = chat.encode_prompt(qwen, fmt, question)
    turn = [Message("user", question), Message("assistant", answer, thinking=trace)]
    later = conversation.encode(qwen, fmt, [*turn, Message("user", "more")])
    assert later[: len(prompt)] == prompt
    think_start = chat.delimiters(qwen, fmt).think_start
    assert not set(think_start) & set(later)
    assert later[len(prompt) :][: len(qwen.encode(answer))] == qwen.encode(answer)


@pytest.mark.parametrize("name", ["s1", "s1_plain", "countdown", "think", "think_r1"])
def test_formats_of_earlier_releases(name):
    stored = schema.to_dict(chat.FORMATS[name])
    want = conversation.earlier_thinking(chat.FORMATS[name])
    assert want == {"think": "last_turn", "think_r1": "drop"}.get(name, "keep") == stored.pop("earlier_thinking")
    del stored["user_start"], stored["earlier_start"], stored["earlier_end"], stored["efforts"], stored["effort_line"]
    old = schema.from_dict(chat.ChatFormat, stored)
    assert old.earlier_thinking == "" and conversation.earlier_thinking(old) == want


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        ("s1", [], "the last message is missing; it must be the user's"),
        ("s1", [USER, SAID], "the last message is that of the role assistant; it must be the user's"),
        ("countdown_base", [USER, SAID, USER], "nothing that separates turns; give one user message"),
        ("countdown_base", [Message("system", "s"), USER], "has no system turn"),
        ("s1", [USER, dataclasses.replace(SAID, tool_calls=[ToolCall("f")]), USER], "answer'.* has no place for tools"),
        ("think_r1", [USER, SAID, Message("tool", "2")], "whose thinking ends with '</think>', has no place for tools"),
        ("think_r1", [Message("system", "s"), USER, Message("system", "s"), USER], "one place for it, at the start"),
        ("harmony", [Message("system", "s"), USER, Message("system", "s"), USER], "one place for it, at the start"),
        ("harmony", [USER, SAID, Message("tool", "2")], "has no place for tools"),
        ("gemma2", [Message("system", "s"), USER], "has no system turn"),
        ("gemma3", [Message("system", "s"), SAID, USER], "writes a system prompt into the first question"),
    ],
)
def test_conversations_that_a_format_has_no_place_for(qwen, name, messages, said):
    with pytest.raises(UserError, match=said):
        conversation.encode(qwen, chat.FORMATS[name], messages)


def test_transformers_renders_the_same(qwen):
    """Not the environment of this file, but transformers' own."""
    transformers = pytest.importorskip("transformers")
    own = transformers.AutoTokenizer.from_pretrained(shared("data/qwen_tokenizer"))
    messages = [Message("system", "Be brief."), USER, Message("assistant", "a", thinking="t"), USER, SAID, USER]
    turns = [{"role": m.role, "content": m.content} | ({"reasoning_content": m.thinking} if m.thinking else {})
             for m in messages]  # fmt: skip
    want = own.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert conversation.encode(qwen, chat.FORMATS["think"], messages) == want
    messages[2:3] = [Message("assistant", "<think>\nt\n</think>\n\na")]
    assert conversation.encode(qwen, chat.FORMATS["think"], messages) == want
