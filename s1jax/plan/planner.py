"""Compiles the real train step for a target and reports what a run takes.

Memory is the compiler's own account, traffic is counted in the optimised HLO (`hlo`), FLOPs in the jaxpr (`flops`) or
the HLO, where they are more. The time of a step is a roofline: every instruction takes the time of its products at peak
or of its operands at full bandwidth, whichever is longer, and the interconnect works in parallel. No machine reaches
it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from s1jax import perf
from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.data import teacher_logits
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding
from s1jax.plan import flops, hlo, targets
from s1jax.training import lora as lora_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from s1jax.training import teacher as teacher_lib
from s1jax.training.losses import sparse_distillation


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of one step; bytes and FLOPs are per device.

    Attributes:
      target: name of the machine.
      devices: how many.
      mesh: sizes by axis.
      rows: sequences per step over all devices.
      block_size: ids per row.
      memory: bytes by kind; `peak` is the compiler's figure of all together, `limit` what a program may use.
      model_flops: FLOPs of the model, with causal attention counted once and without recomputation.
      executed_flops: FLOPs of the program's matrix products, with recomputation and redundant work of devices.
      collectives: bytes by operation.
      exposed: those that overlap with no matrix product.
      synchronous_gathers: number of gathers in loops that cannot overlap with anything.
      memory_bytes: read and written.
      seconds: of each resource alone at full use; `step`, see `_step`.
      compile_seconds: compile time on the present machine.
      note: sentences on settings that were changed; empty if none was.
    """

    target: str
    devices: int
    mesh: dict[str, int]
    rows: int
    block_size: int
    memory: dict[str, float]
    model_flops: float
    executed_flops: float
    collectives: dict[str, float]
    exposed: dict[str, float]
    synchronous_gathers: int
    memory_bytes: float
    seconds: dict[str, float]
    compile_seconds: float
    note: str

    @property
    def fits(self) -> bool:
        return self.memory["peak"] <= self.memory["limit"]

    @property
    def mfu(self) -> float:
        """Share of peak at the roofline's step time: an upper bound."""
        return self.model_flops / targets.parse(self.target).chip.flops / self.seconds["step"]


class DoesNotFitError(UserError):
    """The compiler found no room for a step; the sentence says what to change."""


