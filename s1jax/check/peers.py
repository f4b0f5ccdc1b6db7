"""Hugging Face transformers on the same shapes, for the figures beside those of s1jax.

torch and jax do not share the memory of a device, so this part runs in a process of its own, which imports no jax.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np

from s1jax.check.report import Check, Figure, NotHereError, Outcome, median_seconds, step_seconds
from s1jax.check.sizes import Sizes
from s1jax.config.model import ModelConfig

_TIMES = 3
_LEARNING_RATE = 1e-5


def checks(sizes: Sizes) -> list[Check]:
    """Decoding by `generate`, and a train step with AdamW on the shortest rows, of the first model."""
    name, model = next(iter(sizes.models.items()))
    found = [
        Check("transformers", f"{name}, batch {batch}", functools.partial(_decode, model, sizes, batch))
        for batch in sizes.batches
    ]
    length, rows = sizes.train[0]
    label = f"{name}, {rows} x {length:,}"
    return [*found, Check("transformers", label, functools.partial(_train, model, length, rows))]


@functools.cache
def _model(shape: ModelConfig) -> tuple[Any, Any]:
    """torch, and a Qwen2ForCausalLM of the shape with its own random weights: speed does not depend on them."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise NotHereError(f"{package} is not installed")
    import torch
    import transformers

    flat = shape.flat()
    config: Any = transformers.Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=flat["mlp_dim"],
        num_hidden_layers=flat["num_layers"],
        num_attention_heads=flat["num_heads"],
        num_key_value_heads=flat["num_kv_heads"],
        tie_word_embeddings=shape.tied_embeddings,
        max_position_embeddings=shape.context_length,
    )
    config._attn_implementation = "sdpa"
    on_gpu = torch.cuda.is_available()
    torch.set_default_dtype(torch.bfloat16 if on_gpu else torch.float32)
    with torch.device("cuda" if on_gpu else "cpu"):  # made there: drawing the weights on a CPU takes half a minute
        model: Any = transformers.Qwen2ForCausalLM(config)
    return torch, model


def _note(torch: Any) -> str:
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.get_default_dtype()}".replace(
        "torch.", ""
    )


def _decode(shape: ModelConfig, sizes: Sizes, batch: int) -> Outcome:
    """As `s1jax.check.speed` measures it."""
    torch, model = _model(shape)
    model.eval()
    model.generation_config.eos_token_id = None
    rng = np.random.default_rng(0)
    prompts = torch.from_numpy(rng.integers(1, shape.vocab_size, (batch, sizes.prompt))).to(model.device)
    mask = torch.ones_like(prompts)

    def run(new_tokens: int) -> None:
        with torch.inference_mode():
            out = model.generate(
                prompts, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
            )
        assert out.shape[1] == sizes.prompt + new_tokens
        _wait(torch)

    step = step_seconds(run, sizes.new_tokens, _TIMES)
    return Outcome({"speed": Figure(batch / step, "tokens/s"), "step": Figure(1e3 * step, "ms")}, note=_note(torch))


def _train(shape: ModelConfig, length: int, rows: int) -> Outcome:
    """A step on whole rows: one row at a time, layers recomputed, AdamW over weights of the same type."""
    torch, model = _model(shape)
    model.train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(1, shape.vocab_size, (rows, length))).to(model.device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        for row in tokens.split(1):
            (model(input_ids=row, labels=row, use_cache=False).loss / rows).backward()
        optimizer.step()
        _wait(torch)

    seconds = median_seconds(run, _TIMES)
    figures = {"speed": Figure(rows * length / seconds, "tokens/s"), "step": Figure(seconds, "s")}
    return Outcome(figures, note=_note(torch))


def _wait(torch: Any) -> None:
    """Returns when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
