"""Most probable ids and draws of a teacher, in chunks, against the whole vocabulary in float64."""

import jax
import numpy as np
import pytest

from s1jax.training import teacher_outputs
from s1jax.training.losses.chunks import Head

B, T, D, V = 2, 7, 16, 53
LEGAL = np.ones(V, bool)
LEGAL[[0, 9, 51, 52]] = False


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(0)
    return Head(rng.normal(size=(B, T, D)).astype(np.float32), (rng.normal(size=(D, V))).astype(np.float32))


def probabilities(head: Head) -> np.ndarray:
    logits = np.where(LEGAL, head.hidden.astype(np.float64) @ head.kernel, -np.inf)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize(("k", "chunk"), [(1, 7), (6, 3), (int(LEGAL.sum()), 64)])
def test_top_k_equals_float64(head, k, chunk):
    ids, logprobs, rest = map(np.asarray, teacher_outputs.top_k(head, LEGAL, k, chunk, None))
    expected = probabilities(head)
    np.testing.assert_array_equal(ids, np.argsort(-expected, -1, kind="stable")[..., :k])
    np.testing.assert_allclose(logprobs, np.log(np.take_along_axis(expected, ids, -1)), rtol=1e-5, atol=1e-5)
    others = expected.copy()
    np.put_along_axis(others, ids, 0, -1)
    np.testing.assert_allclose(np.exp(rest), others.sum(-1), rtol=1e-5)
    assert LEGAL[ids].all()


def test_the_rest_is_exact_where_it_is_small():
    """Not 1 - the mass of the k ids, which float32 would round to 0."""
    logits = np.zeros((1, 1, V), np.float32)
    logits[..., :3] = 30, 29, 28
    head = Head(logits, np.eye(V, dtype=np.float32))
    _, _, rest = teacher_outputs.top_k(head, np.ones(V, bool), 3, 1, None)
    expected = np.log(V - 3) - np.log(np.exp([30.0, 29.0, 28.0]).sum() + V - 3)
    np.testing.assert_allclose(rest[0, 0], expected, rtol=1e-6)


def test_draws_follow_the_distribution(head):
    """20,000 draws of 50 at one position: the mean of each id's share is off by less than 1e-3."""
    one = Head(head.hidden[:1, :1], head.kernel)
    uniforms = np.random.default_rng(1).random((1, 20_000, 50), np.float32)
    many = Head(np.broadcast_to(one.hidden, (1, 20_000, D)), one.kernel)
    drawn = jax.jit(lambda u: teacher_outputs.draws(many, LEGAL, u, 1000, None))(uniforms)
    share = np.bincount(np.asarray(drawn).reshape(-1), minlength=V) / drawn.size
    expected = probabilities(one)[0, 0]
    assert np.abs(share - expected).max() < 1e-3
    assert share[~LEGAL].sum() == 0


def test_draws_are_those_of_the_cumulative_sum(head):
    rng = np.random.default_rng(2)
    uniforms = rng.random((B, T, 20), np.float32)
    uniforms[..., 0], uniforms[..., 1] = 0, 1 - 2**-24
    found = np.asarray(teacher_outputs.draws(head, LEGAL, uniforms, 3, None))
    sums = np.cumsum(probabilities(head), -1)
    for at in np.ndindex(B, T):
        expected = np.searchsorted(sums[at], uniforms[at] * sums[at][-1], side="right")
        near = np.abs(sums[at][:, None] - uniforms[at]).min(0) < 1e-6  # float32 may take the neighbour
        np.testing.assert_array_equal(found[at][~near], expected[~near])
    assert LEGAL[found].all()


@pytest.mark.parametrize("kind", ["top_k", "draws"])
def test_logits_of_all_tokens_never_exist(kind):
    rows, length, width, vocab, chunk = 2, 256, 8, 512, 16
    shapes = (rows, length, width), (width, vocab), (rows, length, 4)
    hidden, kernel, uniforms = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)

    def run(hidden, kernel, uniforms):
        head, legal = Head(hidden, kernel), np.ones(vocab, bool)
        if kind == "top_k":
            return teacher_outputs.top_k(head, legal, 4, chunk, None)
        return teacher_outputs.draws(head, legal, uniforms, chunk, None)

    used = jax.jit(run).lower(hidden, kernel, uniforms).compile().memory_analysis().temp_size_in_bytes
    assert used < rows * length * vocab * 4 / 2
