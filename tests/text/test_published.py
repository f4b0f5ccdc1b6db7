"""Chat formats against what the models' published templates render (published_prompts.json, see make_published.py)."""

import dataclasses
import json
import pathlib
import re

import pytest
import tokenizers

from s1jax.errors import UserError
from s1jax.text import chat, conversation, default_format, template
from s1jax.text.messages import Message
from s1jax.text.tokenizer import Tokenizer
from tests.text.make_published import CONVERSATIONS

PUBLISHED = json.loads((pathlib.Path(__file__).parent / "published_prompts.json").read_text())
# As the published templates of Gemma 3 and Phi-4, Ollama's renderer of OLMo-3-Think, and openai-harmony write them.
OLMO = (
    "<|im_start|>system\nYou are Olmo, a helpful AI assistant built by Ai2. Your date cutoff is December 2024, and "
    "your model weights are available at https://huggingface.co/allenai.<|im_end|>\n"
)
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "\nReasoning: high\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
)
WRITTEN = {
    ("gemma3", "question"): "<bos><start_of_turn>user\nWhat is 1+1?<end_of_turn>\n<start_of_turn>model\n",
    ("gemma3", "system_turns"): "<bos><start_of_turn>user\nBe brief.\n\nWhat is 1+1?<end_of_turn>\n"
    + "<start_of_turn>model\nIt is 2.<end_of_turn>\n<start_of_turn>user\nAnd 2+2?<end_of_turn>\n" * 2
    + "<start_of_turn>model\n",
    (
        "phi4",
        "system",
    ): "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>What is 1+1?"
    "<|im_end|><|im_start|>assistant<|im_sep|>",
    (
        "phi4",
        "turns",
    ): "<|im_start|>user<|im_sep|>What is 1+1?<|im_end|><|im_start|>assistant<|im_sep|>It is 2."
    "<|im_end|><|im_start|>user<|im_sep|>And 2+2?<|im_end|><|im_start|>assistant<|im_sep|>",
    ("olmo3", "question"): f"{OLMO}<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n",
    ("olmo3", "system"): "<|im_start|>system\nBe brief. You do not currently have access to any functions. "
    "<functions></functions><|im_end|>\n<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n",
    ("olmo3", "turns"): f"{OLMO}<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
    "<|im_start|>user\nAnd 2+2?<|im_end|>\n<|im_start|>assistant\n",
}


class Letters:
    """A tokenizer of one id for each character, special tokens included: ids and texts are the same thing."""

    def encode_pieces(self, pieces, after=None):
        return [ord(letter) for piece in pieces for letter in piece.text]

    def last_special(self, text):
        return None


def written(fmt: chat.ChatFormat, messages: list[Message]) -> str:
    """The text of a prompt."""
    return "".join(map(chr, conversation.encode(Letters(), fmt, messages)))


def messages_of(name: str, **thinking: str) -> list[Message]:
    """A conversation of CONVERSATIONS; `thinking` is that of all assistant messages."""
    found = [Message(turn["role"], turn["content"]) for turn in CONVERSATIONS[name]]
    return [dataclasses.replace(one, **thinking) if one.role == "assistant" else one for one in found]


def as_written(case: str, text: str) -> str:
    """A published prompt without what formats leave out on purpose."""
    text = re.sub("Current date: .*\n", "", text)
    # openai-harmony, with which gpt-oss was trained, has no newlines at the end of the developer's message.
    text = text.replace("Be brief.\n\n<|end|>", "Be brief.<|end|>")
    if case == "deepseek_v3":  # llama.cpp's copy; DeepSeek's model card has </think> alone before an earlier answer
        text = text.replace("<think></think>", "</think>")
    for opened in ("<think>\n", "<think>"):  # the sampler forces it
        text = text.removesuffix(opened)
    return text


@pytest.mark.parametrize("conversation_name", list(CONVERSATIONS))
@pytest.mark.parametrize("case", list(PUBLISHED))
def test_prompts_are_those_of_the_published_template(case, conversation_name):
    found = PUBLISHED[case]
    fmt = chat.with_effort(chat.FORMATS[found["format"]], found["effort"])
    want, messages = found["prompts"][conversation_name], messages_of(conversation_name)
    if want.startswith("refused"):
        with pytest.raises(UserError, match="has no system turn"):
            written(fmt, messages)
        return
    assert written(fmt, messages) == as_written(case, want)


@pytest.mark.parametrize(("name", "conversation_name"), list(WRITTEN))
def test_prompts_as_written_by_hand(name, conversation_name):
    assert written(chat.FORMATS[name], messages_of(conversation_name)) == WRITTEN[name, conversation_name]


