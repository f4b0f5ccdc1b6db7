"""The FLOP counter against counts made by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.model import blocks, decoder
from s1jax.model.attention import dispatch, fused
from s1jax.model.attention.rule import AttentionRule
from s1jax.parallel import sharding
from s1jax.plan import flops, targets

POLICIES = ["none", "full", "save_attention", "save_projections", "save_dots"]
A, B, C = jnp.ones((3, 5)), jnp.ones((5, 7)), jnp.ones((4, 6, 8))


def _count(function, *args):
    return flops.count(jax.make_jaxpr(function)(*args).jaxpr)


def test_products():
    assert _count(jnp.matmul, A, B) == 2 * 3 * 5 * 7
    assert _count(lambda x: jnp.einsum("bij,bkj->bik", x, x), C) == 2 * 4 * 6 * 8 * 6
    assert _count(lambda x: jnp.sin(x) + 1, A) == 0


def test_loops_count_by_their_length_and_conditions_by_the_dearer_side():
    loop = lambda x: jax.lax.scan(lambda carry, _: (carry @ jnp.ones((5, 5)), None), x, None, length=11)[0]  # noqa: E731
    assert _count(loop, A) == 11 * 2 * 3 * 5 * 5
    assert _count(jax.jit(loop), A) == 11 * 2 * 3 * 5 * 5
    two_sides = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ B, lambda: (x @ A.T) @ A @ B)  # noqa: E731
    assert _count(two_sides, A) == 2 * (3 * 5 * 3 + 3 * 3 * 5 + 3 * 5 * 7)


def test_a_product_in_a_loop_of_unknown_length_is_refused():
    square = jnp.ones((5, 5))
    with pytest.raises(ValueError, match="length is not known"):
        _count(lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ square, x), A)


@pytest.mark.parametrize("remat", POLICIES)
@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_a_gradient_costs_what_its_remat_policy_says(kernel, remat):
    """Projections: 2 operations a weight and token forward, 4 backward; pairs: 4 H a head forward, 8 backward."""
    config = ModelConfig.dense(
        vocab_size=32, d_model=16, mlp_dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
    )  # fmt: skip
    params = decoder.abstract_params(config, jnp.dtype(jnp.float32))
    rows, length = 2, 40
    ids = np.ones((rows, length), np.int32)
    attend = functools.partial(dispatch.attend, implementation=kernel)

    def loss(params, mlp_chunks=1):
        return decoder.forward(params, config, ids, ids, ids, remat=remat, attend=attend, mlp_chunks=mlp_chunks).sum()

    tokens = rows * length
    weights = 3 * (16 * 8 * (4 + 2 + 2 + 4) + 3 * 16 * 24)
    pairs = 3 * 4 * rows * length * length  # one block: above the diagonal as well
    forward_pairs = 4 * 8 * pairs
    again = (0 if remat in ("none", "save_dots") else 2), int(remat == "full")
    counted = _count(jax.grad(loss), params)
    backward_pairs = 8 * 8 * pairs if kernel == "xla" else 10 * 8 * pairs  # the chunked kernel makes scores again
    if kernel == "xla" and remat != "none":
        # Saved, the outcome spares the second product; the scores are needed for the gradient in any case.
        again = again[0], 1.0 if remat == "full" else 0.5
    most = weights * tokens * (6 + again[0]) + forward_pairs * (1 + again[1]) + backward_pairs
    # The output of the layer's last product is no input of any gradient: with `full` it is not made again.
    spared = 3 * 2 * 24 * 16 * tokens if again[0] else 0
    if remat == "save_projections":
        spared += 3 * 2 * 16 * 8 * (4 + 2 + 2 + 4) * tokens
    assert counted == most - spared
    if remat == "full":  # which computes the parts' hidden values again in any case
        assert _count(jax.grad(functools.partial(loss, mlp_chunks=3)), params) == counted


def test_splash_counts_its_blocks_on_and_below_the_diagonal():
    """14 H a pair in 10 of 16 blocks of 512; of a device's half of the row, half of it."""
    q, k = jnp.zeros((2, 2048, 4, 64)), jnp.zeros((2, 2048, 2, 64))
    ids = jnp.ones((2, 2048), jnp.int32)
    part = blocks.Part(sharding.places(2048, 2), jnp.int32(0), ids)

    def operations(q, ids, **settings):
        loss = lambda *qkv: fused.splash(*qkv, ids, **settings).sum()  # noqa: E731
        return _count(jax.grad(loss, argnums=(0, 1, 2)), q, k, k)

    whole = operations(q, ids)
    delta = 2 * q.size  # the outcome times its gradient, summed
    assert whole == 2 * 4 * 10 * 512**2 * 14 * 64 + delta
    assert operations(q[:, :1024], ids[:, :1024], part=part) == whole / 2


