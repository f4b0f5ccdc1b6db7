"""A small model of every family beyond Qwen2, Qwen3 and Llama, with the same weights here and in transformers."""

import functools
import tempfile
from typing import Any

import numpy as np

from s1jax.checkpoint import huggingface, huggingface_config, names
from s1jax.config.model import ModelConfig
from tests.checkpoint.tiny import CONFIGS

LENGTHS = (300, 173)  # of rows, beyond two windows of 32 and every original context
PARTS = (120, 37, 1, 130)  # of a packed row of 300


@functools.cache
def config(name: str) -> ModelConfig:
    """The case's model, read from its config.json."""
    return huggingface_config.config_from_json(CONFIGS[name])


def weights(name: str, seed: int = 0) -> names.Params:
    """Random float32 weights in our tree; norms, biases and sinks are far from their usual values."""
    model, rng = config(name), np.random.default_rng(seed)
    params = names.allocate(model, np.float32)
    for stored, view in names.views(model, params, "huggingface").items():
        noise = rng.standard_normal(view.shape)
        if "norm" in stored:
            view[...] = (0 if model.norm_offset else 1) + 0.3 * noise
        elif stored.endswith(("bias", "sinks")):
            view[...] = 0.5 * noise
        elif "embed" in stored:
            view[...] = (0.2 if model.tied_embeddings else 0.7) * noise
        else:
            inputs = view.shape[-2 if "experts.gate_up_proj" in stored or stored.endswith("experts.down_proj") else -1]
            view[...] = 1.5 / np.sqrt(inputs) * noise
    return params


def transformers_model(name: str) -> Any:
    """transformers' own model with these weights, from a folder that we write; float32, in evaluation mode."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        huggingface.write_model(folder := huggingface.pathlib.Path(folder), weights(name), config(name))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return model.eval()


def ids(name: str) -> np.ndarray:
    """int32 [3, 300]: a whole row, a padded one and a packed one. Each part is a beginning of the first row."""
    row = np.random.default_rng(1).integers(config(name).vocab_size, size=LENGTHS[0]).astype(np.int32)
    padded, packed = np.zeros_like(row), np.zeros_like(row)
    padded[: LENGTHS[1]] = row[: LENGTHS[1]]
    packed[: sum(PARTS)] = np.concatenate([row[:length] for length in PARTS])
    return np.stack([row, padded, packed])


def positions_and_segments() -> tuple[np.ndarray, np.ndarray]:
    """int32 [3, 300] each, of the rows of `ids`."""
    places = np.tile(np.arange(LENGTHS[0], dtype=np.int32), (3, 1))
    segments = np.ones_like(places)
    segments[1, LENGTHS[1] :] = 0
    places[2, : sum(PARTS)] = np.concatenate([np.arange(length) for length in PARTS])
    segments[2] = np.repeat([*range(1, len(PARTS) + 1), 0], [*PARTS, LENGTHS[0] - sum(PARTS)])
    return places, segments
