"""Loss, gradients and checkpoints on meshes of 8 fake devices; run by test_parallel.py in a process of its own.

Usage: fake_devices.py FOLDER. Prints one JSON object.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from s1jax.checkpoint import store  # noqa: E402
from s1jax.config.experiment import DistilConfig, MeshConfig, OptimizerConfig, TrainConfig  # noqa: E402
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer  # noqa: E402
from s1jax.config.model import Group, ModelConfig  # noqa: E402
from s1jax.config.rope import RopeScaling  # noqa: E402
from s1jax.model import decoder  # noqa: E402
from s1jax.parallel import mesh as mesh_lib  # noqa: E402
from s1jax.parallel import ops as parallel_ops  # noqa: E402
from s1jax.parallel import sharding  # noqa: E402
from s1jax.text import chat  # noqa: E402
from s1jax.text.tokenizer import Tokenizer  # noqa: E402
from s1jax.training import optimizer as optimizer_lib  # noqa: E402
from s1jax.training import step as step_lib  # noqa: E402
from s1jax.training.losses import chunks  # noqa: E402
from s1jax.training.losses import distillation as losses  # noqa: E402

# 60 rows of the vocabulary divide by `tensor`, as weights must, and not by all axes they are split along in the loss.
SHAPE = dict(vocab_size=60, d_model=16, mlp_dim=24, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=4)
DENSE = ModelConfig.dense(**SHAPE, qk_norm=True)
OF_EXPERTS = Layer(
    DENSE.groups[0].pattern[0].attention,
    Experts(8, 3, 12, scores="topk_softmax", router_bias=True, expert_bias=True, activation="clamped", shared_hidden=8),
)
_MLA = MLA(num_heads=8, q_rank=12, kv_rank=12, nope_dim=6, rope_dim=4, value_dim=5)
_CHOSEN = Experts(8, 2, 12, "sigmoid", True, groups=4, top_groups=2, selection_bias=True, shared_hidden=12)
MODELS = {
    "tied": ModelConfig.dense(**SHAPE, qkv_bias=True, tied_embeddings=True),
    "untied": ModelConfig.dense(**SHAPE, qk_norm=True),
    "experts": dataclasses.replace(DENSE, groups=(Group(2, (DENSE.groups[0].pattern[0], OF_EXPERTS)),)),
    "deepseek": ModelConfig(60, 16, (Group(1, (Layer(_MLA, Dense(24)),)), Group(1, (Layer(_MLA, _CHOSEN),)))),
    "wide": ModelConfig.dense(**SHAPE | dict(vocab_size=64), qk_norm=True, tied_embeddings=True),
}
# Windows, sinks, caps, norms of every place, and rotary frequencies by the length of a segment.
FIRST = GQA(8, 2, 4, qkv_bias=True, out_bias=True, window=5, sinks=True, softcap=1.5, rotary_dim=2)
SECOND = GQA(8, 2, 4, qk_norm_whole=True, sinks=True, rotary_dim=2)
MODELS["ruled"] = ModelConfig(
    vocab_size=60,
    d_model=16,
    groups=(Group(1, (Layer(FIRST, Dense(24, "gelu_tanh"), "both"), Layer(SECOND, Dense(24), "post"))),),
    rope_scaling=RopeScaling("longrope", 2.0, 8, short_factor=(1.0,), long_factor=(3.0,)),
    norm_offset=True,
    scale_embeddings=True,
    final_softcap=2.0,
)
CASES = [  # model, (data, fsdp, sequence, tensor), accumulation, attention, remat
    ("tied", (2, 4, 1, 1), 2, "chunked", "save_dots"),  # and the MLP in parts, as wherever `tensor` is 1
    ("untied", (1, 2, 2, 2), 2, "chunked", "full"),  # tokens, rows and heads split at once
    ("tied", (1, 1, 2, 4), 1, "xla", "save_attention"),  # two key heads for four shares of the query heads
    ("ruled", (1, 2, 2, 2), 2, "chunked", "full"),
    ("ruled", (2, 1, 1, 4), 1, "xla", "none"),
    ("experts", (1, 2, 2, 2), 1, "chunked", "full"),
    ("deepseek", (2, 1, 1, 4), 1, "chunked", "none"),
]
# Every shape of the mesh, in turn with either model and kernel; minutes, so only on demand.
SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(s) == 8]
ALL_CASES = [
    (
        "wide" if shape[3] == 8 else ("tied", "untied")[i % 2],
        shape,
        1 + i % 2,
        ("chunked", "xla")[i // 2 % 2],
        ("full", "none", "save_dots", "save_attention")[i // 4 % 4],
    )
    for i, shape in enumerate(SHAPES)
]
TRAIN = dict(batch_size=16, compute_dtype="float32", loss_chunk=8)


def make_batch() -> dict[str, np.ndarray]:
    """16 rows of 16: even ones padded (one segment of varying length), odd ones packed (two segments)."""
    rng = np.random.default_rng(0)
    rows, length = 16, 16
    ends = rng.integers(1, length, size=(rows, 1))
    packed = np.arange(rows)[:, None] % 2 == 1
    place = np.broadcast_to(np.arange(length), (rows, length))
    first = place < ends
    segments = np.where(first, 1, 2 * packed)
    positions = np.where(first, place, (place - ends) * packed)
    weights = rng.random((rows, length)) * (segments > 0)
    ids = rng.integers(60, size=(2, rows, length))
    return {
        "tokens": ids[0].astype(np.int32),
        "targets": ids[1].astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "positions": positions.astype(np.int32),
        "weights": weights.astype(np.float32),
    }


@functools.cache
def weights(name: str) -> decoder.Params:
    """Weights of a model on the host. Biases are not 0 and norms are not 1, so that a wrong formula shows."""
    model = MODELS[name]
    params = jax.jit(lambda key: decoder.init_params(model, key))(jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: np.asarray(p) + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)


def gradients(
    name: str, mesh: jax.sharding.Mesh, accumulation: int, kernel: str, remat: str
) -> tuple[float, list[np.ndarray]]:
    """Loss, with that of the experts' load, and gradients, with the number of tokens of every expert."""
    model = MODELS[name]
    params = jax.device_put(weights(name), sharding.param_shardings(model, mesh))
    parts = 2 if mesh.size > 1 and mesh.shape["tensor"] == 1 else 1
    train = TrainConfig(
        **TRAIN, accumulation=accumulation, attention=kernel, remat=remat, mlp_parts=parts,
        router_aux_loss=0.3 if name == "experts" else 0.0,
    )  # fmt: skip
    batch = sharding.put_batch(make_batch(), mesh)
    (loss, parts), grads = jax.jit(step_lib.make_gradients(model, train, mesh))(params, batch)
    return float(loss), [np.asarray(leaf) for leaf in jax.tree.leaves((grads, parts.get("router_counts")))]


