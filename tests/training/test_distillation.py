"""Losses between student and teacher against dense float64 formulas and their finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import DistilConfig
from s1jax.training.losses import chunks, distillation
from s1jax.training.losses.cross_entropy import cross_entropy

B, T, D, D_TEACHER, V = 3, 11, 16, 20, 37
LEGAL = np.ones(V, bool)
LEGAL[[5, 33, 34, 35, 36]] = False  # a hole, and columns after the last id
LOSSES = [
    DistilConfig(loss="forward_kl", weight=1),
    DistilConfig(loss="reverse_kl", weight=1, temperature=2.5),
    DistilConfig(loss="jsd", beta=0.5, weight=1),
    DistilConfig(loss="jsd", beta=0.03, weight=0.5, temperature=0.7),
    DistilConfig(loss="jsd", beta=0.97, weight=1),
    DistilConfig(loss="jsd", beta=0, weight=1),
    DistilConfig(loss="jsd", beta=1, weight=1),
    DistilConfig(loss="skewed_kl", alpha=0.1, weight=0.25, temperature=2),
    DistilConfig(loss="skewed_kl", alpha=0.8, weight=1),
    DistilConfig(loss="skewed_reverse_kl", alpha=0.1, weight=1),
    DistilConfig(loss="skewed_reverse_kl", alpha=0.7, weight=0.5, temperature=1.5),
]
NAMES = [f"{c.loss}-{c.beta}-{c.alpha}" for c in LOSSES]


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {
        "hidden": rng.normal(size=(B, T, D)).astype(np.float32),
        "kernel": rng.normal(size=(D, V)).astype(np.float32),
        "teacher_hidden": rng.normal(size=(B, T, D_TEACHER)).astype(np.float32),
        "teacher_kernel": rng.normal(size=(D_TEACHER, V)).astype(np.float32),
        "targets": rng.choice(np.flatnonzero(LEGAL), size=(B, T)).astype(np.int32),
        "weights": (rng.random((B, T)) * (rng.random((B, T)) < 0.6)).astype(np.float32),
    }


def loss(config, chunk=4, legal=LEGAL):
    """Returns the loss as a function of `arrays`."""

    def compute(hidden, kernel, teacher_hidden, teacher_kernel, targets, weights):
        batch = {"targets": targets, "weights": weights}
        teacher = chunks.Head(teacher_hidden, teacher_kernel)
        return distillation.batch_loss(config, legal, hidden, kernel, batch, chunk, None, teacher)

    return compute


@functools.cache
def gradients(config, chunk=4):
    """`((loss, parts), gradients of student and teacher)` of `arrays`, compiled once."""
    return jax.jit(jax.value_and_grad(loss(config, chunk), (0, 1, 2, 3), has_aux=True))


def arrays(inputs):
    names = ("hidden", "kernel", "teacher_hidden", "teacher_kernel", "targets", "weights")
    return [inputs[name] for name in names]


def taught_by(inputs, hidden, kernel):
    """The inputs with these as the teacher's, filled up with zeros to its width."""
    more = D_TEACHER - D
    hidden, kernel = np.pad(hidden, ((0, 0), (0, 0), (0, more))), np.pad(kernel, ((0, more), (0, 0)))
    return inputs | {"teacher_hidden": hidden, "teacher_kernel": kernel}


def of_tokens(config, z, z_teacher, targets, legal):
    """(mixed loss, divergence) of each token in float64, as the definitions have them."""

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def kl(p, q):
        logs = [np.log(np.maximum(x, 1e-300)) for x in (p, q)]
        return (p * (logs[0] - logs[1])).sum(-1)

    s, t = (softmax(x[..., legal] / config.temperature) for x in (z, z_teacher))
    a, b = config.alpha, config.beta
    if config.loss == "forward_kl" or (config.loss == "jsd" and b == 0):
        value = kl(t, s)
    elif config.loss == "reverse_kl" or (config.loss == "jsd" and b == 1):
        value = kl(s, t)
    elif config.loss == "jsd":
        m = b * t + (1 - b) * s
        value = (b * kl(t, m) + (1 - b) * kl(s, m)) / (b * (1 - b))
    elif config.loss == "skewed_kl":
        value = kl(t, a * t + (1 - a) * s)
    else:
        value = kl(s, (1 - a) * t + a * s)
    value = config.temperature**2 * value
    nll = -np.log(np.take_along_axis(softmax(z), targets[..., None], -1))[..., 0]
    return (1 - config.weight) * nll + config.weight * value, value


