"""config.json of every family: published files, what silence means, and what is refused by name."""

import dataclasses

import pytest

from s1jax.checkpoint import huggingface_config
from s1jax.checkpoint.families.table import FAMILIES
from s1jax.config.layers import GQA, Dense
from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.errors import UserError
from tests.checkpoint import published, tiny


@pytest.mark.parametrize("preset", published.CONFIGS)
def test_published_files_give_the_presets(preset):
    assert huggingface_config.config_from_json(published.CONFIGS[preset]) == PRESETS[preset]


def test_head_dim_of_deepseek_v2_means_nothing():
    """transformers overwrites it."""
    changed = _case("deepseek_v2", head_dim=48)
    assert huggingface_config.config_from_json(changed) == huggingface_config.config_from_json(_case("deepseek_v2"))
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**changed)
    assert config.head_dim == config.qk_rope_head_dim


@pytest.mark.parametrize("model_type", FAMILIES)
def test_silence_means_what_transformers_assumes(model_type):
    """A file with nearly nothing, and the same file with all that transformers 5 adds to it."""
    transformers = pytest.importorskip("transformers")
    given = {"model_type": model_type, "num_hidden_layers": 6}
    if model_type in ("qwen2", "qwen3", "llama"):
        given |= {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        given |= {"num_key_value_heads": 2}
    counts = {"qwen2_moe": "num_experts", "qwen3_moe": "num_experts", "gpt_oss": "num_local_experts"}
    if model_type in counts:
        given[counts[model_type]] = 9
    if model_type == "deepseek_v2":
        given |= {"num_experts_per_tok": 3, "n_group": None}
    if model_type == "gpt_oss":  # transformers adds rotary scaling of its own to files without
        given["rope_scaling"] = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    if model_type == "ministral3":
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.0}
    full = {**transformers.AutoConfig.for_model(**given).to_dict()}
    assert huggingface_config.config_from_json(given) == huggingface_config.config_from_json(full)


