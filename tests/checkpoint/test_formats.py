"""Checkpoints of format 1, written by versions before model specs, and what format 2 stores instead.

`format_1` is a Llama with random weights that `launch.convert` of commit 3831374 made from a Hugging Face folder.
"""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint import digests, huggingface_config, store
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.errors import UserError
from tests.model.parity_cases import weights

CONVERTED = pathlib.Path(__file__).parent / "format_1"
CONFIG = ModelConfig.dense(
    family="llama", vocab_size=300, d_model=8, mlp_dim=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
    rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 64), norm_eps=1e-5, tied_embeddings=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def converted():
    return store.load_model(CONVERTED, host=True)


def test_a_converted_checkpoint_of_format_1_has_its_weights_and_gets_its_family(converted):
    assert json.loads((CONVERTED / "s1jax.json").read_text())["format"] == 1
    assert converted.config == CONFIG
    expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), weights(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, converted.params, expected)
    assert huggingface_config.config_to_json(converted.config)["model_type"] == "llama"


def test_the_checkpoint_of_the_package_has_format_1():
    folder = store.resolve("package:countdown_base")
    assert json.loads((folder / "s1jax.json").read_text())["format"] == 1
    config = store.load_metadata(folder).config
    assert config.family == "qwen2" and config.num_layers == 4 and config.mlp_dims == (384,)


def test_format_2_stores_the_groups_and_the_family(converted, tmp_path):
    folder = tmp_path / "new"
    store.save_model(folder, converted.params, CONFIG, converted.tokenizer, converted.chat, converted.provenance)
    about = json.loads((folder / "s1jax.json").read_text())
    assert about["format"] == 2 and about["model"]["family"] == "llama"
    (group,) = about["model"]["groups"]
    assert group["repeat"] == 2 and group["pattern"][0]["mlp"] == {"hidden": 12, "activation": "silu"}
    loaded = store.load_model(folder, host=True)
    assert loaded.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded.params, converted.params)
    about["model"]["groups"][0]["pattern"][0]["attention"]["num_heads"] = 3.5
    (folder / "s1jax.json").write_text(json.dumps(about))
    digests.write(folder)
    with pytest.raises(UserError, match=r"model\.groups\[0\]\.pattern\[0\]\.attention\.num_heads is 3\.5; it must be"):
        store.load_metadata(folder)
