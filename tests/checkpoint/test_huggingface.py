"""Hugging Face folders in and out, with everything that can be wrong with them."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from s1jax.checkpoint import huggingface as hf
from s1jax.checkpoint import names
from s1jax.config import InputError
from s1jax.presets import PRESETS
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
    read = hf.config_from_json(hf.read_json(tmp_path / "config.json"))
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

    for name in ("qwen2_tied_mha", "qwen3_wide_heads", "llama"):
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
        assert "rope_parameters" in hf.read_json(tmp_path / name / "config.json")
        assert hf.config_from_json(hf.read_json(tmp_path / name / "config.json")) == config
        _assert_equal(hf.read_params(tmp_path / name, config), params)


# config.json


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_round_trip_through_config_json(name):
    assert hf.config_from_json(json.loads(json.dumps(hf.config_to_json(PRESETS[name])))) == PRESETS[name]


# Published config.json files, as of transformers 4: rope_theta at the top, head_dim only where it is not D / N.
_QWEN2P5_32B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 27648,
    "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2", "num_attention_heads": 40,
    "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
_QWEN3_0P6B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
_SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 576,
    "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "vocab_size": 49152,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "preset"),
    [(_QWEN2P5_32B, "qwen2p5_32b"), (_QWEN3_0P6B, "qwen3_0p6b"), (_SMOLLM2_135M, "smollm2_135m")],
)
def test_published_config_files_give_the_presets(values, preset):
    assert hf.config_from_json(values) == PRESETS[preset]


def test_silence_means_what_transformers_assumes():
    transformers = pytest.importorskip("transformers")
    for base in (_QWEN2P5_32B, _QWEN3_0P6B, _SMOLLM2_135M):
        kind = {k: v for k, v in base.items() if k in ("model_type", "vocab_size", "hidden_size", "intermediate_size",
                "num_hidden_layers", "num_attention_heads", "num_key_value_heads")}  # fmt: skip
        theirs = transformers.AutoConfig.for_model(**kind)
        ours = hf.config_from_json(kind)
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.tied_embeddings == theirs.tie_word_embeddings
        assert ours.context_length == theirs.max_position_embeddings
        assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}, "architecture Gemma2ForCausalLM .* unknown"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification .* is unknown"),
        ({"model_type": None}, "is unknown; s1jax reads Qwen2ForCausalLM"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling asks for rotary scaling of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "type 'llama3'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}}, "rope_parameters .* 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"rope_parameters asks .* \(full_attention\)"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 1000000.0 but rope_parameters says 10000.0"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be a JSON object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"num_hidden_layers": "64"}, "num_hidden_layers is '64'; it must be of type int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be of type bool"),
        ({"hidden_size": 5121}, "hidden_size 5121 is no multiple of num_attention_heads 40"),
        ({"num_key_value_heads": 7}, "no multiple of model.num_kv_heads 7"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
    ],
)
def test_configurations_that_cannot_be_represented_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        hf.config_from_json({**_QWEN2P5_32B, **changes})


def test_models_that_no_architecture_describes_are_not_written():
    with pytest.raises(InputError, match="qkv_bias with qk_norm"):
        hf.config_to_json(dataclasses.replace(CONFIG, qk_norm=True))
    with pytest.raises(InputError, match="d_model 48 is no multiple of num_heads 5"):
        hf.config_to_json(dataclasses.replace(CASES["llama"], num_heads=5, num_kv_heads=5))


def test_eos_comes_from_the_generation_config_first(tmp_path):
    assert hf.read_eos(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert hf.read_eos(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert hf.read_eos(tmp_path) == (2, 7)


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
    with pytest.raises(InputError, match=sentence):
        hf.read_params(tmp_path, CONFIG)


@pytest.mark.parametrize("dtype", [None, np.float32])
def test_tied_models_may_store_the_head_only_if_it_is_the_embedding(tmp_path, dtype):
    config = CASES["qwen3_tied_one_head"]
    params = _folder(tmp_path, config)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    _assert_equal(hf.read_params(tmp_path, config, dtype), params)
    _rewrite(tmp_path, lambda t: t.update({"lm_head.weight": np.nextafter(t["lm_head.weight"], np.inf)}))
    with pytest.raises(InputError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        hf.read_params(tmp_path, config, dtype)


def test_untied_models_need_their_head(tmp_path):
    _folder(tmp_path)
    _rewrite(tmp_path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"lacks tensor lm_head.weight"):
        hf.read_params(tmp_path, CONFIG)


def test_truncated_file(tmp_path):
    _folder(tmp_path)
    content = (tmp_path / hf.SINGLE).read_bytes()
    for size in (len(content) - 10, 20, 4):
        (tmp_path / hf.SINGLE).write_bytes(content[:size])
        with pytest.raises(InputError, match=r"model.safetensors is damaged"):
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
    file = hf.read_json(sharded / hf.INDEX)["weight_map"][K0]
    (sharded / file).unlink()
    with pytest.raises(InputError, match=f"names the shard {file}, which does not exist"):
        hf.find_tensors(sharded)


def test_index_that_names_a_tensor_its_shard_lacks(sharded):
    other = hf.read_json(sharded / hf.INDEX)["weight_map"]["model.embed_tokens.weight"]
    _edit_index(sharded, lambda index: index.update({"model.nothing": other}))
    with pytest.raises(InputError, match=f"model.nothing is not listed where it is, {other} lacks it"):
        hf.find_tensors(sharded)


def test_tensor_in_two_shards(sharded):
    first = sharded / hf.read_json(sharded / hf.INDEX)["weight_map"]["model.embed_tokens.weight"]
    tensors = safetensors.numpy.load_file(first)
    safetensors.numpy.save_file({**tensors, K0: np.zeros((16, 48), np.float32)}, first)
    with pytest.raises(InputError, match=f"{K0} is not listed where it is, {first.name} holds it as well"):
        hf.find_tensors(sharded)


def test_index_without_a_map(sharded):
    (sharded / hf.INDEX).write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        hf.find_tensors(sharded)


def test_folders_without_safetensors(tmp_path):
    with pytest.raises(InputError, match=r"has neither model.safetensors nor"):
        hf.find_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"only PyTorch .bin files; s1jax reads safetensors"):
        hf.find_tensors(tmp_path)


def test_broken_json_is_reported_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"config.json does not exist"):
        hf.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(InputError, match=r"config.json, line 2: broken JSON"):
        hf.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        hf.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        hf.read_json(tmp_path / "config.json")
