"""Hugging Face folders in and out, with everything that can be wrong with them."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from s1jax.checkpoint import huggingface as hf
from s1jax.checkpoint import huggingface_config, names
from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.errors import UserError
from tests.model.parity_cases import CASES, weights

CONFIG = CASES["qwen2"]


def _folder(path, config=CONFIG, **options):
    path.mkdir(parents=True, exist_ok=True)
    params = weights(config)
    hf.write_model(path, params, config, **options)
    return params


def _assert_equal(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            _assert_equal(value, right[key])
        else:
            assert value.dtype == right[key].dtype
            np.testing.assert_array_equal(value, right[key])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shard", [10**9, 9000])
def test_round_trip(tmp_path, name, shard):
    config = CASES[name]
    params = _folder(tmp_path, config, max_shard_bytes=shard)
    assert (tmp_path / hf.INDEX).exists() == (shard == 9000)
    if shard == 9000:
        files = list(tmp_path.glob("*.safetensors"))
        largest = max(view.nbytes for view in names.views(config, params, "huggingface").values())
        assert len(files) > 3 and all(path.stat().st_size <= max(9000, largest) + 2000 for path in files)
    read = huggingface_config.config_from_json(huggingface_config.read_json(tmp_path / "config.json"))
    assert read == config
    _assert_equal(hf.read_params(tmp_path, read), params)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_files_are_what_the_safetensors_library_reads(tmp_path, dtype):
    params = _folder(tmp_path, dtype=dtype)
    with safetensors.safe_open(tmp_path / hf.SINGLE, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        views = names.views(CONFIG, params, "huggingface")
        assert set(file.keys()) == set(views)
        for name, view in views.items():
            stored = file.get_tensor(name)
            assert stored.dtype == dtype
            np.testing.assert_array_equal(stored, view.astype(dtype))


def test_stored_type_is_kept_and_can_be_changed(tmp_path):
    params = _folder(tmp_path, dtype=ml_dtypes.bfloat16)
    assert hf.read_params(tmp_path, CONFIG)["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    wide = hf.read_params(tmp_path, CONFIG, np.float32)["embed"]["embedding"]
    np.testing.assert_array_equal(wide, params["embed"]["embedding"].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_mixed_types_become_float32(tmp_path):
    _folder(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / hf.SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    safetensors.numpy.save_file(tensors, tmp_path / hf.SINGLE)
    assert hf.read_params(tmp_path, CONFIG)["final_norm"]["scale"].dtype == np.float32


def test_transformers_loads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.model.parity_cases import tokens, transformers_logits, transformers_model

    for name in ("qwen2_tied_mha", "qwen3_wide_heads", "llama", "llama3_scaled", "qwen3_yarn_exact"):
        config = CASES[name]
        params = _folder(tmp_path / name, config, max_shard_bytes=30_000, eos=[3, 5])
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        ids = tokens(config, (1, 20))
        expected = transformers_logits(transformers_model(config, params), ids)
        np.testing.assert_array_equal(transformers_logits(loaded.eval(), ids), expected)
        assert loaded.generation_config.eos_token_id == [3, 5]


def test_what_transformers_writes_is_read(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.model.parity_cases import transformers_model

    for name, config in CASES.items():
        params = weights(config)
        transformers_model(config, params).save_pretrained(tmp_path / name, max_shard_size=30_000)
        assert "rope_parameters" in huggingface_config.read_json(tmp_path / name / "config.json")
        assert (
            huggingface_config.config_from_json(huggingface_config.read_json(tmp_path / name / "config.json")) == config
        )
        _assert_equal(hf.read_params(tmp_path / name, config), params)


# Damaged folders


def _rewrite(path, change):
    tensors = safetensors.numpy.load_file(path / hf.SINGLE)
    change(tensors)
    safetensors.numpy.save_file(tensors, path / hf.SINGLE)


K0 = "model.layers.0.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(K0), f"lacks tensor {K0};"),
        (lambda t: [t.pop(name) for name in sorted(t)[:5]], r"lacks tensors lm_head.weight, .* and 2 more"),
        (lambda t: t.update({"model.extra": t[K0].copy()}), "has the unexpected tensor model.extra"),
        (lambda t: t.update({K0: np.ascontiguousarray(t[K0].T)}), rf"{K0} has shape \[48, 16\] .* says \[16, 48\]"),
        (lambda t: t.update({K0: t[K0].astype(np.int8)}), f"tensor {K0} is stored as I8"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, sentence):
    _folder(tmp_path)
    _rewrite(tmp_path, change)
    with pytest.raises(UserError, match=sentence):
        hf.read_params(tmp_path, CONFIG)


@pytest.mark.parametrize("stored", [np.int8, np.int64, np.float64])
def test_unreadable_types_are_refused_whatever_is_asked_for(tmp_path, stored):
    _folder(tmp_path)
    _rewrite(tmp_path, lambda t: t.update({K0: t[K0].astype(stored)}))
    for dtype in (None, np.float32, ml_dtypes.bfloat16):
        with pytest.raises(UserError, match=f"tensor {K0} is stored as [IF](8|64); s1jax reads F32, F16, BF16"):
            hf.read_params(tmp_path, CONFIG, dtype)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (PRESETS["qwen2p5_32b"].flat(), "has 27 tensors, too few for the 64 layers of its configuration"),
        ({"num_layers": 10**9}, "too few for the 1000000000 layers"),
        ({"num_layers": 20}, "lacks tensors model.layers.10.input_layernorm.weight, .* and 213 more"),
        ({"vocab_size": 10**15}, r"embed_tokens.weight has shape \[61, 48\] .* says \[1000000000000000, 48\]"),
        ({"mlp_dim": 10**30}, rf"{hf.SINGLE}: tensor .*mlp.*weight has shape .* says \[.*10{{30}}"),
    ],
)
def test_models_far_larger_than_their_weights_take_no_memory(tmp_path, monkeypatch, changes, sentence):
    _folder(tmp_path)
    monkeypatch.setattr(names, "allocate", lambda *_: pytest.fail("took memory"))
    with pytest.raises(UserError, match=sentence):
        hf.read_params(tmp_path, ModelConfig.dense(**{**CONFIG.flat(), **changes}))


@pytest.mark.parametrize("dtype", [None, np.float32])
def test_tied_models_may_store_the_head_only_if_it_is_the_embedding(tmp_path, dtype):
    config = CASES["qwen3_tied_one_head"]
    params = _folder(tmp_path, config)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    _assert_equal(hf.read_params(tmp_path, config, dtype), params)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": np.nextafter(t["lm_head.weight"], np.inf)}))
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        hf.read_params(tmp_path, config, dtype)


def test_rotary_frequencies_of_older_llamas_are_left_out(tmp_path):
    params = _folder(tmp_path, dtype=ml_dtypes.bfloat16)
    _rewrite(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}))
    read = hf.read_params(tmp_path, CONFIG)
    assert read["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["final_norm"]["scale"], params["final_norm"]["scale"].astype(ml_dtypes.bfloat16))


def test_untied_models_need_their_head(tmp_path):
    _folder(tmp_path)
    _rewrite(tmp_path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lacks tensor lm_head.weight"):
        hf.read_params(tmp_path, CONFIG)


def test_truncated_file(tmp_path):
    _folder(tmp_path)
    content = (tmp_path / hf.SINGLE).read_bytes()
    for size in (len(content) - 10, 20, 4):
        (tmp_path / hf.SINGLE).write_bytes(content[:size])
        with pytest.raises(UserError, match=r"model.safetensors is damaged"):
            hf.read_params(tmp_path, CONFIG)


@pytest.fixture
def sharded(tmp_path):
    _folder(tmp_path, max_shard_bytes=9000)
    return tmp_path


def _edit_index(folder, change):
    index = json.loads((folder / hf.INDEX).read_text())
    change(index["weight_map"])
    (folder / hf.INDEX).write_text(json.dumps(index))


def test_index_that_names_a_missing_shard(sharded):
    file = huggingface_config.read_json(sharded / hf.INDEX)["weight_map"][K0]
    (sharded / file).unlink()
    with pytest.raises(UserError, match=f"names the shard '{file}', which does not exist"):
        hf.find_tensors(sharded)


@pytest.mark.parametrize("file", ["", ".", "\0", "a" * 300])
def test_index_that_names_what_no_file_is_called(sharded, file):
    _edit_index(sharded, lambda index: index.update({K0: file}))
    with pytest.raises(UserError, match=r"index.json names the shard '.*', which does not exist"):
        hf.find_tensors(sharded)


def test_index_that_names_a_tensor_its_shard_lacks(sharded):
    other = huggingface_config.read_json(sharded / hf.INDEX)["weight_map"]["model.embed_tokens.weight"]
    _edit_index(sharded, lambda index: index.update({"model.nothing": other}))
    with pytest.raises(UserError, match=f"model.nothing is not listed where it is, {other} lacks it"):
        hf.find_tensors(sharded)


def test_tensor_in_two_shards(sharded):
    first = sharded / huggingface_config.read_json(sharded / hf.INDEX)["weight_map"]["model.embed_tokens.weight"]
    tensors = safetensors.numpy.load_file(first)
    safetensors.numpy.save_file({**tensors, K0: np.zeros((16, 48), np.float32)}, first)
    with pytest.raises(UserError, match=f"{K0} is not listed where it is, {first.name} holds it as well"):
        hf.find_tensors(sharded)


def test_index_whose_files_are_no_names(sharded):
    _edit_index(sharded, lambda index: index.update({K0: ["a"]}))
    with pytest.raises(UserError, match=rf"index.json: weight_map.{K0} is \['a'\]; it must be the name of a file"):
        hf.find_tensors(sharded)


def test_index_without_a_map(sharded):
    (sharded / hf.INDEX).write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        hf.find_tensors(sharded)


def test_folders_without_safetensors(tmp_path):
    with pytest.raises(UserError, match=r"has neither model.safetensors nor"):
        hf.find_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"only PyTorch .bin files; s1jax reads safetensors"):
        hf.find_tensors(tmp_path)


# What else is in a folder


def test_the_single_file_is_read_where_there_is_an_index_too(sharded):
    """As by transformers; the index's shards hold another model here."""
    other = weights(CONFIG, seed=5)
    hf.write_model(sharded, other, CONFIG)
    (sharded / "consolidated.safetensors").touch()
    (sharded / "pytorch_model.bin").touch()
    _assert_equal(hf.read_params(sharded, CONFIG), other)
    single, rest = hf.notes(sharded)
    assert "index.json is not read, as by transformers: model.safetensors is there, too" in single
    assert "other weights that are not read: consolidated.safetensors, model-00001-of" in rest and " more." in rest


