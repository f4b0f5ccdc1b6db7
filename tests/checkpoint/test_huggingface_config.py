"""config.json in both directions, and what it must not say."""

import dataclasses
import json

import pytest

from s1jax.checkpoint import huggingface_config
from s1jax.config import InputError
from s1jax.presets import PRESETS
from tests.model.parity_cases import CASES

CONFIG = CASES["qwen2"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_round_trip_through_config_json(name):
    assert (
        huggingface_config.config_from_json(json.loads(json.dumps(huggingface_config.config_to_json(PRESETS[name]))))
        == PRESETS[name]
    )


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
    assert huggingface_config.config_from_json(values) == PRESETS[preset]


def test_silence_means_what_transformers_assumes():
    transformers = pytest.importorskip("transformers")
    for base in (_QWEN2P5_32B, _QWEN3_0P6B, _SMOLLM2_135M):
        kind = {k: v for k, v in base.items() if k in ("model_type", "vocab_size", "hidden_size", "intermediate_size",
                "num_hidden_layers", "num_attention_heads", "num_key_value_heads")}  # fmt: skip
        theirs = transformers.AutoConfig.for_model(**kind)
        ours = huggingface_config.config_from_json(kind)
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
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic' .*; remove rope_scaling to use the model"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' .*; get a model without rotary scaling"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}},
            "rope_parameters .* 'linear' .*; get a model without",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"rope_parameters asks .* \(full_attention\)"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 1000000.0 but rope_parameters says 10000.0"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be a JSON object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 7}, "config.json: layer_types is 7; it must be a list"),
        ({"layer_types": [["full_attention"]]}, "layer_types names other"),
        ({"model_type": ["qwen2"]}, r"config.json: model_type is \['qwen2'\]; it must be a string"),
        ({"architectures": "Qwen2ForCausalLM"}, "config.json: architectures is 'Qwen2.*; it must be a list"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"num_hidden_layers": "64"}, "^config.json: num_hidden_layers is '64'; it must be of type int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be of type bool"),
        ({"hidden_size": 5121}, "hidden_size 5121 is no multiple of num_attention_heads 40"),
        ({"num_key_value_heads": 7}, "no multiple of model.num_kv_heads 7"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_attention_heads": 0, "head_dim": 8}, "^config.json: model.num_heads is 0; it must be positive"),
        ({"num_hidden_layers": -1}, "^config.json: model.num_layers is -1"),
        ({"rope_theta": 10**400}, "rope_theta is inf; it must be finite"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be finite"),
    ],
)
def test_configurations_that_cannot_be_represented_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        huggingface_config.config_from_json({**_QWEN2P5_32B, **changes})


def test_models_that_no_architecture_describes_are_not_written():
    with pytest.raises(InputError, match="qkv_bias with qk_norm"):
        huggingface_config.config_to_json(dataclasses.replace(CONFIG, qk_norm=True))
    with pytest.raises(InputError, match="d_model 48 is no multiple of num_heads 5"):
        huggingface_config.config_to_json(dataclasses.replace(CASES["llama"], num_heads=5, num_kv_heads=5))


def test_eos_comes_from_the_generation_config_first(tmp_path):
    assert huggingface_config.read_eos(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert huggingface_config.read_eos(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert huggingface_config.read_eos(tmp_path) == (2, 7)
    for value in ('{"a": 1}', '["</s>"]', "true"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
        with pytest.raises(InputError, match=r"generation_config.json: eos_token_id is .*; it must be an id"):
            huggingface_config.read_eos(tmp_path)


def test_broken_json_is_reported_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"config.json does not exist"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(InputError, match=r"config.json, line 2: broken JSON"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}")
    with pytest.raises(InputError, match=r"config.json is nested too deep"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": ' + "1" * 5000 + "}")
    with pytest.raises(InputError, match=r"config.json holds a number with too many digits"):
        huggingface_config.read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        huggingface_config.read_json(tmp_path)
