"""No program computes experts that a token did not choose: FLOPs of experts are within 10 % of the active ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.layers import Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.model.mlp import grouped, groups, sorted_blocks
from s1jax.model.mlp.expert_weights import ExpertWeights
from s1jax.plan import flops, planner, targets
from tests import compilers

E, K, D, F, R = 32, 4, 256, 128, 16384
ACTIVE = 18.0 * R * K * D * F  # of three products with their gradients


def _arguments(dtype, tokens=R):
    shape = lambda *size, dtype=dtype: jax.ShapeDtypeStruct(size, dtype)  # noqa: E731
    pairs = shape(1, tokens, K, dtype=jnp.float32), shape(1, tokens, K, dtype=jnp.int32)
    return shape(1, tokens, D), *pairs, ExpertWeights(shape(E, D, F), shape(E, D, F), shape(E, F, D))


def _gradients(x, weights, ids, experts, implementation):
    run = functools.partial(grouped.apply, activation="silu", implementation=implementation)
    loss = lambda x, weights, experts: jnp.sum(run(x, weights, ids, experts).astype(jnp.float32) ** 2)  # noqa: E731
    return jax.grad(loss, (0, 1, 2))(x, weights, experts)


@pytest.mark.parametrize("implementation", ["blocks", "mosaic", "megablox"])
def test_programs_compute_what_tokens_choose(implementation):
    with targets.answering_for(targets.parse("h100:1")):
        traced = jax.make_jaxpr(functools.partial(_gradients, implementation=implementation))(*_arguments(jnp.bfloat16))
    assert 1 <= flops.count(traced.jaxpr) / ACTIVE < 1.1


@pytest.mark.parametrize("tokens, spare", [(64, 1.6), (384, 1.1), (512, 1.08), (1024, 1.07), (R, 1.02)])
def test_blocks_of_chosen_experts_are_nearly_full(tokens, spare):
    """Random experts: the rows of all blocks that the loops run over. At 8 rows an expert a block of 8 is half full."""
    ids = np.argsort(np.random.default_rng(0).random((tokens, E)), axis=1)[:, :K]
    size = grouped.block_size(ids.size, E)
    blocks = sorted_blocks.cut(groups.sort(jnp.asarray(ids), E, size), size)

    @jax.jit
    def rows():
        one = lambda block, total: total + block.size  # noqa: E731
        return blocks.for_experts(lambda expert, total: blocks.for_blocks(expert, one, total), 0)

    assert ids.size <= int(rows()) < spare * ids.size


def test_compiled_loops_hold_one_block_at_a_time():
    """XLA counts the body of a loop once: a product with all experts would be 8 times the active ones."""
    run = jax.jit(functools.partial(_gradients, implementation="blocks"))
    assert run.lower(*_arguments(jnp.float32, 512)).compile().cost_analysis()["flops"] < 0.1 * ACTIVE * 512 / R


@pytest.mark.parametrize("target", ["h100:1", "v5p:2x2x1"])
def test_compilers_hold_no_array_of_all_experts_and_rows(target):
    implementation = "mosaic" if target == "h100:1" else "megablox"
    run = jax.jit(functools.partial(_gradients, implementation=implementation))
    with targets.answering_for(targets.parse(target)):
        compiled = compilers.compile_for(target, run, *_arguments(jnp.bfloat16))
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * R * K * D
    if target != "h100:1":  # custom calls of GPUs have no FLOPs
        assert compiled.cost_analysis()["flops"] < 1.1 * ACTIVE


def test_a_gpu_reads_the_weights_of_few_tokens_in_place():
    run = jax.jit(functools.partial(grouped.apply, activation="silu", implementation="gather"))
    compiled = compilers.compile_for("h100:1", run, *_arguments(jnp.bfloat16, 8))
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 8 * K * D * F


def test_plans_count_active_experts():
    attention = ModelConfig.dense(
        vocab_size=64, d_model=64, mlp_dim=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8
    ).groups[0].pattern[0].attention  # fmt: skip
    model = ModelConfig(64, 64, (Group(2, (Layer(attention, Experts(16, 2, 64)),)),), tied_embeddings=True)
    train = TrainConfig(batch_size=8, attention="chunked", remat="none")
    experiment = Experiment(model=model, data=DataConfig(block_size=512), train=train)
    plan = planner.plan(experiment, model, targets.parse("cpu:4"))
    assert 0.95 < plan.executed_flops / plan.model_flops < 1.4