def test_nothing_is_said_of_a_folder_that_is_read_whole(sharded):
    assert hf.notes(sharded) == []
    (sharded / "original").mkdir()
    assert "not read: original." in hf.notes(sharded)[0]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(sharded, name):
    (sharded / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{name}: a LoRA adapter, .* Merge it .* or move it away"):
        hf.find_tensors(sharded)


def _move_out(sharded, link):
    """Moves a shard out of its folder; `link` gets its old and its new path and returns its name for the index."""
    file = huggingface_config.read_json(sharded / hf.INDEX)["weight_map"][K0]
    (sharded.parent / "outside").mkdir(exist_ok=True)
    new = sharded.parent / "outside" / "secret.safetensors"
    os.replace(sharded / file, new)
    named = link(sharded / file, new)
    _edit_index(sharded, lambda index: index.update({n: named for n, at in index.items() if at == file}))
    return new


@pytest.mark.parametrize(
    "link", [lambda old, new: str(new), lambda old, new: "../outside/secret.safetensors"], ids=["absolute", "upwards"]
)
def test_an_index_names_no_file_outside_of_its_folder(sharded, link):
    _move_out(sharded, link)
    with pytest.raises(
        UserError, match=r"index.json: weight_map.* is .*; it must be the name of a file in this folder"
    ):
        hf.find_tensors(sharded)


def test_links_out_of_the_folder_are_not_followed(sharded):
    def link(old, new):
        old.symlink_to(new)
        return old.name

    new = _move_out(sharded, link)
    with pytest.raises(UserError, match=rf"safetensors is a link to '{new}', which is not in its folder"):
        hf.find_tensors(sharded)
    (sharded / "config.json").unlink()
    (sharded / "config.json").symlink_to(new)
    with pytest.raises(UserError, match=r"config.json is a link to"):
        huggingface_config.read_json(sharded / "config.json")


def test_a_folder_linked_into_the_folder_is_not_followed(sharded):
    def link(old, new):
        (old.parent / "sub").symlink_to(new.parent)
        return "sub/secret.safetensors"

    _move_out(sharded, link)
    with pytest.raises(UserError, match=r"secret.safetensors is a link to .*, which is not in its folder"):
        hf.find_tensors(sharded)


def test_shards_in_a_folder_of_the_folder_are_read(sharded):
    """As by transformers."""
    file = huggingface_config.read_json(sharded / hf.INDEX)["weight_map"][K0]
    (sharded / "sub").mkdir()
    os.replace(sharded / file, sharded / "sub" / file)
    _edit_index(sharded, lambda index: index.update({n: f"sub/{file}" for n, at in index.items() if at == file}))
    assert hf.find_tensors(sharded)[K0] == sharded / "sub" / file and hf.notes(sharded) == []


def test_the_links_of_hugging_faces_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    params = _folder(snapshot)
    blobs.mkdir()
    for number, item in enumerate(sorted(snapshot.iterdir())):
        os.replace(item, blobs / str(number))
        item.symlink_to(f"../../blobs/{number}")
    config = huggingface_config.config_from_json(huggingface_config.read_json(snapshot / "config.json"))
    _assert_equal(hf.read_params(snapshot, config), params)
    (snapshot / "config.json").unlink()
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to("../../../secret")
    with pytest.raises(UserError, match="which is not in its folder"):
        huggingface_config.read_json(snapshot / "config.json")


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"config.json is not a regular file"):
        huggingface_config.read_json(tmp_path / "config.json")


def test_names_of_tensors_show_no_control_characters(tmp_path):
    _folder(tmp_path)
    _rewrite(tmp_path, lambda t: t.update({"\x1b]0;title\a" + "x" * 500: t[K0].copy()}))
    with pytest.raises(UserError, match="has the unexpected tensor") as error:
        hf.read_params(tmp_path, CONFIG)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
