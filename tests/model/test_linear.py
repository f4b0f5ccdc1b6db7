"""Products with the weight on the left against float64, also the one that runs in two halves."""

import jax
import numpy as np
import pytest

from s1jax.model import linear


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("shape", [(512, 512), (514, 260), (511, 512), (2, 2**18), (1024, 513), (6, 10)])
def test_a_product_with_the_weight_on_its_left(shape, num_rows):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape).astype(np.float32)
    x_t = rng.normal(size=(shape[1], num_rows)).astype(np.float32)
    actual = jax.jit(linear.matmul_weight_left)(kernel, x_t)
    expected = kernel.astype(np.float64) @ x_t.astype(np.float64)
    assert actual.shape == (shape[0], num_rows)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.sqrt(shape[1]))


def test_one_row_and_a_small_matrix_run_in_halves():
    def halves(shape, num_rows):
        arrays = (np.zeros(s, np.float32) for s in (shape, (shape[1], num_rows)))
        return "broadcast_in_dim" in str(jax.make_jaxpr(linear.matmul_weight_left)(*arrays))

    assert halves((512, 512), 1)
    assert not any(halves(*other) for other in [((512, 512), 2), ((511, 512), 1), ((128, 512), 1), ((2048, 512), 1)])