def compare() -> list[dict[str, object]]:
    one = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    cases = ALL_CASES if os.environ.get("S1JAX_ALL_MESHES") else CASES
    expected = {name: gradients(name, one, 1, "xla", "none") for name in {case[0] for case in cases}}
    found = []
    for name, shape, *settings in cases:
        loss, grads = gradients(name, mesh_lib.make_mesh(MeshConfig(*shape)), *settings)
        wanted_loss, wanted = expected[name]
        found.append(
            {
                "model": name,
                "mesh": shape,
                "loss": abs(loss - wanted_loss),
                "gradients": max(float(np.abs(a - b).max()) for a, b in zip(grads, wanted, strict=True)),
                "size": max(float(np.abs(b).max()) for b in wanted),
            }
        )
    return found


def distillation() -> list[dict[str, object]]:
    """Losses between student and teacher on meshes with every axis, against one device."""
    rng = np.random.default_rng(3)
    vocab, legal = 60, np.arange(60) < 57  # the last slice of 60 / 8 has padding, and columns without an id
    shapes = {"hidden": (8, 16, 16), "kernel": (16, vocab), "theirs": (8, 16, 24), "their_kernel": (24, vocab)}
    given = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    by_token = make_batch()
    by_token = {name: by_token[name][:8] % 57 for name in ("targets", "weights")}
    found = []
    for config, shapes_of_mesh in (
        (DistilConfig(loss="jsd", beta=0.3, temperature=1.5, weight=0.6), [(2, 4, 1, 1), (1, 2, 2, 2)]),
        (DistilConfig(loss="skewed_reverse_kl", weight=1.0), [(2, 1, 2, 2)]),
    ):
        meshes = [mesh_lib.make_mesh(MeshConfig(*shape)) for shape in shapes_of_mesh]
        results = []
        for mesh in (mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1]), *meshes):

            def loss(
                hidden: jax.Array,
                kernel: jax.Array,
                theirs: jax.Array,
                their_kernel: jax.Array,
                batch: dict[str, jax.Array],
                config: DistilConfig = config,
                mesh: jax.sharding.Mesh = mesh,
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
                head = chunks.Head(theirs, their_kernel)
                return losses.batch_loss(config, legal, hidden, kernel, batch, 3, mesh, head)

            lies = jax.sharding.NamedSharding(mesh, P(("data", "fsdp"), "sequence"))
            own = jax.sharding.NamedSharding(mesh, P(("fsdp", "sequence"), "tensor"))
            args = [jax.device_put(x, own if "kernel" in name else lies) for name, x in given.items()]
            batch = jax.device_put(by_token, lies)
            results.append(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*args, batch))
        leaves = [[np.asarray(x) for x in jax.tree.leaves(one)] for one in results]
        for mesh, one in zip(meshes, leaves[1:], strict=True):
            worst = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(leaves[0], one, strict=True))
            found.append({"loss": config.loss, "mesh": dict(mesh.shape), "worst": worst})
    return found


