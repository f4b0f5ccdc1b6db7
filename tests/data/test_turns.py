"""Rows of several turns: their tokens are those of the server's prompt and of one turn's answer."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tokenizers

import s1jax
from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.data import batches, s1k, shapes, sources
from s1jax.engine.encoding import Encoder
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.serve import chat as serve_chat
from s1jax.serve.protocol import Defaults
from s1jax.serve.reader import Reader
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.data import saved_by_datasets
from tests.text.test_conversation import QWEN25, R1, WITH_TURNS, _compiled

MODEL = ModelConfig.dense(vocab_size=400, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)
WORDS = ["Make 21", " so", "\n", "\n\n", "  ", "世界", "12", "assistant\n", "{}", "No?"]


@pytest.fixture(scope="module")
def tokenizer():
    """An id for every byte, and the special tokens of all chat formats."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    spec = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    spec.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    spec.decoder = tokenizers.decoders.ByteLevel()
    spec.add_special_tokens(list(dict.fromkeys(s for fmt in chat.FORMATS.values() for s in fmt.special)))
    return Tokenizer({"tokenizer.json": spec.to_str().encode()})


class Model:
    def __init__(self, tokenizer, fmt):
        self.tokenizer, self.chat = tokenizer, fmt


def served(tokenizer, fmt, messages):
    """The prompt that the server makes of the messages of a request to /v1/chat/completions."""
    call = serve_chat.read(Reader({"messages": messages}), Defaults("s1", 10_000))
    encoder = Encoder(Model(tokenizer, fmt))
    return list(encoder.encode_one(Request(prompt=call.prompts[0]), SamplingParams()).prompt)


def text(rng):
    return "".join(rng.choice(WORDS, int(rng.integers(1, 6)))) + "."


def conversation(rng, form):
    """Messages with a system turn or not, whose earlier answers have their thinking in some form or not at all."""
    found = [{"role": "system", "content": text(rng)}] if rng.random() < 0.5 else []
    for _ in range(int(rng.integers(1, 4))):
        answer = {"role": "assistant", "content": text(rng)}
        if rng.random() < 0.7:
            thought = text(rng)
            if form == "field":
                answer["reasoning_content"] = thought
            else:
                answer["content"] = f"<think>\n{thought}\n</think>\n\n{answer['content']}"
        found += [{"role": "user", "content": text(rng)}, answer]
    return [*found, {"role": "user", "content": text(rng)}]


@pytest.mark.parametrize("name", WITH_TURNS)
@pytest.mark.parametrize("form", ["field", "tags"])
def test_tokens_are_the_servers_prompt_and_the_answer(tokenizer, name, form):
    rng, fmt = np.random.default_rng(1), chat.FORMATS[name]
    for _ in range(20):
        messages = conversation(rng, form)
        if name == "gemma2" and messages[0]["role"] == "system":  # which has no place for one
            messages = messages[1:]
        trace, answer = text(rng), text(rng)
        last = {"role": "assistant", "content": answer, "reasoning_content": trace}
        (found,) = shapes.examples({"messages": [*messages, last]}, "deepseek", "f:1")
        (example,) = batches.encode_rows(tokenizer, fmt, [s1k._row(found, "f:1")])
        if form == "tags" and fmt.think_end != "</think>":  # a format of its own, whose clients send no such tags
            for message in messages:
                begun, closed, rest = message["content"].partition("</think>")
                if closed:
                    message |= {"reasoning_content": begun.removeprefix("<think>").strip(), "content": rest.strip()}
        prompt = served(tokenizer, fmt, messages)
        alone, supervised = chat.encode_row(tokenizer, fmt, "q", trace, answer)
        response = alone[supervised.argmax() :]
        assert example.ids.tolist() == [*prompt, *response]
        carried = [False] * len(prompt) + supervised[supervised.argmax() :].tolist()
        assert example.supervised.tolist() == carried


