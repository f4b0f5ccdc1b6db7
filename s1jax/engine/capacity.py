"""Capacity of the KV cache: the shapes that a batch of requests needs and that the devices have memory for.

Axis letters: B batch slots, S tokens that a sequence may have, V vocabulary.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from s1jax import perf
from s1jax.config.model import ModelConfig
from s1jax.engine import buckets
from s1jax.errors import UserError
from s1jax.model import cache as cache_lib
from s1jax.parallel import sharding

_PAGE = 64  # tokens; a sequence wastes half a page on average, and a step reads page by page
_TPU_PAGE = 128  # as wide as a register there: narrower pages would be filled up to it
# Tokens of the KV cache that an accelerator reads in one iteration of the attention loop: 16 of them for 32k tokens.
_TOKENS_AT_ONCE = 2048
_LENGTH = 4096  # tokens that short sequences have room for, too: 20 kB a slot, where another length costs programs
_SPARE = 4  # the shape of an earlier call is used again if its pool has at most so many times the pages needed
_LOGITS = 4  # arrays [B, V] of float32 at one time: logits, noise, and what the filters make of them


@dataclasses.dataclass
class Counts:
    """What an engine has done so far.

    Attributes:
      prefills: prompts that were prefilled.
      admissions: requests that were admitted to a slot.
      loops: calls of the decode program.
      steps: steps of the loop, of all slots at once.
      programs: what was compiled, or found compiled: name -> number of calls. A program has one name: what it does and
        the sizes that it is compiled for.
      announce: called with a program's name before its first call, which may take long because it compiles.
    """

    prefills: int = 0
    admissions: int = 0
    loops: int = 0
    steps: int = 0
    programs: dict[str, int] = dataclasses.field(default_factory=dict)
    announce: Callable[[str], None] | None = None

    def note(self, program: str) -> None:
        """Counts a call of a program, right before it."""
        if self.announce is not None and program not in self.programs:
            self.announce(program)
        self.programs[program] = self.programs.get(program, 0) + 1


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of the arrays of a scheduler, for which its programs are compiled.

    Attributes:
      slots: B.
      length: S, whole pages.
      pages: of the KV cache, in each row shard.
    """

    slots: int
    length: int
    pages: int


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all calls of an engine have in common.

    Attributes:
      config: shape of the model.
      params: weights, stacked or as `layouts.unstack` makes them.
      unstack: whether the decode program takes one array of pages for each layer.
      page_size: tokens of a page.
      pages_at_once: see `s1jax.model.attention.cached.attend_cached`.
      pages_in_place: see there.
      slots: B.
      cache_length: the most tokens of a sequence; 0: what the requests of a call need.
      dtype: of activations.
      cache_dtype: of the cache.
      mesh: None: one device.
      shards: row shards of the mesh; the slots, and the pages, are split among them.
      counts: of what is done.
      adapters: names of the adapters that `params` has, see `s1jax.model.batched_adapters`.
      shapes: of the calls so far, each once; `for_requests` adds to them.
    """

    config: ModelConfig
    params: Mapping[str, Any]
    unstack: bool
    page_size: int
    pages_at_once: int
    pages_in_place: bool
    slots: int
    cache_length: int
    dtype: str
    cache_dtype: str
    mesh: Mesh | None
    shards: int
    counts: Counts
    adapters: tuple[str, ...] = ()
    shapes: list[Shape] = dataclasses.field(default_factory=list)


def for_requests(setup: Setup, limits: Sequence[int]) -> Shape:
    """Returns the shape of a call, if it can be that of an earlier one, whose programs are compiled.

    There are as many slots as rows, in powers of two, and never more because an earlier call had more: a step of the
    loop computes all of them. Where no cache length is given, an earlier shape with as many slots is taken if it holds
    the rows and has at most `_SPARE` times the pages they need: a longer table costs nothing, and pages that nobody
    uses only the time to make them. A new shape is as long as the longest so far, and its pages are rounded up to few
    numbers, unless only the bare number fits.

    Args:
      setup: of the engine.
      limits: the most ids of each row; at least one.

    Raises:
      UserError: the devices have no room for it; says how many slots they have room for.
    """
    needs = sorted(-(-limit // setup.page_size) for limit in limits)
    length = setup.cache_length or max(buckets.bucket(max(limits)), min(_LENGTH, setup.config.context_length))
    width = -(-length // setup.page_size)
    slots = min(setup.slots, setup.shards * buckets.power_of_two(-(-len(limits) // setup.shards)))
    free = perf.free_memory(jax.tree.leaves(setup.params)[0].devices())

    def least(slots: int) -> int:
        """Pages of the longest sequences that the slots of one row shard can hold at a time."""
        each = slots // setup.shards
        return each * width if setup.cache_length else sum(needs[-each:])

    def fits(slots: int, pages: int) -> bool:
        return _fits(setup, slots, pages, free)

    pages, length = least(slots), width * setup.page_size
    wanted = [Shape(slots, length, pages)]
    if not setup.cache_length:
        rounded = buckets.bucket(pages)
        alike = [shape for shape in setup.shapes if shape.slots == slots]
        spare = [shape for shape in alike if shape.pages <= _SPARE * rounded]
        longest = max([length, *(shape.length for shape in alike)])
        wanted = [
            *(shape for shape in spare if shape.pages >= pages and shape.length >= length),
            Shape(slots, longest, max([rounded, *(shape.pages for shape in spare)])),
            Shape(slots, longest, rounded),
            Shape(slots, longest, pages),
        ]
    for shape in wanted:
        if fits(shape.slots, shape.pages):
            if shape not in setup.shapes:
                setup.shapes.append(shape)
            return shape
    fewer = range(setup.shards, slots, setup.shards)
    most = setup.shards * bisect.bisect_left(fewer, True, key=lambda slots: not fits(slots, least(slots)))
    ids = f"{length} ids" if setup.cache_length else f"up to {needs[-1] * setup.page_size} ids"
    lower = "token limits" + (" (and --cache_length, where it was given)" if setup.cache_length else "")
    if most:
        remedy = f"{_rows(most)} of {ids} fit: lower the slots (--batch_size) or the {lower}."
    else:
        remedy = f"not even a row of {ids} fits: lower the {lower} or shorten the prompts."
    need, (cache, beside) = "needs" if slots == 1 else "need", _bytes(setup, slots, pages)
    raise UserError(
        f"{_rows(slots)} at one time {need} a cache of {_size(cache)}, and {_size(beside)} for logits, on"
        f" a device that has {_size(free or 0)} free; {remedy}"
    )


def for_server(setup: Setup, cache_tokens: int = 0) -> Shape:
    """Returns the shape of a scheduler that requests enter at any time.

    A sequence may be as long as the engine's cache length, or else the model's context length.

    Args:
      setup: of the engine.
      cache_tokens: tokens of the KV cache, for all sequences together. 0: what the free memory of the devices holds, at
        most what all slots can fill; where the memory is not reported, as on a CPU, 4,096 tokens a slot.

    Raises:
      UserError: the cache is smaller than a page, or the devices have no room for it.
    """
    size = setup.page_size
    width = -(-(setup.cache_length or setup.config.context_length) // size)
    each = setup.slots // setup.shards
    free = perf.free_memory(jax.tree.leaves(setup.params)[0].devices())

    if cache_tokens:
        pages = cache_tokens // size // setup.shards
        if pages < 1:
            raise UserError(
                f"cache_tokens is {cache_tokens}; give at least {size * setup.shards}, one page for each device."
            )
    elif free is None:
        pages = each * min(width, _LENGTH // size)
    else:
        most = range(1, each * width + 1)
        pages = bisect.bisect_left(most, True, key=lambda pages: not _fits(setup, setup.slots, pages, free))
    if pages < 1 or not _fits(setup, setup.slots, pages, free):
        raise UserError(
            f"a KV cache of {_size(_bytes(setup, setup.slots, max(pages, 1))[0])} does not fit on a device that has"
            f" {_size(free or 0)} free; lower the slots or cache_tokens."
        )
    return Shape(setup.slots, width * size, pages)


def _fits(setup: Setup, slots: int, pages: int, free: int | None) -> bool:
    """Whether a cache and what is beside it fit into `free` bytes per device; None: nobody knows, so it does."""
    return free is None or sum(_bytes(setup, slots, pages)) <= free


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _bytes(setup: Setup, slots: int, pages: int) -> tuple[int, int]:
    """Bytes per device: of the cache; of the logits."""
    split = 1 if setup.mesh is None else sharding.key_head_shards(setup.mesh, setup.config.num_kv_heads)
    cache = pages * setup.page_size * cache_lib.bytes_per_token(setup.config, setup.cache_dtype) // split
    return cache, _LOGITS * slots // setup.shards * setup.config.vocab_size * 4


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def page_size(platform: str) -> int:
    """Tokens of a page of the KV cache."""
    return _TPU_PAGE if platform == "tpu" else _PAGE


def pages_at_once(platform: str, slots: int, dtype: str) -> int:
    """Pages that one iteration of the attention loop reads.

    On a CPU those of one row stay in its caches; with more rows a single page each is as fast or faster. Not in
    bfloat16, where weights of attention are rounded by what they are divided by so far: a row would differ from the
    same one in a batch.
    """
    if platform != "cpu":
        return _TOKENS_AT_ONCE // page_size(platform)
    return 4 if slots == 1 and dtype == "float32" else 1
