"""Losses and a teacher's outputs of capped logits, against the same without a cap on logits that are capped before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import DistilConfig, MeshConfig, TrainConfig
from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import step, teacher_outputs
from s1jax.training.losses import cross_entropy, distillation, sparse_distillation
from s1jax.training.losses.chunks import Head

B, T, D, V, K = 2, 7, 12, 29, 4
LEGAL = np.arange(V) < 27
OURS, THEIRS = 2.5, 4.0
RNG = np.random.default_rng(0)
HIDDEN, TEACHER = (RNG.normal(size=(B, T, D)).astype(np.float32) for _ in range(2))
KERNEL, TEACHER_KERNEL = (RNG.normal(size=(D, V)).astype(np.float32) for _ in range(2))
BATCH = {
    "targets": RNG.integers(0, 27, (B, T)).astype(np.int32),
    "weights": RNG.random((B, T)).astype(np.float32),
    "teacher_ids": np.tile(np.arange(K, dtype=np.int32), (B, T, 1)),
    "teacher_probabilities": RNG.dirichlet(np.ones(K), (B, T)).astype(np.float32),
}
LOSSES = {
    "cross-entropy": lambda *args, **options: cross_entropy.batch_loss(*args, 3, None, **options),
    "sparse": lambda *args, **options: sparse_distillation.batch_loss(0.6, LEGAL, *args, 3, None, **options),
    "dense": lambda *args, **options: distillation.batch_loss(
        DistilConfig(loss="jsd", beta=0.3, weight=0.6), LEGAL, *args, 3, None, **options
    ),
}


def _capped(hidden, kernel, cap):
    return cap * jnp.tanh(jnp.einsum("btd,dv->btv", hidden, kernel) / cap)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_capped_logits_and_its_gradients(name):
    loss = LOSSES[name]
    theirs, plain_theirs = {}, {}
    if name == "dense":
        theirs = {"teacher": Head(TEACHER, TEACHER_KERNEL, THEIRS)}
        plain_theirs = {"teacher": Head(_capped(TEACHER, TEACHER_KERNEL, THEIRS), np.eye(V, dtype=np.float32))}

    def ours(hidden, kernel):
        return loss(hidden, kernel, BATCH, softcap=OURS, **theirs)

    def plain(hidden, kernel):
        return loss(_capped(hidden, kernel, OURS), np.eye(V, dtype=np.float32), BATCH, **plain_theirs)

    (value, parts), found = jax.value_and_grad(ours, (0, 1), has_aux=True)(HIDDEN, KERNEL)
    (expected, of_plain), gradients = jax.value_and_grad(plain, (0, 1), has_aux=True)(HIDDEN, KERNEL)
    np.testing.assert_allclose([value, *parts.values()], [expected, *of_plain.values()], rtol=1e-5)
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert np.abs(other).max() > 0.1
    assert abs(float(value) - float(loss(HIDDEN, KERNEL, BATCH, **theirs)[0])) > 0.1


def test_what_a_teacher_of_capped_logits_expects():
    capped, plain = Head(TEACHER, TEACHER_KERNEL, THEIRS), Head(_capped(TEACHER, TEACHER_KERNEL, THEIRS), np.eye(V))
    for one, other in zip(*(teacher_outputs.top_k(head, LEGAL, K, 3, None) for head in (capped, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    uniforms = RNG.random((B, T, 5)).astype(np.float32)
    drawn = [teacher_outputs.draws(head, LEGAL, uniforms, 3, None) for head in (capped, plain)]
    np.testing.assert_array_equal(*drawn)


def test_a_step_trains_what_sampling_computes():
    """Loss and gradients of a step against the log-softmax of `decoder.logits`."""
    layer = Layer(GQA(2, 1, 8, window=3, softcap=2.0), Dense(16, "gelu_tanh"), "both")
    config = ModelConfig(
        V, D, (Group(2, (layer,)),), norm_offset=True, scale_embeddings=True, final_softcap=1.5, tied_embeddings=True
    )
    params = jax.tree.map(
        lambda x: 0.3 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32),
        decoder.abstract_params(config),
    )
    places = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    batch = BATCH | {"tokens": BATCH["targets"][:, ::-1], "positions": places, "segment_ids": np.ones_like(places)}
    train = TrainConfig(batch_size=B, compute_dtype="float32", attention="chunked", loss_chunk=3)
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    (value, _), found = jax.jit(step.make_gradients(config, train, mesh))(params, batch)

    @jax.jit
    @jax.value_and_grad
    def plain(params):
        hidden = decoder.forward(params, config, batch["tokens"], places, batch["segment_ids"])
        scores = jax.nn.log_softmax(decoder.logits(params, config, hidden))
        picked = jnp.take_along_axis(scores, batch["targets"][..., None], -1)[..., 0]
        return -jnp.sum(batch["weights"] * picked) / batch["weights"].sum()

    expected, gradients = plain(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