@pytest.mark.parametrize(("name", "jinja", "after"), [("s1", QWEN25, ""), ("think_r1", R1, "<think>\n")])
def test_the_prompt_is_what_published_templates_render(tokenizer, name, jinja, after):
    rng, render = np.random.default_rng(2), _compiled(jinja)
    for _ in range(10):
        messages = conversation(rng, "tags" if name == "think_r1" else "field")
        if name == "s1":  # whose own template knows no thinking
            messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]
        record = {"messages": [*messages, {"role": "assistant", "content": "<think>t</think>a"}]}
        (example,) = batches.encode_rows(
            tokenizer, chat.FORMATS[name], [s1k._row(shapes.examples(record, "deepseek", "f")[0], "f")]
        )
        prompt = example.ids[: example.supervised.argmax()].tolist()
        assert tokenizer.decode(prompt) + after == render(messages=messages)


U, V, W = ({"role": "user", "content": f"question {i}"} for i in range(3))


def said(i, **more):
    return {"role": "assistant", "content": f"answer {i}", "reasoning_content": f"trace {i}", **more}


def shown(record, loss_on):
    return [
        (each.question, each.trace, each.answer, [message.content for message in each.history])
        for each in shapes.examples(record, "deepseek", "f:1", loss_on)
    ]


FIRST = ("question 0", "trace 0", "answer 0", [])
SECOND = ("question 1", "trace 1", "answer 1", ["question 0", "answer 0"])
THIRD = ("question 2", "trace 2", "answer 2", ["question 0", "answer 0", "question 1", "answer 1"])
BARE = {"role": "assistant", "content": "answer 1"}


@pytest.mark.parametrize(
    ("record", "last", "every"),
    [
        ({"messages": [U, said(0), V, said(1), W, said(2)]}, THIRD, [FIRST, SECOND, THIRD]),
        ({"messages": [U, said(0), V, BARE, W, said(2)]}, THIRD, [FIRST, THIRD]),
        ({"messages": [U, said(0, weight=0), V, said(1, weight=1), W, said(2)]}, THIRD, [SECOND, THIRD]),
        ({"messages": [U, said(0, train=False), V, said(1)]}, SECOND, [SECOND]),
        ({"messages": [U, said(0), V, said(1, loss=False)]}, None, [FIRST]),
        ({"messages": [U, said(0, reasoning_content=" "), V, said(1)]}, SECOND, [SECOND]),
        ({"prompt": [U, said(0), V], "completion": [said(1)]}, SECOND, [SECOND]),
        ({"prompt": [U, said(0), V], "completion": [said(1), W, said(2)]}, THIRD, [SECOND, THIRD]),
        ({"prompt": [U], "completion": [said(0)]}, FIRST, [FIRST]),
    ],
)
def test_which_answers_carry_loss(record, last, every):
    if last is None:
        with pytest.raises(
            UserError, match=r"messages\[3\] has loss False; the assistant's last message is trained on"
        ):
            shapes.examples(record, "deepseek", "f:1")
    else:
        assert shown(record, "last") == [last]
    assert shown(record, "all") == every


def test_sharegpt_and_openthoughts_are_read_alike():
    """`from` and `value` in place of `role` and `content`; thinking in the tags of either."""

    def tagged(turn, form):
        thought, answer = turn["reasoning_content"], turn["content"]
        return {
            "think": f"<think>{thought}</think>{answer}",
            "thought": f"<|begin_of_thought|>{thought}<|end_of_thought|>\n\n<|begin_of_solution|>{answer}"
            "<|end_of_solution|>",
        }[form]

    turns = [U, said(0), V, said(1)]
    for form in ("think", "thought"):
        rows = [
            {"from": "human", "value": turn["content"]}
            if turn["role"] == "user"
            else {"from": "gpt", "value": tagged(turn, form)}
            for turn in turns
        ]
        found = shapes.examples({"conversations": rows, "system": "Be brief."}, "deepseek", "f:1", "all")
        assert [(each.question, each.trace, each.answer.strip()) for each in found] == [FIRST[:3], SECOND[:3]]
        assert {each.system for each in found} == {"Be brief."}
    assert found[1].history[1].thinking == "trace 0" and found[1].history[1].content == "answer 0"


