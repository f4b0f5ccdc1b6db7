"""What compilers for machines that aren't here make of the decoding loop, where they are installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config import presets
from s1jax.config.sampling import SamplingParams
from s1jax.engine import budget, logits
from s1jax.engine import programs as programs
from s1jax.model import decoder, layouts, linear, quant, quant_groups
from s1jax.plan import targets
from s1jax.text.delimiters import Delimiters
from tests import compilers

SLOTS, LENGTH = 16, 4096


@pytest.mark.parametrize("target", ["h100:1", "v6e:2x2"])
@pytest.mark.parametrize(
    ("model", "weight_dtype"),  # heads of 64 and of 128
    [("qwen2p5_0p5b", "bfloat16"), *(("qwen2p5_1p5b", kind) for kind in ("bfloat16", "int8", "int4"))],
)
def test_the_loop_copies_no_cache_and_no_weights(target, model, weight_dtype):
    """A step needs room for its activations and logits only: 5 % of weights and cache."""
    config, on_gpu = presets.PRESETS[model], targets.parse(target).platform == "cuda"
    page = 64 if on_gpu else 128
    params = decoder.abstract_params(config, jnp.bfloat16)
    if weight_dtype != "bfloat16":
        group = 32 if weight_dtype == "int4" else 0
        params = jax.eval_shape(lambda p: quant.quantize_params(p, weight_dtype, group), params)
    if on_gpu:
        params = jax.eval_shape(quant_groups.for_gpu, params)
        params = jax.eval_shape(lambda p: layouts.unstack(p, config, transpose_kernels=False), params)
    start = functools.partial(programs.start, config, SLOTS, SLOTS * LENGTH // page, page, "bfloat16")
    run = jax.eval_shape(lambda: start(unstack=on_gpu, mesh=None))
    delimiters = Delimiters(
        think_start=(1, 2), think_end=(3, 4), newline=(6,), final_answer=(5,), end=(3,), stop=(7,),
        ends_in_newline=(6,), num_ids=config.vocab_size,
    )  # fmt: skip
    rows = [SamplingParams()] * SLOTS
    settings = programs.Settings(
        logits.Sampling.of(rows),
        budget.Budgets.of(rows),
        budget.Rules.of(delimiters, config.vocab_size, [(8,)] * SLOTS),
        np.zeros((SLOTS, LENGTH // page), np.int32),
        np.full(SLOTS, LENGTH, np.int32),
    )
    number = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = compilers.compile_for(
        target, programs.decode, params, run, settings, number, number,
        config=config, at_once=2048 // page, in_place=on_gpu, dtype="bfloat16", mesh=None,
    )  # fmt: skip
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * memory.argument_size_in_bytes


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_an_h100_writes_no_dequantised_weights(kind):
    """A decode step's largest product of Qwen2.5-1.5B: sums of shares of the groups, a quarter of a bfloat16 copy."""
    inputs, outputs = 1536, 8960
    kernel = jax.ShapeDtypeStruct((inputs, outputs), jnp.bfloat16)
    make = (
        (lambda k: quant.quantize(k, (-2,)))
        if kind == "int8"
        else (lambda k: quant_groups.quantize_groups(k, 1, kind, 32))
    )
    small = jax.eval_shape(lambda k: quant_groups.for_gpu(make(k)), kernel)
    for rows in (1, SLOTS):
        x = jax.ShapeDtypeStruct((rows, inputs), jnp.bfloat16)
        compiled = compilers.compile_for("h100:1", jax.jit(linear.matmul), x, small)
        assert compiled.memory_analysis().temp_size_in_bytes < inputs * outputs * 2 / 4
        assert f"bf16[{inputs // 32},32,{outputs}]" not in compiled.as_text()
