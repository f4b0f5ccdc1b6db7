"""One run on 8, then 4, then 8 of 8 fake devices, each time on another mesh, and the same run on one device.

It is a distillation: a step reads the weights of a teacher besides those that it trains. So does a second one, which
trains adapters of a base in nf4 instead.

Run by tests/training/test_elastic.py in a process of its own. Usage: elastic.py FOLDER.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

import s1jax  # noqa: E402
from s1jax.checkpoint import store  # noqa: E402
from s1jax.config.experiment import (  # noqa: E402
    CheckpointConfig,
    DataConfig,
    DistilConfig,
    Experiment,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from s1jax.config.model import ModelConfig  # noqa: E402
from s1jax.data.batches import Batches  # noqa: E402
from s1jax.data.packing import Example  # noqa: E402
from s1jax.model import decoder  # noqa: E402
from s1jax.parallel import mesh as mesh_lib  # noqa: E402
from s1jax.parallel import quantized, sharding  # noqa: E402
from s1jax.text import chat  # noqa: E402
from s1jax.text.tokenizer import Tokenizer  # noqa: E402
from s1jax.training import loop, step, teacher  # noqa: E402
from s1jax.training import lora as adapters  # noqa: E402
from s1jax.training import workdir as workdir_lib  # noqa: E402
from s1jax.training.callbacks import Callbacks  # noqa: E402
from s1jax.training.prepare import Prepared  # noqa: E402

MODEL = ModelConfig.dense(
    vocab_size=128, d_model=16, mlp_dim=16, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, tied_embeddings=True
)
TEACHER = dataclasses.replace(MODEL, d_model=24)
EXPERIMENT = Experiment(
    model=MODEL,
    distil=DistilConfig(teacher="made below", loss="jsd", weight=0.5),
    data=DataConfig(block_size=16, batching="packed"),
    train=TrainConfig(batch_size=6, epochs=3, compute_dtype="float32", remat="none", loss_chunk=16),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    checkpoint=CheckpointConfig(every=0),
)
WIDE = ModelConfig.dense(
    vocab_size=128,
    d_model=128,
    mlp_dim=128,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tied_embeddings=True,
)
ADAPTED = dataclasses.replace(
    EXPERIMENT, model=None, init_from="made below", lora=LoraConfig(rank=4, alpha=8.0, base="nf4")
)
# Devices, mesh (data, fsdp, sequence) and the step after which the run is stopped there.
PARTS = [(8, (2, 4, 1), 2), (4, (1, 2, 2), 5), (8, (1, 8, 1), 9)]
ADAPTED_PARTS = [(4, (2, 2, 1), 2), (2, (1, 1, 2), 9)]


def examples() -> list[Example]:
    """17 rows of 4 to 16 ids, so that packing makes another number of rows at every step."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(17):
        length = int(rng.integers(5, 18))
        rows.append(Example(rng.integers(128, size=length).astype(np.int32), np.arange(length) > 2, f"row {i}"))
    return rows


@functools.cache
def teacher_weights() -> decoder.Params:
    """Weights of the teacher on the host, which every part places on its own mesh."""
    return jax.tree.map(np.asarray, jax.jit(lambda: decoder.init_params(TEACHER, jax.random.key(1)))())


def part(
    workdir: pathlib.Path, devices: int, shape: tuple[int, int, int], last: int, settings: Experiment = EXPERIMENT
) -> None:
    """Goes on with the run in `workdir` up to step `last`."""
    mesh = mesh_lib.make_mesh(MeshConfig(*shape), jax.devices()[:devices])
    experiment = dataclasses.replace(settings, mesh=MeshConfig(*shape))
    lora, model = experiment.lora, experiment.model or WIDE
    train, data = experiment.train, experiment.data
    batches = Batches(
        examples(),
        batch_size=train.batch_size,
        block_size=data.block_size,
        batching=data.batching,
        epochs=train.epochs,
        row_multiple=mesh_lib.row_shards(mesh),
    )
    tokenizer = Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")
    metadata = store.Metadata(model, tokenizer, chat.FORMATS["s1_plain"], {})
    if lora.rank:
        metadata = dataclasses.replace(metadata, adapters=store.AdapterInfo(lora, "made below", "digest"))

    def init(model: ModelConfig) -> Callable[[], decoder.Params]:
        shardings = sharding.param_shardings(model, mesh)
        return jax.jit(lambda: decoder.init_params(model, jax.random.key(0)), out_shardings=shardings)

    def make_teacher() -> decoder.Params:
        return jax.device_put(teacher_weights(), sharding.param_shardings(TEACHER, mesh))

    spec, loss = step.Teacher(TEACHER, train.attention), teacher.loss(experiment.distil)
    online = teacher.Online(spec, loss, loss, "digest of the teacher", make_teacher)
    with workdir_lib.claim(workdir, experiment, batches.digest, online.digest):
        if lora.rank:
            prepared = Prepared(
                experiment, mesh, metadata, batches, lambda: adapters.init(model, lora, 0, "float32", mesh),
                teacher=online,
                make_base=lambda: quantized.quantize(init(model)(), model, lora.base, train.compute_dtype, mesh),
            )  # fmt: skip
        else:
            prepared = Prepared(experiment, mesh, metadata, batches, init(model), teacher=online)
        loop.run(prepared, workdir, Callbacks(should_stop=lambda step: step == last))


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    part(folder / "whole", 1, (1, 1, 1), 9)
    for devices, shape, last in PARTS:
        part(folder / "moved", devices, shape, last)
    part(folder / "whole_adapters", 1, (1, 1, 1), 9, ADAPTED)
    for devices, shape, last in ADAPTED_PARTS:
        part(folder / "moved_adapters", devices, shape, last, ADAPTED)