def _case(name, **changes):
    return {**tiny.CONFIGS[name], **changes}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (_case("qwen3_moe", num_local_experts=6), "num_experts is 5 and num_local_experts is 6, which mean the same"),
        (_case("qwen3_moe", num_experts=None), "lacks num_experts or num_local_experts or n_routed_experts"),
        (_case("qwen3_moe", qkv_bias=True), "qkv_bias is True, which this decoder does not compute"),
        (_case("qwen3_moe", decoder_sparse_step=0), "decoder_sparse_step is 0"),
        (_case("qwen3_moe", mlp_only_layers=["a"]), r"mlp_only_layers \['a'\]"),
        (_case("qwen2_moe", num_experts_per_tok=6), "model.experts_per_token is 6, of 5 experts"),
        (_case("mixtral", router_jitter_noise=0.1), "router_jitter_noise is 0.1"),
        (_case("gemma2", hidden_activation="gelu"), "hidden_activation is 'gelu'"),
        (_case("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        (_case("gemma2", layer_types=["full_attention"]), "layer_types has 1 entries for 3 layers"),
        (_case("gemma2", layer_types=["chunked_attention"] * 3), "layer_types names 'chunked_attention'"),
        (
            _case("gemma3_text", rope_parameters={"full_attention": {}, "rope_type": "linear"}),
            "rope_parameters has 'rope_type' beside full_attention and sliding_attention",
        ),
        (
            _case("gemma3_text", rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
            "rope_parameters scales layers of kind sliding_attention",
        ),
        (_case("phi3", full_attn_mod=2), "full_attn_mod is 2"),
        (_case("phi3", partial_rotary_factor=1.5), "partial_rotary_factor is 1.5; it must be one number from 0 to 1"),
        (_case("phi3_longrope", hidden_size=96), "rope_scaling has 3 short and 3 long ones; give 6 of each"),
        (
            _case("phi3", rope_scaling={"type": "longrope", "short_factor": [1]}),
            "long_factor is None; it must be a list",
        ),
        (_case("phi3", rope_scaling={"type": "llama3"}), "'llama3'; s1jax computes default, longrope"),
        (_case("smollm3", no_rope_layers=[1, 2, 0, 1, 1]), "no_rope_layers is .* it must have 0 or 1"),
        (_case("olmo2", clip_qkv=8.0), "clip_qkv is 8.0, a field that s1jax does not know for model_type 'olmo2'"),
        (_case("gpt_oss", swiglu_limit=9.0), "swiglu_limit is 9.0, which this decoder does not compute; only 7.0 is"),
        (_case("gpt_oss", experts_per_token=4), "num_experts_per_tok is 2 and experts_per_token is 4"),
        (_case("deepseek_v2", topk_method="noaux_tc"), "topk_method is 'noaux_tc'"),
        (_case("deepseek_v2", norm_topk_prob=True), "norm_topk_prob is True"),
        (_case("deepseek_v3", head_dim=48), "head_dim is 48 and qk_rope_head_dim "),
        (_case("deepseek_v3", rope_interleave=False), "rope_interleave is False"),
        (_case("deepseek_v3", scoring_func="softmax"), "scoring_func is 'softmax'"),
        (_case("deepseek_v3", index_topk=2048), "index_topk is 2048, a field that s1jax does not know"),
        (_case("deepseek_v3", n_group=3), "model.groups is 3"),
        (_case("mistral", num_hidden_layers=0), "model.num_layers is 0"),
        (_case("gemma2", num_hidden_layers=10**9), "num_hidden_layers is 1000000000; give a number from 1 to 10000"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(values, sentence):
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(UserError, match=f"^config.json: .*{sentence}|^config.json {sentence}"):
        huggingface_config.config_from_json(values)


_WRAPPED = {"model_type": "gemma3", "text_config": {**tiny.CONFIGS["gemma3_text"]}, "vision_config": {}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text_config": 7}, "text_config is 7; it must be a JSON object"),
        (
            {"text_config": {"model_type": "gemma3n_text"}},
            "text_config.model_type is 'gemma3n_text'; s1jax reads gemma3",
        ),
        ({"architectures": ["Gemma3ForCausalLM"]}, "architectures is .* has Gemma3ForConditionalGeneration"),
        ({"text_config": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping is 50.0, which this decoder"),
        ({"text_config": {"clever": 1}}, "clever is 1, a field that s1jax does not know for model_type 'gemma3_text'"),
    ],
)
def test_wrappers_are_read_as_carefully(changes, sentence):
    assert huggingface_config.config_from_json(_WRAPPED).family == "gemma3_text"
    with pytest.raises(UserError, match=f"^config.json: {sentence}"):
        huggingface_config.config_from_json({**_WRAPPED, **changes})


def _changed(preset: str, **changes) -> ModelConfig:
    """A preset with other fields of the model, of all attentions, of all MLPs or of all layers."""
    config = PRESETS[preset]
    groups = []
    for group in config.groups:
        pattern = []
        for layer in group.pattern:
            for part in ("attention", "mlp"):
                spec = getattr(layer, part)
                mine = {k: v for k, v in changes.items() if k in {field.name for field in dataclasses.fields(spec)}}
                layer = dataclasses.replace(layer, **{part: dataclasses.replace(spec, **mine)})
            layer = dataclasses.replace(layer, **({"norms": changes["norms"]} if "norms" in changes else {}))
            pattern.append(layer)
        groups.append(dataclasses.replace(group, pattern=tuple(pattern)))
    of_model = {k: v for k, v in changes.items() if k in {field.name for field in dataclasses.fields(config)}}
    return dataclasses.replace(config, groups=tuple(groups), **of_model)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (_changed("qwen3_8b", window=4096), "'qwen3', which has window 0, and this model has 4096"),
        (_changed("llama3p1_8b", sinks=True), "'llama', which has sinks False, and this model has True"),
        (_changed("qwen3_30b_a3b", routed_scale=2.0), "which has routed_scale 1.0, and this model has 2.0"),
        (_changed("qwen3_30b_a3b", family="qwen3"), "'qwen3', which has no experts, and this model has"),
        (_changed("qwen3_8b", family="qwen3_moe"), "'qwen3_moe', which has experts, and this model has none"),
        (_changed("mixtral_8x7b", normalize=False), "which has normalize True, and this model has False"),
        (_changed("gpt_oss_20b", activation="silu"), "which has activation 'clamped', and this model has 'silu'"),
        (_changed("gemma2_2b", norm_offset=False), "which has norm_offset True, and this model has False"),
        (_changed("gemma2_2b", norms="post"), "which has norms 'both', and this model has 'post'"),
        (
            _changed("gemma3_1b", local_rope_theta=2e4, qk_norm=False),
            "which has qk_norm True, and this model has False",
        ),
        (_changed("smollm3_3b", rotary_dim=64), "which has rotary_dim 0, and this model has 64"),
        (_changed("deepseek_v3", scores="softmax"), "which has scores 'sigmoid', and this model has 'softmax'"),
        (_changed("deepseek_v3", family="mixtral"), "'mixtral', which has no latent attention, and this model has"),
        (_changed("qwen3_30b_a3b", family="deepseek_v3"), "'deepseek_v3', which has latent attention, and this model"),
        (_changed("mistral_7b_v0p3", final_softcap=30.0), "which has final_softcap 0.0, and this model has 30.0"),
    ],
)
def test_what_a_family_cannot_hold_is_not_exported(config, sentence):
    with pytest.raises(UserError, match=f"model.family is .*{sentence}.* cannot be exported"):
        huggingface_config.config_to_json(config)


def test_what_transformers_would_not_load_is_not_exported():
    with pytest.raises(UserError, match=r"'gemma2', whose query_scale is 1 / sqrt\(n\) .* has 0.07; .* cannot be"):
        huggingface_config.config_to_json(_changed("gemma2_2b", query_scale=0.07))
    wide = huggingface_config.config_from_json(_case("phi3_longrope"))
    wide = dataclasses.replace(wide, d_model=64)
    with pytest.raises(UserError, match=r"num_heads 6 times head_dim 8 is not d_model 64, .* Phi3 with longrope"):
        huggingface_config.config_to_json(wide)


def test_a_window_that_no_row_exceeds_is_none():
    config = huggingface_config.config_from_json(_case("mistral", sliding_window=512))
    assert config.groups[0].pattern[0].attention == GQA(6, 2, 8)
    assert config.groups[0].pattern[0].mlp == Dense(80)


def test_both_spellings_of_gemmas_two_bases_mean_the_same():
    four = _case("gemma3_text", rope_theta=3e5, rope_local_base_freq=2e4)
    five = _case(
        "gemma3_text",
        rope_parameters={"full_attention": {"rope_theta": 3e5}, "sliding_attention": {"rope_theta": 2e4}},
    )
    both = [huggingface_config.config_from_json(values) for values in (four, five, {**four, **five})]
    assert both[0] == both[1] == both[2] and both[0].local_rope_theta == 2e4 and both[0].rope_theta == 3e5
    with pytest.raises(UserError, match=r"rope_theta is 20000.0 but rope_parameters says 10000.0; keep one"):
        five["rope_parameters"]["sliding_attention"]["rope_theta"] = 1e4
        huggingface_config.config_from_json({**four, **five})


def test_phis_longrope_under_its_older_names():
    values = _case("phi3", max_position_embeddings=512, original_max_position_embeddings=64)
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    found = {
        huggingface_config.config_from_json({**values, "rope_scaling": {"type": name, **factors}}).rope_scaling
        for name in ("longrope", "su", "yarn")
    }
    (scaling,) = found
    assert scaling is not None and scaling.kind == "longrope" and scaling.factor == 8.0
