"""Distillation from stored targets against float64 formulas of the whole vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.training.losses.sparse_distillation import batch_loss

B, T, D, V, K = 3, 11, 16, 37, 5
LEGAL = np.ones(V, bool)
LEGAL[[3, 35, 36]] = False


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def make_inputs(k: int, kind: str, scale: float = 1.0):
    """Hidden states, kernel and the batch; targets are those of a random teacher that gives illegal ids no mass."""
    rng = np.random.default_rng(k)
    teacher = np.where(LEGAL, 2 * rng.normal(size=(B, T, V)), -np.inf)
    probabilities = np.exp(log_softmax(teacher))
    weights = (rng.random((B, T)) * (rng.random((B, T)) < 0.7)).astype(np.float32)
    batch = {"weights": weights, "targets": rng.choice(np.flatnonzero(LEGAL), (B, T)).astype(np.int32)}
    if kind == "top_k":
        ids = np.argsort(-probabilities, -1)[..., :k]
        own = np.take_along_axis(probabilities, ids, -1)
        rest = 1 - own.sum(-1) if k < LEGAL.sum() else np.zeros((B, T))
        batch["teacher_rest"] = np.where(weights > 0, rest, 0).astype(np.float32)
    else:
        drawn = np.sort(rng.permuted(np.broadcast_to(np.flatnonzero(LEGAL), (B, T, LEGAL.sum())), axis=-1)[..., :k], -1)
        ids, own = drawn, rng.dirichlet(np.ones(k), (B, T))
        own[..., -1], own[..., 0] = 0, own[..., 0] + own[..., -1]  # the last id is padding, as in a batch
        ids[..., -1] = 0
    batch["teacher_ids"] = np.where(weights[..., None] > 0, ids, 0).astype(np.int32)
    batch["teacher_probabilities"] = np.where(weights[..., None] > 0, own, 0).astype(np.float32)
    hidden, kernel = rng.normal(size=(B, T, D)), rng.normal(size=(D, V))
    return (scale * hidden).astype(np.float32), kernel.astype(np.float32), batch


def reference(hidden, kernel, batch, weight):
    """Loss, distillation alone and gradients in float64; one position at a time, straight from the formulas."""
    hidden, kernel = hidden.astype(np.float64), kernel.astype(np.float64)
    logs, of_all = log_softmax(np.where(LEGAL, hidden @ kernel, -np.inf)), log_softmax(hidden @ kernel)
    total = distilled = 0.0
    d_logits = np.zeros((B, T, V))
    for at in np.ndindex(B, T):
        w, s = float(batch["weights"][at]), np.exp(logs[at])
        if not w:
            continue
        t = batch["teacher_probabilities"][at].astype(np.float64)
        ids, t = batch["teacher_ids"][at][t > 0], t[t > 0]
        log_s = logs[at][ids]
        if "teacher_rest" in batch:
            rest = float(batch["teacher_rest"][at])
            outside = np.setdiff1d(np.flatnonzero(LEGAL), ids)
            value, gradient = (t * (np.log(t) - log_s)).sum(), s.copy()
            if rest:
                value += rest * (np.log(rest) - np.log(s[outside].sum()))
                gradient[outside] -= s[outside] * rest / s[outside].sum()
        else:
            value, gradient = -(t * log_s).sum(), s.copy()
        gradient[ids] -= t
        of_target = np.exp(of_all[at]) - np.eye(V)[batch["targets"][at]]
        distilled += w * value
        total += w * (weight * value - (1 - weight) * of_all[at][batch["targets"][at]])
        d_logits[at] = w * (weight * gradient + (1 - weight) * of_target)
    return total, distilled, d_logits @ kernel.T, np.einsum("btd,btv->dv", hidden, d_logits)


@pytest.mark.parametrize(
    ("kind", "weight", "chunk"),
    [("top_k", 1.0, 4), ("top_k", 0.3, 64), ("counts", 0.5, 1)],
)
def test_value_and_gradients_equal_float64(kind, weight, chunk):
    hidden, kernel, batch = make_inputs(K, kind)
    loss = functools.partial(batch_loss, weight, LEGAL)
    (value, parts), grads = jax.value_and_grad(lambda h, k: loss(h, k, batch, chunk, None), (0, 1), has_aux=True)(
        hidden, kernel
    )
    expected, distilled, *expected_grads = reference(hidden, kernel, batch, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(parts["distillation"], distilled, rtol=1e-6)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    if weight == 1:
        assert (np.asarray(grads[1])[:, ~LEGAL] == 0).all()


@pytest.mark.parametrize("kind", ["top_k", "counts"])
def test_gradients_are_the_derivative_of_the_value(kind):
    """Central differences in float64, of the reference that the loss is compared with above."""
    hidden, kernel, batch = make_inputs(K, kind)
    direction = np.random.default_rng(1).normal(size=hidden.shape)
    *_, d_hidden, _ = reference(hidden, kernel, batch, 0.5)
    up, down = (reference(hidden + step * direction, kernel, batch, 0.5)[0] for step in (1e-5, -1e-5))
    np.testing.assert_allclose((up - down) / 2e-5, (d_hidden * direction).sum(), rtol=1e-6)


def test_all_ids_give_the_forward_kl():
    count = int(LEGAL.sum())
    hidden, kernel, batch = make_inputs(count, "top_k")
    value, _ = functools.partial(batch_loss, 1.0, LEGAL)(hidden, kernel, batch, 4, None)
    logs = log_softmax(np.where(LEGAL, hidden.astype(np.float64) @ kernel, -np.inf))
    own = batch["teacher_probabilities"].astype(np.float64)
    ratio = np.log(np.where(own > 0, own, 1)) - np.take_along_axis(logs, batch["teacher_ids"], -1)
    np.testing.assert_allclose(value, (batch["weights"] * (own * ratio).sum(-1)).sum(), rtol=1e-6)


def test_mass_outside_k_is_penalised():
    """A student with 99.99 % of its mass elsewhere agrees with the teacher within K."""
    ids = np.arange(4)
    teacher = np.array([0.5, 0.3, 0.15, 0.05 - 1e-6])
    logits = np.full(V, np.log(0.9999 / (V - 4)))
    logits[ids] = np.log(1e-4 * teacher / teacher.sum())
    batch = {
        "weights": np.ones((1, 1), np.float32),
        "targets": np.zeros((1, 1), np.int32),
        "teacher_ids": ids[None, None].astype(np.int32),
        "teacher_probabilities": teacher[None, None].astype(np.float32),
        "teacher_rest": np.full((1, 1), 1e-6, np.float32),
    }
    loss = functools.partial(batch_loss, 1.0, None)
    run = jax.value_and_grad(lambda x: loss(x, np.eye(V, dtype=np.float32), batch, 1, None)[0])
    value, gradient = run(np.float32(logits[None, None]))
    within = logits[ids] - np.log(np.exp(logits[ids]).sum())
    assert abs((teacher * (np.log(teacher / teacher.sum()) - within)).sum()) < 1e-6
    assert value > 9
    np.testing.assert_allclose(gradient[0, 0, ids], 1e-4 * teacher / teacher.sum() - teacher, rtol=1e-4)


def test_extreme_students_have_finite_gradients():
    """Logits of +-1,000 and more: all mass within K, or none of it."""
    hidden, kernel, batch = make_inputs(K, "top_k", scale=300.0)
    loss = functools.partial(batch_loss, 0.7, LEGAL)
    value, grads = jax.value_and_grad(lambda h, k: loss(h, k, batch, 4, None)[0], (0, 1))(hidden, kernel)
    expected, _, *expected_grads = reference(hidden, kernel, batch, 0.7)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_positions_without_weight_do_not_matter():
    hidden, kernel, batch = make_inputs(K, "top_k")
    wild = np.where(batch["weights"][..., None] == 0, 50.0, hidden).astype(np.float32)
    loss = functools.partial(batch_loss, 0.5, LEGAL)
    one, other = (loss(states, kernel, batch, 4, None)[0] for states in (hidden, wild))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_logits_of_all_tokens_never_exist():
    rows, length, width, vocab, chunk = 2, 256, 8, 512, 16
    shapes = {"weights": (), "targets": (), "teacher_ids": (4,), "teacher_probabilities": (4,), "teacher_rest": ()}
    whole = ("targets", "teacher_ids")
    batch = {
        name: jax.ShapeDtypeStruct((rows, length, *rest), jnp.int32 if name in whole else jnp.float32)
        for name, rest in shapes.items()
    }
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, length, width), (width, vocab))]
    loss = functools.partial(batch_loss, 0.5, None)
    grad = jax.jit(jax.grad(lambda h, k, b: loss(h, k, b, chunk, None)[0], (0, 1)))
    used = grad.lower(*args, batch).compile().memory_analysis().temp_size_in_bytes
    assert used < rows * length * vocab * 4 / 2