def plan(
    experiment: Experiment,
    model: ModelConfig,
    target: targets.Target,
    rows: int = 0,
    teacher: ModelConfig | None = None,
) -> Plan:
    """Compiles the step of `experiment` on a `model` for `target`; padding counts as tokens.

    Args:
      experiment: its `mesh`, `train`, `optimizer` and `data.block_size` are used, with a teacher `distil`.
      model: its shape.
      target: of `targets.parse`.
      rows: of a batch; 0: `train.batch_size`, as many as padded batches have, or those that `train.batch_tokens` makes.
      teacher: shape of the model that a distillation runs beside it; None: there is none.

    Raises:
      DoesNotFitError: if the compiler says so; only that of TPUs does.
      UserError: if the mesh does not divide the devices, the batch or the model, or the compiler gives up.
    """
    mesh = mesh_lib.make_mesh(experiment.mesh, targets.devices(target))
    experiment, note = parallel_ops.choose_attention(experiment, model, mesh, target.platform)
    train, block = experiment.train, experiment.data.block_size
    notes = [note] if note else []
    if experiment.data.batching == "packed" and not rows and train.batch_size:
        notes.append(
            "packed rows of a step are fewer than its sequences; give --num_tokens, or launch.train's rows"
            " as --rows_per_step."
        )
    rows = rows or rows_of(experiment)
    if experiment.data.batching == "packed" and train.batch_size:  # filled up, as in training
        multiple = mesh_lib.row_shards(mesh) * train.accumulation
        rows = -(-rows // multiple) * multiple
    size = f"batch_size={train.batch_size}" if train.batch_size else f"batch_tokens={train.batch_tokens}"
    sharding.check_batch(rows, block, mesh, f"a step of train.{size}")
    lora, optimizer = experiment.lora, dataclasses.replace(experiment.optimizer, offload=False)
    if experiment.optimizer.offload:
        notes.append(
            "the plan has the moments on the device: ahead of time, compilers ignore config.optimizer.offload."
        )
    tx = optimizer_lib.make(optimizer, model, 100, lora)
    state = step_lib.abstract_state(model, tx, mesh, train.param_dtype, lora)
    distilled, of_teacher = _teacher(experiment, model, teacher, mesh, target)
    base = lora_lib.abstract_base(model, lora, train, mesh) if lora.rank else None
    frozen = [] if of_teacher is None and base is None else [step_lib.Frozen(of_teacher, base)]
    stored: dict[str, jax.ShapeDtypeStruct] = {}
    if experiment.distil.targets and experiment.distil.weight:
        distilled, stored = _stored(experiment, model, (rows, block), mesh, notes)
    if experiment.distil.on_policy:
        notes.append("the engine of config.distil.on_policy, a copy of the weights and a KV cache, is not in the plan.")
    step = step_lib.make_step(model, train, optimizer, 100, tx, mesh, state, **distilled, lora=lora)
    kinds = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), jnp.int32) | {"weights": jnp.float32}
    shape, lies = (rows, block), sharding.token_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=lies) for name, kind in kinds.items()} | stored
    held = {"teacher": of_teacher, "frozen weights": base, "stored targets": stored}
    beside = {name: float(perf.held_bytes(arrays)) for name, arrays in held.items() if arrays}
    start = time.monotonic()
    with targets.answering_for(target):
        traced = step.trace(state, batch, *frozen)
        lowered = traced.lower(lowering_platforms=(target.platform,))
    try:
        compiled = step_lib.compile_for(target.platform, lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "; ".join(remedies(experiment, dict(mesh.shape), rows))
        raise DoesNotFitError(f"{target.name}: the step does not fit ({_first_line(error)}). {advice}.") from None
    seconds_compiling = time.monotonic() - start
    traffic = hlo.traffic(compiled.as_text() or "")
    adapters = adapters_lib.num_params(model, lora, active=True) if lora.rank else 0
    pairs = perf.pairs_by_window([block] * rows, model, *([] if teacher is None else [teacher]))
    needed = perf.train_flops(model, math.prod(shape), pairs, teacher, adapters)
    # The partitioned program may repeat a product on several devices; kernels are only in the jaxpr.
    executed = max(flops.count(traced.jaxpr.jaxpr) / mesh.size, traffic.operations)
    seconds = {
        "compute": executed / target.chip.flops,
        "memory": traffic.memory / target.chip.bandwidth,
        "interconnect": interconnect(traffic, mesh.devices.reshape(-1), target),
    }
    return Plan(
        target=target.name,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        rows=rows,
        block_size=block,
        memory=_memory(experiment, model, state, beside, mesh, compiled.memory_analysis(), target, rows),
        model_flops=needed / mesh.size,
        executed_flops=executed,
        collectives=traffic.collectives,
        exposed=traffic.exposed,
        synchronous_gathers=traffic.synchronous,
        memory_bytes=traffic.memory,
        seconds=seconds | {"step": _step(traffic, executed, seconds["interconnect"], target.chip)},
        compile_seconds=seconds_compiling,
        note=" ".join(notes),
    )


def _teacher(
    experiment: Experiment, model: ModelConfig, teacher: ModelConfig | None, mesh: Mesh, target: targets.Target
) -> tuple[dict[str, Any], Any]:
    """What `step_lib.make_step` and its step have to get for a teacher: loss and teacher, abstract weights."""
    if teacher is None:
        return {}, None
    config = teacher_lib.shape(teacher, model.vocab_size)
    chosen, _ = parallel_ops.choose_attention(experiment, config, mesh, target.platform)
    shapes = decoder.abstract_params(config, jnp.dtype(experiment.train.compute_dtype))
    frozen = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.param_shardings(config, mesh),
    )
    # Some tokens have no id in every published model; which ones does not change the program.
    legal = np.arange(model.vocab_size) < model.vocab_size - 1
    loss = teacher_lib.loss(experiment.distil, legal)
    return {"loss": loss, "teacher": step_lib.Teacher(config, chosen.train.attention)}, frozen


def _stored(
    experiment: Experiment, model: ModelConfig, shape: tuple[int, int], mesh: Mesh, notes: list[str]
) -> tuple[dict[str, Any], dict[str, jax.ShapeDtypeStruct]]:
    """What `step_lib.make_step` has to get for stored targets, the loss, and their arrays [rows, block, ...]."""
    folder = pathlib.Path(experiment.distil.targets)
    kind, width = "top_k", 64
    if folder.exists():
        found = teacher_logits.Folder(folder)
        kind, width = found.settings.kind, found.width
    else:
        notes.append(f"config.distil.targets={folder} is not there; it is planned with the {width} most probable ids.")
    sizes = {"teacher_ids": (*shape, width), "teacher_probabilities": (*shape, width), "teacher_rest": shape}
    place = sharding.token_sharding(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(size, jnp.int32 if name == "teacher_ids" else jnp.float32, sharding=place)
        for name, size in sizes.items()
        if kind == "top_k" or name != "teacher_rest"
    }
    legal = np.arange(model.vocab_size) < model.vocab_size - 1  # as in `_teacher`
    return {"loss": functools.partial(sparse_distillation.batch_loss, experiment.distil.weight, legal)}, arrays


def interconnect(traffic: hlo.Traffic, devices: np.ndarray, target: targets.Target) -> float:
    """Seconds of all collectives in sequence, each at the bandwidth between the devices of its group.

    `devices` are those of the mesh, in order.
    """
    by_group = collections.defaultdict[tuple[int, ...], float](float)
    for size, group in traffic.between:
        by_group[group or tuple(range(len(devices)))] += size
    return sum(
        size * (len(group) - 1) / len(group) / target.interconnect([devices[place] for place in group])
        for group, size in by_group.items()
    )


