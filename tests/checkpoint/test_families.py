"""Every family: what transformers writes is read, and what is written transformers loads as the same model."""

import numpy as np
import pytest

from s1jax.checkpoint import huggingface as hf
from s1jax.checkpoint import huggingface_config
from tests.checkpoint import tiny


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
