"""Weights with scales of groups, against numpy that reads the codes by their definition."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint.codecs import mxfp4
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder, linear, quant
from s1jax.model.embedding import embed
from s1jax.model.quant_groups import NF4_LEVELS, GroupQTensor, quantize_groups
from tests.model import parity_cases

E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def by_hand(weight: GroupQTensor) -> np.ndarray:
    """[..., D, outputs...] from codes and scales, one number after the other."""
    axis, group = weight.axis, weight.group
    codes = np.moveaxis(np.asarray(weight.codes), axis, -1)
    scales = np.moveaxis(np.asarray(weight.scales, np.float32), axis, -1)
    out = np.zeros((*codes.shape[:-1], scales.shape[-1] * group), np.float32)
    for i in range(out.shape[-1]):
        g, j = divmod(i, group)
        if weight.kind in ("int8", "fp8"):
            values = codes[..., i].astype(np.float32)
        else:
            byte = codes[..., g * group // 2 + j % (group // 2)]
            code = byte >> 4 if j >= group // 2 else byte & 15
            levels = {"int4": range(-8, 8), "nf4": NF4_LEVELS, "mxfp4": E2M1}[weight.kind]
            values = np.array(levels, np.float32)[code]
        out[..., i] = values * scales[..., g]
    return np.moveaxis(out, -1, axis)


def kernel(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(0, 0.2, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "group", "error"),  # of normal weights, relative: MODELS.md's 0.5 (group 32), 8.6 % and qwix's 8.7 %
    [
        ("int8", 32, 0.006),
        ("int8", 128, 0.008),
        ("int4", 32, 0.088),
        ("int4", 128, 0.108),
        ("nf4", 64, 0.094),
        ("mxfp4", 32, 0.118),
        ("fp8", 128, 0.027),
    ],
)
def test_dequantised_weights_are_those_of_the_codes(kind, group, error):
    x = kernel(2, 3, 4, 64, 6)  # layers, experts, [heads, head_dim], outputs
    found = jax.jit(lambda x: quantize_groups(x, 2, kind, group, num_lead_axes=2))(x)
    wide = np.asarray(jax.jit(lambda w: w.dequantize(jnp.float32))(found))
    assert wide.shape == found.shape == x.shape
    np.testing.assert_allclose(wide.reshape(2, 3, 256, 6), by_hand(found), rtol=1e-6, atol=1e-7)
    relative = np.sqrt(np.mean((wide - x) ** 2) / np.mean(x**2))
    assert 0.5 * error < relative < error
    assert found.codes.nbytes == x.size // (1 if kind in ("int8", "fp8") else 2)
    one = jax.tree.map(lambda a: a[1, 2], found)
    np.testing.assert_allclose(one.dequantize(jnp.float32), wide[1, 2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_published_weights_are_held_without_loss(dtype):
    """MXFP4 and FP8 as transformers dequantises them: any exponents and codes, any kind of scale of a block."""
    rng = np.random.default_rng(3)
    same = lambda found, x: np.testing.assert_array_equal(np.asarray(found.dequantize(dtype)), x)  # noqa: E731
    codes, exponents = rng.integers(0, 16, (256, 96)), rng.integers(8, 250, (8, 96))
    codes[:32, ::3] &= 9  # blocks without large codes
    wide = E2M1[codes] * np.ldexp(np.float32(1), np.repeat(exponents - 127, 32, 0))
    same(jax.jit(lambda x: quantize_groups(x, 1, "mxfp4", 32))(wide.astype(dtype)), wide.astype(dtype))
    for scales in ("of the largest", "powers of two", "others"):
        blocks = rng.normal(0, 0.02, (2, 128, 3, 128)) * np.exp(rng.normal(0, 1, (1, 1, 3, 128)))
        scale = np.abs(blocks).max((1, 3), keepdims=True) / 448
        if scales == "powers of two":
            scale = np.exp2(np.ceil(np.log2(scale)))
        scale = np.float32(scale * rng.uniform(0.8, 3, scale.shape) if scales == "others" else scale)
        codes = np.clip(blocks / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        wide = (codes.astype(np.float32) * scale).reshape(256, 384).astype(dtype)
        for group in (128, 32):
            same(jax.jit(lambda x, group=group: quantize_groups(x, 1, "fp8", group))(wide), wide)


def test_mxfp4_codes_are_those_of_the_published_encoder():
    x = kernel(64, 5)
    found = quantize_groups(x, 1, "mxfp4", 32)
    blocks = mxfp4.encode(x.reshape(2, 32, 5).transpose(0, 2, 1).reshape(-1, 32))  # bytes of llama.cpp
    np.testing.assert_array_equal(np.asarray(found.scales).view(np.uint8).reshape(-1), blocks[:, 0])
    expected = mxfp4.decode(blocks).reshape(2, 5, 32).transpose(0, 2, 1).reshape(64, 5)
    np.testing.assert_array_equal(found.dequantize(jnp.float32), expected)


def test_codes_are_the_nearest_and_largest_weights_are_exact():
    x = kernel(64, 5)
    for kind in ("int4", "nf4"):
        found = quantize_groups(x, 1, kind, 32)
        grid = np.arange(-8, 8) if kind == "int4" else np.array(NF4_LEVELS)
        scales = np.repeat(np.asarray(found.scales), 32, 0)
        best = np.abs(grid[:, None, None] * scales - x).min(0)
        wide = np.asarray(found.dequantize(jnp.float32))
        np.testing.assert_allclose(np.abs(wide - x), best, atol=2e-6)
        at = np.abs(x).argmax(0)
        np.testing.assert_allclose(wide[at, range(5)], x[at, range(5)], rtol=1e-6)
    zero = quantize_groups(jnp.zeros((32, 2)), 1, "int4", 32)
    np.testing.assert_array_equal(zero.dequantize(jnp.float32), 0)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "mxfp4", "fp8", ""])
def test_products_and_gradients_are_those_of_the_dequantised_weights(kind):
    x, kernels = kernel(7, 64), kernel(3, 64, 2, 5)
    if kind:
        weights = quantize_groups(kernels, 1, kind, 32, num_lead_axes=1)
        wide = by_hand(weights).reshape(3, 64, 10)
    else:
        weights = quant.quantize(kernels, (-3,))
        wide = (np.asarray(weights.values, np.float32) * np.asarray(weights.scale)[:, None]).reshape(3, 64, 10)

    def product(x, weights):
        def body(total, weight):
            return total + jnp.sin(linear.matmul(x, weight)), None

        return jax.lax.scan(body, jnp.zeros((7, 10)), weights)[0].sum()

    found = jax.jit(jax.value_and_grad(product))(x, weights)
    expected = jax.jit(jax.value_and_grad(lambda x: sum(jnp.sin(x @ w).sum() for w in wide)))(x)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)


def test_no_float_copy_of_the_kernel_is_kept_for_the_backward_pass():
    x, kernels = jnp.ones((2, 128)), jnp.ones((4, 128, 128))
    for weights in (quantize_groups(kernels, 1, "nf4", 64, num_lead_axes=1), quant.quantize(kernels, (-2,))):

        def product(x, weights=weights):
            return jax.lax.scan(lambda x, w: (jnp.sin(linear.matmul(x, w)), None), x, weights)[0]

        kept = jax.eval_shape(lambda x: jax.vjp(product, x)[1], x)
        floats = [leaf.size for leaf in jax.tree.leaves(kept) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert max(floats) < 128 * 128  # a kernel's scales and the activations of four layers, no kernel


@pytest.mark.parametrize(("kind", "group"), [("int8", 32), ("int4", 32), ("nf4", 64), ("fp8", 32)])
def test_logits_of_a_quantised_tree_are_those_of_the_dequantised_one(kind, group):
    config = ModelConfig.dense(
        vocab_size=61, d_model=64, mlp_dim=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
        rope_theta=1e4, qk_norm=True, tied_embeddings=True,
    )  # fmt: skip
    params = parity_cases.weights(config)
    small = jax.jit(lambda p: quant.quantize_params(p, kind, group))(params)
    is_small = lambda leaf: isinstance(leaf, GroupQTensor)  # noqa: E731
    wide = jax.tree.map(lambda x: by_hand(x).reshape(x.shape) if is_small(x) else x, small, is_leaf=is_small)
    wide = parity_cases.dequantised(wide)  # the embedding, in int8 with one scale per row
    assert sum(map(is_small, jax.tree.leaves(small, is_leaf=is_small))) == 7
    tokens = jnp.asarray(parity_cases.tokens(config, (2, 24)))
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)

    @jax.jit
    def logits(params):
        hidden = decoder.forward(params, config, tokens, positions, jnp.ones_like(tokens))
        return decoder.logits(params, config, hidden)

    expected = logits(wide)
    np.testing.assert_allclose(logits(small), expected, rtol=0, atol=1e-4)
    assert np.abs(expected - logits(params)).max() > 1e-3


def test_embedding_rows_and_logits_are_those_of_the_dequantised_table():
    table = quantize_groups(kernel(11, 64), 1, "int4", 32, num_lead_axes=1)
    wide = by_hand(table)
    tokens = jnp.array([[3, 10], [0, 3]])
    np.testing.assert_allclose(embed(table, tokens, jnp.float32), wide[tokens], rtol=1e-6)
    hidden = kernel(2, 64)
    np.testing.assert_allclose(linear.output_logits(hidden, table, tied=True), hidden @ wide.T, rtol=1e-5, atol=1e-5)


def test_groups_that_do_not_fit_are_refused_by_name():
    with pytest.raises(UserError, match="layers/mlp/up/kernel has 96 inputs, which nf4 groups of 64 do not divide; "
                       "choose groups of 32"):  # fmt: skip
        quantize_groups(jnp.ones((96, 2)), 1, "nf4", 64, name="layers/mlp/up/kernel")
    with pytest.raises(UserError, match="groups of 48 weights are not supported; choose one of 32, 64, 128"):
        quantize_groups(jnp.ones((96, 2)), 1, "nf4", 48)
    params = parity_cases.weights(parity_cases.CASES["qwen2"])  # d_model 48
    with pytest.raises(UserError, match=r"layers/attention/\w+/kernel has 48 inputs, which int4 groups of 32 do not "
                       "divide; keep it in int8 with a scale per output"):  # fmt: skip
        quant.quantize_params(params, "int4", 32)


def test_a_loop_over_layers_holds_no_array_of_levels():
    """JAX's scan computes beforehand, and holds, what depends on nothing: broadcast levels, 16 times the kernel."""
    kernels = np.random.default_rng(0).normal(size=(3, 64, 64))
    small = quantize_groups(jnp.asarray(kernels), 1, "nf4", 64, num_lead_axes=1)
    policy = jax.checkpoint_policies.save_only_these_names("nothing")

    def layer(x, weight):
        return jnp.sin(linear.matmul(x, weight)), None

    def loss(x):
        return jax.lax.scan(jax.checkpoint(layer, policy=policy), x, small)[0].sum()

    program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((4, 64))).jaxpr
    loops = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    floats = [v.aval for loop in loops for v in loop.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    assert len(loops) == 2 and max(one.size for one in floats) < 64 * 64
