"""Streaming from Python: the pieces of a row are its output, whatever they are cut into."""

import dataclasses

import numpy as np
import pytest

from s1jax.checkpoint import store
from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine.engine import Engine
from s1jax.engine.pieces import Pieces
from s1jax.engine.sequence import EncodedRequest, Sample
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.delimiters import Delimiters
from tests.engine import cases
from tests.engine.test_formats import CONFIG, LENGTH, character_tokenizer

WARM = SamplingParams(max_thinking_tokens=30, max_answer_tokens=30, temperature=1.5, num_waits=2, stop=("e", "ab"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces") / "model"
    store.save_model(folder, cases.random_weights(CONFIG), CONFIG, character_tokenizer(), chat.FORMATS["think"], {})
    return Engine(folder, slots=2, cache_length=LENGTH)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_the_pieces_are_the_output_of_the_row(engine, steps):
    for seed in range(4):
        row = {"question": "q", "seed": seed, "max_thinking_tokens": 30 * (seed > 0)}
        params = dataclasses.replace(WARM, wait=" Hmm")
        *pieces, last = engine.stream_tokens(rows_lib.request(row, params, "row"), params, steps=steps)
        want = rows_lib.generate(engine, [row], params)[0]
        found = rows_lib.record(row, last.output)
        assert found == want | {"logprob": found["logprob"]} and (last.text, last.ids) == ("", ())
        assert abs(found["logprob"] - want["logprob"]) < 1e-3
        assert all(piece.output is None and (piece.text or piece.ids) for piece in pieces)
        assert [i for piece in pieces for i in piece.ids] == want["ids"]
        assert [piece.forced for piece in pieces for _ in piece.ids] == want["forced"]
        for part in ("thinking", "answer"):
            assert "".join(piece.text for piece in pieces if piece.part == part) == want[part]
        parts = [piece.part for piece in pieces]
        assert parts == sorted(parts, reverse=True)
        if steps == 1:
            assert max(len(piece.ids) for piece in pieces) == 1 and len(pieces) >= len(want["ids"])


def test_a_wait_is_a_forced_piece_of_thinking(engine):
    params = dataclasses.replace(WARM, seed=1, min_thinking_tokens=30)
    waits = [piece for piece in engine.stream_tokens("q", params) if piece.forced and piece.text]
    assert any("Wait" in piece.text for piece in waits if piece.part == "thinking")


D = Delimiters(think_start=(1,), think_end=(2,), newline=(10,), final_answer=(58, 32), end=(2, 3), stop=(3,),
               ends_in_newline=(10,), num_ids=256)  # fmt: skip


def decode(ids):
    return bytes(int(i) for i in ids).decode(errors="replace")


def random_sample(rng):
    """A finished sample whose ids are bytes: characters of several of them, spaces everywhere, some bytes invalid."""

    def text(length):
        ids = list("".join(rng.choice(list(" \na\u20ac\U0001f600b"), length)).encode())
        return ids + [0xE2] * int(rng.integers(0, 2)) if rng.random() < 0.3 else ids

    thinking, answer, cut = text(rng.integers(0, 9)), text(rng.integers(1, 9)) or [97], bool(rng.integers(2))
    closing = [2]
    if cut:
        closing = ([] if [0, 1, *thinking][-1] == 10 else [10]) + [2]
    forced_answer = list(D.final_answer) if cut else []
    stopped = bool(rng.integers(2))
    sampled = [*answer, 3] if stopped else answer
    ids = np.array([1, *thinking, *closing, *forced_answer, *sampled], np.int32)
    forced = [True] + [False] * len(thinking) + [True] * (len(closing) + len(forced_answer)) + [False] * len(sampled)
    end = ("cut" if cut else "natural", "stop" if stopped else "length")
    return Sample(ids, np.array(forced), len(thinking), len(sampled), 0, *end, 0.0, np.zeros(len(ids), np.float32))


def until(sample, count):
    """What there was of the sample after `count` ids."""
    thinking = max(min(sample.thinking_tokens, count - 1), 0)
    closed = count > 1 + sample.thinking_tokens
    over = count == len(sample.ids)
    begun = len(sample.ids) - sample.answer_tokens
    return dataclasses.replace(
        sample, ids=sample.ids[:count], forced=sample.forced[:count], thinking_tokens=thinking,
        answer_tokens=max(count - begun, 0), thinking_end=sample.thinking_end if closed else "",
        answer_end=sample.answer_end if over else "",
    )  # fmt: skip


def texts(sample):
    thinking = decode(sample.ids[1 : 1 + sample.thinking_tokens]).strip()
    begin = len(sample.ids) - sample.answer_tokens - 2 * (sample.thinking_end == "cut")
    answer = decode(sample.ids[begin : len(sample.ids) - (sample.answer_end == "stop")]).strip()
    return thinking, answer if sample.answer_tokens else ""


def test_no_character_is_split_and_none_is_lost():
    rng = np.random.default_rng(3)
    for _ in range(400):
        sample = random_sample(rng)
        pieces = Pieces(decode, texts, EncodedRequest((0,), SamplingParams()), D)
        found, count = [], 0
        while count < len(sample.ids):
            count = min(count + int(rng.integers(1, 5)), len(sample.ids))
            found += pieces.new(until(sample, count))
        assert [i for piece in found for i in piece.ids] == sample.ids.tolist()
        assert [piece.forced for piece in found for _ in piece.ids] == sample.forced.tolist()
        for part, want in zip(("thinking", "answer"), texts(sample), strict=True):
            assert "".join(piece.text for piece in found if piece.part == part) == want
        if 0xE2 not in sample.ids.tolist()[-3:] and "\ufffd" not in "".join(texts(sample)):
            assert not any("\ufffd" in piece.text for piece in found)


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        ("q", {"params": SamplingParams(n=2, temperature=1.0)}, "the prompt: n is 2; stream_tokens samples one answer"),
        ("q", {"steps": 0}, "steps is 0; it must be a whole number, at least 1"),
        ("q", {"params": {"wait": "Wait"}}, "params is {'wait': 'Wait'}; give SamplingParams"),
        ("q", {"system": 3}, "system is 3; it must be a string"),
        ({"question": "q", "max_tokens": 3}, {}, "the prompt is {'question.*give a text, a list of s1jax.Message"),
        ([{"question": "q"}], {}, "the prompt: the prompt is .*; give a text or a list of s1jax.Message"),
        ("q", {"params": SamplingParams(max_answer_tokens=9999)}, "the prompt: a prompt of"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(engine, row, more, said):
    with pytest.raises(UserError, match=said):
        engine.stream_tokens(row, **more)
