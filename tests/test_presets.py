"""Presets against the weight counts that the models' pages publish."""

import pytest

from s1jax import presets
from s1jax.config import Experiment, InputError, to_dict

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
    "r1_distill_qwen_1p5b": 1_777_088_000,
    "r1_distill_qwen_7b": 7_615_616_512,
    "r1_distill_qwen_14b": 14_770_033_664,
    "r1_distill_qwen_32b": 32_763_876_352,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
}


def test_every_preset_has_its_published_size():
    assert {name: config.num_params for name, config in presets.PRESETS.items()} == PUBLISHED


def test_an_experiment_takes_a_preset_by_name():
    experiment = presets.experiment({"model": "qwen3_0p6b"})
    assert experiment == Experiment(model=presets.PRESETS["qwen3_0p6b"])
    assert presets.experiment(to_dict(experiment)) == experiment


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=r"'qwen9' is no preset; choose one of qwen2p5_0p5b"):
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
        with pytest.raises(InputError, match=rf"^{group}\.{name} is .*; {message}"):
            presets.experiment({"model": "qwen3_0p6b", group: {name: value}})
