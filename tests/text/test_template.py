"""Chat formats as Jinja templates, against transformers' own rendering; the format that a template chooses."""

import dataclasses
import json

import pytest

from s1jax.errors import UserError
from s1jax.text import chat, default_format, template
from s1jax.text.tokenizer import Tokenizer
from tests.text.conftest import shared

QUESTION, TRACE, ANSWER = " What is 1+1?\n", " Let me see.\n\nTwo. ", "2"


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return Tokenizer.load(shared("data/qwen_tokenizer"))


@pytest.fixture(scope="module")
def reference(qwen):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(shared("data/qwen_tokenizer"))


@pytest.mark.parametrize("system", ["", "Be brief.\n"])
@pytest.mark.parametrize("name", ["s1", "s1_plain", "think"])
def test_prompts_and_rows_are_those_of_training(qwen, reference, name, system):
    fmt = chat.FORMATS[name]
    jinja = template.to_jinja(fmt)
    turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": QUESTION}]
    prompt = reference.apply_chat_template(turns, chat_template=jinja, add_generation_prompt=True, return_dict=False)
    start = chat.delimiters(qwen, fmt).think_start
    assert prompt == [*chat.encode_prompt(qwen, fmt, QUESTION, system), *start]
    turns.append({"role": "assistant", "content": ANSWER, "reasoning_content": TRACE})
    row = reference.apply_chat_template(turns, chat_template=jinja, return_dict=False)
    assert row == chat.encode_row(qwen, fmt, QUESTION, TRACE, ANSWER, system)[0].tolist()


def test_think_is_what_qwens_own_template_renders(reference):
    """Qwen3's template opens no <think> itself; s1jax forces it, and so does the exported template."""
    jinja = template.to_jinja(chat.FORMATS["think"])
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    own = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (
        reference.apply_chat_template(turns, chat_template=jinja, tokenize=False, add_generation_prompt=True)
        == own + "<think>"
    )


def test_a_system_prompt_that_reads_like_a_name_in_the_template(reference):
    system = "Write @PREFIX@, @USER_END@ or @SYSTEM@."
    jinja = template.to_jinja(chat.with_system(chat.FORMATS["s1_plain"], system))
    text = reference.apply_chat_template([{"role": "user", "content": "a"}], chat_template=jinja, tokenize=False)
    assert text == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\na<|im_end|>\n"


def test_turns_that_a_format_has_no_place_for(reference):
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "s"}
    base = template.to_jinja(chat.FORMATS["countdown_base"])
    assert (
        reference.apply_chat_template([user], chat_template=base, tokenize=False, add_generation_prompt=True) == "a\n"
    )
    for turns, words in (([system, user], "no system turn"), ([user, user], "one turn")):
        with pytest.raises(Exception, match=words):
            reference.apply_chat_template(turns, chat_template=base, tokenize=False)
    r1 = template.to_jinja(chat.FORMATS["think_r1"])
    text = reference.apply_chat_template([system, user], chat_template=r1, tokenize=False, add_generation_prompt=True)
    assert text == "<｜begin▁of▁sentence｜>s<｜User｜>a<｜Assistant｜><think>"


def _with_template(tokenizer: Tokenizer, jinja, tokens=()) -> Tokenizer:
    spec = json.loads(tokenizer.files["tokenizer.json"])
    if tokens:
        spec["added_tokens"] = []
    made = {"tokenizer.json": json.dumps(spec).encode()}
    if jinja is not None:
        made["tokenizer_config.json"] = json.dumps({"chat_template": jinja}).encode()
    return Tokenizer(made)


SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou"
    " are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' +"
    " message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- else %}{%- if messages[0]['role'] == 'system' %}{{-"
    " '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are"
    " Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}{%- endif %}{%- endif %}"
    "{%- for message in messages %}{%- if message['role'] != 'system' %}{{- '<|im_start|>' + message['role'] + '\\n' +"
    " message['content'] + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
MATH = QWEN25.replace(
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Please reason step by step, and put your final answer within \\\\boxed{}.",
)
PLAIN = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}{% endfor %}"


