"""Compiles the decode program of the engine for a target and reports the memory that it takes."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from s1jax import perf
from s1jax.config.experiment import MeshConfig
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import budget, capacity, programs
from s1jax.engine import logits as logits_lib
from s1jax.errors import UserError
from s1jax.model import layouts, quant_groups
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import quantized, sharding
from s1jax.plan import hlo, targets
from s1jax.text.delimiters import Delimiters

DTYPE = "bfloat16"  # of activations


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """What a loop of decode steps takes; bytes are per device.

    Attributes:
      target: name of the machine.
      mesh: sizes by axis.
      slots: sequences at one time.
      cache_length: tokens of each; there are pages for all of them.
      weight_dtype: of the matrices; empty: bfloat16.
      memory: bytes by kind; `peak` is the compiler's figure of all together, `limit` what a program may use.
      collectives: bytes of one step, by operation.
      compile_seconds: compile time on the present machine.
      note: sentences on what the plan leaves out; empty if nothing.
    """

    target: str
    mesh: dict[str, int]
    slots: int
    cache_length: int
    weight_dtype: str
    memory: dict[str, float]
    collectives: dict[str, float]
    compile_seconds: float
    note: str

    @property
    def fits(self) -> bool:
        return self.memory["peak"] <= self.memory["limit"]


def plan(
    config: ModelConfig,
    target: targets.Target,
    mesh_config: MeshConfig,
    *,
    slots: int,
    cache_length: int,
    weight_dtype: str = "",
    cache_dtype: str = "",
) -> SamplingPlan:
    """Compiles the decode program of `s1jax.engine.engine.Engine` for a model.

    On one GPU with room for it the layers are held a second time, unstacked, as in the engine.

    Args:
      config: shape of the model.
      target: of `targets.parse`.
      mesh_config: how its devices are arranged.
      slots: batch slots; a multiple of the row shards.
      cache_length: tokens of a sequence.
      weight_dtype: fp8, mxfp4, or empty: bfloat16.
      cache_dtype: of the KV cache; empty: bfloat16.

    Raises:
      UserError: the mesh does not divide the devices, the slots or the model, or the compiler gives up.
    """
    mesh = mesh_lib.make_mesh(mesh_config, targets.devices(target))
    shards = mesh_lib.row_shards(mesh)
    if slots % shards:
        raise UserError(f"{slots} slots do not divide over the {shards} row shards of the mesh; give a multiple.")
    if cache_length > config.context_length:
        raise UserError(f"a cache of {cache_length} tokens exceeds the model's context of {config.context_length}.")
    alone, on_gpu = mesh.size == 1, target.platform == "cuda"
    params, whole = _weights(config, weight_dtype, mesh), NamedSharding(mesh, PartitionSpec())
    limit, held = target.chip.memory, float(perf.held_bytes(params))
    notes, copy = [], 0.0
    unstack = on_gpu and perf.fits(params, limit - held)
    if unstack and not alone:
        notes.append("the engine also holds the layers unstacked on this mesh, which the plan leaves out.")
    unstack = unstack and alone
    if on_gpu and alone:
        params = jax.eval_shape(quant_groups.for_gpu, params)
    if unstack:
        copy = held
        params = jax.eval_shape(lambda p: layouts.unstack(p, config, transpose_kernels=False), params)
    if alone:
        params = _placed(params, whole)
    page = capacity.page_size(target.platform)
    pages = slots // shards * -(-cache_length // page) * shards
    start = functools.partial(programs.start, config, slots, pages, page, cache_dtype or DTYPE)
    run = _placed(jax.eval_shape(lambda: start(unstack=unstack, mesh=None)), whole)
    rows = sharding.page_sharding(mesh, config.num_kv_heads)
    if not alone:
        run = dataclasses.replace(run, pages=_placed(run.pages, rows))
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    begin = time.monotonic()
    with targets.answering_for(target):
        lowered = programs.decode.trace(
            params, run, _placed(_settings(config, slots, cache_length, page), whole), number, number,
            config=config, at_once=capacity.pages_at_once(target.platform, slots, DTYPE), in_place=on_gpu, dtype=DTYPE,
            mesh=None if alone else mesh,
        ).lower(lowering_platforms=(target.platform,))  # fmt: skip
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{target.name}: the program does not fit ({reason}); give fewer slots or tokens.") from None
    seconds = time.monotonic() - begin
    cache = float(perf.held_bytes(run.pages))
    peak = copy + float(compiled.memory_analysis().peak_memory_in_bytes)
    memory = {"weights": held} | ({"weights, unstacked": held} if copy else {}) | {"KV cache": cache}
    memory |= {"other": max(0.0, peak - sum(memory.values())), "peak": peak, "limit": limit}
    return SamplingPlan(
        target.name, dict(mesh.shape), slots, cache_length, weight_dtype, memory,
        hlo.traffic(compiled.as_text() or "", unknown_runs=1).collectives, seconds, " ".join(notes),
    )  # fmt: skip


def _weights(config: ModelConfig, weight_dtype: Any, mesh: Mesh) -> Any:
    if weight_dtype:
        return quantized.abstract(config, weight_dtype, DTYPE, mesh)
    return sharding.abstract_params(config, DTYPE, mesh)


def _placed(tree: Any, place: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _settings(config: ModelConfig, slots: int, length: int, page: int) -> programs.Settings:
    """Of requests with default parameters; which token ids the delimiters have changes nothing."""
    delimiters = Delimiters(
        think_start=(1, 2), think_end=(3, 4), newline=(6,), final_answer=(5,), end=(3,), stop=(7,),
        ends_in_newline=(6,), num_ids=config.vocab_size,
    )  # fmt: skip
    rows = [SamplingParams()] * slots
    return programs.Settings(
        logits_lib.Sampling.of(rows),
        budget.Budgets.of(rows),
        budget.Rules.of(delimiters, config.vocab_size, [(8,)] * slots),
        jnp.zeros((slots, -(-length // page)), jnp.int32),
        jnp.full(slots, length, jnp.int32),
    )
