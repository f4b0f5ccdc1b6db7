"""The jitted training step, with the state that it advances."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from s1jax.config.experiment import OptimizerConfig, TrainConfig
from s1jax.config.lora import OFF, LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.config.schema import require
from s1jax.errors import UserError
from s1jax.model import decoder, remat
from s1jax.model.adapters import Adapters
from s1jax.model.mlp import router
from s1jax.parallel import experts as experts_lib
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding
from s1jax.training import lora as lora_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training.losses.chunks import Head
from s1jax.training.losses.cross_entropy import batch_loss

Batch = dict[str, jax.Array]
Losses = tuple[jax.Array, dict[str, jax.Array]]  # the loss and its parts, as of `Loss`

# On GPUs, gathers and reduce-scatters of weights are not combined: each starts early, and several run at a time. By
# default XLA combines them into one that a layer waits for. For Qwen2.5-7B at 8k on 16 H100, 14 of 14 GB of
# reduce-scatters and 4.2 of 27 GB of gathers then overlapped with no product; with these options 1.2 and 1.2 GB.
_GPU: dict[str, str | bool] = {
    "xla_gpu_all_gather_combine_threshold_bytes": "1",
    "xla_gpu_reduce_scatter_combine_threshold_bytes": "1",
    "xla_gpu_experimental_parallel_collective_overlap_limit": "8",
}
# Options for `jax.stages.Lowered.compile` by backend. Without the first, the TPU compiler splits gathers and products
# into loops that compute weight gradients twice. The next six run collectives on the SparseCore, in parallel with the
# products: gathers of weights, also over two and three axes of a slice, and reductions of gradients, scattered along
# all axes. Otherwise the products wait for both, and every device gets the whole sum. `prefer` keeps gathers from
# becoming all-reduces of mostly zeros with twice the traffic, as all did on v5p 4x4x4. The last gives the backward
# kernel of splash attention on v5p the memory that it has by default on v6e.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    "tpu": {
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
        "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
        "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
        "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
        "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": "true",
        "xla_tpu_prefer_async_allgather_to_allreduce": "true",
        "xla_tpu_scoped_vmem_limit_kib": "32768",
    },
    "gpu": _GPU,
    "cuda": _GPU,  # the same, to a compiler ahead of time
}


class Loss(Protocol):
    """What a step minimises, as a function of the decoder's output."""

    def __call__(
        self,
        hidden: jax.Array,
        kernel: jax.Array,
        batch: Batch,
        chunk: int,
        mesh: Mesh,
        teacher: Head | None = None,
        softcap: float = 0.0,
    ) -> Losses:
        """Returns the loss of a micro-batch and the parts of it that are metrics of the step, by name.

        Args:
          hidden: [B, T, D], the decoder's output after its final norm.
          kernel: [D, V], the output projection.
          batch: arrays [B, T] of `s1jax.data.packing`, and others that the source of the batches adds. `weights` are
            divided by their sum over the whole batch.
          chunk: positions of a row whose logits may exist at one time.
          mesh: the arrays are placed on it.
          teacher: the output of another decoder for the same tokens, which has no gradient; None: there is none.
          softcap: of the decoder's logits, see `Head`.

        Returns:
          float32 scalars: the sum of weights * (loss of a token), and such sums by name. Those of the micro-batches are
          added up.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A decoder whose output the loss reads; its weights are an argument of the step and never change.

    Attributes:
      config: its shape, with as many rows of the vocabulary as the trained model has.
      attention: kernel, as `TrainConfig.attention`; `auto` is not one.
    """

    config: ModelConfig
    attention: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Weights that a step reads and never changes.

    Attributes:
      teacher: of the teacher, if there is one.
      base: those that adapters are trained for, see `s1jax.training.lora`.
    """

    teacher: Any = None
    base: Any = None


_NOTHING = Frozen()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from step to step.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: master weights, the tree of `decoder.init_params`; with LoRA the adapters (`s1jax.model.adapters`).
      opt_state: of the optimizer.
    """

    step: Any
    params: Any
    opt_state: Any