@pytest.mark.parametrize(
    ("jinja", "name", "system"),
    [
        (SMOL, "s1_plain", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (QWEN25, "s1", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        (MATH, "s1_plain", "Please reason step by step, and put your final answer within \\boxed{}."),
        (PLAIN, "s1_plain", ""),
        ([{"name": "tool_use", "template": QWEN25}, {"name": "default", "template": SMOL}], "s1_plain", "SmolLM"),
        (None, "s1_plain", ""),
        ("[INST] {{ messages[0]['content'] }} [/INST]", "s1_plain", ""),
    ],
)
def test_the_default_format_is_that_of_the_template(qwen, reference, jinja, name, system):
    tokenizer = _with_template(qwen, jinja)
    found, fmt, why = default_format.choose(tokenizer)
    assert found == name and "the tokenizer" in why
    assert system in fmt.before_question and ("system" in fmt.before_question) == bool(system)
    if jinja in (SMOL, QWEN25, MATH):  # word for word what the template itself renders
        rendered = reference.apply_chat_template(
            [{"role": "user", "content": "q"}], chat_template=jinja, tokenize=False
        )
        assert fmt.before_question.removesuffix("<|im_start|>user\n") == rendered.partition("<|im_start|>user")[0]


def test_qwen3_gets_think(qwen):
    name, fmt, _ = default_format.choose(qwen)
    assert name == "think" and fmt == chat.FORMATS["think"]


def test_a_template_file_takes_precedence(qwen):
    tokenizer = Tokenizer({**qwen.files, "chat_template.jinja": SMOL.encode()})
    assert default_format.choose(tokenizer)[0] == "s1_plain"


def test_a_format_whose_delimiters_are_not_special_is_no_default(qwen):
    with pytest.raises(UserError, match=r"--chat is needed: .* lacks the tokens <.im_start.>"):
        default_format.choose(_with_template(qwen, SMOL, tokens=("none",)))
    countdown = Tokenizer({"tokenizer.json": json.dumps(_words(["<|endoftext|>"])).encode()})
    with pytest.raises(UserError, match=r"it can write the formats countdown_base\."):
        default_format.choose(countdown)


def _words(special: list[str]) -> dict:
    import tokenizers

    spec = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token=""))
    spec.add_special_tokens(special)
    return json.loads(spec.to_str())


def test_instructions_of_strangers_are_no_format_strings(qwen):
    """A checkpoint's s1jax.json may hold anything; only the known names are filled in."""
    evil = "{tokens.__class__.__init__} {0} {} {{tokens}} {x!r:>9999999} {tokens} {log2}"
    fmt = dataclasses.replace(chat.FORMATS["s1_plain"], token_instruction=evil, step_header="{steps.real}{steps}")
    found = chat.instruct(qwen, fmt, "q", "token", 8)
    assert found == "q{tokens.__class__.__init__} {0} {} {8} {x!r:>9999999} 8 3"
    assert chat.headed(fmt, ["a", "b"]) == ["{steps.real}2a", "{steps.real}1b"]


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VARIABLE = (
    "{% set words = 'Be kind.' %}"
    "{% if messages[0]['role'] == 'system' %}{% set words = messages[0]['content'] %}{% endif %}"
    "{{ '<|im_start|>system\\n' + words + '<|im_end|>\\n' }}"
)


@pytest.mark.parametrize(
    ("jinja", "system", "doubt"),
    [
        (CHATML, "", ""),
        (VARIABLE + CHATML, "Be kind.", ""),
        ("{% if tools %}{{ '<|im_start|>system\\nTools.<|im_end|>\\n' }}{% endif %}" + CHATML, "", ""),
        ("{# '<|im_start|>system\\nNever.<|im_end|>\\n' #}" + CHATML, "", ""),
        (CHATML.replace("m['role']", "('human' if m['role'] == 'user' else 'bot')"), "", "<|im_start|>human"),
        (CHATML.replace("'<|im_end|>\\n'", "'<|im_end|>'"), "", "<|im_end|><|im_start|>assistant"),
        ("{{ '<|endoftext|>' }}" + CHATML, "", "<|endoftext|><|im_start|>user"),
    ],
)
def test_the_system_prompt_is_the_one_that_the_template_writes(qwen, jinja, system, doubt):
    """What its source says somewhere, in a comment or for tools, is not what a model was trained with."""
    pytest.importorskip("jinja2")
    tokenizer = Tokenizer({**qwen.files, "chat_template.jinja": jinja.encode()})
    name, fmt, why = default_format.choose(tokenizer)
    assert name == "s1_plain"
    if doubt:
        assert "which this format does not" in why and doubt in why
    else:
        want = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        want += "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(chat.encode_prompt(tokenizer, fmt, "hello")) == want and "which" not in why
