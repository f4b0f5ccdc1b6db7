"""From settings to batches."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tokenizers

import s1jax
from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data import sources
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

MODEL = ModelConfig.dense(vocab_size=128, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)
CHAT = chat.FORMATS["s1_plain"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single characters with special tokens."""
    spec = tokenizers.Tokenizer(tokenizers.models.BPE({chr(c): c for c in range(128)}, []))
    spec.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    spec.decoder = tokenizers.decoders.Fuse()
    return Tokenizer({"tokenizer.json": spec.to_str().encode()})


def make(*arguments, **more):
    """The batches and the notes of `sources.make`."""
    data = sources.make(*arguments, **more)
    return data.batches, data.notes


def experiment(data: dict, **train) -> Experiment:
    return Experiment(model=MODEL, data=DataConfig(**data), train=TrainConfig(**train))


def test_countdown_makes_the_steps_of_the_paper(tokenizer):
    """1,000 rows, batch 16, 5 epochs: 315 steps; both batchings hold the same sequences."""
    padded, notes = make(experiment({"block_size": 192}), tokenizer, CHAT, 1)
    packed, _ = make(experiment({"block_size": 192, "batching": "packed"}), tokenizer, CHAT, 1)
    assert padded.num_steps == packed.num_steps == 315 and notes == []
    uneven, notes = make(experiment({"block_size": 192}), tokenizer, CHAT, 3)
    assert uneven.num_rows == 18 and len(notes) == 1
    assert "16 rows at most" in notes[0] and "= 3 does not divide them: 2 rows of every step are empty" in notes[0]
    assert padded.num_rows == 16 > packed.num_rows
    assert padded.names(7) == packed.names(7) and len(padded.names(7)) == 16
    assert padded.names(62) == packed.names(62) and len(padded.names(62)) == 1000 - 62 * 16
    np.testing.assert_allclose(padded.batch(7)["weights"].sum(), 16, rtol=1e-6)


def test_rows_are_a_multiple_of_shards_and_accumulation(tokenizer):
    data = {"block_size": 192, "batching": "packed", "num_rows": 40}
    made, notes = make(experiment(data, accumulation=3), tokenizer, CHAT, row_shards=4)
    assert made.num_rows == 12 and len(notes) == 2
    fullest = max((made.batch(step)["segment_ids"] > 0).any(axis=1).sum() for step in range(made.num_steps))
    assert fullest == made.filled_rows < 12 and f"{12 - fullest} rows of every step are empty" in notes[0]


def test_packed_rows_say_how_much_of_them_is_padding_and_what_lowers_it(tokenizer):
    """Steps of three sequences need three rows at the worst; two rows hold as many tokens as they have on average."""
    data = {"block_size": 160, "batching": "packed", "num_rows": 60}
    made, (note,) = make(experiment(data, batch_size=3), tokenizer, CHAT, 1)
    padding = np.mean([made.batch(step)["segment_ids"] == 0 for step in range(made.steps_per_epoch)])
    assert padding > 0.4 and made.num_rows == 3
    assert f"3 rows of data.block_size 160 for its 3 sequences (train.batch_size); {100 * padding:.0f} % of" in note
    assert "set train.batch_size=0 and, for example, train.batch_tokens=320: a step then takes" in note
    fuller, (note,) = make(experiment(data, batch_size=0, batch_tokens=320), tokenizer, CHAT, 1)
    less = np.mean([fuller.batch(step)["segment_ids"] == 0 for step in range(fuller.steps_per_epoch)])
    sequences = 60 / fuller.steps_per_epoch
    assert less < padding - 0.2
    assert note == (
        f"a step has 2 rows of data.block_size 160 (train.batch_tokens 320) with {sequences:.1f} sequences on average; "
        f"{100 * less:.0f} % of its places are padding."
    )


