"""Presets against the weight counts that the models' pages publish."""

import json

import pytest

from s1jax.config import presets
from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.config.schema import from_dict, to_dict
from s1jax.errors import UserError

# Parameters as counted by the published checkpoints (a tied embedding once).
PUBLISHED = {
    "qwen2p5_0p5b": 494_032_768,
    "qwen2p5_1p5b": 1_543_714_304,
    "qwen2p5_3b": 3_085_938_688,
    "qwen2p5_7b": 7_615_616_512,
    "qwen2p5_14b": 14_770_033_664,
    "qwen2p5_32b": 32_763_876_352,
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "llama3p1_8b": 8_030_261_248,
    "llama3p1_70b": 70_553_706_496,
    "llama3p2_1b": 1_235_814_400,
    "llama3p2_3b": 3_212_749_824,
    "llama3p3_70b": 70_553_706_496,
    "r1_distill_llama_8b": 8_030_261_248,
    "r1_distill_llama_70b": 70_553_706_496,
    "r1_distill_qwen_1p5b": 1_777_088_000,
    "r1_distill_qwen_7b": 7_615_616_512,
    "r1_distill_qwen_14b": 14_770_033_664,
    "r1_distill_qwen_32b": 32_763_876_352,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "qwen1p5_moe_a2p7b": 14_315_784_192,
    "qwen2_57b_a14b": 57_408_658_944,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_630_071_296,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
    "deepseek_v2_lite": 15_706_484_224,
    "deepseek_v2": 235_741_434_880,
    "deepseek_v3": 671_026_419_200,
    "deepseek_r1": 671_026_419_200,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "phi3_mini_4k": 3_821_079_552,
    "phi4": 14_659_507_200,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
    "olmo3_7b": 7_298_011_136,
    "olmo3_32b": 32_233_522_176,
    "smollm3_3b": 3_075_098_624,
    "mistral_7b_v0p1": 7_241_732_096,
    "mistral_7b_v0p3": 7_248_023_552,
    "mistral_nemo_12b": 12_247_782_400,
    "mistral_small_24b": 23_572_403_200,
    "ministral3_8b": 8_489_553_920,
}

# Billions of weights that a token meets; OpenAI counts the embedding as one row.
ACTIVE = {"qwen3_30b_a3b": 3.35, "qwen3_235b_a22b": 22.2, "gpt_oss_20b": 3.6, "gpt_oss_120b": 5.1, "mixtral_8x7b": 12.9}


def test_every_preset_has_its_published_size():
    assert {name: config.num_params for name, config in presets.PRESETS.items()} == PUBLISHED


@pytest.mark.parametrize("name", ACTIVE)
def test_mixtures_have_their_published_active_size(name):
    config = presets.PRESETS[name]
    embedding = config.vocab_size * config.d_model if name.startswith("gpt") else 0
    assert (config.active_params - embedding) / 1e9 == pytest.approx(ACTIVE[name], rel=0.01)


def test_an_experiment_takes_a_preset_by_name():
    experiment = presets.experiment({"model": "qwen3_0p6b"})
    assert experiment == Experiment(model=presets.PRESETS["qwen3_0p6b"])
    assert presets.experiment(to_dict(experiment)) == experiment


def test_every_preset_survives_the_way_through_json():
    for config in presets.PRESETS.values():
        assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"'qwen9' is not a preset; choose one of qwen2p5_0p5b"):
        presets.experiment({"model": "qwen9"})


@pytest.mark.parametrize(
    ("group", "name", "values", "message"),
    [
        ("optimizer", "b1", (-0.1, 1.0, float("nan")), r"it must lie in \[0, 1\)"),
        ("optimizer", "b2", (-0.1, 1.0, float("nan")), r"it must lie in \[0, 1\)"),
        ("optimizer", "eps", (0.0, -1e-8, float("inf"), float("nan")), "give a positive number"),
        ("optimizer", "weight_decay", (-0.1, float("inf"), float("nan")), "give a number from 0 on"),
        ("optimizer", "clip_norm", (-1.0, float("inf"), float("nan")), "give a number from 0 on"),
        ("cost", "per_device_hour", (-1.0, float("inf"), float("nan")), "give a number from 0 on"),
        ("data", "source", ("", " "), "name a source or a file of rows"),
    ],
)
def test_a_setting_out_of_range_is_named(group, name, values, message):
    for value in values:
        with pytest.raises(UserError, match=rf"^{group}\.{name} is .*; {message}"):
            presets.experiment({"model": "qwen3_0p6b", group: {name: value}})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("factor", (0.5, -1.0, float("inf"), float("nan"), "8"), r"(give a number from 1 to|it must be of type float)"),
        ("original_context_length", (-1, 0, 2**31, 8192.5), "(it must be positive|give less than|it must be of type)"),
        ("low_freq_factor", (0.0, 4.0), r"high_freq_factor 4.0; the first must be positive and the smaller, both"),
        ("beta_slow", (0.0, 32.0), r"beta_fast 32.0; the first must be positive and the smaller, both"),
        ("attention_factor", (0.0, float("nan")), "give a positive number"),
        ("kind", ("dynamic",), "choose one of 'linear', 'llama3', 'yarn', 'longrope'"),
    ],
)
def test_rotary_scaling_out_of_range_is_named(name, values, message):
    for value in values:
        model = to_dict(presets.PRESETS["llama3p1_8b"])
        model["rope_scaling"] = {**model["rope_scaling"], name: value}
        with pytest.raises(UserError, match=rf"model\.rope_scaling\.{name} is .*{message}"):
            presets.experiment({"model": model})


def test_a_model_without_rotary_scaling_is_read_from_what_earlier_versions_wrote():
    model = to_dict(presets.PRESETS["qwen3_0p6b"])
    assert model.pop("rope_scaling") is None
    assert presets.experiment({"model": model}).model == presets.PRESETS["qwen3_0p6b"]