def abstract_state(
    config: ModelConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    dtype: Any,
    lora: LoraConfig = OFF,
    offload: bool = False,
) -> TrainState:
    """The state's shapes, types and shardings; the optimizer's moments are placed like their weights.

    With `offload` they are so in the memory of the hosts.
    """
    shapes = lora_lib.abstract_trained(config, lora, dtype)
    shardings = lora_lib.trained_shardings(config, lora, mesh)
    one = sharding.replicated(mesh)

    by_name = {_dict_keys(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)}

    def with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def of_moment(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        *names, last = _dict_keys(path) or ("",)
        place = by_name.get((*names, last)) or by_name.get(tuple(names), one)
        if last == "scales" and names and place is not one:  # of blocks along the last axis
            place = _of_blocks(place, leaf.shape)
        host = offload and can_offload(mesh)
        return with_sharding(leaf, place.with_memory_kind("pinned_host") if host else place)

    # `optax.tree.map_params` would do this but for Muon, whose masks it cannot look through.
    opt_state = jax.tree_util.tree_map_with_path(of_moment, jax.eval_shape(tx.init, shapes))
    return TrainState(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=one), jax.tree.map(with_sharding, shapes, shardings), opt_state
    )


def can_offload(mesh: Mesh) -> bool:
    """Whether arrays of a step can be in the memory of the hosts: not where the devices are the host."""
    return mesh.devices.flat[0].platform != "cpu"


