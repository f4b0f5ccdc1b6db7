"""config.json in both directions, and what it must not say."""

import dataclasses
import json

import numpy as np
import pytest

from s1jax.checkpoint import huggingface_config
from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.config.rope import RopeScaling
from s1jax.errors import UserError
from s1jax.model import rope
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
    "use_mrope": False,
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
    "is_llama_config": True, "tie_word_embeddings": True, "vocab_size": 49152,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "preset"),
    [(_QWEN2P5_32B, "qwen2p5_32b"), (_QWEN3_0P6B, "qwen3_0p6b"), (_SMOLLM2_135M, "smollm2_135m")],
)
def test_published_config_files_give_the_presets(values, preset):
    assert huggingface_config.config_from_json(values) == PRESETS[preset]


_LLAMA_3P1_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def test_llama3_scaling_in_the_spellings_of_transformers_4_and_5():
    five = {name: value for name, value in _LLAMA_3P1_8B.items() if name not in ("rope_scaling", "rope_theta")}
    five["rope_parameters"] = {**_LLAMA_3P1_8B["rope_scaling"], "rope_theta": 500000.0}
    for values in (_LLAMA_3P1_8B, five, {**_LLAMA_3P1_8B, **five}):
        assert huggingface_config.config_from_json(values) == PRESETS["llama3p1_8b"]


def test_yarn_as_qwen_documents_it_extends_the_context():
    """transformers: original_max_position_embeddings is max_position_embeddings where it is not given."""
    given = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    for scaling in (given, {"rope_type": "yarn", "factor": 4, "attention_factor": None}):
        config = huggingface_config.config_from_json({**_QWEN2P5_32B, "rope_scaling": scaling})
        assert config.rope_scaling == RopeScaling("yarn", 4.0, 32768) and config.context_length == 131072
    longer = {**_QWEN2P5_32B, "rope_scaling": given, "max_position_embeddings": 200000}
    assert huggingface_config.config_from_json(longer).context_length == 200000


def test_linear_scaling_leaves_the_context_as_it_is_written():
    config = huggingface_config.config_from_json({**_QWEN2P5_32B, "rope_scaling": {"type": "linear", "factor": 4.0}})
    assert config.rope_scaling == RopeScaling("linear", 4.0) and config.context_length == 32768


