"""Checkpoints: complete, verified, and clear about what is wrong with them."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import s1jax
from s1jax.checkpoint import digests, store
from s1jax.config.experiment import OptimizerConfig
from s1jax.config.model import ModelConfig
from s1jax.config.schema import from_dict
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import optimizer as optimizer_lib

MODEL = ModelConfig.dense(
    vocab_size=128, d_model=16, mlp_dim=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, tied_embeddings=True
)
CHAT = chat.FORMATS["s1_plain"]
TOKENIZER = pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer"


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: decoder.init_params(MODEL, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def original(tmp_path_factory, params):
    path = tmp_path_factory.mktemp("store") / "ckpt"
    store.save_model(path, params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {"made by": "a test"})
    return path


@pytest.fixture
def checkpoint(original, tmp_path):
    """A copy that a test may damage."""
    return pathlib.Path(shutil.copytree(original, tmp_path / "ckpt"))


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_round_trip(original, params):
    model = store.load_model(original)
    assert_same(model.params, params)
    assert model.config == MODEL and model.chat == CHAT and model.provenance == {"made by": "a test"}
    text = "Make 21 from 3 7 1"
    assert model.tokenizer.encode(text) == Tokenizer.load(TOKENIZER).encode(text)


def test_loads_in_another_type(original, params):
    model = store.load_model(original, dtype=jnp.bfloat16)
    assert_same(model.params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))


def test_metadata_needs_no_jax(original):
    code = (
        "import sys; from s1jax.checkpoint import store; about = store.load_metadata(sys.argv[1]);"
        "assert about.config.d_model == 16 and about.tokenizer.num_ids > 100; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(original)], check=True, cwd=TOKENIZER.parents[2])


def test_every_flipped_bit_is_found(checkpoint):
    """One bit in the middle of every file, one file after the other."""
    files = [file for file in checkpoint.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 6
    for file in files:
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"altered|damaged|missing"):
            store.load_model(checkpoint)
        file.write_bytes(content)
    store.load_model(checkpoint)


def test_damage_names_the_file(checkpoint):
    data = max(checkpoint.glob("params/**/*"), key=lambda file: file.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[:-7])
    with pytest.raises(UserError, match=f"{data.name} has {len(content) - 7} bytes instead of {len(content)}"):
        store.load_model(checkpoint)
    data.unlink()
    with pytest.raises(UserError, match=f"{data.name} is missing"):
        store.load_model(checkpoint)
    (checkpoint / "digests.json").write_text("{")
    with pytest.raises(UserError, match=r"digests\.json is damaged"):
        store.load_model(checkpoint)


def test_a_checkpoint_without_digests_was_never_finished(checkpoint):
    (checkpoint / "digests.json").unlink()
    with pytest.raises(UserError, match="never finished"):
        store.load_model(checkpoint)


def test_paths_that_are_no_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").touch()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name, message in [
        ("nothing", "is not a folder"),
        ("empty", "holds no checkpoint"),
        ("hf", "launch.convert --from_hf"),
        ("run", "workdir without a finished checkpoint"),
    ]:
        with pytest.raises(UserError, match=message):
            store.load_model(tmp_path / name)
    with pytest.raises(UserError, match="package:nothing is not in the package"):
        store.load_model("package:nothing")


def rewrite(checkpoint, **changes):
    """Changes the model in s1jax.json as somebody might who mixes up two checkpoints, digests included."""
    file = checkpoint / "s1jax.json"
    about = json.loads(file.read_text())
    about["model"] = from_dict(ModelConfig, about["model"]).flat() | changes
    file.write_text(json.dumps(about))
    digests.write(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_dim": 32}, r"layers/mlp/down/kernel has shape \(2, 24, 16\) instead of \(2, 32, 16\); the weights do"),
        ({"tied_embeddings": False}, "head/kernel is missing"),
        ({"qkv_bias": True}, "attention/key/bias is missing"),
        ({"d_modle": 3}, "d_modle is not a setting"),
    ],
)
def test_weights_of_another_configuration(checkpoint, changes, message):
    rewrite(checkpoint, **changes)
    with pytest.raises(UserError, match=message):
        store.load_model(checkpoint)


def test_another_format(checkpoint):
    file = checkpoint / "s1jax.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    digests.write(checkpoint)
    with pytest.raises(UserError, match="format 99"):
        store.load_metadata(checkpoint)


def test_what_is_there_is_not_overwritten(original, params, tmp_path):
    before = (original / "digests.json").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        store.save_model(original, params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    assert (original / "digests.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        store.save_model(tmp_path, params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})


def about():
    return store.Metadata(MODEL, Tokenizer.load(TOKENIZER), CHAT, {"experiment": "x"})


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_a_run_keeps_the_newest_and_gives_them_back(tmp_path, params):
    optimizer = {"step": jnp.int32(0), "moments": jax.tree.map(jnp.zeros_like, params)}
    with store.Checkpointer(tmp_path, 2, about()) as checkpointer:
        assert checkpointer.newest_step() is None
        for step in (1, 2, 3):
            # Donated right after the save, as by a training step: what is written must be a copy.
            mine = jax.tree.map(lambda p, s=step: p + s, params)
            checkpointer.save(step, mine, optimizer | {"step": jnp.int32(step)}, {"step": step})
            jax.jit(lambda tree: jax.tree.map(lambda p: p * 0, tree), donate_argnums=0)(mine)
    assert store.finished_steps(tmp_path) == [2, 3]
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    with store.Checkpointer(tmp_path, 2, about()) as checkpointer:
        restored, rest = checkpointer.restore(3, abstract(params), abstract(optimizer))
    assert_same(restored, jax.tree.map(lambda p: p + 3, params))
    assert int(rest["step"]) == 3
    model = store.load_model(tmp_path)  # a workdir is its newest checkpoint
    assert_same(model.params, restored)
    assert model.provenance == {"experiment": "x", "step": 3}


def test_a_half_written_checkpoint_is_never_picked_and_made_again(tmp_path, params):
    optimizer = {"step": jnp.int32(0)}
    with store.Checkpointer(tmp_path, 5, about()) as checkpointer:
        checkpointer.save(1, params, optimizer, {})
        checkpointer.save(2, params, optimizer, {})
        checkpointer.wait()
        (tmp_path / "checkpoints" / "2" / "digests.json").unlink()
        assert checkpointer.newest_step() == 1
        assert store.resolve(tmp_path).name == "1"
        checkpointer.save(2, params, optimizer, {})
        checkpointer.wait()
        assert checkpointer.newest_step() == 2


def test_what_interrupted_saves_and_removals_left_is_in_nobody_s_way(tmp_path, params):
    """Weights without descriptions or digests, where a checkpoint is to be written and below the newest."""
    for step in ("0", "1", "7"):
        (tmp_path / "checkpoints" / step / "params").mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "params" / "rest").write_text("rest")
    with store.Checkpointer(tmp_path, 1, about()) as checkpointer:
        checkpointer.save(1, params, {"step": jnp.int32(0)}, {})
    assert store.finished_steps(tmp_path) == [1]
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["1", "7"]
    assert_same(store.load_model(tmp_path).params, params)


def test_a_damaged_optimizer_state_is_found_at_resumption_only(tmp_path, params):
    optimizer = {"step": jnp.int32(7), "moments": params}
    with store.Checkpointer(tmp_path, 1, about()) as checkpointer:
        checkpointer.save(7, params, optimizer, {})
        checkpointer.wait()
        file = max((tmp_path / "checkpoints/7/optimizer").rglob("*"), key=lambda file: file.stat().st_size)
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file.name} was altered"):
            checkpointer.restore(7, abstract(params), abstract(optimizer))
    store.load_model(tmp_path)


def test_the_state_of_another_optimizer_is_refused(tmp_path, params):
    tx = {name: optimizer_lib.make(OptimizerConfig(name=name), MODEL, 5) for name in ("adamw", "muon")}
    states = {name: {"step": jnp.int32(1), "opt_state": jax.jit(tx[name].init)(params)} for name in tx}
    for one, other in (("adamw", "muon"), ("muon", "adamw")):
        with store.Checkpointer(tmp_path / one, 1, about()) as checkpointer:
            checkpointer.save(1, params, states[one], {})
            checkpointer.wait()
            assert_same(checkpointer.restore(1, abstract(params), abstract(states[one]))[1], states[one])
            with pytest.raises(UserError, match=r"optimizer: .*; it was saved with another optimizer.name"):
                checkpointer.restore(1, abstract(params), abstract(states[other]))


def test_a_model_is_no_state_of_a_run(original, tmp_path, params):
    shutil.copytree(original, tmp_path / "checkpoints" / "1")
    checkpointer = store.Checkpointer(tmp_path, 1, about())
    with checkpointer, pytest.raises(UserError, match="checkpoints/1 has no optimizer state"):
        checkpointer.restore(1, abstract(params), {})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["here", "in Orbax"])
def test_a_full_disk_is_one_sentence(tmp_path, params, monkeypatch, kind, code):
    from orbax.checkpoint import v1 as ocp

    def full(*_):
        raise OSError(code, os.strerror(code), "somewhere")

    def full_in_orbax(*_):
        try:
            full()
        except OSError as error:
            raise ValueError("write failed: RESOURCE_EXHAUSTED") from error

    if kind == "here":
        monkeypatch.setattr(digests, "write", full)
    else:
        monkeypatch.setattr(ocp, "save", full_in_orbax)
    with pytest.raises(UserError, match=rf"{files.FULL[code][0]} while writing .*ckpt"):
        store.save_model(tmp_path / "ckpt", params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    assert not digests.is_there(tmp_path / "ckpt")


def test_a_chat_format_of_ones_own_comes_back(tmp_path, params):
    mine = dataclasses.replace(
        CHAT, **{dataclasses.fields(CHAT)[0].name: getattr(CHAT, dataclasses.fields(CHAT)[0].name)}
    )
    store.save_model(tmp_path / "ckpt", params, MODEL, Tokenizer.load(TOKENIZER), mine, {})
    assert store.load_metadata(tmp_path / "ckpt").chat == mine


@pytest.mark.parametrize("name", ["lr[1e-4]", "[!a]", "a*b", "a?b", "a\\b", "**", "gs:", "{a,b} %20 ~$", "a\nb", "ä ö"])
def test_any_name_of_a_folder_will_do(tmp_path, params, name):
    """Orbax's merge takes a path for a pattern, tensorstore a backslash for a slash, etils gs: for a bucket."""
    (tmp_path / "aXb").mkdir()
    for folder in (tmp_path / name / "model", tmp_path / name / "run"):
        if folder.name == "model":
            store.save_model(folder, params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
        else:
            with store.Checkpointer(folder, 2, about()) as checkpointer:
                checkpointer.save(1, params, {"step": jnp.int32(5)}, {})
            with store.Checkpointer(folder, 2, about()) as checkpointer:
                assert checkpointer.restore(1, abstract(params), {"step": abstract(jnp.int32(0))})[1]["step"] == 5
        assert_same(store.load_model(folder).params, params)
        assert_same(store.load_model(folder, host=True).params, params)
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["aXb", name])


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://b", "hf://a/b", "file:///x", "gs:/bucket/run"])
def test_urls_are_refused_with_a_remedy(params, name):
    with pytest.raises(UserError, match=f"checkpoint={name} is a URL, .* mount the bucket"):
        store.save_model(name, params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    with pytest.raises(UserError, match="is a URL"):
        store.load_model(name)
    with pytest.raises(UserError, match="is a URL"):
        store.load_metadata(pathlib.Path(name))


def test_names_that_are_not_utf_8_are_refused_before_anything_is_written(tmp_path, params):
    for text in (b"\xff", b"a\0b"):
        with pytest.raises(UserError, match=r"is not UTF-8|holds a NUL"):
            store.save_model(tmp_path / os.fsdecode(text), params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", [".zarray", "0.0", "embed.embedding", "_METADATA"])
def test_a_model_that_was_not_written_whole_gets_no_digests(tmp_path, params, monkeypatch, lost):
    from orbax.checkpoint import v1 as ocp

    real = ocp.save

    def save(path, tree):
        real(path, tree)
        gone = path / "state" / "embed.embedding" / lost if lost in (".zarray", "0.0") else path / "state" / lost
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    monkeypatch.setattr(ocp, "save", save)
    with pytest.raises(UserError, match=r"ckpt/params: embed/embedding .*; what was just written|Orbax cannot read"):
        store.save_model(tmp_path / "ckpt", params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    assert not digests.is_there(tmp_path / "ckpt")


def test_a_step_that_orbax_did_not_merge_gets_no_digests(tmp_path, params, monkeypatch):
    """As without a plain path: Orbax finds nothing to merge, and says nothing."""
    monkeypatch.setattr("s1jax.io.paths.plain", contextlib.nullcontext)
    with (
        pytest.raises(UserError, match=r"(params|optimizer): \S+ is missing; what was just written cannot be"),
        store.Checkpointer(tmp_path / "lr[1e-4]", 1, about()) as checkpointer,
    ):
        checkpointer.save(1, params, {"step": jnp.int32(0)}, {})
    assert not store.finished_steps(tmp_path / "lr[1e-4]")


@pytest.mark.parametrize(("jump", "every"), [(3600, 1), (3600, 7), (-3600, 5)])
def test_a_clock_that_jumps_during_a_save(tmp_path, params, monkeypatch, jump, every):
    real, asked = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + jump * (next(asked) // every))
    store.save_model(tmp_path / "model", params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    with store.Checkpointer(tmp_path, 1, about()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, params, {"step": jnp.int32(step)}, {})
    assert next(asked) > 20, "Orbax looks at the clock"
    assert store.finished_steps(tmp_path) == [2]
    for folder in (tmp_path / "model", tmp_path):
        assert_same(store.load_model(folder).params, params)


def test_everything_is_on_the_disk_before_a_checkpoint_counts(tmp_path, params, monkeypatch):
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "ckpt"
    store.save_model(folder, params, MODEL, Tokenizer.load(TOKENIZER), CHAT, {})
    (last,) = (i for i, path in enumerate(synced) if ".digests.json." in path)
    there = {os.fspath(item) for item in folder.rglob("*") if item.name != "digests.json"}
    assert there <= set(synced[:last]), "files and folders"
    assert [os.fspath(folder), os.fspath(tmp_path)] == synced[last + 1 :], "the rename"


@pytest.mark.parametrize("locks", [True, False])
def test_a_run_beside_its_readers(tmp_path, params, monkeypatch, locks):
    """Weights and metadata are of one step, whatever the run saves and removes meanwhile."""
    if not locks:
        monkeypatch.setattr("fcntl.flock", mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    enough = threading.Event()

    def train():
        with store.Checkpointer(tmp_path, 1, about()) as checkpointer:
            for step in range(1, 60):
                mine = jax.tree.map(lambda leaf, s=step: leaf * 0 + s, params)
                checkpointer.save(step, mine, {"step": jnp.int32(step)}, {"step": step})
                if enough.is_set():
                    break

    trainer = threading.Thread(target=train)
    trainer.start()
    seen = []
    try:
        while not store.finished_steps(tmp_path):
            assert trainer.is_alive()
        for _ in range(8):
            model = store.load_model(tmp_path)
            seen.append(model.provenance["step"])
            for leaf in jax.tree.leaves(model.params):
                assert (np.asarray(leaf) == seen[-1]).all()
            assert store.load_metadata(tmp_path).provenance["step"] >= seen[-1]
    finally:
        enough.set()
        trainer.join()
    assert seen == sorted(seen) and len(set(seen)) > 1, "the run went on"
    assert len(store.finished_steps(tmp_path)) <= 2
