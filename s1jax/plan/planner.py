"""Compiles the real train step for a target and says what a run of it takes.

Memory is the compiler's own account, traffic is counted in the optimised HLO (`hlo`), FLOPs in the jaxpr (`flops`) or
the HLO, where they are more. The time of a step is a roofline: every instruction takes what its products take at peak
or its operands at full bandwidth, whichever is longer, and the interconnect is busy beside them. No machine reaches it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from s1jax import meters, parallel
from s1jax.config import Experiment, InputError, ModelConfig
from s1jax.plan import flops, hlo, targets
from s1jax.train import optimizer as optimizer_lib
from s1jax.train import step as step_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step takes; bytes and FLOPs are of one device.

    Attributes:
      target: name of the machine.
      devices: how many.
      mesh: sizes by axis.
      rows: sequences per step over all devices.
      block_size: ids per row.
      memory: bytes by kind; `peak` is the compiler's figure of all together, `limit` what a program may use.
      model_flops: what the model needs, causal attention counted once, nothing for recomputation.
      executed_flops: matrix products of the program, recomputation and what several devices do alike included.
      collectives: bytes by operation.
      exposed: those of them that no product runs beside.
      memory_bytes: read and written.
      seconds: of each resource by itself at full use; `step`, see `_step`.
      compile_seconds: of the compiler, on the machine at hand.
      note: a sentence where another attention than the one asked for was compiled; else empty.
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


def plan(experiment: Experiment, model: ModelConfig, target: targets.Target) -> Plan:
    """Compiles the step of `experiment` on a `model` for `target`; rows of a batch are padded to their full length.

    Raises:
      InputError: where the mesh does not divide the devices, the batch or the model, or the compiler gives up.
    """
    mesh = parallel.make_mesh(experiment.mesh, targets.devices(target))
    experiment, note = parallel.choose_attention(experiment, mesh, target.platform)
    train, block = experiment.train, experiment.data.block_size
    parallel.check_batch(train.batch_size, block, mesh, f"a step of train.batch_size={train.batch_size}")
    tx = optimizer_lib.make(experiment.optimizer, model, 100)
    state = step_lib.abstract_state(model, tx, mesh, train.param_dtype)
    step = step_lib.make_step(model, train, experiment.optimizer, 100, tx, mesh, state)
    kinds = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), jnp.int32) | {"weights": jnp.float32}
    shape, rows = (train.batch_size, block), parallel.token_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=rows) for name, kind in kinds.items()}
    start = time.monotonic()
    with targets.answering_for(target):
        traced = step.trace(state, batch)
        lowered = traced.lower(lowering_platforms=(target.platform,))
    try:
        compiled = step_lib.compile_for(target.platform, lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"{target.name}: the step does not fit ({_first_line(error)}); use more devices, remat='full' or a "
            "smaller data.block_size."
        ) from None
    seconds_compiling = time.monotonic() - start
    traffic = hlo.traffic(compiled.as_text() or "")
    needed = meters.train_flops(model, math.prod(shape), train.batch_size * block * (block + 1) // 2)
    # The partitioned program may do a product on several devices; kernels are in the jaxpr alone.
    executed = max(flops.count(traced.jaxpr.jaxpr) / mesh.size, traffic.operations)
    moved = sum(2 * size if kind == "all-reduce" else size for kind, size in traffic.collectives.items())
    seconds = {
        "compute": executed / target.chip.flops,
        "memory": traffic.memory / target.chip.bandwidth,
        "interconnect": moved * (mesh.size - 1) / mesh.size / target.chip.interconnect,
    }
    return Plan(
        target=target.name,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        rows=train.batch_size,
        block_size=block,
        memory=_memory(experiment, model, state, mesh, compiled.memory_analysis(), target),
        model_flops=needed / mesh.size,
        executed_flops=executed,
        collectives=traffic.collectives,
        exposed=traffic.exposed,
        memory_bytes=traffic.memory,
        seconds=seconds | {"step": _step(traffic, executed, seconds["interconnect"], target.chip)},
        compile_seconds=seconds_compiling,
        note=note or "",
    )


def _step(traffic: hlo.Traffic, executed: float, interconnect: float, chip: targets.Chip) -> float:
    """Seconds of a step: the sum over its instructions, or the interconnect's where that is longer.

    Products that stand in no instruction are those of kernels (attention, on a GPU most others), at peak.
    """
    alone = sum(
        times * max(operations / chip.flops, moved / chip.bandwidth) for times, operations, moved in traffic.work
    )
    return max(alone + (executed - traffic.operations) / chip.flops, interconnect)


def num_steps(experiment: Experiment, num_rows: int) -> int:
    """Optimizer steps of the whole recipe on `num_rows` rows."""
    return experiment.train.steps or math.ceil(num_rows / experiment.train.batch_size) * experiment.train.epochs


def remedies(result: Plan, experiment: Experiment) -> list[str]:
    """What to change where the step doesn't fit, the cheapest first."""
    train, advice = experiment.train, []
    if train.attention == "xla":
        advice.append("--config.train.attention=auto: no scores of whole rows")
    if train.remat != "full":
        advice.append("--config.train.remat=full: only each layer's input is kept")
    if result.rows > result.devices and train.accumulation < result.rows // result.devices:
        advice.append(f"--config.train.accumulation={result.rows // result.devices}: one row a device at a time")
    if train.mlp_parts == 1 and result.mesh["tensor"] == 1:
        advice.append("--config.train.mlp_parts=4: less of the MLP's hidden values")
    if experiment.optimizer.moment_dtype != "bfloat16":
        advice.append("--config.optimizer.moment_dtype=bfloat16: half the moments")
    if train.param_dtype != "bfloat16":
        advice.append("--config.train.param_dtype=bfloat16: half the weights, rounded at random")
    shorter = f"a shorter data.block_size (now {result.block_size})"
    advice.append(f"{shorter}, mesh.sequence=2, mesh.tensor=2, or more devices")
    return advice


def _memory(
    experiment: Experiment, model: ModelConfig, state: Any, mesh: Any, analysis: Any, target: targets.Target
) -> dict[str, float]:
    """Bytes of one device: `parameters`, `moments` and `peak` exact, the rest from shapes, `other` what is left."""
    train, tokens = experiment.train, experiment.train.batch_size * experiment.data.block_size
    width = jnp.dtype(train.compute_dtype).itemsize
    local = tokens / parallel.parts(mesh, (*parallel.ROWS, parallel.TOKENS)) / train.accumulation
    params = float(meters.held_bytes(state.params))
    weights = params / jnp.dtype(train.param_dtype).itemsize
    peak = analysis.peak_memory_in_bytes
    if target.platform == "cpu":  # whose compiler leaves out what is temporary
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        peak = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
    copies = weights * width if train.compute_dtype != train.param_dtype else 0.0
    gradients = weights * (4 if train.accumulation > 1 else width)
    if train.remat == "full" and train.accumulation == 1 and copies:  # the layers' take the place of the copies
        layers = float(meters.held_bytes(state.params["layers"]))
        gradients *= 1 - layers / params
    chunk = min(train.loss_chunk, local) * model.vocab_size / parallel.parts(mesh, parallel.TABLE["vocab"])
    kinds = {
        "parameters": params,
        "moments": float(meters.held_bytes(state.opt_state)),
        "weights in compute type": copies,
        "gradients": gradients,
        "layer inputs": model.num_layers * local * model.d_model * width,
        "logits of a chunk": chunk * 4,
    }
    return kinds | {"other": max(0.0, peak - sum(kinds.values())), "peak": float(peak), "limit": target.chip.memory}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