DEEPSEEK_V2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + "
    "'\n\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@pytest.mark.parametrize("conversation_name", list(CONVERSATIONS))
def test_deepseek_v2_as_its_template_renders_it(spec, conversation_name):
    sandbox = pytest.importorskip("jinja2.sandbox")
    render = sandbox.ImmutableSandboxedEnvironment().from_string(DEEPSEEK_V2).render
    names = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    want = render(messages=CONVERSATIONS[conversation_name], add_generation_prompt=True, **names)
    fmt = chat.FORMATS["deepseek_v2"]
    assert written(fmt, messages_of(conversation_name)) == want
    files = {
        "tokenizer.json": spec,
        "tokenizer_config.json": json.dumps({"chat_template": DEEPSEEK_V2, **names}).encode(),
    }
    name, found, why = default_format.choose(Tokenizer(files))
    assert (name, found) == ("deepseek_v2", fmt) and why.endswith("is that of `deepseek_v2`")


def test_harmony_as_openai_renders_it():
    """What openai-harmony 0.0.8 renders, analysis kept in the row that is learned and dropped from history."""
    fmt = chat.with_effort(chat.FORMATS["harmony"], "high")
    prompt = written(fmt, messages_of("system"))
    developer = "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>"
    user = "<|start|>user<|message|>What is 1+1?<|end|>"
    assert prompt == HARMONY + developer + user + "<|start|>assistant"
    ids, supervised = chat.encode_row(Letters(), fmt, "What is 1+1?", " One and one. ", "It is 2.")
    text = "".join(map(chr, ids))
    response = "".join(map(chr, ids[supervised]))
    assert text == HARMONY + user + "<|start|>assistant" + response
    trace = "<|channel|>analysis<|message|>One and one.<|end|>"
    assert response == trace + "<|start|>assistant<|channel|>final<|message|>It is 2.<|return|>"
    later = written(fmt, messages_of("turns", thinking="One and one."))
    said = "<|start|>assistant<|channel|>final<|message|>It is 2.<|end|>"
    assert later == HARMONY + user + said + "<|start|>user<|message|>And 2+2?<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def spec() -> bytes:
    """A tokenizer of single characters with the special tokens of all formats."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({chr(i): i for i in range(128)}, []))
    made.add_special_tokens([token for fmt in chat.FORMATS.values() for token in fmt.special])
    return made.to_str().encode()


@pytest.mark.parametrize("name", sorted({name for name, _ in default_format._MARKS} | {"phi3"}))
def test_an_exported_template_is_recognised(spec, name):
    """And the prompt that it renders is the format's, so an imported export has the same format."""
    pytest.importorskip("jinja2")
    exported = template.to_jinja(chat.FORMATS[name]).encode()
    found, fmt, why = default_format.choose(Tokenizer({"tokenizer.json": spec, "chat_template.jinja": exported}))
    assert (found, fmt) == (name, chat.FORMATS[name]) and why.endswith(f"is that of `{name}`")


def test_another_beginning_is_adopted_or_named(spec):
    """Llama 3.0 has no default system turn; a renamed gpt-oss says another name than its format."""
    pytest.importorskip("jinja2")
    llama30 = (
        "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] + "
        "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    )
    files = {"tokenizer.json": spec, "chat_template.jinja": llama30.encode()}
    name, fmt, why = default_format.choose(Tokenizer(files))
    want = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"  # bos is not in this tokenizer's files
    assert name == "llama3" and fmt == dataclasses.replace(chat.FORMATS[name], before_question=want)
    assert "and begins" in why
    other = template.to_jinja(chat.FORMATS["gemma3"]).replace("<start_of_turn>user", "<start_of_turn>human")
    name, fmt, why = default_format.choose(Tokenizer({**files, "chat_template.jinja": other.encode()}))
    assert name == "gemma3" and fmt == chat.FORMATS["gemma3"] and "but it begins" in why


def test_efforts():
    fmt = chat.FORMATS["harmony"]
    assert chat.with_effort(fmt, "") is fmt and chat.with_effort(fmt, "medium") is fmt
    low = chat.with_effort(fmt, "low")
    assert "Reasoning: low\n\n#" in low.before_question and "medium" not in low.before_question + low.system_start
    assert chat.with_effort(low, "medium") == fmt
    with pytest.raises(UserError, match="reasoning_effort is 'max', but the chat format has low, medium, high; choose"):
        chat.with_effort(fmt, "max")
    with pytest.raises(UserError, match="writes no effort into its prompts; limit the thinking by max_thinking_tokens"):
        chat.with_effort(chat.FORMATS["think"], "low")