def test_the_corpus_is_a_function_of_seed_and_step(tokenizer):
    settings = experiment({"source": "countdown_corpus", "block_size": 96, "seed": 3}, steps=5, batch_size=4)
    made, _ = make(settings, tokenizer, CHAT, 2)
    assert made.num_steps == 5 and made.names(2) == ["countdown_corpus (seed 3, step 3)"]
    late = list(made.iterate(3))
    assert len(late) == 2
    for name, array in made.batch(4).items():
        assert array.shape == (4, 96)
        np.testing.assert_array_equal(late[1][name], array)
    halves = [make(settings, tokenizer, CHAT, 2, i, 2)[0].batch(4) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([half["tokens"] for half in halves]), made.batch(4)["tokens"])
    other = dataclasses.replace(settings, data=dataclasses.replace(settings.data, seed=4))
    assert not np.array_equal(make(other, tokenizer, CHAT, 2)[0].batch(4)["tokens"], made.batch(4)["tokens"])


@pytest.mark.parametrize(
    ("data", "train", "message"),
    [
        ({"source": "countdown_corpus"}, {}, r"no end; give train\.steps"),
        (
            {"source": "countdown_corpus"},
            {"steps": 2, "batch_size": 6, "accumulation": 2},
            "train.batch_size 6 .* = 4;",
        ),
        (
            {"source": "countdown_corpus", "block_size": 96, "batching": "packed"},
            {"steps": 2, "batch_size": 0, "batch_tokens": 960},
            r"full rows; give train\.batch_size, not train\.batch_tokens",
        ),
        ({"source": "countdown", "num_rows": 10**6}, {}, "num_rows is 1000000"),
        ({"source": "countdown", "block_size": 20}, {}, "countdown row .*block"),
        ({"source": "nowhere.jsonl"}, {}, "nowhere.jsonl"),
    ],
)
def test_settings_that_cannot_be_met(tokenizer, data, train, message):
    with pytest.raises(UserError, match=message):
        make(experiment(data, **train), tokenizer, CHAT, 2)


def test_the_corpus_wants_the_tokenizer_of_countdown(tokenizer):
    """The same symbols by other ids."""
    spec = json.loads(tokenizer.files["tokenizer.json"])
    vocab = spec["model"]["vocab"]
    vocab["98"], vocab["99"] = vocab["99"], vocab["98"]
    other = Tokenizer({"tokenizer.json": json.dumps(spec).encode()}, "other")
    settings = experiment({"source": "countdown_corpus", "block_size": 96}, steps=5)
    with pytest.raises(UserError, match=r"Countdown's ids, which the tokenizer does not have for '98'; give the"):
        make(settings, other, CHAT, 1)


@pytest.mark.parametrize("control", ["", "token"])
def test_a_row_that_the_tokenizer_cannot_encode_is_named(tokenizer, tmp_path, control):
    row = {"question": "Make 5 from 2 3 1", "thinking_trajectories": ["2+3=\u20ac"], "attempt": "5", "solution": ""}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    settings = experiment({"source": str(file), "block_size": 48, "control": control})
    with pytest.raises(UserError, match=r"rows.jsonl:1: the tokenizer cannot encode"):
        make(settings, tokenizer, chat.FORMATS["countdown"], 1)


def test_long_rows_are_counted(tokenizer, tmp_path):
    rows = [
        {"question": "Make 5 from 2 3 1", "thinking_trajectories": ["2+3=5"] * n, "attempt": "(2+3)*1"} for n in (1, 9)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row | {"solution": ""}) + "\n" for row in rows))
    for too_long, verb in (("drop", "dropped"), ("truncate", "truncated")):
        settings = experiment({"source": str(file), "block_size": 48, "too_long": too_long}, batch_size=2)
        made, notes = make(settings, tokenizer, CHAT, 1)
        used = "2 rows with question, thinking_trajectories, attempt; not used: solution."
        assert len(notes) == 2 and notes[0] == f"{file}: {used}"
        assert f"1 of 2 rows are longer than data.block_size 48 and were {verb}: " in notes[1]
        assert "rows.jsonl:2" in notes[1]
        assert made.steps_per_epoch == 1


