"""Online distillation from `s1jax.train`: the teacher beside the student, its tokenizer, resumption."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import s1jax
from s1jax import perf
from s1jax.checkpoint import store
from s1jax.config import experiment as experiment_lib
from s1jax.config.experiment import DistilConfig, Experiment, MeshConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import step as step_lib
from s1jax.training import teacher as teacher_lib

TOKENIZER = pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer"
SHAPE = dict(vocab_size=130, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
pytestmark = pytest.mark.usefixtures("compile_once")
SETTINGS = {
    "model": SHAPE,
    "tokenizer": str(TOKENIZER),
    "chat": "countdown",
    "data": {"source": "countdown", "num_rows": 8, "block_size": 192},
    "train": {"batch_size": 2, "steps": 4, "compute_dtype": "float32", "remat": "none"},
    "optimizer": {"learning_rate": 1e-2},
    "checkpoint": {"every": 0},
}


def save_teacher(folder, tokenizer=None, seed=5, **changes):
    """A teacher of other sizes than the student; 136 columns unless `changes` say otherwise."""
    config = ModelConfig.dense(**SHAPE | dict(vocab_size=136, d_model=16, num_layers=2) | changes)
    params = jax.jit(lambda: decoder.init_params(config, jax.random.key(seed)))()
    tokenizer = tokenizer or Tokenizer.load(TOKENIZER)
    store.save_model(folder, params, config, tokenizer, chat.FORMATS["countdown"], {})
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "t")


def settings(teacher, **distil):
    return SETTINGS | {"distil": {"teacher": teacher, "loss": "jsd", **distil}}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    told = []
    s1jax.train(settings(teacher), folder, s1jax.Callbacks(on_phase=told.append))
    return folder, told


def test_a_run_reports_both_parts_and_keeps_the_teacher_out_of_its_checkpoints(whole, teacher):
    folder, told = whole
    records = lines(folder)
    assert len(records) == 4 and "loading the teacher" in told
    for record in records:
        mixed = 0.5 * record["cross_entropy"] + 0.5 * record["distillation"]
        np.testing.assert_allclose(record["loss"], mixed, rtol=1e-6)
    model = store.load_model(folder)
    assert model.config.d_model == 8 and model.params["embed"]["embedding"].shape == (130, 8)


def test_a_run_that_was_stopped_goes_on_to_the_bit(whole, teacher, tmp_path):
    stop = s1jax.Callbacks(should_stop=lambda step: step == 2)
    assert s1jax.train(settings(teacher), tmp_path, stop)["stopped"]
    s1jax.train(settings(teacher), tmp_path)
    for name in ("loss", "distillation", "grad_norm"):
        assert [r[name] for r in lines(tmp_path)] == [r[name] for r in lines(whole[0])]
    ours, theirs = (jax.tree.leaves(store.load_model(f, host=True).params) for f in (tmp_path, whole[0]))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_teacher_in_the_same_workdir_is_refused(whole, teacher, tmp_path):
    """Other weights at the same path, and another setting."""
    other = save_teacher(tmp_path / "t", seed=6)
    with pytest.raises(UserError, match=r"holds another run: distil\.teacher is .* there and"):
        s1jax.train(settings(other), whole[0])
    mine = tmp_path / "w"
    s1jax.train(settings(other), mine, s1jax.Callbacks(should_stop=lambda step: step == 1))
    pathlib.Path(other).rename(tmp_path / "before")
    save_teacher(tmp_path / "t", seed=7)
    with pytest.raises(
        UserError, match=r"distil\.teacher .*/t is another checkpoint than when the run in .*teacher\.sha256"
    ):
        s1jax.train(settings(other), mine)


def test_the_validation_loss_is_plain_cross_entropy(teacher, tmp_path):
    """Of the row that is trained on, at a rate of 0: what the step has as its part."""
    row = {"question": "1 2 3", "thinking_trajectories": ["1 + 2 = 3"], "attempt": "1 + 2"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    changes = {
        "data": {"source": str(file), "block_size": 192, "validation": str(file)},
        "train": SETTINGS["train"] | {"batch_size": 1, "steps": 1},
        "optimizer": {"learning_rate": 0.0},
    }
    s1jax.train(settings(teacher, weight=1.0) | changes, tmp_path / "w")
    (record,) = lines(tmp_path / "w")
    assert record["validation_loss"] == pytest.approx(record["cross_entropy"], rel=1e-6)
    assert record["loss"] == record["distillation"] != record["cross_entropy"]


def test_weight_0_is_a_run_without_a_teacher(tmp_path, teacher):
    told = []
    once = s1jax.Callbacks(on_note=told.append, on_phase=told.append, should_stop=lambda step: step == 1)
    s1jax.train(settings("there is none", weight=0), tmp_path / "zero", once)
    assert any("config.distil.teacher=there is none is not used" in note for note in told)
    s1jax.train(SETTINGS, tmp_path / "plain", s1jax.Callbacks(should_stop=lambda step: step == 1))
    ours, theirs = (jax.tree.leaves(store.load_model(tmp_path / n, host=True).params) for n in ("zero", "plain"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "distillation" not in lines(tmp_path / "plain")[0]


@pytest.mark.parametrize(("rows", "tied"), [(128, True), (128, False), (140, True), (140, False)])
def test_a_teacher_of_another_number_of_columns_is_cut_or_filled_up(tmp_path, rows, tied):
    """As Qwen2.5's: 151,936 of the small ones against 152,064. What is cut has no id."""
    folder = pathlib.Path(save_teacher(tmp_path / "t", vocab_size=rows, tied_embeddings=tied))
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    experiment = Experiment(
        model=ModelConfig.dense(**SHAPE | {"vocab_size": 136}),
        tokenizer=str(TOKENIZER),
        data=experiment_lib.DataConfig(block_size=64),
        distil=DistilConfig(teacher=str(folder)),
        train=experiment_lib.TrainConfig(compute_dtype="bfloat16"),
    )
    online = teacher_lib.make(experiment, folder, experiment.model, Tokenizer.load(TOKENIZER), mesh)
    params, before = online.make_params(), store.load_model(folder).params
    assert online.spec.config.vocab_size == 136 and not online.notes
    assert all(leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(params))
    for name, axis in (("embed", 0), *([] if tied else [("head", 1)])):
        (ours,), (theirs,) = jax.tree.leaves(params[name]), jax.tree.leaves(before[name])
        assert ours.shape[axis] == 136
        least = min(rows, 136)
        np.testing.assert_array_equal(
            np.take(np.float32(ours), range(least), axis),
            np.take(np.float32(theirs.astype("bfloat16")), range(least), axis),
        )