def _step(traffic: hlo.Traffic, executed: float, interconnect: float, chip: targets.Chip) -> float:
    """Seconds of a step: the sum over its instructions, or the interconnect's time if that is longer.

    Products outside of all instructions belong to kernels (attention, on a GPU most others) and count at peak.
    """
    alone = sum(
        times * max(operations / chip.flops, moved / chip.bandwidth) for times, operations, moved in traffic.work
    )
    return max(alone + (executed - traffic.operations) / chip.flops, interconnect)


def rows_of(experiment: Experiment) -> int:
    """Rows per step if the lengths of packed sequences are not known."""
    train = experiment.train
    return train.batch_size or train.batch_tokens // experiment.data.block_size


def num_steps(experiment: Experiment, num_rows: int) -> int:
    """Optimizer steps of the whole recipe on `num_rows` rows; `train.batch_size` or `train.steps` is given."""
    return experiment.train.steps or math.ceil(num_rows / experiment.train.batch_size) * experiment.train.epochs


def remedies(experiment: Experiment, mesh: dict[str, int], rows: int) -> list[str]:
    """Advice if a step of `rows` rows doesn't fit, the cheapest change first; `mesh`: sizes by axis."""
    train, devices, advice = experiment.train, math.prod(mesh.values()), list[str]()
    if train.attention == "xla":
        advice.append("--config.train.attention=auto: no scores of whole rows")
    if train.remat != "full":
        advice.append("--config.train.remat=full: only each layer's input is kept")
    if train.accumulation < rows // devices:
        advice.append(f"--config.train.accumulation={rows // devices}: one row a device at a time")
    if experiment.lora.rank and not experiment.lora.quantized:
        advice.append("--config.lora.base=nf4: a quarter of the frozen weights")
    if train.mlp_parts == 1 and mesh["tensor"] == 1 and not experiment.lora.rank:
        advice.append("--config.train.mlp_parts=4: less of the MLP's hidden values")
    if experiment.optimizer.moment_dtype != "int8":
        narrower = "int8" if experiment.optimizer.moment_dtype == "bfloat16" else "bfloat16"
        advice.append(f"--config.optimizer.moment_dtype={narrower}: half the moments")
    if train.param_dtype != "bfloat16":
        advice.append("--config.train.param_dtype=bfloat16: half the weights, with stochastic rounding")
    if rows > devices:
        size = f"batch_size={devices}"
        if train.batch_tokens:
            size = f"batch_tokens={devices * experiment.data.block_size}"
        advice.append(f"--config.train.{size}, accumulation=1: no sums of gradients, but another recipe")
    split = ", mesh.sequence=2, mesh.tensor=2" if devices > 1 else ""
    return [*advice, f"a shorter data.block_size (now {experiment.data.block_size}){split}, or more devices"]


def _memory(
    experiment: Experiment,
    model: ModelConfig,
    state: step_lib.TrainState,
    beside: dict[str, float],
    mesh: Mesh,
    analysis: Any,
    target: targets.Target,
    rows: int,
) -> dict[str, float]:
    """Bytes per device: `other` and what has no array of its own follow from shapes; `peak` is the compiler's.

    `beside`: those of arrays that only a distillation has.
    """
    train, tokens = experiment.train, rows * experiment.data.block_size
    width = jnp.dtype(train.compute_dtype).itemsize
    local = tokens / mesh_lib.parts(mesh, (*mesh_lib.ROWS, mesh_lib.TOKENS)) / train.accumulation
    params = float(perf.held_bytes(state.params))
    weights = params / jnp.dtype(train.param_dtype).itemsize
    peak = analysis.peak_memory_in_bytes
    if target.platform == "cpu":  # whose compiler leaves out what is temporary
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        peak = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
    copies = weights * width if train.compute_dtype != train.param_dtype else 0.0
    gradients = weights * (4 if train.accumulation > 1 else width)
    if train.remat == "full" and train.accumulation == 1 and copies:  # the layers' gradients replace the copies
        stacks = [state.params.get(stack.name, {}) for stack in model.stacks()]
        layers = float(perf.held_bytes(stacks))
        gradients *= 1 - layers / params
    chunk = min(train.loss_chunk, local) * model.vocab_size / mesh_lib.parts(mesh, sharding.TABLE["vocab"])
    kinds = {
        "parameters": params,
        "moments": float(perf.held_bytes(state.opt_state)),
        "weights in compute type": copies,
        "gradients": gradients,
        "layer inputs": model.num_layers * local * model.d_model * width,
        "logits of a chunk": chunk * (8 if "teacher" in beside else 4),
        **beside,
    }
    return kinds | {"other": max(0.0, peak - sum(kinds.values())), "peak": float(peak), "limit": target.chip.memory}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
