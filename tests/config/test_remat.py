"""The setting `train.remat`, for all layers or layer by layer."""

import pytest

from s1jax.config import remat
from s1jax.config.experiment import TrainConfig
from s1jax.errors import UserError


def test_a_policy_for_all_layers_or_several_for_successive_ones():
    assert remat.by_layer("full", 3) == ["full"] * 3
    assert remat.by_layer("save_attention,save_dots:2", 3) == ["save_attention", "save_dots", "save_dots"]
    assert remat.by_layer("full:1, none, full:1", 4) == ["full", "none", "none", "full"]
    assert remat.by_layer("full,none:3", 3) == ["none"] * 3


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("all", "one of full, save_attention,"),
        ("", "one of full"),
        ("full:x,none", "one of full"),
        ("full,none", "each policy but one a number"),
        ("full:3", "each policy but one a number"),
    ],
)
def test_other_settings_are_refused(setting, says):
    with pytest.raises(UserError, match=says):
        TrainConfig(remat=setting)


def test_more_layers_than_the_model_has_are_refused():
    with pytest.raises(UserError, match="more than the 2 layers"):
        remat.by_layer("full,none:3", 2)