@pytest.mark.parametrize(("kernel", "backward"), [("cudnn", 10), ("flash", 14)])
def test_kept_attention_is_not_computed_again(kernel, backward):
    """Of the first of two layers in each repeat of a pattern; the backward kernels make scores once or twice."""
    pattern = Layer(GQA(4, 2, 64), Dense(24)), Layer(GQA(4, 2, 64), Dense(40))
    config = ModelConfig(family="llama", vocab_size=32, d_model=64, groups=(Group(3, pattern),), context_length=512)
    params = decoder.abstract_params(config, jnp.dtype(jnp.bfloat16))
    length = 512
    ids = np.ones((1, length), np.int32)
    attend = functools.partial(dispatch.attend, implementation=kernel)

    def counted(remat):
        run = functools.partial(decoder.forward, dtype=jnp.bfloat16, remat=remat, attend=attend)
        loss = lambda params: run(params, config, ids, ids, ids).astype(jnp.float32).sum()  # noqa: E731
        with targets.answering_for(targets.parse("h100:1")):
            return _count(jax.grad(loss), params)

    seen = (length + 1) / 2 if kernel == "cudnn" else (length + 128) / 2
    pairs = 6 * 4 * length * seen * 64
    weights = sum(x.size for name, x in _kernels(params))
    assert counted("save_dots") == 6 * weights * length + (4 + backward) * pairs
    inner = sum(x.size for name, x in _kernels(params) if name == "layers/mlp/down")
    last = sum(x.size for name, x in _kernels(params) if name == "layers_0_1/mlp/down")
    assert inner and last
    again = 2 * length * (weights - inner - last)  # the output of the first layer is kept for the second
    assert counted("save_attention") == counted("save_dots") + again
    assert counted("full") == counted("save_dots") + again + 2 * length * inner + 4 * pairs


def _kernels(params):
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        *folders, leaf = (entry.key for entry in path)
        if leaf == "kernel" and folders[0].startswith("layers"):
            yield "/".join(folders), x


def test_windows_leave_blocks_out():
    """4 H a pair forward, 10 H backward (14 for `flash`, which makes scores twice), for blocks with a window of 700."""
    q, k = jnp.zeros((2, 4096, 4, 64)), jnp.zeros((2, 4096, 2, 64))
    ids, rule = jnp.ones((2, 4096), jnp.int32), AttentionRule(1.0, window=700)

    def operations(kernel, x=jnp.float32):
        attend = functools.partial(dispatch.attend, implementation=kernel, rule=rule)
        loss = lambda *qkv: attend(*qkv, ids).astype(jnp.float32).sum()  # noqa: E731
        return _count(jax.grad(loss, argnums=(0, 1, 2)), q.astype(x), k.astype(x), k.astype(x))

    # Queries 512 i to 512 i + 511 begin to see at key 512 i - 699: 1, 2, then 3 blocks.
    forward = 1 + 2 + 6 * 3
    assert operations("splash") == 2 * 4 * forward * 512**2 * 14 * 64 + 2 * q.size
    assert operations("flash", jnp.bfloat16) == 2 * 4 * 4096 * (700 + 128) * 18 * 64
