"""Losses of stored targets, most probable ids and draws on meshes of 8 fake devices and on one device.

Run by tests/training/test_sparse_on_meshes.py in a process of its own. Prints one JSON object per mesh.
"""

import functools
import json
import os

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from s1jax.config.experiment import MeshConfig  # noqa: E402
from s1jax.parallel import mesh as mesh_lib  # noqa: E402
from s1jax.parallel import sharding  # noqa: E402
from s1jax.training import teacher_outputs  # noqa: E402
from s1jax.training.losses import chunks  # noqa: E402
from s1jax.training.losses.sparse_distillation import batch_loss  # noqa: E402

B, T, D, V, K, N = 8, 16, 16, 44, 5, 30
MESHES = [(1, 2, 2, 2), (2, 1, 1, 4)]
if os.environ.get("S1JAX_ALL_MESHES"):
    MESHES += [(2, 1, 4, 1), (8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (2, 2, 1, 2), (4, 1, 1, 2), (2, 4, 1, 1)]


def main() -> None:
    rng = np.random.default_rng(0)
    legal = np.ones(V, bool)
    legal[[2, 20, 43]] = False
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    uniforms = rng.random((B, T, N), np.float32)
    batch = {
        "tokens": np.zeros((B, T), np.int32),
        "targets": rng.choice(np.flatnonzero(legal), (B, T)).astype(np.int32),
        "weights": rng.random((B, T), np.float32) * (rng.random((B, T)) < 0.7),
        "hidden": hidden,
        "uniforms": uniforms,
    }
    ids, logprobs, rest = teacher_outputs.top_k(chunks.Head(hidden[::-1], kernel), legal, K, 4, None)
    batch |= {"teacher_ids": ids, "teacher_probabilities": np.exp(logprobs), "teacher_rest": np.exp(rest)}
    batch = {name: np.asarray(array) for name, array in batch.items()}
    loss = functools.partial(batch_loss, 0.6, legal)

    def run(kernel, batch, mesh):
        counts = {name: array for name, array in batch.items() if name != "teacher_rest"}
        losses = [
            jax.value_and_grad(lambda h, k, used=used: loss(h, k, used, 4, mesh), (0, 1), has_aux=True)(
                batch["hidden"], kernel
            )
            for used in (batch, counts)
        ]
        head = chunks.Head(batch["hidden"], kernel)
        outputs = teacher_outputs.top_k(head, legal, K, 4, mesh)
        return (losses, outputs), teacher_outputs.draws(head, legal, batch["uniforms"], 4, mesh)

    for shape in MESHES:
        mesh = mesh_lib.make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
        order = sharding.places(T, shape[2]).reshape(-1)
        placed = sharding.put_batch(batch, mesh)
        on_mesh = jax.sharding.NamedSharding(mesh, chunks.PLACED)
        jitted = jax.jit(run, static_argnums=2)
        one, drawn_one = jax.device_get(jitted(kernel, {n: a[:, order] for n, a in batch.items()}, None))
        many, drawn = jax.device_get(jitted(jax.device_put(kernel, on_mesh), placed, mesh))
        off = [
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))
            for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True)
        ]
        print(json.dumps({"mesh": shape, "off": max(off), "drawn": float(np.mean(drawn != drawn_one))}), flush=True)


if __name__ == "__main__":
    main()