def compile_for(backend: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a step with the `COMPILER_OPTIONS` of a backend; warns of options that its compiler does not know."""
    options = dict(COMPILER_OPTIONS.get(backend, {}))
    while True:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            unknown = re.search(r"No such compile option: '(\w+)'", str(error))
            if not unknown or unknown[1] not in options:
                raise
            del options[unknown[1]]
            warnings.warn(f"this compiler has no option {unknown[1]}; the step is compiled without.", stacklevel=2)


def _dict_keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The dict keys at the end of a path: the name of a weight, for the weight itself and for its moments."""
    names: list[str] = []
    for entry in reversed(path):
        if not isinstance(entry, jax.tree_util.DictKey):
            break
        names.insert(0, entry.key)
    return tuple(names)


def _of_blocks(place: jax.sharding.NamedSharding, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    """The sharding of an array with its last axis cut to blocks; not split along it where they do not divide."""
    axes = [*place.spec, *[None] * (len(shape) - len(place.spec))]
    whole = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(*axes[:-1]))
    last = (axes[-1],) if isinstance(axes[-1], str) else axes[-1] or ()
    split = math.prod(place.mesh.shape[axis] for axis in last)
    return whole if shape[-1] % split else place


def init_state(params: Any, tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """State at step 0 with `params`, cast and placed like `abstract`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    params = jax.tree.map(lambda x, leaf: jax.device_put(x.astype(leaf.dtype), leaf.sharding), params, abstract.params)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), params, opt_state)


def make_loss(
    config: ModelConfig,
    train: TrainConfig,
    mesh: Mesh,
    loss: Loss = batch_loss,
    teacher: Teacher | None = None,
    lora: LoraConfig = OFF,
) -> Callable[..., Losses]:
    """Returns `(params, batch, frozen=Frozen(), sums=None) -> (loss, parts)`, to be used under jit.

    It is the forward pass and `loss` of its output. Parameters are those of `compute_params`. `sums` are gradients of
    earlier micro-batches, see `remat.add_gradients`.

    Raises:
      UserError: where `train.mlp_parts` does not divide the model's MLP, the mesh splits it already, or there are
        adapters.
    """
    require(
        train.mlp_parts == 1 or not lora.rank,
        f"train.mlp_parts is {train.mlp_parts}, and an MLP with adapters is computed whole; set it to 1, or lora.rank"
        " to 0.",
    )
    _check_experts(config, train)
    widths = config.mlp_dims
    if train.mlp_parts > 1 and (any(f % train.mlp_parts for f in widths) or mesh.shape["tensor"] > 1):
        raise UserError(
            f"train.mlp_parts={train.mlp_parts} wants mesh.tensor=1, which is {mesh.shape['tensor']}, and a divisor of "
            f"the model's mlp_dim {', '.join(map(str, widths))}; change it, or set it to 1."
        )
    output = output_of(config, train, train.attention, mesh)
    layers = {stack.name for stack in config.stacks()}  # whose gradients the decoder adds itself
    theirs_of = None if teacher is None else output_of(teacher.config, train, teacher.attention, mesh)

    def micro_loss(params: Any, batch: Batch, frozen: Frozen = _NOTHING, sums: Any = None) -> Losses:
        if sums is not None and not lora.rank:
            rest, of_rest = ({name: tree[name] for name in tree if name not in layers} for tree in (params, sums))
            params = {**params, **remat.add_gradients(rest, of_rest)}
        theirs = None if theirs_of is None else jax.lax.stop_gradient(theirs_of(frozen.teacher, batch)[0])
        if lora.rank:
            head, load = output(frozen.base, batch, sums, Adapters(params, lora.scale))
        else:
            head, load = output(params, batch, sums)
        chunk = max(1, train.loss_chunk // _rows_per_device(batch, mesh))
        value, parts = loss(head.hidden, head.kernel, batch, chunk, mesh, theirs, softcap=head.softcap)
        if load is None:
            return value, parts
        balance = router.balance_loss(load, jnp.sum(batch["segment_ids"] > 0)) / train.accumulation
        parts = parts | {"router_aux_loss": balance, "router_counts": load.counts}
        return value + train.router_aux_loss * balance if train.router_aux_loss else value, parts

    return micro_loss


def _check_experts(config: ModelConfig, train: TrainConfig) -> None:
    """Checks that a load-balancing loss is defined for the model."""
    experts, asked = config.experts, f"train.router_aux_loss is {train.router_aux_loss}"
    require(not train.router_aux_loss or experts is not None, f"{asked}, but the model has no experts; set it to 0.")
    require(
        not train.router_aux_loss or experts is None or experts.scores != "sigmoid",
        f"{asked}, but it is defined for routers with a softmax, and this model's have a sigmoid; set it to 0.",
    )


def output_of(
    config: ModelConfig, train: TrainConfig, attention: str, mesh: Mesh
) -> Callable[..., tuple[Head, router.Load | None]]:
    """Returns `(params, batch, sums=None, adapters=None) -> (Head, load)`, a decoder's output for a micro-batch.

    The load of experts is that of `decoder.forward_with_load`.
    """
    attend, lookup = parallel_ops.attend(mesh, attention), parallel_ops.lookup(mesh)
    experts = experts_lib.apply(mesh)

    def output(
        params: Any, batch: Batch, sums: Any = None, adapters: Adapters | None = None
    ) -> tuple[Head, router.Load | None]:
        hidden, load = decoder.forward_with_load(
            params,
            config,
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            dtype=jnp.dtype(train.compute_dtype),
            remat=train.remat,
            attend=attend,
            lookup=lookup,
            mlp_chunks=mlp_chunks(train, config),
            merge_batch_and_seq=_rows_per_device(batch, mesh) == 1 or mesh.shape["sequence"] == 1,
            grad_accumulators=sums,
            adapters=adapters,
            experts=experts,
        )
        return Head(hidden, decoder.output_kernel(params, config), config.final_softcap), load

    return output


def mlp_chunks(train: TrainConfig, config: ModelConfig) -> int:
    """`train.mlp_parts`, or the largest divisor of it that divides the MLP of a decoder: a teacher's may be another."""
    return math.gcd(train.mlp_parts, *config.mlp_dims)


def _rows_per_device(batch: Batch, mesh: Mesh) -> int:
    return max(1, batch["tokens"].shape[0] // mesh_lib.row_shards(mesh))


def compute_params(params: Any, config: ModelConfig, train: TrainConfig, lora: LoraConfig = OFF) -> Any:
    """Master weights with the matrices in `train.compute_dtype`, as a forward pass uses them.

    Matrices are cast once, before any device gathers them; the gradients of the casts add up in float32. Routers stay
    as they are: they compute in float32.
    """
    dtype = jnp.dtype(train.compute_dtype)

    def cast(path: tuple[Any, ...], leaf: jax.Array, is_matrix: bool) -> jax.Array:
        return leaf.astype(dtype) if is_matrix and "router" not in _dict_keys(path) else leaf

    return jax.tree_util.tree_map_with_path(cast, params, optimizer_lib.is_matrix(config, lora))


def make_gradients(
    config: ModelConfig,
    train: TrainConfig,
    mesh: Mesh,
    loss: Loss = batch_loss,
    teacher: Teacher | None = None,
    lora: LoraConfig = OFF,
) -> Callable[..., tuple[Losses, Any]]:
    """Returns `(params, batch, frozen=Frozen()) -> ((loss, parts), gradients)`, to be used under jit.

    The batch's arrays are [B, T] as `sharding.put_batch` places them; `train.accumulation` micro-batches
    of B / accumulation rows run one after the other. With the default loss, loss and gradients are those of
    sum(weights * nll) / sum(weights) over the whole batch, float32 both.

    Raises:
      UserError: as `make_loss`.
    """
    micro_loss = make_loss(config, train, mesh, loss, teacher, lora)

    def gradients(params: Any, batch: Batch, frozen: Frozen = _NOTHING) -> tuple[Losses, Any]:
        values, grads = _gradients(micro_loss, config, train, lora, params, batch, frozen)
        return values, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    return gradients


def _gradients(
    micro_loss: Callable[..., Losses],
    config: ModelConfig,
    train: TrainConfig,
    lora: LoraConfig,
    params: Any,
    batch: Batch,
    frozen: Frozen,
) -> tuple[Losses, Any]:
    """As `make_gradients`, but the gradients of a single micro-batch are in the type that they were computed in."""
    total = jnp.maximum(batch["weights"].sum(), jnp.finfo(jnp.float32).tiny)  # no weight at all: loss 0, not NaN
    batch = batch | {"weights": batch["weights"] / total}
    return _accumulate(micro_loss, compute_params(params, config, train, lora), batch, frozen, train.accumulation)


def make_step(
    config: ModelConfig,
    train: TrainConfig,
    optimizer: OptimizerConfig,
    num_steps: int,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    abstract: TrainState,
    loss: Loss = batch_loss,
    teacher: Teacher | None = None,
    lora: LoraConfig = OFF,
) -> jax.stages.Wrapped:
    """Compiles nothing yet; returns the jitted `(state, batch) -> (state, metrics)`, which donates the state.

    The gradients are those of `make_gradients` with `loss`. With a teacher or LoRA `Frozen` is a third argument. Where
    loss or gradients are not finite, the state comes back as it was and `finite` is False.

    Metrics, all scalars: loss and its parts, learning_rate, grad_norm (before clipping), supervised (ids with weight >
    0), tokens (without padding), pairs ((query, key) pairs within causal segments, float32), pairs_W for every
    window W of layers (those of the pairs that are in it), finite. With experts also
    router_aux_loss (`router.balance_loss`, mean over the micro-batches, whether or not the loss has it),
    router_max_load (tokens of the fullest expert of a layer over the mean of the layer, of the worst layer) and
    router_dead_experts (number without a token, over all layers).
    """
    rate = optimizer_lib.schedule(optimizer, num_steps)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    offloaded = optimizer.offload and can_offload(mesh)

    def on_device(opt_state: Any) -> Any:
        places = jax.tree.map(lambda place: place.with_memory_kind("device"), state_shardings.opt_state)
        return jax.device_put(opt_state, places)

    micro_loss = make_loss(config, train, mesh, loss, teacher, lora)

    def step(state: TrainState, batch: Batch, *frozen: Frozen) -> tuple[TrainState, dict[str, jax.Array]]:
        beside = frozen[0] if frozen else _NOTHING
        (value, parts), grads = _gradients(micro_loss, config, train, lora, state.params, batch, beside)
        norm = optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        before = state.params, on_device(state.opt_state) if offloaded else state.opt_state
        params, opt_state = optimizer_lib.advance(tx, optimizer, before, grads, norm, state.step, finite)
        if offloaded:
            opt_state = jax.device_put(opt_state, state_shardings.opt_state)
        new = TrainState(jnp.where(finite, state.step + 1, state.step), params, opt_state)
        metrics = _load_metrics(parts) | {
            "loss": value,
            "learning_rate": rate(state.step),
            "grad_norm": norm,
            "supervised": jnp.sum(batch["weights"] > 0),
            "tokens": jnp.sum(batch["segment_ids"] > 0),
            **_pairs(batch, config, *([] if teacher is None else [teacher.config])),
            "finite": finite,
        }
        return new, metrics

    of_teacher = None if teacher is None else sharding.param_shardings(teacher.config, mesh)
    of_base = lora_lib.base_shardings(config, lora, train, mesh) if lora.rank else None
    frozen = [] if of_teacher is None and of_base is None else [Frozen(of_teacher, of_base)]
    return jax.jit(
        step,
        in_shardings=(state_shardings, sharding.token_sharding(mesh), *frozen),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def _load_metrics(parts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Parts of a loss with figures in place of the experts' counts [L, E]."""
    if "router_counts" not in parts:
        return parts
    counts = parts["router_counts"]
    mean = jnp.maximum(jnp.mean(counts, axis=1), jnp.finfo(jnp.float32).tiny)
    return {name: value for name, value in parts.items() if name != "router_counts"} | {
        "router_max_load": jnp.max(jnp.max(counts, axis=1) / mean),
        "router_dead_experts": jnp.sum(counts == 0),
    }


def _pairs(batch: Batch, *models: ModelConfig) -> dict[str, jax.Array]:
    """(Query, key) pairs, n (n + 1) / 2 for a segment of n; counted here because a process has its own rows only."""
    seen = (batch["positions"] + 1) * (batch["segment_ids"] > 0)  # by each query
    windows = sorted(set().union(*(model.windows for model in models)) - {0})
    found = {f"pairs_{window}": jnp.sum(jnp.minimum(seen, window), dtype=jnp.float32) for window in windows}
    return found | {"pairs": jnp.sum(seen, dtype=jnp.float32)}


def _accumulate(
    loss: Callable[..., Losses], params: Any, batch: Batch, frozen: Frozen, count: int
) -> tuple[Losses, Any]:
    """Sums of the losses and of their parts, and of the gradients of `count` micro-batches.

    `loss` takes parameters, a micro-batch, frozen weights and, as `remat.add_gradients` does, sums of gradients.
    They are float32 where there are several micro-batches.
    """
    rows = batch["tokens"].shape[0]
    if rows % count:
        raise UserError(f"train.accumulation={count} does not divide the {rows} rows of a batch; choose a divisor.")
    if count == 1:
        return jax.value_and_grad(loss, has_aux=True)(params, batch, frozen)

    def body(sums: Any, micro: Batch) -> tuple[Any, Losses]:
        values, sums = jax.value_and_grad(loss, argnums=3, has_aux=True)(params, micro, frozen, sums)
        return sums, values

    # Every count-th row goes to the same micro-batch, so that each of them has rows on every device.
    micros = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(rows // count, count, *x.shape[1:]), 0, 1), batch)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    sums, values = jax.lax.scan(body, zeros, micros)
    return jax.tree.map(lambda x: x.sum(0), values), sums
