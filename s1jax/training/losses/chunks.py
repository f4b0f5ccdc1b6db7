"""Runs a loss of next-token logits in chunks of tokens, so that the logits of all tokens never exist at once.

B rows, T length, C chunk length, D model, V vocabulary; b and v are one device's share of B and V.

On a mesh the vocabulary is split along all axes but `data`. An all-to-all turns each device's part of the output
projection's width into a part of its vocabulary. The hidden states of a chunk are gathered over `fsdp` and `sequence`,
and each device computes its slice of the vocabulary for all of them. Logits take as much memory as if the tokens were
split instead, but no device ever holds the whole output projection (1.1 GB in bfloat16 for Qwen2.5-7B) or its gradient
(2.2 GB in float32). Gathering and reducing those would move 3.3 GB a step. Hidden states and their gradients move
0.23 GB per 1,024 tokens of a device if `fsdp` is 16: less up to rows of about 14,000 tokens, more for longer ones.

A teacher is a second decoder's output on the same tokens. Its output projection is split in the same way, and two
chunks of logits exist at one time instead of one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from s1jax.model import blocks
from s1jax.model.attention.rule import capped
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import sharding

GATHERED = mesh_lib.WIDTH  # the mesh axes over which hidden states are gathered
_TENSOR = sharding.TABLE["vocab"]
VOCAB = (*_TENSOR, *GATHERED)  # those that split the vocabulary, the first one into the largest parts
PLACED = P(GATHERED, _TENSOR)  # how an output projection is placed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """A decoder's output.

    Attributes:
      hidden: [B, T, D], after its final norm.
      kernel: [D, V], its output projection.
      softcap: logits z become softcap * tanh(z / softcap); 0: they do not.
    """

    hidden: Any
    kernel: Any
    softcap: float = dataclasses.field(default=0.0, metadata={"static": True})

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[b, C, D] -> float32 [b, C, V]."""
        values = jnp.einsum("bcd,dv->bcv", hidden, self.kernel, preferred_element_type=jnp.float32)
        return capped(values, self.softcap)

    def cast(self) -> Head:
        """The same with the kernel in the type of `hidden`."""
        return dataclasses.replace(self, kernel=self.kernel.astype(self.hidden.dtype))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The slice of the vocabulary whose logits this device has.

    Attributes:
      ids: int32 [v], the id of each column; -1 for padding, whose logits are -inf.
      legal: bool [v], whether the tokenizer has the id; None: it has them all.
      is_split: whether other devices have other columns.
    """

    ids: jax.Array
    legal: jax.Array | None
    is_split: bool

    def masked(self, logits: jax.Array) -> jax.Array:
        """Logits [b, C, v], -inf for ids that the tokenizer does not have."""
        return logits if self.legal is None else jnp.where(self.legal, logits, -jnp.inf)

    def sum(self, values: Any) -> Any:
        """Adds up a tree of arrays over the devices that have the other columns."""
        return jax.lax.psum(values, VOCAB) if self.is_split else values

    def max(self, values: Any) -> Any:
        """The greatest of a tree of arrays over the devices that have the other columns."""
        return jax.lax.pmax(values, VOCAB) if self.is_split else values

    def pick(self, values: jax.Array, ids: jax.Array) -> jax.Array:
        """[b, C, v], int [b, C, K] -> the values [b, C, K] of the ids; 0 where another device has the column."""
        place = self._places(ids)
        picked = jnp.take_along_axis(values, jnp.minimum(place, values.shape[-1] - 1), -1)
        return jnp.where(place < values.shape[-1], picked, 0) if self.is_split else picked

    def put(self, values: jax.Array, ids: jax.Array, additions: jax.Array) -> jax.Array:
        """Adds to the values [b, C, v] of ids, int [b, C, K], the additions [b, C, K]; an id may come several times."""
        row, token, _ = jnp.indices(ids.shape, sparse=True)
        return values.at[row, token, self._places(ids)].add(additions, mode="drop")

    def _places(self, ids: jax.Array) -> jax.Array:
        """Which column an id is; v where another device has it."""
        size, place = self.ids.shape[0], ids - self.ids[0]
        return jnp.where((place >= 0) & (place < jnp.sum(self.ids >= 0)), place, size)


def all_columns(kernel: jax.Array, legal: jax.Array | None) -> Columns:
    """The columns of an output projection [D, V] that is on one device; `legal` bool [V]."""
    return Columns(jnp.arange(kernel.shape[1], dtype=jnp.int32), legal, False)


def own_columns(kernel: jax.Array, legal: jax.Array | None, mesh: Mesh) -> tuple[jax.Array, Columns]:
    """A device's share of the vocabulary, from its part of an output projection as `PLACED`; called in a shard_map.

    Args:
      kernel: [D / devices along GATHERED, V / devices along `tensor`].
      legal: bool [V], see `Columns`.
      mesh: of the shard_map.

    Returns:
      the columns [D, v] of the projection, the last devices' filled up with zeros, and which these are.
    """
    size = kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, 0), (0, -size % mesh_lib.parts(mesh, GATHERED))))
    # By hand: where the vocabulary is split already, the compiler makes the whole kernel on every device.
    kernel = jax.lax.all_to_all(kernel, GATHERED, split_axis=1, concat_axis=0, tiled=True)
    of_tensor, own = size * jax.lax.axis_index(_TENSOR), kernel.shape[1]
    ids = of_tensor + own * jax.lax.axis_index(GATHERED) + jnp.arange(own, dtype=jnp.int32)
    ids = jnp.where(ids < of_tensor + size, ids, -1)  # padding has the place of another slice's ids
    return kernel, Columns(ids, None if legal is None else legal[ids] & (ids >= 0), True)


class Rule(Protocol):
    """A loss of single tokens, as a function of their logits; hashable."""

    def __call__(
        self, logits: jax.Array, teacher: jax.Array | None, tokens: Mapping[str, jax.Array], columns: Columns
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Returns the loss of a chunk's tokens and its gradient.

        Args:
          logits: float32 [b, C, v], of the trained decoder.
          teacher: float32 [b, C, v], of the teacher, if there is one.
          tokens: arrays [b, C, ...], what else is known of each token.
          columns: which ids the logits are of.

        Returns:
          (loss [b, C], its parts [b, C] by name, the loss's gradient with respect to `logits` [b, C, v]), all float32;
          the first two are the same on the devices that share the vocabulary.
        """
        ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def weighted_sum(
    hidden: jax.Array,
    kernel: jax.Array,
    weights: jax.Array,
    tokens: Mapping[str, jax.Array],
    teacher: Head | None,
    legal: jax.Array | np.ndarray | None,
    rule: Rule,
    chunk: int,
    mesh: Mesh | None = None,
    softcap: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the losses of all tokens.

    Matrix products are in the type of `hidden`, or of the teacher's hidden states. Under differentiation the forward
    pass computes the gradients of `hidden` and `kernel` along with each chunk's logits, so that a chunk costs three
    matrix products and no logits are computed again. Nothing else has a gradient, the parts included.

    Args:
      hidden: [B, T, D], the decoder's output after its final norm.
      kernel: [D, V], the output projection.
      weights: [B, T] float32; 0 where nothing is learned.
      tokens: arrays [B, T, ...] for the rule.
      teacher: [B, T, D'] and [D', V], of another decoder.
      legal: bool [V], see `Columns`.
      rule: of a token.
      chunk: C; logits of [b, C, v] exist at one time on a device, twice with a teacher.
      mesh: of `mesh_lib.make_mesh`. None: everything is on one device.
      softcap: of the decoder's logits, see `Head`.

    Returns:
      (sum of weights * loss, the same sums of the parts by name), float32 scalars.
    """
    return _run(Head(hidden, kernel, softcap), weights, tokens, teacher, legal, rule, chunk, mesh, False)[0]


def _forward(hidden, kernel, weights, tokens, teacher, legal, rule, chunk, mesh, softcap):
    head = Head(hidden, kernel, softcap)
    sums, d_hidden, d_kernel = _run(head, weights, tokens, teacher, legal, rule, chunk, mesh, True)
    return sums, (d_hidden, d_kernel.astype(kernel.dtype))


def _backward(rule, chunk, mesh, softcap, residuals, cotangents):
    cotangent, _ = cotangents
    d_hidden, d_kernel = ((cotangent * x.astype(jnp.float32)).astype(x.dtype) for x in residuals)
    return d_hidden, d_kernel, None, None, None, None


weighted_sum.defvjp(_forward, _backward)


def _run(
    student: Head,
    weights: jax.Array,
    tokens: Mapping[str, jax.Array],
    teacher: Head | None,
    legal: jax.Array | np.ndarray | None,
    rule: Rule,
    chunk: int,
    mesh: Mesh | None,
    gradients: bool,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any, Any]:
    """Returns (sums, d_hidden [B, T, D], d_kernel [D, V]), the latter two None without `gradients`."""
    student, teacher = student.cast(), teacher and teacher.cast()
    mask = None if legal is None else jnp.asarray(legal)
    if mesh is None or mesh.size == 1:
        columns = all_columns(student.kernel, mask)
        return _one_device(student, teacher, weights, tokens, rule, chunk, gradients, columns)
    by_token = P(mesh_lib.ROWS, mesh_lib.TOKENS)

    def placed(head: Head) -> Head:
        return dataclasses.replace(head, hidden=by_token, kernel=PLACED)

    def device(
        student: Head, teacher: Head | None, weights: jax.Array, tokens: Any, legal: jax.Array | None
    ) -> tuple[Any, Any, Any]:
        size = student.kernel.shape[1]
        own, columns = own_columns(student.kernel, legal, mesh)
        student = dataclasses.replace(student, kernel=own)
        if teacher is not None:
            teacher = dataclasses.replace(teacher, kernel=own_columns(teacher.kernel, legal, mesh)[0])
        sums, d_hidden, d_kernel = _one_device(student, teacher, weights, tokens, rule, chunk, gradients, columns)
        others = [axis for axis in mesh_lib.ROWS if axis not in GATHERED]
        sums, d_kernel = jax.lax.psum((sums, d_kernel), others)
        if gradients:
            d_kernel = d_kernel.astype(student.kernel.dtype)
            d_kernel = jax.lax.all_to_all(d_kernel, GATHERED, split_axis=0, concat_axis=1, tiled=True)[:, :size]
        return sums, d_hidden, d_kernel

    # Replication is checked by the tests: the checker would want every zero in the loop marked by hand.
    return jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(placed(student), teacher and placed(teacher), by_token, by_token, P()),
        out_specs=(P(), by_token, PLACED) if gradients else (P(), None, None),
        check_vma=False,
    )(student, teacher, weights, tokens, mask)


def _one_device(
    student: Head,
    teacher: Head | None,
    weights: jax.Array,
    tokens: Mapping[str, jax.Array],
    rule: Rule,
    chunk: int,
    gradients: bool,
    columns: Columns,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any, Any]:
    """`_run` on one device's tokens [b, T] and slice of the vocabulary [D, v]."""
    length = student.hidden.shape[1]
    chunk = min(chunk, length)

    def logits(head: Head, hidden: jax.Array) -> jax.Array:
        values = head.logits(hidden)
        return jnp.where(columns.ids < 0, -jnp.inf, values) if columns.is_split else values

    def body(d_kernel: Any, xs: Any) -> tuple[Any, Any]:
        if columns.is_split:
            xs = jax.lax.all_gather(xs, GATHERED, axis=0, tiled=True)
        h, of_teacher, w, own = xs  # [b', C, ...]; b' rows from all devices along GATHERED
        theirs, ours = None if teacher is None else logits(teacher, of_teacher), logits(student, h)
        loss, parts, d_logits = rule(ours, theirs, own, columns)
        if student.softcap:  # padding's logits are -inf
            d_logits *= 1 - jnp.square(jnp.clip(ours / student.softcap, -1, 1))
        sums = jax.tree.map(lambda x: jnp.sum(w * x), (loss, parts))
        if not gradients:
            return None, (sums, None)
        d_logits = (w[..., None] * d_logits).astype(h.dtype)
        d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, student.kernel)
        if columns.is_split:
            d_hidden = jax.lax.psum_scatter(d_hidden, GATHERED, scatter_dimension=0, tiled=True)
            d_hidden = jax.lax.psum(d_hidden, _TENSOR)
        d_kernel += jnp.einsum("bcd,bcv->dv", h, d_logits, preferred_element_type=jnp.float32)
        return d_kernel, (sums, d_hidden)

    start = jnp.zeros(student.kernel.shape, jnp.float32) if gradients else None
    xs = student.hidden, teacher and teacher.hidden, weights, tokens
    xs = jax.tree.map(lambda x: blocks.split(x, chunk), xs)
    d_kernel, (sums, d_hidden) = jax.lax.scan(body, start, xs)
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    return sums, blocks.join(d_hidden, length) if gradients else None, d_kernel
