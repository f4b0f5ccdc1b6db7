"""Other formats' tensors as views of our parameter tree, read in both directions.

What a tensor is called and how it is laid out is in the rows of its family (`s1jax.checkpoint.families`). Reading and
writing both go through `views`: views of our arrays in the stored layout, to be filled or to be copied out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from s1jax.checkpoint import tensors
from s1jax.checkpoint.families import table
from s1jax.checkpoint.families.rows import Row
from s1jax.checkpoint.stored import Piece, Stored
from s1jax.checkpoint.stored import copy as copy
from s1jax.config.layers import MLA
from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig, Stack
from s1jax.config.schema import plain
from s1jax.errors import UserError
from s1jax.model.layouts import num_input_axes

Params = dict[str, Any]
Column = Literal["huggingface", "gguf"]


def allocate(config: ModelConfig, dtype: npt.DTypeLike) -> Params:
    """Returns the parameter tree of `config` with uninitialised numpy arrays of `dtype`, layers stacked."""
    params: Params = {}

    def add(path: str, shape: list[int], dtype: npt.DTypeLike) -> None:
        *folders, leaf = path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = np.empty(shape, dtype)

    sizes = tensors.sizes(config)
    for path, axes in tensors.of_model(config).items():
        add(path, [sizes[axis] for axis in axes], dtype)
    for stack in config.stacks():
        sizes = tensors.sizes(config, stack.layer)
        for path, axes in tensors.of_layer(stack.layer).items():
            shape = [len(stack.numbers), *(sizes[axis] for axis in axes)]
            add(f"{stack.name}/{path}", shape, np.float32 if path in tensors.FLOAT32 else dtype)
    return params


class _Place(NamedTuple):
    """An array of ours and where it is stored.

    Attributes:
      row: of the table.
      name: of the stored tensor.
      stack: of the array; None: it belongs to no layer.
      axes: of the array, without layers.
      sizes: of all axes.
      start: where it starts along the joined axis.
      total: size of the joined axis of the stored tensor.
    """

    row: Row
    name: str
    stack: Stack | None
    axes: str
    sizes: Mapping[str, int]
    start: int = 0
    total: int = 0

    @property
    def order(self) -> str:
        """Letters of the stored axes."""
        return self.stored.replace(" ", "")

    @property
    def stored(self) -> str:
        """Stored axes, without that of experts where each has a tensor."""
        return self.row.stored.replace("E", "").lstrip() if "{e}" in self.name else self.row.stored

    @property
    def expanded(self) -> dict[str, int]:
        """Letter -> size of the stored tensor, before axes are merged."""
        return {letter: self.total if letter == self.row.join else self.sizes[letter] for letter in self.order}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored tensor."""
        return tuple(math.prod(self.expanded[letter] for letter in group) for group in self.stored.split(" "))

    def experts(self) -> list[int]:
        """Numbers of the experts that have a tensor each; of one array for all of them, or none, just 0."""
        return list(range(self.sizes["E"])) if "{e}" in self.name else [0]


def _places(config: ModelConfig, names: Column) -> Iterator[_Place]:
    """Every array of the tree, in the order of the family's rows."""
    rows = [row for row in table.rows(config) if getattr(row, names)]
    if names == "huggingface":
        rows = [row._replace(plus=0.0) for row in rows]
    units: list[tuple[Stack | None, dict[str, str], dict[str, int]]] = [
        (None, tensors.of_model(config), tensors.sizes(config)),
        *((stack, tensors.of_layer(stack.layer), tensors.sizes(config, stack.layer)) for stack in config.stacks()),
    ]
    for _, held, _ in units:
        if missing := sorted(path for path in held if not any(_is_of(row, path, held) for row in rows)):
            raise UserError(
                f"model.family is {config.family!r}, whose files have no tensor for {missing[0]}; set model.family to "
                "an architecture that has it."
            )
    for row in rows:
        name = getattr(row, names)
        together = [other for other in rows if row.join and getattr(other, names) == name]
        for stack, held, sizes in units:
            if not _is_of(row, row.path, held) or (stack is None) == ("{}" in name):
                continue
            widths = [sizes[other.join] for other in together]
            before = together.index(row) if together else 0
            start = before if row.alternating else sum(widths[:before])
            yield _Place(row, name, stack, held[row.path], sizes, start, sum(widths))


