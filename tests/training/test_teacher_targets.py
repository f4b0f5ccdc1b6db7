"""Targets of a teacher against its whole logits; what a second call scores; teachers and rows that are refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import s1jax
from s1jax.checkpoint import store
from s1jax.config.experiment import (
    CheckpointConfig,
    DataConfig,
    DistilConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from s1jax.config.model import ModelConfig
from s1jax.data import sources, teacher_format
from s1jax.data.teacher_logits import Folder
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import teacher_targets
from s1jax.training.callbacks import Callbacks
from tests import byte_tokenizer

V, K, BLOCK = 258, 8, 200
SHAPE = dict(d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, tied_embeddings=True)
STUDENT = ModelConfig.dense(vocab_size=V, context_length=256, **SHAPE)
TEACHER = ModelConfig.dense(vocab_size=V + 6, context_length=256, **SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, a teacher with six more columns, and rows of three sizes."""
    folder = tmp_path_factory.mktemp("teacher")
    byte_tokenizer.save(folder)
    params = jax.jit(decoder.init_params, static_argnums=0)(TEACHER, jax.random.key(0))
    params = jax.tree.map(lambda a: 9 * a if a.ndim > 1 else a, params)
    tokenizer = Tokenizer.load(folder)
    store.save_model(folder / "ckpt", params, TEACHER, tokenizer, chat.FORMATS["s1_plain"], {})
    rows = [
        {"question": f"What is {i}?", "thinking_trajectories": ["hm " * (4 * i + 1)], "attempt": str(i)}
        for i in range(7)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def experiment(folder):
    return Experiment(
        model=STUDENT,
        tokenizer=str(folder),
        chat="s1_plain",
        data=DataConfig(source=str(folder / "rows.jsonl"), block_size=BLOCK),
        train=TrainConfig(batch_size=2, steps=6, loss_chunk=64, compute_dtype="float32", remat="none"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        mesh=MeshConfig(),
        checkpoint=CheckpointConfig(every=3),
    )


@pytest.fixture(scope="module")
def examples(experiment):
    tokenizer = Tokenizer.load(experiment.tokenizer)
    data = sources.make(experiment, tokenizer, chat.FORMATS["s1_plain"], 1)
    return data.batches.examples


def log_probabilities(folder, examples):
    """float64 [P, V] of the teacher at the supervised targets of each row, over the ids of the tokenizer."""
    params = store.load_model(folder / "ckpt").params
    tokens = np.stack([np.pad(example.ids[:-1], (0, BLOCK - example.length)) for example in examples])
    places = np.broadcast_to(np.arange(BLOCK), tokens.shape)
    there = (places < np.array([[example.length] for example in examples])).astype(np.int32)
    hidden = jax.jit(decoder.forward, static_argnums=1)(params, TEACHER, tokens, places, there)
    logits = np.asarray(decoder.logits(params, TEACHER, hidden), np.float64)[..., :V]
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return [row[np.flatnonzero(example.supervised[1:])] for row, example in zip(logits, examples, strict=True)]


def test_top_k_is_that_of_the_whole_logits(folder, experiment, examples, tmp_path):
    steps = []
    made = s1jax.teacher_logits(
        experiment, folder / "ckpt", tmp_path / "t", size=K, rows=2, callbacks=Callbacks(on_step=steps.append)
    )
    positions = sum(example.num_targets for example in examples)
    assert (made.rows, made.scored, made.positions) == (7, 7, positions) and steps[-1]["step"] == 7
    size = sum(file.stat().st_size for file in (tmp_path / "t").glob("*.safetensors"))
    assert made.bytes_per_position == pytest.approx(size / positions)
    targets = Folder(tmp_path / "t")
    for example, expected in zip(examples, log_probabilities(folder, examples), strict=True):
        found = targets.read(example)
        own = np.take_along_axis(expected, found.ids, -1)
        np.testing.assert_allclose(own, -np.sort(-expected, -1)[:, :K], atol=1e-4)  # the k greatest, up to rounding
        np.testing.assert_allclose(found.probabilities, np.exp(own), rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(found.rest, 1 - np.exp(own).sum(-1), rtol=1e-2, atol=2e-4)


def test_a_second_call_scores_what_is_new(folder, experiment, tmp_path):
    fewer = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, num_rows=4))
    first = s1jax.teacher_logits(fewer, folder / "ckpt", tmp_path / "t", size=K)
    second = s1jax.teacher_logits(experiment, folder / "ckpt", tmp_path / "t", size=K)
    third = s1jax.teacher_logits(experiment, folder / "ckpt", tmp_path / "t", size=K)
    assert [(made.rows, made.scored) for made in (first, second, third)] == [(4, 4), (7, 3), (7, 0)]
    with pytest.raises(UserError, match="has targets with size 8, not 9"):
        s1jax.teacher_logits(experiment, folder / "ckpt", tmp_path / "t", size=9)


def test_draws_are_a_function_of_seed_row_and_position(folder, experiment, examples, tmp_path):
    """Other batches, and other rows beside a row, give the same draws."""
    fewer = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, num_rows=4))
    for name, settings, seed, rows in (("a", experiment, 3, 1), ("b", fewer, 3, 3)):
        s1jax.teacher_logits(
            settings, folder / "ckpt", tmp_path / name, kind="counts", size=20, seed=seed, rows=rows
        )  # fmt: skip
    one, two = (Folder(tmp_path / name) for name in "ab")
    same = [example for example in examples if teacher_format.key(example) in two]
    assert len(same) == 4
    for example in same:
        assert one.digest(example) == two.digest(example)
        other = teacher_targets.uniforms(example, 4, 20)
        assert not np.array_equal(other, teacher_targets.uniforms(example, 3, 20))
        found = one.read(example)
        np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=1e-6)
        assert (found.ids < V).all()


