"""A folder of teacher targets: what is written is read, killed and foreign folders, rows of other tokens."""

import dataclasses
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from s1jax.data import packing, teacher_format
from s1jax.data.batches import Batches
from s1jax.data.packing import Example
from s1jax.data.teacher_format import Settings
from s1jax.data.teacher_logits import Folder
from s1jax.data.teacher_writer import Writer
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests import byte_tokenizer

V, K, BLOCK = 258, 6, 40
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer.save(folder)
    return Tokenizer.load(folder)


@pytest.fixture
def settings(tokenizer):
    return Settings(
        kind="top_k", size=K, seed=0, num_ids=V, tokenizer=teacher_format.vocabulary(tokenizer), teacher="f",
        dtype="float32", chat=teacher_format.chat_fields(chat.FORMATS["s1_plain"]),
    )  # fmt: skip


def rows(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = rng.integers(V, size=int(rng.integers(4, BLOCK + 2))).astype(np.int32)
        made.append(Example(ids, rng.random(len(ids)) < 0.6, f"row {i}"))
    return made


def top_k(example: Example, seed: int = 0):
    """Ids, log-probabilities and the logarithm of the rest, from random logits of float64."""
    rng = np.random.default_rng([seed, example.length])
    logits = 3 * rng.normal(size=(example.num_targets, V))
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logs, 1)[:, :K]
    best = np.take_along_axis(logs, ids, 1)
    return ids, best, np.log1p(-np.exp(best).sum(1))


def write(folder, settings, examples):
    with Writer(folder, settings) as writer:
        for example in examples:
            writer.add_top_k(example, *top_k(example))
    return writer


def test_top_k_is_read_as_it_was_written(tmp_path, settings):
    examples = rows(7)
    write(tmp_path / "t", settings, examples[:3])
    write(tmp_path / "t", settings, examples)
    folder = Folder(tmp_path / "t")
    assert len(folder) == 7 and len(list((tmp_path / "t").glob("*.safetensors"))) == 2
    for example in examples[::-1]:
        ids, logs, rest = top_k(example)
        found = folder.read(example)
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_allclose(found.probabilities, np.exp(logs), rtol=6e-3)  # two bytes each
        np.testing.assert_allclose(found.probabilities.sum(1) + found.rest, 1, rtol=1e-6)
        np.testing.assert_allclose(found.rest, np.exp(rest), rtol=6e-3)


@pytest.mark.parametrize(("num_ids", "draws"), [(258, 50), (151_936, 50), (151_936, 1), (2, 1024)])
def test_counts_are_read_as_they_were_drawn(tmp_path, settings, num_ids, draws):
    settings = dataclasses.replace(settings, kind="counts", size=draws, num_ids=num_ids)
    rng, examples = np.random.default_rng(draws), rows(3)
    drawn = {e.name: rng.geometric(0.2, (e.num_targets, draws)) % num_ids for e in examples}
    drawn[examples[0].name][0] = num_ids - 1  # N draws of the largest id
    with Writer(tmp_path / "t", settings) as writer:
        for example in examples:
            writer.add_draws(example, drawn[example.name].astype(np.int32))
    folder = Folder(tmp_path / "t")
    for example in examples:
        found = folder.read(example)
        assert found.rest is None and found.ids.shape[1] <= folder.width
        for ids, probabilities, own in zip(found.ids, found.probabilities, drawn[example.name], strict=True):
            there = {int(i): round(float(p) * draws, 4) for i, p in zip(ids, probabilities, strict=True) if p}
            assert there == {int(i): n for i, n in zip(*np.unique(own, return_counts=True), strict=True)}


def test_packed_places_are_those_of_the_targets(tmp_path, settings):
    examples = rows(4)
    write(tmp_path / "t", settings, examples)
    folder, bins = Folder(tmp_path / "t"), [[examples[0], examples[2]], [examples[3]], [examples[1]]]
    block = 2 * BLOCK
    batch, targets = packing.arrays(bins, 4, block, "token"), folder.arrays(bins, 4, block)
    assert targets["teacher_ids"].shape == (4, block, K)
    assert ((targets["teacher_probabilities"].sum(-1) + targets["teacher_rest"] > 0.5) == (batch["weights"] > 0)).all()
    at, found = batch["segment_ids"][0] == 2, folder.read(examples[2])
    weighed = batch["weights"][0][at] > 0
    np.testing.assert_array_equal(targets["teacher_ids"][0][at][weighed], found.ids)
    np.testing.assert_array_equal(targets["teacher_rest"][0][at][weighed], found.rest)