def test_qwens_columns_train(tmp_path):
    """151,936 of the student against 152,064 of the teacher, and fewer ids: no column without an id gets a gradient."""
    folder = pathlib.Path(save_teacher(tmp_path / "t", vocab_size=152_064, num_layers=1))
    experiment = Experiment(
        model=ModelConfig.dense(**SHAPE | {"vocab_size": 151_936}),
        tokenizer=str(TOKENIZER),
        data=experiment_lib.DataConfig(block_size=8),
        distil=DistilConfig(teacher=str(folder), weight=1.0),
        train=experiment_lib.TrainConfig(compute_dtype="float32", remat="none"),
    )
    mesh, tokenizer = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1]), Tokenizer.load(TOKENIZER)
    online = teacher_lib.make(experiment, folder, experiment.model, tokenizer, mesh)
    params = jax.jit(lambda: decoder.init_params(experiment.model, jax.random.key(0)))()
    ids = np.random.default_rng(0).integers(tokenizer.num_ids, size=(2, 1, 8)).astype(np.int32)
    ones = np.ones((1, 8), np.int32)
    batch = {"tokens": ids[0], "targets": ids[1], "segment_ids": ones, "weights": ones.astype(np.float32)}
    batch["positions"] = np.arange(8, dtype=np.int32)[None]
    compute = step_lib.make_gradients(experiment.model, experiment.train, mesh, online.loss, online.spec)
    (loss, _), grads = jax.jit(compute)(params, batch, step_lib.Frozen(online.make_params()))
    kernel = np.asarray(grads["head"]["kernel"])
    assert 0 < loss < 10 and kernel.shape == (8, 151_936)
    assert not kernel[:, tokenizer.num_ids :].any() and kernel[:, : tokenizer.num_ids].all()