def write(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def make(tokenizer, fmt="s1_plain", **data):
    settings = Experiment(model=MODEL, data=DataConfig(block_size=400, **data), train=TrainConfig(batch_size=4))
    return sources.make(settings, tokenizer, chat.FORMATS[fmt], 1)


def test_a_run_says_where_the_loss_is(tokenizer, tmp_path):
    rows = [{"messages": [U, said(0), V, said(1)]}, {"messages": [U, said(0)]}, {"messages": [U, BARE, V, said(1)]}]
    file = write(tmp_path / "rows.jsonl", rows)
    used = f"{file}: 3 rows with messages, messages.reasoning_content."
    made = make(tokenizer, source=file)
    assert made.notes == [
        used,
        f"{file}: 2 rows have several turns; the loss is on the last answer of each, and 2 earlier answers are history"
        " (data.loss_on last).",
    ]
    assert sorted(made.batches.names(0)) == [f"{file}:{i}" for i in (1, 2, 3)]
    every = make(tokenizer, source=file, loss_on="all")
    assert every.notes == [
        used,
        f"{file}: 2 rows have several turns; 3 of their 4 answers carry loss (data.loss_on all); 1 without thinking, or"
        " with weight 0, are history.",
    ]
    assert sorted(every.batches.names(0)) == [f"{file}:1", f"{file}:1 (turn 1)", f"{file}:2", f"{file}:3"]
    assert made.batches.digest != every.batches.digest
    countdown = make(tokenizer, source=write(tmp_path / "one.jsonl", rows[1:2]), loss_on="all")
    assert len(countdown.notes) == 1


def test_turns_of_a_conversation_are_held_out_together(tokenizer, tmp_path):
    def row(i):
        turns = [({"role": "user", "content": f"q {i} {k}"}, said(k)) for k in range(3)]
        return {"messages": [message for turn in turns for message in turn]}

    file = write(tmp_path / "rows.jsonl", [row(i) for i in range(10)])
    made = make(tokenizer, source=file, loss_on="all", validation="0.3")
    held, trained = (
        {name for step in range(b.steps_per_epoch) for name in b.names(step)} for b in (made.validation, made.batches)
    )
    assert len(held) == 9 and len(trained) == 21
    assert not {name.split(" ")[0] for name in held} & {name.split(" ")[0] for name in trained}


def test_a_format_of_one_turn_names_the_row(tmp_path):
    countdown = Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")
    file = write(tmp_path / "rows.jsonl", [{"messages": [U, said(0), V, said(1)]}])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the chat format, whose prompts read 'QUESTION', has nothing"):
        make(countdown, "countdown_base", source=file)


def test_tags_in_earlier_answers_are_not_reported_as_text(tokenizer, tmp_path):
    tagged = {"role": "assistant", "content": "<think>t</think>a"}
    file = write(tmp_path / "rows.jsonl", [{"messages": [U, tagged, V, tagged]}])
    for fmt in ("s1_plain", "think", "think_r1"):
        made = make(tokenizer, fmt, source=file)
        assert len(made.notes) == 2
        written = tokenizer.decode(made.batches.batch(0)["tokens"][0].tolist())
        assert written.count("t") and ("<think>t" in written.split("question 1")[0]) is False
    kept = make(tokenizer, "s1_plain", source=file).batches.batch(0)["tokens"][0].tolist()
    assert "<|im_start|>think\nt\n<|im_start|>answer\na<|im_end|>\n<|im_start|>user" in tokenizer.decode(kept)


def test_a_folder_saved_by_datasets_is_trained_on_without_that_library(tokenizer, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it raises
    folder = saved_by_datasets.FOLDER
    made = make(tokenizer, source=str(folder), validation="test")
    assert made.notes[1] == f"{folder}: 4 rows with messages, messages.reasoning_content; not used: source."
    assert made.batches.steps_per_epoch == 1 and made.validation.steps_per_epoch == 1
    rows = [*s1k.load_rows(str(folder)), *s1k.load_rows(str(folder / "test"))]
    for row, record in zip(rows, saved_by_datasets.ROWS, strict=True):
        said = [message["content"] for message in record["messages"]]
        assert [*(message.content for message in row.history), row.question, row.answer] == said
        assert row.trace == record["messages"][-1]["reasoning_content"]