def _is_of(row: Row, path: str, held: Mapping[str, str]) -> bool:
    """Whether a row is that of the array at `path`, with the axes that it has here."""
    return row.path == path and sorted(held.get(path, "")) == sorted(row.stored.replace(" ", ""))


def views(config: ModelConfig, params: Mapping[str, Any], names: Column) -> dict[str, Any]:
    """Stored name -> view of our array (one layer of it) in the stored layout; no memory is copied.

    Args:
      config: of the model.
      params: the parameter tree; numpy arrays, or anything that `np.asarray` turns into one.
      names: which column of the family's rows names the result.

    Returns:
      every tensor of the model in the order of the family's rows, layer by layer; writing to a view writes to `params`.
      A view is a numpy array, or a `Stored` where no strides describe it.

    Raises:
      UserError: the family has no tensor for an array of the model.
    """
    found: dict[str, Any] = {}
    for place in _places(config, names):
        array: Any = params if place.stack is None else params[place.stack.name]
        for part in place.row.path.split("/"):
            array = array[part]
        array = np.asarray(array)
        if place.stack is None:
            _add(found, place.name, array, place)
            continue
        for i, layer in enumerate(place.stack.numbers):
            for e in place.experts():
                one = array[i, e] if "{e}" in place.name else array[i]
                _add(found, place.name.format(layer, e=e), one, place)
    return found


def _add(found: dict[str, Any], name: str, array: np.ndarray, place: _Place) -> None:
    """Adds an array, or a piece of one, to the stored tensors."""
    row, order = place.row, place.order
    axes = place.axes.replace("E", "") if "{e}" in place.name else place.axes
    ours = array.transpose([axes.index(letter) for letter in order])
    if not (row.join or row.neighbours or row.plus):
        found[name] = np.reshape(ours, place.shape, copy=False)
        return
    if name not in found:
        found[name] = Stored(place.shape, [], row.plus)
    expanded, index = tuple(place.expanded.values()), [slice(None)] * len(order)
    if row.join:
        at, size = order.index(row.join), place.sizes[row.join]
        step = place.total // size if row.alternating else 1
        index[at] = slice(place.start, place.start + (size - 1) * step + 1, step)
    if not row.neighbours:
        found[name].pieces.append(Piece(ours, expanded, tuple(index)))
        return
    assert place.stack is not None and isinstance(place.stack.layer.attention, MLA)
    at = order.index(row.neighbours)
    still = place.sizes[row.neighbours] - place.stack.layer.attention.rope_dim
    for part, turned in ((slice(0, still), None), (slice(still, None), at)):
        index[at] = part
        ours_too = tuple(part if number == at else slice(None) for number in range(len(order)))
        found[name].pieces.append(Piece(ours[ours_too], expanded, tuple(index), turned))


class AdapterViews(NamedTuple):
    """The adapter of a projection as PEFT has it; views as those of `views`.

    Attributes:
      a: [R, inputs]; several where the projection is ours in parts, such as DeepSeek's kv_b_proj: all have its A.
      b: [outputs, R].
    """

    a: list[np.ndarray | Stored]
    b: np.ndarray | Stored


def adapter_views(config: ModelConfig, adapters: Mapping[str, Any], lora: LoraConfig) -> dict[str, AdapterViews]:
    """Hugging Face's name of a projection, without `.weight` -> its adapter.

    Experts that all have one tensor in the family's files are left out.

    Args:
      config: of the model.
      adapters: tree of `s1jax.model.adapters`, of numpy arrays.
      lora: of the adapters.
    """
    found: dict[str, AdapterViews] = {}
    parts: dict[str, Any] = {}  # views of B by name
    for place in _places(config, "huggingface"):
        *folders, leaf = place.row.path.split("/")
        if place.stack is None or leaf != "kernel" or folders[-1] not in lora.projections():
            continue
        if "E" in place.axes and "{e}" not in place.name:
            continue
        pair: Any = adapters[place.stack.name]
        for part in folders:
            pair = pair[part]
        of_a, of_b = _pair(place, num_input_axes(folders[-1]), lora.rank)
        for i, layer in enumerate(place.stack.numbers):
            for e in place.experts():
                name, own = place.name.format(layer, e=e).removesuffix(".weight"), dict[str, Any]()
                a, b = (np.asarray(pair[key][i, e] if "{e}" in place.name else pair[key][i]) for key in ("a", "b"))
                _add(own, name, a, of_a)
                _add(parts, name, b, of_b)
                before = found[name].a if name in found else []
                found[name] = AdapterViews([*before, own[name]], parts[name])
    return found


