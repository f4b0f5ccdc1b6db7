"""The engine: samples many requests in a few batch slots, each request with its own budgets.

    engine = Engine("runs/s1", slots=64)
    outputs = engine.generate(["What is 12 plus 30?"], SamplingParams(max_thinking_tokens=2048, num_waits=2))
    pieces = engine.stream_tokens("What is 12 plus 30?")  # as they come

A finished sequence leaves its batch slot to the next one while the others go on (continuous batching). The KV cache is
a pool of pages, and a sequence gets as many pages as it can need. Requests with the same prompt share its prefill and
its full pages. Outputs do not depend on the number of slots or on other requests (they are batch-invariant), up to the
rounding of matrix products: a difference can appear only where the logits of two tokens nearly tie.

`generate`, `stream` and `stream_tokens` submit their requests to a `s1jax.engine.scheduler.Scheduler` and step it until
it is idle. A batch admits the requests with the highest limits first.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import numbers
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax import perf
from s1jax.config.experiment import MeshConfig
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SAMPLING_DTYPES, SamplingParams
from s1jax.engine import adapters as adapters_lib
from s1jax.engine import capacity, limits
from s1jax.engine import rows as rows_lib
from s1jax.engine.capacity import Counts, Setup
from s1jax.engine.description import Description
from s1jax.engine.encoding import Encoder
from s1jax.engine.order import Order, first_come, longest_first
from s1jax.engine.pieces import Piece, Pieces
from s1jax.engine.request import EngineProgress, Output, Request
from s1jax.engine.scheduler import Scheduler
from s1jax.engine.sequence import Admitted, EncodedRequest, Finished, Sample, check_request
from s1jax.errors import UserError
from s1jax.model import batched_adapters, decoder, layouts, quant, quant_groups
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import quantized
from s1jax.text.delimiters import Delimiters
from s1jax.text.messages import Message

_INT4_GROUP = 32  # inputs that share a scale
_PUBLISHED = ("fp8", "mxfp4")  # types of weights that published checkpoints have
Prompt = str | Sequence[Message] | Request


class Engine:
    """Samples requests from one model; see the module's text.

    Attributes:
      model: the loaded checkpoint; None if the engine was made from weights.
      dtype: of activations.
      counts: what was done so far.
    """

    def __init__(
        self,
        checkpoint_or_params: Any,
        *,
        config: ModelConfig | None = None,
        slots: int = 16,
        cache_length: int = 0,
        dtype: str = "",
        cache_dtype: str = "",
        weight_dtype: str = "",
        mesh: Mesh | None = None,
        adapters: Mapping[str, Any] | None = None,
    ):
        """Loads the checkpoint, if one is named; compiles nothing.

        Args:
          checkpoint_or_params: path of a checkpoint or training workdir, `package:NAME`, a `store.Model`, or, with
            `config`, weights as in `s1jax.model.decoder`; they are cast once if their dtype is not `dtype`. On a CPU,
            and on GPUs that have room for it, the weights of the layers are stored a second time, unstacked
            (`layouts.unstack`).
          config: shape of the weights, if those are given.
          slots: B, batch slots; on a mesh rounded up to a multiple of the row shards.
          cache_length: the most tokens of a sequence, prompt included; 0 takes what the requests of a call need. Calls
            with the same length share their programs, see `s1jax.engine.capacity.for_requests`.
          dtype: dtype of activations; by default float32 on a CPU and bfloat16 elsewhere.
          cache_dtype: dtype of the KV cache: `dtype` by default, or int8, with a scale for each head and token.
          weight_dtype: of weight matrices: `dtype` by default; int8, with a scale for each output; int4, with a scale
            for each output and 32 inputs and the output projection in int8; or what published checkpoints have, fp8 of
            the layers' projections and mxfp4 of experts. See docs/sampling.md. Weights in fp8 and mxfp4 are all that
            is held, in `model` as well.
          mesh: device mesh (`s1jax.parallel.mesh`) that the weights are on. Batch slots are sharded over data and fsdp,
            heads over tensor.
          adapters: name -> adapters of low rank for this model, which requests name (`Request.adapter`): a PEFT folder,
            a checkpoint of a run with `lora.rank`, or a tree of `s1jax.model.adapters` with its `LoraConfig`. Sequences
            with different adapters share a batch. They are not merged into the weights.

        Raises:
          UserError: the checkpoint can't be loaded, or a setting makes no sense.
        """
        for name, asked in (("dtype", dtype), ("cache_dtype", cache_dtype), ("weight_dtype", weight_dtype)):
            if not isinstance(asked, str) or asked not in ("", *SAMPLING_DTYPES[name]):
                raise UserError(f"{name} is {asked!r}; it is {', '.join(SAMPLING_DTYPES[name])} or empty.")
        for name, number, least in (("slots", slots, 1), ("cache_length", cache_length, 0)):
            if not isinstance(number, numbers.Integral) or isinstance(number, bool) or number < least:
                raise UserError(f"{name} is {number!r}; it must be at least {least}, a whole number.")
        if config is not None and not isinstance(config, ModelConfig):
            raise UserError(f"config is {config!r:.80}; give a ModelConfig.")
        if mesh is not None and not isinstance(mesh, Mesh):
            raise UserError(f"mesh is {mesh!r:.80}; give a mesh of s1jax.parallel.mesh.make_mesh.")
        dtype = dtype or default_dtype()
        if isinstance(checkpoint_or_params, (str, os.PathLike)):
            if config is not None:
                raise UserError("config goes with weights, not with a checkpoint, which has its own; leave it out.")
            from s1jax.checkpoint import store  # Orbax takes a second to import

            # Those that stay on the host are quantised layer by layer; several processes load what their devices hold.
            on_host = weight_dtype in _PUBLISHED and jax.process_count() == 1
            how: dict[str, Any] = {"host": True} if on_host else {"mesh": mesh, "dtype": dtype}
            checkpoint_or_params = store.load_model(pathlib.Path(checkpoint_or_params), **how)
        if config is None:
            if isinstance(checkpoint_or_params, Mapping):
                raise UserError("the engine was given weights without their shape; give config, a ModelConfig.")
            if not (hasattr(checkpoint_or_params, "params") and hasattr(checkpoint_or_params, "config")):
                raise UserError(
                    f"the engine was given {checkpoint_or_params!r:.80}; give the path of a checkpoint, a loaded model,"
                    " or weights with their config."
                )
            self.model = checkpoint_or_params
            params, config = self.model.params, self.model.config
        else:
            self.model, params = None, checkpoint_or_params
        if cache_length > config.context_length:
            raise UserError(
                f"cache_length {cache_length} exceeds the model's context_length {config.context_length}; give less."
            )
        mesh = mesh if mesh is not None and mesh.size > 1 else None
        self.counts, self.dtype, self._weight_dtype = Counts(), dtype, weight_dtype
        self._config, self._mesh = config, mesh
        self._unstacks: bool | None = None  # decided with the first weights
        params = self._hold(params)
        if self.model is not None:
            self.model = dataclasses.replace(self.model, params=params)
        platform = _platform(params)
        on_gpu = platform in ("gpu", "cuda")
        self._adapters = adapters_lib.load(adapters or {}, config, "" if self.model is None else self.model.fingerprint)
        params = self._prepare(params)
        shards = 1 if mesh is None else mesh_lib.row_shards(mesh)
        self._setup = Setup(
            config=config,
            params=params,
            unstack=bool(self._unstacks) and mesh is None,
            page_size=capacity.page_size(platform),
            pages_at_once=capacity.pages_at_once(platform, slots, dtype),
            # Triton's products of float32 would be rounded to TF32.
            pages_in_place=on_gpu and dtype != "float32",
            slots=-(-int(slots) // shards) * shards,
            cache_length=int(cache_length),
            dtype=dtype,
            cache_dtype=cache_dtype or dtype,
            mesh=mesh,
            shards=shards,
            counts=self.counts,
            adapters=tuple(self._adapters),
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that requests can have."""
        return self._setup.adapters

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Encodes requests for this model.

        Raises:
          UserError: the engine was made from weights, without a tokenizer.
        """
        if self.model is None:
            raise UserError("this engine was made from weights alone; make it from a checkpoint to sample text.")
        return Encoder(self.model)

    def generate(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | None = None,
        *,
        system: str = "",
        progress: EngineProgress | None = None,
    ) -> list[Output]:
        """Samples every prompt and returns the outputs in order; arguments and errors are those of `stream`.

        Returns:
          One output for each prompt; for a request with `n` above 1 that many, one after the other.
        """
        found = list(self.stream(prompts, params, system=system, progress=progress))
        return [output for _, output in sorted(found, key=lambda each: (each[0], each[1].sample_index))]

    def stream(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | None = None,
        *,
        system: str = "",
        progress: EngineProgress | None = None,
    ) -> Iterator[tuple[int, Output]]:
        """Samples prompts.

        Equal prompts get different noise, because the place of a prompt is mixed into the seed of `params`
        (`s1jax.engine.seeds`). A `Request` with its own `params` gives the same tokens in any call and at any place.
        The `params` of an output hold the seed that was used.

        Args:
          prompts: texts, lists of `Message`, or requests. Equal prompts share a prefill.
          params: default sampling parameters, for prompts that have none of their own.
          system: default system prompt; empty: the one of the chat template, if it has one.
          progress: called after every few steps, see `EngineProgress`.

        Yields:
          (place in `prompts`, output) as sequences finish, in any order. A request with `n` above 1 has that many
          outputs, also in any order; `sample_index` in them counts from 0.

        Raises:
          UserError: before anything runs, for a bad prompt or argument, or a request that could outgrow the cache.
        """
        encoder, defaults = self.encoder, rows_lib.check_params(params)
        _check_system(system)
        if isinstance(prompts, (str, bytes, Mapping, Request)) or not isinstance(prompts, Iterable):
            raise UserError(f"prompts is {prompts!r:.80}; give a list of prompts, such as ['What is 12 plus 30?'].")
        if progress is not None and not callable(progress):
            raise UserError(f"progress is {progress!r}; give a function of three numbers.")
        asked = [_request(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
        encoded: list[EncodedRequest] = []
        owners: list[tuple[int, int]] = []  # place of each request's prompt, and its place among the prompt's samples
        for i, request in enumerate(asked):
            own = encoder.encode(request, defaults, f"prompt {i}", system=system, place=i)
            encoded += own
            owners += [(i, j) for j in range(len(own))]
        counts = collections.Counter(i for i, _ in owners)
        samples = self.sample(encoded, encoder.delimiters, progress=progress)

        def output(number: int, sample: Sample) -> tuple[int, Output]:
            i, j = owners[number]
            used = encoder.system(asked[i], system)
            return i, encoder.output(encoded[number], sample, system=used, sample_index=j, num_samples=counts[i])

        return (output(number, sample) for number, sample in samples)

    def describe(self) -> Description:
        """What this engine samples with, for the records of its samples."""
        cache_dtype = self._setup.cache_dtype
        return Description(
            checkpoint=self.model.source if self.model else "",
            weights=self.model.fingerprint if self.model else "",
            step=self.model.step if self.model else None,
            dtype=self.dtype,
            cache_dtype="" if cache_dtype == self.dtype else cache_dtype,
            weight_dtype=self._weight_dtype,
            batch_size=self._setup.slots,
            devices=tuple(device.device_kind for device in jax.devices()),
        )

    def check(self, requests: Sequence[Request], params: SamplingParams) -> int:
        """Checks requests before anything runs; returns the most tokens that one can need, see `limits.longest`."""
        return limits.longest(self.encoder, requests, params, self._setup.config.context_length)

    def sample(
        self, requests: Sequence[EncodedRequest], delimiters: Delimiters, *, progress: EngineProgress | None = None
    ) -> Iterator[tuple[int, Sample]]:
        """Samples sequences of token ids.

        Args:
          requests: one for each sequence.
          delimiters: shared by all of them.
          progress: called after every few steps.

        Yields:
          (place in `requests`, sample) as sequences finish, in any order.

        Raises:
          UserError: before anything runs, if a request has bad token ids or could outgrow the context length, or the
            memory of the devices holds no such cache.
        """
        if not requests:
            return iter(())
        scheduler = self._scheduler(requests, delimiters, longest_first)
        for request in requests:
            scheduler.submit(request)
        return _drain(scheduler, progress)

    def stream_tokens(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        system: str = "",
        steps: int = 4,
    ) -> Iterator[Piece]:
        """Samples one prompt and yields its text and tokens as they come.

            for piece in engine.stream_tokens("What is 12 plus 30?", SamplingParams(max_thinking_tokens=512)):
                print(piece.text, end="", flush=True)

        Args:
          prompt: one of the prompts of `stream`.
          params: as for `stream`.
          system: as for `stream`.
          steps: decode steps between two host synchronisations; 1 yields every token by itself, more are faster.

        Yields:
          Pieces of thinking, then of the answer; the last one has the output, which `generate` would return.

        Raises:
          UserError: before anything runs, as `stream`, and for a request of several samples.
        """
        encoder, defaults = self.encoder, rows_lib.check_params(params)
        _check_system(system)
        if not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"steps is {steps!r}; it must be a whole number, at least 1.")
        asked = _request(prompt, "the prompt")
        encoded = encoder.encode(asked, defaults, "the prompt", system=system)
        if len(encoded) > 1:
            raise UserError(f"{encoded[0].name}: n is {len(encoded)}; stream_tokens samples one answer, leave n out.")
        samples = self.watch(encoded[0], encoder.delimiters, int(steps))
        pieces = Pieces(
            encoder.decode, lambda sample: encoder.texts(sample, encoded[0].params), encoded[0], encoder.delimiters
        )

        def grow() -> Iterator[Piece]:
            for sample in samples:
                yield from pieces.new(sample)
            output = encoder.output(encoded[0], sample, system=encoder.system(asked, system))
            yield Piece("answer", "", (), False, output)

        return grow()

    def watch(self, request: EncodedRequest, delimiters: Delimiters, steps: int = 4) -> Iterator[Sample]:
        """Samples one sequence of ids; yields all of it so far after every `steps` tokens, at last the complete one."""
        scheduler = self._scheduler([request], delimiters)
        scheduler.submit(request, stream=True)

        def grow() -> Iterator[Sample]:
            while not scheduler.is_idle:
                yield from (event.sample for event in scheduler.step(steps) if not isinstance(event, Admitted))

        return grow()

    def open(self, cache_tokens: int = 0) -> Scheduler:
        """Returns a scheduler that requests enter at any time: what a server runs. Allocates its KV cache.

            scheduler = engine.open()
            number = scheduler.submit(engine.encoder.encode_one(request, SamplingParams(), "request 0"))
            while not scheduler.is_idle:
                events = scheduler.step()

        Args:
          cache_tokens: tokens of its KV cache, for all sequences together; 0: see `capacity.for_server`.

        Raises:
          UserError: the devices have no room for such a cache.
        """
        return Scheduler(self._setup, capacity.for_server(self._setup, cache_tokens), self.encoder.delimiters)

    def update_weights(self, params: Any) -> None:
        """Replaces the weights, without recompilation; a call that has begun goes on with the old ones.

        While it runs, both are in memory, until nothing holds the old ones any more.

        Args:
          params: tree of `s1jax.model.decoder`, with the shapes and on the devices of the weights that the engine was
            made with; cast if their dtype is not `dtype`.

        Raises:
          UserError: the tree has other names or shapes.
        """
        params = self._hold(params)
        new = self._prepare(params)
        old_shapes, new_shapes = (
            [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)]
            for tree in (self._setup.params, new)
        )
        if old_shapes != new_shapes:
            raise UserError("the new weights have other names or shapes than those of the engine; make a new engine.")
        self._setup = dataclasses.replace(self._setup, params=new)
        if self.model is not None:  # the weights no longer match a checkpoint
            self.model = dataclasses.replace(self.model, params=params, source="", fingerprint="", step=None)

    def _hold(self, params: Any) -> Any:
        """Returns weights as the engine holds them: in a type of published checkpoints, if they are to have one."""
        kind: Any = self._weight_dtype
        if kind not in _PUBLISHED:
            return params
        mesh = self._mesh
        if mesh is None:
            leaf = jax.tree.leaves(params)[0]
            device = next(iter(leaf.devices())) if isinstance(leaf, jax.Array) else jax.local_devices()[0]
            mesh = mesh_lib.make_mesh(MeshConfig(), [device])
        wanted = decoder.abstract_params(self._config)
        if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
            raise UserError("the weights have other names or shapes than those of their config; give these.")
        return quantized.quantize(params, self._config, kind, self.dtype, mesh)

    def _prepare(self, params: Any) -> Any:
        """Returns weights as the programs take them: cast, quantised, and unstacked if `_unstacks`."""
        platform = _platform(params)
        if self._weight_dtype not in _PUBLISHED:
            if any(leaf.dtype != kind for leaf, kind in _types(params, self.dtype)):
                params = _cast(params, self.dtype)
            if self._weight_dtype:
                params = _quantize(params, self._weight_dtype)
        # Triton's products of float32 would be rounded to TF32.
        if platform in ("gpu", "cuda") and self._mesh is None and self.dtype != "float32":
            params = quant_groups.for_gpu(params)
        if self._unstacks is None:
            on_cpu = platform == "cpu" and self._mesh is None
            self._unstacks = perf.fits(params) if platform in ("gpu", "cuda") else on_cpu
        if self._unstacks:
            params = _unstack(params, config=self._config, transpose_kernels=platform == "cpu")
        return batched_adapters.attach(params, self._config, self._adapters, self.dtype)

    def _scheduler(
        self, requests: Sequence[EncodedRequest], delimiters: Delimiters, order: Order = first_come
    ) -> Scheduler:
        """Returns a scheduler with room for these requests, which are checked and not submitted."""
        config, cache_length = self._setup.config, self._setup.cache_length
        limits = [check_request(request, delimiters, config, cache_length) for request in requests]
        shape = capacity.for_requests(self._setup, limits)
        return Scheduler(self._setup, shape, delimiters, order=order, is_batch=True)


def _drain(scheduler: Scheduler, progress: EngineProgress | None) -> Iterator[tuple[int, Sample]]:
    """Yields (number of the request, sample) until the scheduler is idle."""
    done = tokens = thinking = 0
    while not scheduler.is_idle:
        for event in scheduler.step():
            if isinstance(event, Finished):
                done, tokens = done + 1, tokens + len(event.sample.ids)
                thinking += event.sample.thinking_tokens
                yield event.id, event.sample
        if progress is not None:
            running, running_thinking = scheduler.num_tokens()
            progress(done, tokens + running, thinking + running_thinking)


def _platform(params: Any) -> str:
    return next(iter(jax.tree.leaves(params)[0].devices())).platform


def _request(prompt: Any, name: str) -> Request:
    """Returns a prompt of `Engine.stream` as a request."""
    if isinstance(prompt, Request):
        return prompt
    if isinstance(prompt, Mapping):
        raise UserError(
            f"{name} is {prompt!r:.80}; give a text, a list of s1jax.Message or a s1jax.Request. Rows of a file are"
            " sampled by s1jax.engine.rows.generate."
        )
    return Request(prompt=prompt)


def _check_system(system: Any) -> None:
    if not isinstance(system, str):
        raise UserError(f"system is {system!r:.80}; it must be a string.")


def default_dtype() -> str:
    """Returns the default dtype of weights and activations: float32 on a CPU, bfloat16 elsewhere."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _types(params: Mapping[str, Any], dtype: str) -> list[tuple[Any, Any]]:
    """Every array of a tree with the dtype that it is to have: `dtype`, or float32 if it chooses experts."""
    return [
        (leaf, jnp.dtype(jnp.float32 if path[-1] == jax.tree_util.DictKey("selection_bias") else dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


@functools.partial(jax.jit, static_argnames=("dtype",))
def _cast(params: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    cast = [leaf.astype(kind) for leaf, kind in _types(params, dtype)]
    return jax.tree.unflatten(jax.tree.structure(params), cast)


@functools.partial(jax.jit, static_argnames=("kind",))
def _quantize(params: Mapping[str, Any], kind: quant_groups.Kind) -> Mapping[str, Any]:
    return quant.quantize_params(params, kind, _INT4_GROUP if kind == "int4" else 0)


_unstack = jax.jit(layouts.unstack, static_argnames=("config", "transpose_kernels"))
