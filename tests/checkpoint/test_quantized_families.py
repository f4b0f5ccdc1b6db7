"""Quantised checkpoints of mixtures of experts as they are published: gpt-oss in MXFP4, DeepSeek and Qwen3 in FP8."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint import huggingface, huggingface_config, names
from s1jax.config.experiment import MeshConfig
from s1jax.errors import UserError
from s1jax.model.quant_groups import GroupQTensor
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import quantized
from tests.checkpoint import quantized_folders as folders
from tests.checkpoint import tiny

ARCHITECTURES = {"gpt_oss": "GptOss", "deepseek_v3": "DeepseekV3", "qwen3_moe": "Qwen3Moe"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _write(folder, name, **changes):
    """A model of random weights in bfloat16; returns its configuration, weights and stored tensors."""
    values = {**tiny.CONFIGS[name], **changes, "architectures": [f"{ARCHITECTURES[name]}ForCausalLM"]}
    config = huggingface_config.config_from_json(values)
    params = names.allocate(config, np.float32)
    rng = np.random.default_rng(0)
    for array in names.views(config, params, "huggingface").values():
        noise = rng.standard_normal(array.shape) * 0.15
        array[...] = (1 + noise if len(array.shape) == 1 else noise).astype(ml_dtypes.bfloat16).astype(np.float32)
    folder.mkdir(exist_ok=True)
    huggingface.write_model(folder, params, config, dtype=ml_dtypes.bfloat16)
    return config, params, folders.read_safetensors(folder / huggingface.SINGLE)


def _finish(folder, tensors, quantization, **changes):
    folders.write_safetensors(folder / huggingface.SINGLE, tensors)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes, "quantization_config": quantization}))


def _check(folder, config, expected):
    """Checks that the folder holds a model of `config` with the weights `expected`."""
    read = huggingface_config.config_from_json(huggingface_config.read_json(folder / "config.json"))
    assert read == config
    found = names.views(config, huggingface.read_params(folder, config, np.float32), "huggingface")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(array), err_msg=name)


def _held_packed(folder, config, kind, num):
    """Checks that weights in `kind` are the published ones again, in the dtypes that they may be converted to."""
    for dtype in (np.dtype("float32"), np.dtype(ml_dtypes.bfloat16)):
        params = huggingface.read_params(folder, config, dtype)
        mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
        leaves = jax.tree.leaves_with_path(
            quantized.quantize(params, config, kind, dtype, mesh), is_leaf=lambda leaf: isinstance(leaf, GroupQTensor)
        )
        assert sum(isinstance(leaf, GroupQTensor) for _, leaf in leaves) == num
        wanted = dict(jax.tree.leaves_with_path(params))
        assert wanted.keys() == {path for path, _ in leaves}
        for path, leaf in leaves:
            found = leaf.dequantize(dtype) if isinstance(leaf, GroupQTensor) else leaf
            np.testing.assert_array_equal(np.asarray(found), wanted[path], err_msg=jax.tree_util.keystr(path))


def _gpt_oss(folder):
    """Config, weights and the folder of a gpt-oss with experts in MXFP4."""
    config, params, tensors = _write(folder, "gpt_oss", hidden_size=64, intermediate_size=32)
    expected = dict(names.views(config, params, "huggingface"))
    rng = np.random.default_rng(1)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        _, (experts, inputs, outputs), _ = tensors.pop(name)
        codes = rng.integers(0, 16, size=(experts, outputs, inputs), dtype=np.uint8)
        scales = rng.integers(118, 126, size=(experts, outputs, inputs // 32), dtype=np.uint8)
        blocks = codes[..., ::2] | (codes[..., 1::2] << 4)
        tensors[f"{name}_blocks"] = ("U8", (experts, outputs, inputs // 32, 16), blocks.tobytes())
        tensors[f"{name}_scales"] = ("U8", scales.shape, scales.tobytes())
        weights = E2M1[codes] * np.repeat(np.float32(2) ** (scales.astype(np.float32) - 127), 32, 2)
        expected[name] = weights.transpose(0, 2, 1)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    _finish(folder, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": skipped})
    return config, expected


def test_gpt_oss_as_it_is_published(tmp_path):
    config, expected = _gpt_oss(tmp_path)
    _check(tmp_path, config, expected)
    assert huggingface.read_params(tmp_path, config)["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    assert "(MXFP4)" in huggingface.notes(tmp_path)[0]
    _held_packed(tmp_path, config, "mxfp4", 3 * len(config.stacks()))


def test_gpt_oss_is_that_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, _ = _gpt_oss(tmp_path)
    options = {"dtype": torch.bfloat16, "quantization_config": transformers.Mxfp4Config(dequantize=True)}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **options).state_dict()
    found = names.views(config, huggingface.read_params(tmp_path, config), "huggingface")
    assert found.keys() == loaded.keys()
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), tensor.float().numpy(), err_msg=name)


def test_blocks_of_gpt_oss_without_scales(tmp_path):
    config, _ = _gpt_oss(tmp_path)
    tensors = folders.read_safetensors(tmp_path / huggingface.SINGLE)
    scales = "model.layers.1.mlp.experts.down_proj_scales"
    kind, shape, data = tensors.pop(scales)
    folders.write_safetensors(tmp_path / huggingface.SINGLE, tensors)
    with pytest.raises(UserError, match=f"tensor {scales} is missing, without which"):
        huggingface.read_params(tmp_path, config)
    tensors[scales] = (kind, shape, b"\xff" * len(data))
    folders.write_safetensors(tmp_path / huggingface.SINGLE, tensors)
    with pytest.raises(UserError, match=f"tensor {scales} has a scale that is not a number"):
        huggingface.read_params(tmp_path, config)


def _eight_bits(tensors, expected, block):
    """Puts matrices of projections into 8-bit floats with a scale for each block, the last ones cut."""
    for name in [name for name in tensors if name.endswith("proj.weight") or name.endswith("_mqa.weight")]:
        _, shape, _ = tensors.pop(name)
        weight = np.asarray(expected[name], np.float32)
        counts = [-(-size // block) for size in shape]
        scale = np.random.default_rng(len(name)).uniform(0.001, 0.003, size=counts).astype(np.float32)
        spread = np.kron(scale, np.ones([block, block], np.float32))[: shape[0], : shape[1]]
        codes = (weight / spread).astype(ml_dtypes.float8_e4m3fn)
        expected[name] = codes.astype(np.float32) * spread
        tensors[name] = ("F8_E4M3", shape, codes.tobytes())
        tensors[f"{name}_scale_inv"] = ("F32", tuple(counts), scale.tobytes())


def test_deepseek_v3_as_it_is_published(tmp_path):
    """Blocks that the sizes do not fill, routers left as they are, and a layer for predicting a second token."""
    config, params, tensors = _write(tmp_path, "deepseek_v3")
    expected = dict(names.views(config, params, "huggingface"))
    _eight_bits(tensors, expected, 16)
    for name in [name for name in tensors if name.startswith("model.layers.2.")]:
        tensors[name.replace("layers.2.", "layers.3.")] = tensors[name]
    tensors["model.layers.3.enorm.weight"] = tensors["model.norm.weight"]
    quantization = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 16],
    }  # fmt: skip
    _finish(tmp_path, tensors, quantization, num_nextn_predict_layers=1)
    _check(tmp_path, config, expected)
    assert "layers for predicting several tokens at once, which are not read" in huggingface.notes(tmp_path)[1]
    _finish(tmp_path, tensors, quantization, num_nextn_predict_layers=0)
    with pytest.raises(UserError, match=r"has the unexpected tensors model\.layers\.3\."):
        huggingface.read_params(tmp_path, config)


def test_experts_of_qwen3_in_eight_bits(tmp_path):
    config, params, tensors = _write(tmp_path, "qwen3_moe")
    expected = dict(names.views(config, params, "huggingface"))
    _eight_bits(tensors, expected, 8)
    skipped = ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(4)), "model.layers.0.input_layernorm"]
    _finish(tmp_path, tensors, {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8],
        "modules_to_not_convert": skipped,
    })  # fmt: skip
    _check(tmp_path, config, expected)


def test_eight_bits_are_held_as_published(tmp_path):
    """Sizes that DeepSeek's blocks of 128 x 128 do not fill, and experts."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 96, "intermediate_size": 160, "head_dim": 16}
    config, params, tensors = _write(tmp_path, "qwen3_moe", **sizes)
    expected = dict(names.views(config, params, "huggingface"))
    _eight_bits(tensors, expected, 128)
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    _finish(tmp_path, tensors, quantization)
    _held_packed(tmp_path, config, "fp8", 7 * len(config.stacks()))