def changed(tmp_path, change):
    """The tokenizer with its tokenizer.json changed."""
    files = dict(Tokenizer.load(TOKENIZER).files)
    spec = json.loads(files["tokenizer.json"])
    change(spec)
    return Tokenizer(files | {"tokenizer.json": json.dumps(spec).encode()}, str(tmp_path / "other"))


def test_another_tokenizer_is_refused_by_name(tmp_path):
    def swap(spec):
        vocab = spec["model"]["vocab"]
        first, second = sorted(vocab, key=vocab.get)[40:42]
        vocab[first], vocab[second] = vocab[second], vocab[first]

    other = save_teacher(tmp_path / "t", changed(tmp_path, swap))
    with pytest.raises(
        UserError, match=r"config\.distil\.teacher=.*t: .* another one than the student's: id 40 is .* and"
    ):
        s1jax.train(settings(other), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_ids_that_only_the_teacher_has_are_left_out(tmp_path):
    """And an id that it lacks is refused."""
    ours = Tokenizer.load(TOKENIZER)

    def add(spec):
        token = {"id": ours.num_ids, "content": "<more>", "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        spec["added_tokens"].append(token | flags)

    theirs = changed(tmp_path, add)
    legal, notes = teacher_lib.common_ids(ours, theirs, 136, 136)
    assert legal.sum() == ours.num_ids and not legal[ours.num_ids :].any()
    assert len(notes) == 1 and f"such as {ours.num_ids} ('<more>')" in notes[0]
    with pytest.raises(UserError, match=f"id {ours.num_ids} is '<more>' in .* and nothing in"):
        teacher_lib.common_ids(theirs, ours, 136, 136)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(beta=1.5), r"distil\.beta is 1\.5; give a share from 0 to 1"),
        (dict(weight=-0.1), r"distil\.weight is -0\.1; give a share"),
        (dict(alpha=0.0), r"distil\.alpha is 0\.0; give a share between 0 and 1"),
        (dict(temperature=0.0), r"distil\.temperature is 0\.0; give a positive number"),
        (dict(loss="kl"), r"distil\.loss is 'kl'; choose one of 'forward_kl'"),
        (dict(teacher="nowhere"), r"config\.distil\.teacher: nowhere is not a folder; give a checkpoint"),
        (dict(teacher="gs://bucket/x"), r"config\.distil\.teacher=gs://bucket.* URL"),
    ],
)
def test_wrong_settings(tmp_path, teacher, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        s1jax.train(SETTINGS | {"distil": {"teacher": teacher} | wrong}, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_teacher_with_too_short_a_context(tmp_path):
    short = save_teacher(tmp_path / "t", context_length=64)
    with pytest.raises(UserError, match=r"config\.data\.block_size 192 exceeds its context_length 64"):
        s1jax.train(settings(short), tmp_path / "w")


def test_settings_without_effect_are_named():
    plain = Experiment(model=ModelConfig.dense(**SHAPE), distil=DistilConfig(temperature=2.0))
    assert experiment_lib.unused(plain) == [
        "config.distil.temperature=2.0 is not used: config.distil.teacher and config.distil.targets are empty."
    ]
    forward = dataclasses.replace(plain, distil=DistilConfig(teacher="x", beta=0.1, alpha=0.2))
    said = experiment_lib.unused(forward)
    assert [s.split(" is ")[0] for s in said] == ["config.distil.beta=0.1", "config.distil.alpha=0.2"]


def test_the_teachers_flops_count_a_third():
    student, teacher = ModelConfig.dense(**SHAPE), ModelConfig.dense(**SHAPE | {"d_model": 16, "mlp_dim": 64})
    assert perf.train_flops(student, 10, 55.0, teacher) == pytest.approx(
        perf.train_flops(student, 10, 55.0) + perf.train_flops(teacher, 10, 55.0) / 3
    )