def reference(config, inputs, legal=LEGAL):
    """Loss, divergence and the gradients of hidden states and kernel, by differences of the float64 formulas."""
    h, k, *teacher = (x.astype(np.float64) for x in arrays(inputs)[:4])
    z, z_teacher, weights = h @ k, teacher[0] @ teacher[1], inputs["weights"].astype(np.float64)
    value, part = of_tokens(config, z, z_teacher, inputs["targets"], legal)
    d_logits = np.zeros_like(z)
    for column in range(V):  # a token's loss depends on its own logits only
        step = 1e-5 * (np.arange(V) == column)
        ahead, back = (of_tokens(config, z + sign * step, z_teacher, inputs["targets"], legal)[0] for sign in (1, -1))
        d_logits[..., column] = (ahead - back) / 2e-5
    d_logits *= weights[..., None]
    return (weights * value).sum(), (weights * part).sum(), d_logits @ k.T, np.einsum("btd,btv->dv", h, d_logits)


@pytest.mark.parametrize("config", LOSSES, ids=NAMES)
def test_values_and_gradients_equal_float64(inputs, config):
    expected, part, *expected_grads = reference(config, inputs)
    (value, parts), grads = gradients(config)(*arrays(inputs))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(parts["distillation"], part, rtol=1e-6)
    mixed = (1 - config.weight) * parts["cross_entropy"] + config.weight * parts["distillation"]
    np.testing.assert_allclose(value, mixed, rtol=1e-6)
    for ours, theirs in zip(grads[:2], expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    assert not grads[2].any() and not grads[3].any(), "the teacher has a gradient"


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_any_chunk(inputs, chunk):
    config = LOSSES[3]
    (value, _), grads = gradients(config, chunk)(*arrays(inputs))
    expected, _, *expected_grads = reference(config, inputs)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(grads[:2], expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_columns_without_an_id_never_get_mass(inputs):
    """Neither what a teacher has there nor what the student has there changes the divergence, nor does it learn."""
    wild = inputs | {name: inputs[name].copy() for name in ("kernel", "teacher_kernel")}
    wild["kernel"][:, ~LEGAL] += 50
    wild["teacher_kernel"][:, ~LEGAL] -= 50
    config = LOSSES[2]
    (one, _), grads = gradients(config)(*arrays(inputs))
    (other, _), wild_grads = gradients(config)(*arrays(wild))
    assert one == other and one > 0.1
    assert not grads[1][:, ~LEGAL].any() and grads[1][:, LEGAL].all()
    np.testing.assert_array_equal(grads[1], wild_grads[1])


def test_weight_0_is_plain_training_to_the_bit(inputs):
    config = DistilConfig(loss="jsd", weight=0)
    (value, parts), grads = gradients(config)(*arrays(inputs))

    def plain(hidden, kernel):
        return cross_entropy(hidden, kernel, inputs["targets"], inputs["weights"], 4)

    expected, expected_grads = jax.jit(jax.value_and_grad(plain, (0, 1)))(*arrays(inputs)[:2])
    assert value == expected == parts["cross_entropy"] and parts["distillation"] > 0
    for ours, theirs in zip(grads[:2], expected_grads, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("config", LOSSES, ids=NAMES)
def test_a_student_that_is_the_teacher_has_loss_0(inputs, config):
    own = taught_by(inputs, inputs["hidden"], inputs["kernel"])
    (_, parts), grads = gradients(config)(*arrays(own))
    assert abs(float(parts["distillation"])) < 1e-4
    if config.weight == 1:
        assert max(float(jnp.abs(g).max()) for g in grads) < 1e-4


@pytest.mark.parametrize("config", LOSSES, ids=NAMES)
def test_extreme_logits_stay_finite(inputs, config):
    """Logits of 1e4 on both sides, the teacher's against the student's."""
    hidden, kernel, *_ = arrays(inputs)
    hidden = hidden * (1e4 / np.abs(hidden @ kernel).max())
    (value, parts), grads = gradients(config)(*arrays(taught_by(inputs | {"hidden": hidden}, -hidden, kernel)))
    assert np.isfinite([value, *parts.values()]).all() and all(np.isfinite(g).all() for g in grads)
    z = hidden.astype(np.float64) @ kernel
    if config.loss == "skewed_kl":  # bounded by log(1 / alpha) a token
        total = inputs["weights"].sum()
        assert 0 < parts["distillation"] <= config.temperature**2 * total * -np.log(config.alpha) * (1 + 1e-6)
    elif config.loss == "reverse_kl":  # all of the student's mass is on its greatest logit
        z = np.where(LEGAL, z, -np.inf)
        at = z.argmax(-1)[..., None]
        log_t = np.take_along_axis(-z, at, -1)[..., 0] - (-np.where(LEGAL, z, np.inf)).max(-1)
        np.testing.assert_allclose(
            parts["distillation"], config.temperature * -(inputs["weights"] * log_t).sum(), rtol=1e-3
        )


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 1 - 1e-6])
def test_the_generalised_divergence_has_no_jump_at_its_ends(inputs, beta):
    compute = lambda b: loss(DistilConfig(loss="jsd", beta=b, weight=1))(*arrays(inputs))[0]  # noqa: E731
    near, end = compute(beta), compute(float(round(beta)))
    expected = reference(DistilConfig(loss="jsd", beta=beta, weight=1), inputs)[0]
    np.testing.assert_allclose(near, expected, rtol=2e-6)
    np.testing.assert_allclose(near, end, rtol=0.1 if min(beta, 1 - beta) < 1e-5 else 0.4)  # GKD's is 1,000 x smaller


def test_packed_is_padded_and_padding_does_not_matter(inputs):
    """Rows one after the other, cut into rows of other lengths, and with wild padding between them."""
    config = LOSSES[3]
    (expected, _), _ = gradients(config)(*arrays(inputs))
    packed = {k: v.reshape(1, B * T, *v.shape[2:]) if v.shape[:2] == (B, T) else v for k, v in inputs.items()}
    np.testing.assert_allclose(loss(config, 7)(*arrays(packed))[0], expected, rtol=1e-6)
    padded = {}
    for name, x in inputs.items():
        if x.shape[:2] == (B, T):
            x = np.pad(
                x,
                [(0, 2), (0, 9)] + [(0, 0)] * (x.ndim - 2),
                constant_values=0 if name in ("weights", "targets") else 9,
            )
        padded[name] = x
    np.testing.assert_allclose(loss(config, 7)(*arrays(padded))[0], expected, rtol=1e-6)


def test_bfloat16_keeps_a_float32_softmax(inputs):
    half = {k: np.asarray(jnp.bfloat16(v)) if v.ndim > 2 or "kernel" in k else v for k, v in inputs.items()}
    config = LOSSES[8]
    (value, _), grads = gradients(config)(*arrays(half))
    expected, _, *expected_grads = reference(config, half)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(grads[:2], expected_grads, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), theirs, atol=0.03 * max(1, np.abs(theirs).max()))


def test_logits_of_all_tokens_never_exist():
    """No array of the lowered gradient has an entry for every token and id, and no more than chunks exist in memory."""
    rows, length, width, vocab, chunk = 2, 256, 8, 512, 16
    shapes = [(rows, length, width), (width, vocab), (rows, length, 12), (12, vocab)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    args += [jax.ShapeDtypeStruct((rows, length), kind) for kind in (jnp.int32, jnp.float32)]
    compute = loss(LOSSES[3], chunk, legal=None)
    lowered = jax.jit(jax.grad(lambda *x: compute(*x)[0], (0, 1))).lower(*args)
    text = lowered.as_text()
    for shape in (f"{rows}x{length}x{vocab}", f"{rows * length}x{vocab}", f"{length // chunk}x{rows}x{chunk}x{vocab}"):
        assert f"tensor<{shape}x" not in text, shape
    assert f"tensor<{rows}x{chunk}x{vocab}xf32>" in text
    compiled = lowered.compile()
    assert f"[{rows},{length},{vocab}]" not in compiled.as_text()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < rows * length * vocab * 4 / 2
