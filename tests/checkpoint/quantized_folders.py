"""Whole models whose weights are the recorded modules of quantized_golden.safetensors."""

import json
import pathlib

import ml_dtypes
import numpy as np
import safetensors

from s1jax.checkpoint import huggingface, names
from s1jax.checkpoint.quantized.held import held
from s1jax.config.model import ModelConfig
from tests.model.parity_cases import weights

GOLDEN = pathlib.Path(__file__).with_name("quantized_golden.safetensors")
# Every projection but attention's output and the MLP's has the shape of the recorded modules, 32 x 64.
CONFIG = ModelConfig.dense(
    vocab_size=300, d_model=64, mlp_dim=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, rope_theta=1e4
)
QUANTIZED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
# How each library says that the other modules are plain.
_PLAIN = {
    "compressed-tensors": {"ignore": ["lm_head", "re:.*o_proj", "re:.*down_proj"]},
    "fp8": {"modules_to_not_convert": ["lm_head", "o_proj", "mlp.down_proj"]},
    "awq": {"modules_to_not_convert": ["lm_head", "o_proj", "down_proj"]},
    "bitsandbytes": {"llm_int8_skip_modules": ["lm_head", "o_proj", "down_proj"]},
    "gptq": {"dynamic": {"-:.*(o|down)_proj": {}}},
}
_SIZES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def write_safetensors(path, tensors):
    """Writes name -> (kind, shape, bytes), of any kind."""
    header, offset = {}, 0
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def read_safetensors(path):
    """The inverse of `write_safetensors`."""
    with safetensors.safe_open(path, framework="np", backend="pread") as file:
        found = {name: held(file, name, str(path)) for name in file.keys()}  # noqa: SIM118
        return {name: (tensor.kind, tensor.shape, tensor.read().tobytes()) for name, tensor in found.items()}


def golden():
    """(name -> quantization_config, name of a tensor -> kind, shape and bytes)."""
    with safetensors.safe_open(GOLDEN, framework="np") as file:
        configs = {name: json.loads(text) for name, text in file.metadata().items()}
    return configs, read_safetensors(GOLDEN)


def write_folder(folder, name, dtype=np.float32):
    """A model of `CONFIG` quantised as the module `name`; returns its weights in float32."""
    configs, tensors = golden()
    params = weights(CONFIG)
    folder.mkdir(parents=True, exist_ok=True)
    huggingface.write_model(folder, params, CONFIG, dtype=dtype)
    stored = read_safetensors(folder / huggingface.SINGLE)
    kind, shape, data = tensors[f"{name}.expected"]
    expected = np.frombuffer(data, _SIZES[kind]).reshape(shape)
    views = names.views(CONFIG, params, "huggingface")
    for key, view in views.items():
        view[...] = view.astype(dtype)
        if key.removesuffix(".weight").endswith(QUANTIZED):
            del stored[key]
            view[...] = expected
            for part, tensor in tensors.items():
                if part.startswith(f"{name}.m."):
                    stored[part.replace(f"{name}.m", key.removesuffix(".weight"), 1)] = tensor
    write_safetensors(folder / huggingface.SINGLE, stored)
    config = json.loads((folder / "config.json").read_text())
    quantization = configs[name]
    quantization |= _PLAIN[quantization["quant_method"]]
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return params