def distilled(experiment, workdir, **changes):
    """Trains up to step six; returns the losses of all steps and the last weights."""
    s1jax.train(dataclasses.replace(experiment, distil=DistilConfig(**changes)), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], jax.tree.leaves(store.load_model(workdir).params)


@pytest.fixture(scope="module")
def all_ids(folder, experiment, tmp_path_factory):
    """The targets with k = V."""
    out = tmp_path_factory.mktemp("all") / "t"
    s1jax.teacher_logits(experiment, folder / "ckpt", out, size=V)
    return str(out)


@pytest.fixture(scope="module")
def run(experiment, all_ids, tmp_path_factory):
    """Six steps on them with all checkpoints: the folder, losses and weights."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, *distilled(experiment, workdir, targets=all_ids)


def test_all_ids_train_as_the_teacher_beside_the_student(folder, experiment, run, tmp_path):
    """With k = V the loss is the forward KL; the stored log-probabilities have two bytes each."""
    online, _ = distilled(experiment, tmp_path / "w", teacher=str(folder / "ckpt"))
    np.testing.assert_allclose(run[1], online, rtol=1e-4)
    assert len(online) == 6 and len(set(online)) == 6


def test_packed_and_resumed_runs_are_the_same(experiment, all_ids, run, tmp_path):
    packed = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batching="packed"))
    np.testing.assert_allclose(distilled(packed, tmp_path / "a", targets=all_ids)[0], run[1], rtol=1e-5)
    shutil.copytree(run[0], tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "6")
    losses, weights = distilled(experiment, tmp_path / "b", targets=all_ids)
    assert losses == run[1]
    for one, other in zip(weights, run[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_targets_of_other_ids_do_not_train(folder, experiment, all_ids, run, tmp_path):
    changed = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, too_long="truncate", block_size=70)
    )
    with pytest.raises(UserError, match=r"no targets for \d of 7 rows .*their token ids differ"):
        distilled(changed, tmp_path / "w", targets=all_ids)
    assert not (tmp_path / "w").exists()
    shutil.copytree(run[0], tmp_path / "w")
    s1jax.teacher_logits(experiment, folder / "ckpt", tmp_path / "t", kind="counts")
    with pytest.raises(UserError, match=r"holds another run: distil\.targets"):
        distilled(experiment, tmp_path / "w", targets=str(tmp_path / "t"))
    shutil.move(all_ids, all_ids + "-old")
    shutil.copytree(tmp_path / "t", all_ids)
    with pytest.raises(UserError, match="changed since the run"):
        distilled(experiment, tmp_path / "w", targets=all_ids)


def test_uniforms_are_uniform(examples):
    drawn = teacher_targets.uniforms(examples[0], 0, 2000)
    assert drawn.shape == (examples[0].num_targets, 2000) and drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, 20, (0, 1))
    expected = drawn.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square of 19 degrees: p = 1e-4
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.1


def test_what_cannot_be_scored_is_refused(folder, experiment, tmp_path):
    other = tmp_path / "tokenizer"
    other.mkdir()
    text = (folder / "tokenizer.json").read_text().replace('"<|im_end|>"', '"<|im_stop|>"')
    (other / "tokenizer.json").write_text(text)
    renamed = dataclasses.replace(
        chat.FORMATS["s1_plain"], turn_end="<|im_stop|>", special=("<|im_start|>", "<|im_stop|>")
    )
    params = store.load_model(folder / "ckpt").params
    store.save_model(tmp_path / "ckpt", params, TEACHER, Tokenizer.load(other), renamed, {})
    with pytest.raises(UserError, match=r"id 257 is .*im_end"):
        s1jax.teacher_logits(experiment, tmp_path / "ckpt", tmp_path / "t")
    with pytest.raises(UserError, match=f"k is 300, but the tokenizer has {V} ids"):
        s1jax.teacher_logits(experiment, folder / "ckpt", tmp_path / "t", size=300)
    assert not (tmp_path / "t").exists()