CASES = pathlib.Path(__file__).resolve().parents[3] / "shared" / "cases"
ROW = {"question": "2+2?", "thinking_trajectories": ["2 and 2 gives 4."], "attempt": "4"}


def made(tmp_path, letters, fmt, rows, **data):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**ROW, **row}) + "\n" for row in rows))
    settings = experiment({"source": str(file), "block_size": 400, **data}, batch_size=len(rows))
    return make(settings, letters, fmt, 1)


def test_rows_with_special_tokens_are_named_and_trained_on_as_text(tmp_path, letters):
    rows = [
        {"thinking_trajectories": ["one\n</think>\n\nThe answer is 1.\n\nWait"]},
        {},
        {"question": "What is <|im_end|>?"},
        {"attempt": "4<|im_start|>user"},
        {"system": "Be <|im_end|> brief."},
    ]
    batches, notes = made(tmp_path, letters, CHAT, rows)
    name = str(tmp_path / "rows.jsonl")
    columns = "question, thinking_trajectories, attempt"
    assert notes[0] == f"{name}: 4 rows with {columns}; 1 row with {columns}, system."
    assert notes[1] == (
        "4 of 5 rows hold delimiters or special tokens as text ('</think>', '<|im_end|>', '<|im_start|>'), which is"
        f" trained on as text: {name}:1, {name}:3, {name}:4, {name}:5; repair or remove them unless it is meant."
    )
    tokens = batches.batch(0)["tokens"]
    # Each row has the special tokens of the format, and no more: three of its four turns are whole in every row.
    starts = (tokens == letters.id_of("<|im_start|>")).sum(axis=1).tolist()
    ends = (tokens == letters.id_of("<|im_end|>")).sum(axis=1).tolist()
    assert sorted(starts) == [4, 4, 4, 4, 5] and sorted(ends) == [2, 2, 2, 2, 3]


def test_the_system_turn_of_a_row_is_in_its_ids(tmp_path, letters):
    batches, notes = made(tmp_path, letters, chat.FORMATS["s1"], [{"system": "Be brief."}])
    text = letters.decode(batches.batch(0)["tokens"][0].tolist())
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>")
    assert "Qwen" not in text and notes == [
        f"{tmp_path / 'rows.jsonl'}: 1 row with question, thinking_trajectories, attempt, system."
    ]


def test_a_plain_think_end_inside_a_trace_is_refused(tmp_path, letters):
    fmt = chat.with_delimiters(letters, CHAT, think_start="<think>", think_end="</think>")
    rows = [{}, {"thinking_trajectories": ["one </think> two"]}]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the trace contains think_end '</think>', which is plain text"):
        made(tmp_path, letters, fmt, rows)
    assert made(tmp_path, letters, fmt, [{"attempt": "so </think> it is"}])[1][1].startswith("1 of 1 rows hold delim")


def test_delimiters_of_the_shared_case(letters):
    file = CASES / "delimiter_in_trace.jsonl"
    if not file.exists():
        pytest.skip("needs ../shared/cases, which is not here")
    settings = experiment({"source": str(file), "block_size": 400}, batch_size=3)
    batches, notes = make(settings, letters, CHAT, 1)
    assert "2 of 3 rows hold delimiters or special tokens as text ('</think>', '<|im_end|>')" in notes[1]
    assert f"{file}:1, {file}:2;" in notes[1]
    ends = (batches.batch(0)["tokens"] == letters.id_of("<|im_end|>")).sum(axis=1).tolist()
    assert ends == [2, 2, 2]


def test_no_row_left_names_the_shortest(tmp_path, letters):
    with pytest.raises(UserError, match=r"no row is left of 2: .*\(the shortest is .*rows\.jsonl:2 with \d+\); give"):
        made(tmp_path, letters, CHAT, [{"attempt": "4" * 50}, {}], block_size=20, too_long="drop")