def without_peft_form(config: ModelConfig, lora: LoraConfig) -> tuple[str, str] | None:
    """A projection whose adapter is not one of PEFT's, and the stored tensor that it is a part of; None: all are."""
    for place in _places(config, "huggingface"):
        *folders, leaf = place.row.path.split("/")
        if place.stack is None or leaf != "kernel" or folders[-1] not in lora.projections():
            continue
        if place.row.join or ("E" in place.axes and "{e}" not in place.name):
            return "/".join((place.stack.name, *folders)), place.name.format(0)
    return None


def projections(config: ModelConfig) -> dict[str, str]:
    """Path of every kernel of the layers -> its Hugging Face name, with `{}` for numbers."""
    return {
        f"{place.stack.name}/{place.row.path}": place.name
        for place in _places(config, "huggingface")
        if place.stack is not None and place.row.path.endswith("/kernel")
    }


def _pair(place: _Place, inputs: int, rank: int) -> tuple[_Place, _Place]:
    """Where A and B of an adapter are stored, as if they were kernels; letter R: the rank."""
    axes = place.axes.replace("E", "")
    taken, given = axes[:inputs], axes[inputs:]
    out, into = place.stored.split(" ")
    assert sorted(into) == sorted(taken) and sorted(out) == sorted(given)
    sizes = {**place.sizes, "R": rank}
    row = place.row
    a = place._replace(row=row._replace(stored=f"R {into}", neighbours="", join=""), axes=f"{taken}R", sizes=sizes)
    b = place._replace(row=row._replace(stored=f"{out} R"), axes=f"R{given}", sizes=sizes)
    return a, b


def exact(config: ModelConfig, names: Column) -> set[str]:
    """Stored names of tensors that are float32 whatever the others are."""
    places = [place for place in _places(config, names) if place.row.path in tensors.FLOAT32]
    return {place.name.format(layer) for place in places if place.stack for layer in place.stack.numbers}


def shapes(config: ModelConfig, names: Column) -> dict[str, tuple[int, ...]]:
    """Stored name -> stored shape of every tensor of `config`, as `views` has them, without any array."""
    found: dict[str, tuple[int, ...]] = {}
    for place in _places(config, names):
        for layer in [0] if place.stack is None else place.stack.numbers:
            found.update((place.name.format(layer, e=e), place.shape) for e in place.experts())
    return found


def check(
    config: ModelConfig,
    names: Column,
    found: Mapping[str, tuple[tuple[int, ...], str]],
    where: str,
) -> None:
    """Compares the tensors of a model on disk with its configuration, before memory is taken for any.

    Args:
      config: of the model; its sizes may be wrong by any factor.
      names: which column of the family's rows names the tensors.
      found: stored name -> stored shape and the file that holds it.
      where: what holds all of them, in messages.

    Raises:
      UserError: names tensors that are missing, extra or of another shape.
    """
    if config.num_layers > len(found):  # a layer has several tensors; a billion of names would take all memory
        raise UserError(
            f"{where} has {len(found)} tensors, too few for the {config.num_layers} layers of its configuration; "
            "get the configuration that belongs to these weights."
        )
    expected = shapes(config, names)
    _check_names(found, expected, where)
    for name, wanted in expected.items():
        shape, file = found[name]
        if shape != wanted:
            raise UserError(
                f"{file}: tensor {name} has shape {list(shape)} where the configuration says {list(wanted)}; "
                "get the configuration that belongs to these weights."
            )


def _check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    found, expected = set(found), set(expected)
    for problem, names in (("lacks", expected - found), ("has the unexpected", found - expected)):
        if names:
            listed = ", ".join(map(plain, sorted(names)[:3])) + (
                f" and {len(names) - 3} more" if len(names) > 3 else ""
            )
            raise UserError(
                f"{where} {problem} tensor{'s' * (len(names) > 1)} {listed}; its configuration does not describe "
                "these weights, so get a complete copy or correct the configuration."
            )