def test_batches_with_targets_are_a_function_of_the_step(tmp_path, settings):
    examples = rows(5)
    write(tmp_path / "t", settings, examples)
    folder = Folder(tmp_path / "t")
    made = [Batches(examples, batch_size=2, block_size=BLOCK, epochs=2, teacher=folder) for _ in range(2)]
    whole, later = list(made[0].iterate()), list(made[1].iterate(3))
    for one, two in zip(whole[3:], later, strict=True):
        assert one.keys() == two.keys() >= {"teacher_ids", "teacher_probabilities", "teacher_rest"}
        assert all(np.array_equal(one[name], two[name]) for name in one)
    other = dataclasses.replace(settings, teacher="g")
    with Writer(tmp_path / "u", other) as writer:
        for i, example in enumerate(examples):
            writer.add_top_k(example, *top_k(example, seed=int(i == 4)))  # one row of five differs
    digests = {made[0].digest, Batches(examples, batch_size=2, block_size=BLOCK).digest}
    digests.add(Batches(examples, batch_size=2, block_size=BLOCK, teacher=Folder(tmp_path / "u")).digest)
    assert len(digests) == 3 and made[0].digest == made[1].digest


def test_rows_of_other_tokens_are_refused_by_name(tmp_path, settings, tokenizer):
    examples, fmt = rows(4), chat.FORMATS["s1_plain"]
    write(tmp_path / "t", settings, examples[:3])
    folder = Folder(tmp_path / "t")
    folder.check(examples[:3], tokenizer, fmt)
    with pytest.raises(UserError, match=r"no targets for 1 of 4 rows \(row 3\): their token ids differ"):
        folder.check(examples, tokenizer, fmt)
    ids, mask = examples[0].ids.copy(), examples[1].supervised.copy()
    ids[0] ^= 1
    mask[-1] ^= True
    changed = [dataclasses.replace(examples[0], ids=ids), dataclasses.replace(examples[1], supervised=mask)]
    with pytest.raises(UserError, match="2 of 2 rows"):
        folder.check(changed, tokenizer, fmt)
    with pytest.raises(UserError, match=r"chat format has system_start=.* there and '' here"):
        folder.check(examples, tokenizer, dataclasses.replace(fmt, system_start=""))


def test_another_tokenizer_is_refused(tmp_path, settings, tokenizer):
    write(tmp_path / "t", settings, rows(1))
    other = tokenizer.files["tokenizer.json"].replace(b'"<|im_start|>"', b'"<|im_begin|>"')
    (tmp_path / "tokenizer.json").write_bytes(other)
    with pytest.raises(UserError, match="another tokenizer"):
        Folder(tmp_path / "t").check(rows(1), Tokenizer.load(tmp_path), chat.FORMATS["s1_plain"])


@pytest.mark.parametrize("field", ["kind", "size", "seed", "teacher", "dtype", "tokenizer", "num_ids"])
def test_targets_of_other_settings_are_not_added(tmp_path, settings, field):
    write(tmp_path / "t", settings, rows(1))
    values = {"kind": "counts", "size": 7, "seed": 1, "num_ids": 300}
    with pytest.raises(UserError, match=f"has targets with {field} "):
        Writer(tmp_path / "t", dataclasses.replace(settings, **{field: values.get(field, "other")}))


def test_foreign_and_damaged_folders_are_named(tmp_path, settings):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="has other files"):
        Writer(tmp_path / "mine", settings)
    with pytest.raises(UserError, match=r"has no teacher_logits\.json"):
        Folder(tmp_path / "mine")
    examples = rows(2)
    write(tmp_path / "t", settings, examples)
    (shard,) = (tmp_path / "t").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + json.loads(content[8:header])["logprobs"]["data_offsets"][0] + 1] ^= 1
    shard.write_bytes(content)
    folder = Folder(tmp_path / "t")
    with pytest.raises(UserError, match=r"is damaged .*row"):
        for example in examples:
            folder.read(example)
    shard.write_bytes(bytes(content[:100]))
    with pytest.raises(UserError, match="is damaged"):
        Folder(tmp_path / "t")


def test_a_second_process_is_refused_and_a_killed_one_leaves_whole_files(tmp_path, settings):
    """The other process writes two rows, adds a third one, and is killed."""
    code = (
        "import pickle, sys, time\n"
        "from tests.data.test_teacher_logits import Writer, rows, top_k\n"
        "settings, folder = pickle.load(sys.stdin.buffer)\n"
        "writer = Writer(folder, settings)\n"
        "for number, example in enumerate(rows(3)):\n"
        "    if number == 2: writer.flush()\n"
        "    writer.add_top_k(example, *top_k(example))\n"
        "print('added', flush=True)\n"
        "time.sleep(60)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    try:
        other.stdin.write(pickle.dumps((settings, tmp_path / "t")))
        other.stdin.close()
        assert other.stdout.readline() == b"added\n"
        with pytest.raises(UserError, match="another process writes"):
            Writer(tmp_path / "t", settings)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    examples = rows(3)
    with Writer(tmp_path / "t", settings) as writer:
        assert writer.known == {teacher_format.key(example) for example in examples[:2]}
        for example in examples:
            writer.add_top_k(example, *top_k(example))
    assert [Folder(tmp_path / "t").read(e).ids.tolist() for e in examples] == [top_k(e)[0].tolist() for e in examples]


def test_k_and_draws_have_limits(settings):
    for size, kind in ((0, "top_k"), (1025, "counts")):
        with pytest.raises(UserError, match=f"is {size}; give 1 to 1024"):
            dataclasses.replace(settings, size=size, kind=kind)
