"""Rows of conditional control against the paper's words, with plain loops as the reference."""

import dataclasses
import pathlib
import re

import pytest

import s1jax
from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data import conditional, sources
from s1jax.data.s1k import Row
from s1jax.errors import UserError
from s1jax.tasks.countdown import problems
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.text.conftest import shared

FORMAT = chat.FORMATS["countdown"]
MODEL = ModelConfig.dense(vocab_size=128, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")


@pytest.fixture(scope="module")
def rows():
    return [Row(e.question, e.trace, e.answer, f"row {i}") for i, e in enumerate(problems.sft_examples(200))]


def test_buckets_are_powers_of_two_rounded_upwards():
    for count in range(1, 5000):
        power = 1
        while power < count:
            power *= 2
        assert conditional.bucket(count) == power


def test_token_bounds_are_buckets_of_what_a_sampler_counts(tokenizer, rows):
    made = conditional.make_rows(rows, "token", tokenizer, FORMAT)
    for row, before in zip(made, rows, strict=True):
        instruction = re.fullmatch(re.escape(before.question) + r"\nthink (\d+)", row.question)
        ids, _ = chat.encode_row(tokenizer, FORMAT, before.question, before.trace, before.answer)
        text = tokenizer.encode(f"{FORMAT.think_start}"), tokenizer.encode(FORMAT.think_end)
        starts = [
            next(i for i in range(len(ids)) if ids[i : i + len(mark)].tolist() == mark) for mark in text
        ]  # fmt: skip
        count = starts[1] - starts[0] - len(text[0])
        assert count == chat.thinking_tokens(tokenizer, FORMAT, before.trace)
        assert 2 ** int(instruction[1]) // 2 < count <= 2 ** int(instruction[1])
        assert dataclasses.replace(row, question=before.question) == before


def test_steps_count_down_to_one(tokenizer, rows):
    made = conditional.make_rows(rows, "step", tokenizer, FORMAT)
    for row, before in zip(made, rows, strict=True):
        lines, old = row.trace.split("\n"), before.trace.split("\n")
        assert lines[1::2] == old and lines[0::2] == [f"{n}:" for n in range(len(old), 0, -1)]
        bound = int(row.question.removeprefix(f"{before.question}\ntry "))
        assert bound // 2 < len(old) <= bound
        problems.encode(row.trace)


def test_blank_lines_divide_before_newlines_do():
    s1 = chat.FORMATS["s1"]
    assert conditional.count_down(s1, "a\nb\n\nc\n \n\nd\n") == (
        "3 steps left\na\nb\n\n2 steps left\nc\n\n1 steps left\nd",
        3,
    )
    assert conditional.count_down(s1, "a\nb") == ("2 steps left\na\n1 steps left\nb", 2)
    assert conditional.count_down(s1, " a ") == ("1 steps left\na", 1)


def test_classes_divide_at_the_median(tokenizer, rows):
    made = conditional.make_rows(rows, "class", tokenizer, FORMAT)
    counts = [chat.thinking_tokens(tokenizer, FORMAT, row.trace) for row in rows]
    median = sorted(counts)[(len(counts) - 1) // 2]
    for row, before, count in zip(made, rows, counts, strict=True):
        assert row.question == before.question + ("\nthink no Wait" if count <= median else "\nthink Wait")
    with pytest.raises(UserError, match="no trace is longer than the median"):
        conditional.make_rows(rows[:1] * 4, "class", tokenizer, FORMAT)


def test_the_paper_s_words_with_its_tokenizer():
    qwen = Tokenizer.load(shared("data/qwen_tokenizer"))
    row = Row("What is 1+1?", "One.\n\nTwo.\n\nSo it is two.", "2", "row")
    s1 = chat.FORMATS["s1"]
    (token,) = conditional.make_rows([row], "token", qwen, s1)
    assert token.question == "What is 1+1?\n\nThink for up to 16 tokens."
    (step,) = conditional.make_rows([row], "step", qwen, s1)
    assert step.question == "What is 1+1?\n\nThink for up to 4 steps."
    assert step.trace == "3 steps left\nOne.\n\n2 steps left\nTwo.\n\n1 steps left\nSo it is two."
    # The header has no id that ends thinking.
    assert qwen.id_of("<|im_start|>") not in qwen.encode(step.trace)
    short, _ = conditional.make_rows([row, dataclasses.replace(row, trace=row.trace * 9)], "class", qwen, s1)
    assert short.question.startswith("What is 1+1?\n\nAnswer after a short amount of thinking. ")


def test_instructions_that_cannot_be_written_name_row_and_remedy(tokenizer, rows):
    with pytest.raises(UserError, match=r"row 0: the tokenizer cannot write .*Think for up to.*Countdown `countdown`"):
        conditional.make_rows(rows, "token", tokenizer, chat.FORMATS["s1_plain"])
    with pytest.raises(UserError, match="powers of two only, not for 48"):
        chat.instruct(tokenizer, FORMAT, "q", "token", 48)


def test_the_settings_choose_the_control(tokenizer):
    def made(**data):
        settings = Experiment(model=MODEL, data=DataConfig(num_rows=40, block_size=192, **data), train=TrainConfig())
        return sources.make(settings, tokenizer, FORMAT, 1).batches

    plain, token, step = made(), made(control="token"), made(control="step")
    think = tokenizer.id_of("think")
    # `think` stands in the delimiter and, with an instruction, in the question of every row.
    counts = [int((batches.batch(0)["tokens"] == think).sum()) for batches in (plain, token, step)]
    assert counts == [16, 32, 16]
    with pytest.raises(UserError, match=r"data\.control token needs rows with questions"):
        settings = Experiment(model=MODEL, data=DataConfig(source="countdown_corpus", control="token"),
                              train=TrainConfig(steps=2))  # fmt: skip
        sources.make(settings, tokenizer, FORMAT, 1)


def test_traces_with_the_end_inside_are_told(tokenizer):
    """A delimiter that the traces contain would end thinking early; the formats' own cannot occur in text."""
    settings = Experiment(model=MODEL, data=DataConfig(num_rows=40, block_size=192), train=TrainConfig())
    assert sources.make(settings, tokenizer, FORMAT, 1).notes == []
    fmt = chat.with_delimiters(tokenizer, FORMAT, think_end="so answer")
    notes = sources.make(settings, tokenizer, fmt, 1).notes
    some = [e for e in problems.sft_examples(40) if " so " in e.trace]
    assert len(notes) == 1 and notes[0].startswith(f"{len(some)} of 40 traces contain the first id of think_end")
