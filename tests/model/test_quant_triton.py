"""The GPU's product with 4-bit weights in Pallas' interpreter, against numpy with the dequantised weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.model import quant_triton
from s1jax.model.quant_groups import quantize_groups


@pytest.mark.parametrize(
    ("kind", "group", "rows", "inputs", "outputs"),
    [
        ("int4", 32, 1, (5, 64), (3, 16)),
        ("nf4", 64, 20, (192,), (144,)),
        ("int4", 128, 16, (128,), (256,)),
        ("mxfp4", 32, 3, (96,), (48,)),
        ("fp8", 128, 17, (2, 128), (144,)),
    ],
)
def test_products_are_those_of_the_dequantised_weights(monkeypatch, kind, group, rows, inputs, outputs):
    monkeypatch.setattr(quant_triton, "_PROGRAMS", 6)  # shares of several groups, and programs of several shares
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(0, 0.2, (*inputs, *outputs)), jnp.float32)
    weight = jax.jit(lambda k: quantize_groups(k, len(inputs), kind, group))(kernel)
    width = int(np.prod(inputs))
    x = jnp.asarray(rng.normal(0, 1, (rows, width)), jnp.float32)
    assert quant_triton.can_multiply(rows, weight)
    found = jax.jit(lambda x, w: quant_triton.matmul(x, w, interpret=True))(x, weight)
    wide = np.asarray(jax.jit(lambda w: w.dequantize(jnp.float32))(weight), np.float64).reshape(width, -1)
    assert found.shape == (rows, wide.shape[1])
    np.testing.assert_allclose(found, np.asarray(x) @ wide, rtol=1e-4, atol=1e-4)


def test_other_products_are_left_to_xla():
    def weight(kind: str, outputs: int):
        return jax.eval_shape(lambda k: quantize_groups(k, 1, kind, 32), jax.ShapeDtypeStruct((64, outputs), "float32"))

    assert quant_triton.can_multiply(64, weight("int4", 48))
    assert not quant_triton.can_multiply(65, weight("int4", 48))
    assert not quant_triton.can_multiply(1, weight("int4", 24))  # blocks of 8 outputs
    assert not quant_triton.can_multiply(1, weight("int8", 48))