def operations() -> list[float]:
    """Operations of one device for the gradients of 16 rows, layers counted once: rows split 8 ways, and 4 by 2."""
    model = MODELS["untied"]
    counted = []
    for shape, parts in itertools.product(((1, 8, 1, 1), (1, 4, 2, 1)), (1, 2)):
        mesh = mesh_lib.make_mesh(MeshConfig(*shape))
        step = step_lib.make_gradients(model, TrainConfig(**TRAIN, attention="chunked", mlp_parts=parts), mesh)
        params = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            decoder.abstract_params(model),
            sharding.param_shardings(model, mesh),
        )
        compiled = jax.jit(step).lower(params, sharding.put_batch(make_batch(), mesh)).compile()
        counted.append(compiled.cost_analysis()["flops"])
    return counted


def attention_with_three_key_heads() -> list[float]:
    """Differences of outcome and gradients from one device's, with key heads 0, 0, 1 on one device and 1, 2, 2 on the
    other, and four devices to a row."""
    batch = make_batch()
    rng = np.random.default_rng(3)
    q, k, v, weights = (rng.normal(size=(16, 16, heads, 4)).astype(np.float32) for heads in (6, 3, 3, 6))

    def run(mesh: jax.sharding.Mesh) -> list[np.ndarray]:
        order = sharding.places(16, mesh.shape["sequence"]).ravel()
        attend = parallel_ops.attend(mesh, "chunked")
        segments = batch["segment_ids"][:, order]

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(weights[:, order] * attend(q, k, v, segments) ** 2)

        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*(x[:, order] for x in (q, k, v)))
        return [np.asarray(value) / 1e3, *(np.asarray(g)[:, np.argsort(order)] for g in grads)]

    one = run(mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1]))
    eight = run(mesh_lib.make_mesh(MeshConfig(fsdp=1, sequence=4, tensor=2)))
    return [float(np.abs(a - b).max()) for a, b in zip(one, eight, strict=True)]


def shards() -> dict[str, float]:
    """Shares of weights and moments that one device of (1, 2, 2, 2) is to hold, which the step is compiled for."""
    model = MODELS["untied"]
    mesh = mesh_lib.make_mesh(MeshConfig(1, 2, 2, 2))
    shares = {}
    for optimizer in (OptimizerConfig(name="muon"), OptimizerConfig()):
        abstract = step_lib.abstract_state(model, optimizer_lib.make(optimizer, model, 10), mesh, "float32")
        leaves = [leaf for leaf in jax.tree.leaves(abstract) if leaf.ndim]
        held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        shares[optimizer.name] = held / sum(leaf.size for leaf in leaves)
    return shares


def rounding() -> bool:
    """Whether bfloat16 weights on 8 devices are rounded as on one."""
    rng = np.random.default_rng(5)
    weights = jnp.asarray(rng.normal(size=(16, 24)), jnp.bfloat16)
    updates = np.float32(1e-4 * rng.normal(size=(16, 24)))
    mesh = mesh_lib.make_mesh(MeshConfig(2, 2, 1, 2))
    lies = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
    apply = jax.jit(optimizer_lib.apply)
    eight = apply(jax.device_put(weights, lies), jax.device_put(updates, lies), 3)
    assert len(eight.sharding.device_set) == 8
    return bool(jnp.array_equal(np.asarray(eight), np.asarray(apply(weights, updates, 3))))


def checkpoints(folder: pathlib.Path) -> list[bool]:
    """Whether weights written from one mesh are read back onto others as they were."""
    model, params = MODELS["tied"], weights("tied")
    tokenizer = Tokenizer.load(pathlib.Path(store.__file__).parent.parent / "assets" / "countdown_tokenizer")
    placed = jax.device_put(params, sharding.param_shardings(model, mesh_lib.make_mesh(MeshConfig(2, 2, 1, 2))))
    store.save_model(folder / "ckpt", placed, model, tokenizer, chat.FORMATS["s1_plain"], {})
    same = []
    for mesh in (
        None,
        mesh_lib.make_mesh(MeshConfig(1, 2, 2, 2)),
        mesh_lib.make_mesh(MeshConfig(1, 4, 1, 1), jax.devices()[:4]),
    ):
        loaded = store.load_model(folder / "ckpt", mesh=mesh).params
        pairs = zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True)
        same.append(all(bool(jnp.array_equal(np.asarray(a), np.asarray(b))) for a, b in pairs))
        wanted = 8 if mesh is not None and mesh.size == 8 else 1 if mesh is None else 4
        same.append(len(loaded["embed"]["embedding"].sharding.device_set) == wanted)
    return same


if __name__ == "__main__":
    found = {
        "compare": compare(),
        "distillation": distillation(),
        "operations": operations(),
        "attention": attention_with_three_key_heads(),
        "shards": shards(),
        "rounding": rounding(),
        "checkpoints": checkpoints(pathlib.Path(sys.argv[1])),
    }
    print(json.dumps(found))