@pytest.mark.parametrize(
    "more",
    [
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 0.0},
        {"mscale": 2},
        {"attention_factor": 0.9, "mscale": 0.707, "mscale_all_dim": 1.0},
        {"beta_fast": 40.0, "beta_slow": 2, "truncate": False},
        {},
    ],
)
def test_fields_of_yarn_mean_what_they_mean_to_transformers_and_come_back(more):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers import modeling_rope_utils

    given = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, **more}
    values = {**_QWEN2P5_32B, "rope_scaling": given}
    config = huggingface_config.config_from_json(values)
    back = json.loads(json.dumps(huggingface_config.config_to_json(config)))
    assert huggingface_config.config_from_json(back) == config
    for written in (values, back):
        theirs = transformers.AutoConfig.for_model(**written)
        frequencies, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, device="cpu")
        assert factor == pytest.approx(rope.attention_factor(config.rope_scaling), rel=1e-12)
        ours = 1e6 ** (-np.arange(0, 128, 2) / 128) * rope.multipliers(128, 1e6, config.rope_scaling)
        np.testing.assert_allclose(frequencies.numpy(), ours, rtol=1e-5)


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
        ({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM .* unknown"),
        ({"model_type": "qwen3_next"}, "model_type 'qwen3_next' is not computed by s1jax: .*gated DeltaNet"),
        ({"model_type": "deepseek_v32"}, "'deepseek_v32' is not computed by s1jax: .* the indexer"),
        ({"clever_trick": 7}, "clever_trick is 7, a field that s1jax does not know for model_type 'qwen2'"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification .* is unknown"),
        ({"architectures": ["\x1b[2J" + "x" * 999]}, r"architecture '\\x1b\[2Jx{99,}\.\.\.' \(model_type 'qwen2'\) is"),
        ({"transformers_weights": "../other.safetensors"}, "transformers_weights names a file of its own, '../other"),
        ({"model_type": None}, "is unknown; s1jax reads Qwen2ForCausalLM"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            r"'dynamic'; .* set it to \{\"rope_type\": \"default\", \"rope_theta\": 1000000.0\} .* up to 32768 tokens",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 8.0}},
            "'longrope'; s1jax computes .* a model without it",
        ),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, r"type \['yarn'\]; s1jax computes default, linear, llama3, yarn"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "config.json: rope_scaling lacks factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling lacks low_freq_factor"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}},
            "rope_scaling lacks original_max_position_embeddings",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor is 0.5; give a number from 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "rope_scaling.factor is '2'; it must be of type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "rope_scaling.factor is nan"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 10**400}}, "rope_scaling.factor is beyond"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_slow": 40}}, "rope_scaling.beta_slow is 40.0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": None}}, "rope_scaling.truncate is None"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}},
            "rope_scaling.original_max_position_embeddings is 0; it must be positive",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": "1", "mscale_all_dim": 1}},
            "rope_scaling.mscale is '1'; it must be a number from",
        ),
        (
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
                "original_max_position_embeddings": 4096,
            },
            "original_max_position_embeddings is 8192, but the file has 4096 outside",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8}}, "attn_factor is read differently"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast is not a field .* ignores it"),
        ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "factor is not a field of .* 'default'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"differs between layers \('full_attention'\)"),
        (
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
                "rope_scaling": {"type": "yarn", "factor": 2.0},
            },
            "rope_scaling and rope_parameters ask for different",
        ),
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
        ({"use_mrope": True}, "use_mrope is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"num_hidden_layers": "64"}, "^config.json: num_hidden_layers is '64'; it must be of type int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be of type bool"),
        ({"hidden_size": 5121}, "hidden_size 5121 is not a multiple of num_attention_heads 40"),
        ({"num_key_value_heads": 7}, "not a multiple of model.num_kv_heads 7"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_attention_heads": 0, "head_dim": 8}, "^config.json: model.num_heads is 0; it must be positive"),
        ({"num_hidden_layers": -1}, "^config.json: model.num_layers is -1"),
        ({"rope_theta": 10**400}, "rope_theta is inf; it must be finite"),
        ({"rope_theta": 1e308}, r"^config.json: model.rope_theta is 1e\+308; it must lie in \[1, 1e30\]"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 10**400, "mscale_all_dim": 1}},
            r"rope_scaling.mscale is 1000.*\.\.\.0; it must be a number",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_slow": 1e-320}}, "beta_slow is .* both at most"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be finite"),
    ],
)
def test_configurations_that_cannot_be_represented_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        huggingface_config.config_from_json({**_QWEN2P5_32B, **changes})


def test_models_that_no_architecture_describes_are_not_written():
    with pytest.raises(UserError, match="qkv_bias with qk_norm"):
        huggingface_config.config_to_json(ModelConfig.dense(**{**CONFIG.flat(), "qk_norm": True}))
    with pytest.raises(UserError, match="d_model 48 is not a multiple of num_heads 5"):
        five = ModelConfig.dense(**{**CASES["llama"].flat(), "num_heads": 5, "num_kv_heads": 5})
        huggingface_config.config_to_json(five)
    with pytest.raises(UserError, match=r"model.family is 'qwen2', which has qkv_bias True, and this model has False"):
        huggingface_config.config_to_json(ModelConfig.dense(**{**CASES["llama"].flat(), "family": "qwen2"}))
    with pytest.raises(UserError, match=r"model.family is 'gpt2'; s1jax exports qwen2, qwen3, llama"):
        huggingface_config.config_to_json(dataclasses.replace(CONFIG, family="gpt2"))


def test_eos_comes_from_the_generation_config_first(tmp_path):
    assert huggingface_config.read_eos(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert huggingface_config.read_eos(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert huggingface_config.read_eos(tmp_path) == (2, 7)
    for value in ('{"a": 1}', '["</s>"]', "true"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
        with pytest.raises(UserError, match=r"generation_config.json: eos_token_id is .*; it must be an id"):
            huggingface_config.read_eos(tmp_path)


def test_broken_json_is_reported_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"config.json does not exist"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(UserError, match=r"config.json, line 2: broken JSON"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}")
    with pytest.raises(UserError, match=r"config.json is nested too deep"):
        huggingface_config.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": ' + "1" * 5000 + "}")
    with pytest.raises(UserError, match=r"config.json holds a number with too many digits"):
        huggingface_config.read_json(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        huggingface_config.read_json(tmp_path)
