"""Every family: what transformers writes is read, and what is written transformers loads as the same model."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint import huggingface as hf
from s1jax.checkpoint import huggingface_config, names
from tests.checkpoint import make_golden_names, tiny
from tests.model import family_cases

_GOLDEN = json.loads(make_golden_names.PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def saved(request, tmp_path_factory):
    """Name, transformers' model and the folder that it saved."""
    pytest.importorskip("torch", reason="tensor names are compared with transformers' own models")
    pytest.importorskip("transformers", reason="as torch")
    model, folder = tiny.model(request.param), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def _read(folder):
    return huggingface_config.config_from_json(huggingface_config.read_json(folder / "config.json"))


def test_weights_go_in_and_out_bit_for_bit(saved, tmp_path):
    import torch
    import transformers

    _, model, folder = saved
    config = _read(folder)
    params = hf.read_params(folder, config)
    count = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(value.numel() for name, value in model.named_buffers() if name.endswith("correction_bias"))
    assert config.num_params == count + buffers
    hf.write_model(tmp_path, params, config)
    assert _read(tmp_path) == config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs, ours = model.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy(), err_msg=name)
    ids = torch.randint(61, (1, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again.eval()(ids).logits)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_folders_have_the_tensors_that_transformers_saves(name, tmp_path):
    """As recorded; and what is written is read again, from several files as well."""
    config, params = family_cases.config(name), family_cases.weights(name)
    hf.write_model(tmp_path, params, config)
    assert make_golden_names.digest(make_golden_names.saved(tmp_path)) == _GOLDEN[name]
    (tmp_path / hf.SINGLE).unlink()
    hf.write_model(tmp_path, params, config, max_shard_bytes=40_000)
    assert (tmp_path / hf.INDEX).exists() and _read(tmp_path) == config
    jax.tree.map(np.testing.assert_array_equal, hf.read_params(tmp_path, config), params)


def test_biases_that_choose_experts_stay_exact(tmp_path):
    """In bfloat16 they would choose others."""
    config = huggingface_config.config_from_json(tiny.CONFIGS["deepseek_v3"])
    params = names.allocate(config, ml_dtypes.bfloat16)
    bias = params["layers_1_0"]["mlp"]["router"]["selection_bias"]
    assert bias.dtype == np.float32
    bias[...] = np.random.default_rng(0).normal(size=bias.shape)
    for leaf in (leaf for leaf in jax.tree.leaves(params) if leaf is not bias):
        leaf[...] = 0.5
    hf.write_model(tmp_path, params, config, max_shard_bytes=20_000)
    read = hf.read_params(tmp_path, config)
    assert read["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["layers_1_0"]["mlp"]["router"]["selection_bias"], bias)


_VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)


@pytest.mark.parametrize(
    ("wrapper", "inner", "vision"),
    [
        ("gemma3", "gemma3_text", {**_VISION, "model_type": "siglip_vision_model"}),
        ("mistral3", "ministral3", {**_VISION, "model_type": "pixtral"}),
    ],
)
def test_of_models_of_images_the_part_for_texts_is_read(wrapper, inner, vision, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(wrapper, text_config=tiny.CONFIGS[inner], vision_config=vision)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    ours = _read(tmp_path)
    assert ours.family == inner
    assert ours.groups == huggingface_config.config_from_json(tiny.CONFIGS[inner]).groups
    params = hf.read_params(tmp_path, ours)
    theirs = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(params["embed"]["embedding"], theirs)
    views = names.views(ours, params, "huggingface")
    found = {name.replace("model.language_model.", "model."): tensor for name, tensor in model.state_dict().items()}
    for name, view in views.items():
        np.testing.assert_array_equal(np.asarray(view), found[name].numpy(), err_msg=name)
    (note,) = hf.notes(tmp_path)
    assert "weights for images, which are not read" in note
    assert huggingface_config.read_eos(tmp_path) == ((1,) if wrapper == "gemma3" else (2,))
