"""Reads the traffic of an optimised program from its HLO text: bytes of collectives and bytes through memory.

Loop bodies count once per iteration. https://openxla.org/xla/operation_semantics describes the instructions.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from s1jax.model.mlp import ragged, sorted_blocks

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+\w*)\[([\d,]*)\]")
_COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
# Instructions without memory traffic of their own, or whose bodies are counted instead.
_FREE = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done", "copy-start", "copy-done"),
    *("partition-id", "replica-id", "call-start", "call-done"),
}
_NO_KERNELS = ("PrepareAsyncCallStart", "PrepareAsyncCallDone", "AllocateBuffer", "AssumeGatherIndicesInBound")
_IN_PLACE = ("dynamic-slice", "dynamic-update-slice")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: its name, type as text, operation, names of operands, and the text after its bracket."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    attributes: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device moves in one run of the program.

    Attributes:
      collectives: bytes by operation, of the larger side of each: the output of a gather, the input of a reduction.
      exposed: the same for collectives that overlap with no matrix product: they are synchronous, or no product is
        between their start and their end.
      synchronous: number of all-gathers in loops that cannot overlap with anything, because they have no separate
        start and end.
      between: for every collective, its bytes times its runs (twice for an all-reduce), and one of its groups of
        devices as indices in the mesh; an empty group means all devices.
      memory: bytes read and written by all instructions outside of fusions; an upper bound, caches ignored.
      work: for each of those instructions its number of runs, the FLOPs of its products and the bytes it moves. Custom
        calls are left out, because their text does not show their products.
    """

    collectives: dict[str, float]
    exposed: dict[str, float]
    synchronous: int
    between: list[tuple[float, tuple[int, ...]]]
    memory: float
    work: list[tuple[float, float, float]]

    @property
    def operations(self) -> float:
        """FLOPs of all products, those of custom calls left out."""
        return sum(times * operations for times, operations, _ in self.work)


def traffic(text: str, unknown_runs: int = 0) -> Traffic:
    """Sums the traffic of an optimised module.

    Args:
      text: of `compiled.as_text()`.
      unknown_runs: how often a loop runs whose number of iterations cannot be found; 0: it is an error.

    Raises:
      ValueError: for such a loop.
    """
    computations, entry = _parse(text)
    collectives: dict[str, float] = collections.defaultdict(float)
    exposed: dict[str, float] = collections.defaultdict(float)
    between: list[tuple[float, tuple[int, ...]]] = []
    work: list[tuple[float, float, float]] = []
    memory, synchronous = 0.0, 0

    def visit(name: str, times: float, in_loop: bool, started: bool = False, beside: bool = False) -> None:
        """Adds a computation; `started`: collectives that end later; `beside`: those that overlap with a product."""
        nonlocal memory, synchronous
        body = computations[name]
        types = {instruction.name: instruction.type for instruction in body}
        alone = set() if beside else _alone(body, types, computations)
        for instruction in body:
            operation = instruction.operation
            if operation == "while":
                runs = _trip_count(instruction, body, computations, unknown_runs)
                visit(_called(instruction, "body"), times * runs, True, started, beside)
            elif operation in ("call", "call-start", "async-start"):  # call-start: on a TPU's SparseCore
                called = _called(instruction, "calls" if operation == "async-start" else "to_apply")
                starts = operation != "call"
                visit(called, times, in_loop, started or starts, beside or (starts and instruction.name not in alone))
            elif operation == "fusion" and _starts_collective(computations[_called(instruction, "calls")]):
                visit(_called(instruction, "calls"), times, in_loop, True, True)
            elif operation == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", instruction.attributes.split("metadata=")[0]):
                    if branch in computations:
                        visit(branch, times, in_loop, started, beside)
            kind = operation.removesuffix("-start")
            if operation == "fusion" and _reduces_and_scatters(computations[_called(instruction, "calls")]):
                kind = "reduce-scatter"
            if kind in _COLLECTIVES:
                size = max(_size(instruction.type.removeprefix("("), largest=operation.endswith("-start")), 0)
                size = max(size, sum(_size(types.get(operand, "")) for operand in instruction.operands))
                collectives[kind] += times * size
                between.append(((2 if kind == "all-reduce" else 1) * times * size, _group(instruction.attributes)))
                synchronous += in_loop and kind == "all-gather" and operation == kind and not started
                if not beside and (not operation.endswith("-start") or instruction.name in alone):
                    exposed[kind] += times * size
            elif not beside and operation not in _FREE and not operation.endswith("-done"):
                moved = _moved(instruction, types, computations)
                memory += times * moved
                if operation != "custom-call":
                    work.append((times, _operations(instruction, types, computations), moved))

    visit(entry, 1.0, False)
    return Traffic(dict(collectives), dict(exposed), synchronous, between, memory, work)


def _group(attributes: str) -> tuple[int, ...]:
    """One of the groups of devices of a collective, in any of the forms that HLO has for them; () for all devices."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+,\d+)\}", attributes)
    listed = pairs or re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return tuple(int(place) for place in listed[1].split(","))
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if tiled:
        shape, along, order = ([int(n) for n in (part or "").split(",") if n] for part in tiled.groups())
        places = np.arange(math.prod(along)).reshape(along).transpose(order or None)
        return tuple(places.reshape(shape)[0].tolist())
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes)
    if axes and ":" not in axes[2]:
        named = re.findall(r"'(\w+)'", axes[2])
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        places = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        return tuple(places[tuple(slice(None) if name in named else 0 for name in sizes)].reshape(-1).tolist())
    return ()


def _alone(body: list[Instruction], types: dict[str, str], computations: dict[str, list[Instruction]]) -> set[str]:
    """Names of the collectives that start and end without a product between; lines are in execution order."""
    alone, running = set(), dict[str, bool]()  # whether a product has run since it was started
    for line in body:
        if line.operation.endswith("-start"):
            running[line.name] = False
        elif line.operation.endswith("-done"):
            alone |= {operand for operand in line.operands if running.pop(operand, True) is False}
        elif _is_product(line, types, computations):
            running = dict.fromkeys(running, True)
    return alone


def _is_product(line: Instruction, types: dict[str, str], computations: dict[str, list[Instruction]]) -> bool:
    """Whether an instruction multiplies matrices; loops and kernels count."""
    if line.operation == "custom-call":
        return not any(f'"{target}"' in line.attributes for target in _NO_KERNELS)
    return line.operation == "while" or _operations(line, types, computations) > 0


def _starts_collective(body: list[Instruction]) -> bool:
    """Whether a fusion only starts a collective that later fusions continue: the TPU compiler's asynchronous
    collective fusion."""
    return any("AsyncCollectiveStart" in line.attributes for line in body)


def _reduces_and_scatters(body: list[Instruction]) -> bool:
    """Whether a fusion is the TPU compiler's reduce-scatter: a reduction after which each device keeps its part."""
    operations = {line.operation for line in body}
    return "all-reduce" in operations and "dynamic-slice" in operations


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of every computation, and the name of the one that runs."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
            continue
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
        if found and current:
            type_, rest = _split_type(found[2])
            operation, _, rest = rest.partition("(")
            inside = _until_closed("(" + rest)
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            computations[current].append(Instruction(found[1], type_, operation.strip(), operands, rest))
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """Cuts `f32[2]{0} add(...)` or `(f32[2], s32[]) while(...)` after its type."""
    end = len(_until_closed(text)) if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _until_closed(text: str) -> str:
    """The start of `text` up to the bracket that closes its first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1]
    return text


@functools.cache
def _size(type_: str, largest: bool = False) -> int:
    """Bytes of a type; with `largest`, of its largest part: the type of an asynchronous start has several."""
    sizes = []
    for kind, shape in _SHAPE.findall(type_):
        if largest and not shape:  # the tokens of an asynchronous start
            continue
        width = _BYTES.get(kind) or (1 if kind.startswith("f8") else 4)
        sizes.append(width * math.prod(int(n) for n in shape.split(",") if n))
    half = len(sizes) // 2
    return max(sum(sizes[:half]), sum(sizes[half:])) if largest and half else sum(sizes)


def _called(instruction: Instruction, key: str) -> str:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", instruction.attributes)
    if not found:
        raise ValueError(f"{instruction.operation} {instruction.name} names no {key}")
    return found[1]


def _trip_count(
    instruction: Instruction, body: list[Instruction], computations: dict[str, list[Instruction]], unknown_runs: int
) -> float:
    """Iterations of a loop in `body`: as the compiler notes, its condition's constant, those of experts, or
    `unknown_runs`."""
    noted = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.attributes)
    if noted:
        return int(noted[1])
    condition = computations[_called(instruction, "condition")]
    fused = [line for one in condition if one.operation == "fusion" for line in computations[_called(one, "calls")]]
    limits = [value for line in [*condition, *fused] if (value := _constant(line)) is not None]
    limits = limits or _carried(instruction, condition, body)
    expected = re.findall(rf"{sorted_blocks.SCOPE}([\d.]+)", instruction.attributes)
    if not limits and expected:
        return float(expected[-1])
    if not limits and re.search("expert_(rows|weights)", instruction.attributes):
        return ragged.CHUNKS  # of rows of experts that are spread over devices, if all get as many
    if not limits and not unknown_runs:
        raise ValueError(f"loop {instruction.name}: its condition compares with no constant")
    return max(limits, default=unknown_runs)


def _constant(line: Instruction) -> int | None:
    """The value of a constant that is a number and not negative; None for all else."""
    found = re.match(r"(\d+)\)", line.attributes) if line.operation == "constant" else None
    return int(found[1]) if found else None


def _carried(instruction: Instruction, condition: list[Instruction], body: list[Instruction]) -> list[int]:
    """What the condition of a loop in `body` reads and the loop starts with as constants, if that is all it reads."""
    lines = {line.name: line for line in body}
    start = lines.get(instruction.operands[0])
    if start is None or start.operation != "tuple":
        return []
    found = []
    for line in condition:
        if line.operation == "get-tuple-element" and (place := re.search(r"index=(\d+)", line.attributes)):
            one = lines.get(start.operands[int(place[1])])
            while one is not None and one.operation in ("copy", "bitcast"):
                one = lines.get(one.operands[0])
            found.append(None if one is None else _constant(one))
    return [] if None in found else [value for value in found if value is not None]


def _moved(instruction: Instruction, types: dict[str, str], computations: dict[str, list[Instruction]]) -> float:
    """Bytes that an instruction reads and writes; of slices and updates only the touched part."""
    operation, operands = instruction.operation, instruction.operands
    if operation in ("dynamic-slice", "slice", "gather"):
        return 2.0 * _size(instruction.type)
    if operation in ("dynamic-update-slice", "scatter"):
        return 2.0 * _size(types.get(operands[1], ""))
    written = float(_size(instruction.type))
    if operation != "fusion":
        return written + sum(_size(types.get(operand, "")) for operand in operands)
    name = _called(instruction, "calls")
    uses, read = _uses(name, computations), 0.0
    for line in computations[name]:
        if line.operation == "parameter":
            found = uses[line.name]
            if not found or any(use.operation not in _IN_PLACE or not use.first for use in found):
                read += _size(line.type)
                continue
            updates = [use for use in found if use.operation == "dynamic-update-slice"]
            read += sum(use.result for use in found if use.operation == "dynamic-slice")
            if updates:
                written -= _size(line.type) - sum(use.update for use in updates)
    return read + max(written, 0.0)


@dataclasses.dataclass(frozen=True)
class _Use:
    """One use of a value in a fusion: operation, whether the value is the first operand, bytes of result and update."""

    operation: str
    first: bool
    result: int
    update: int


def _uses(name: str, computations: dict[str, list[Instruction]]) -> dict[str, list[_Use]]:
    """Uses of every value of a fusion, looked up through bitcasts and fusions inside."""
    body = computations[name]
    types = {line.name: line.type for line in body}
    uses: dict[str, list[_Use]] = collections.defaultdict(list)
    for line in reversed(body):  # users before what they use: the uses of a bitcast are then known
        inner: list[list[_Use]] = []
        if line.operation == "fusion":
            called = _called(line, "calls")
            of_inner = _uses(called, computations)
            parameters = [one for one in computations[called] if one.operation == "parameter"]
            parameters.sort(key=lambda one: int(one.attributes.partition(")")[0]))
            inner = [of_inner[one.name] for one in parameters]
        for place, operand in enumerate(line.operands):
            if line.operation == "bitcast":
                uses[operand] += uses[line.name]
            elif inner:
                # An inner fusion that returns the value itself has the uses of its own users.
                uses[operand] += inner[place] or uses[line.name]
            else:
                update = _size(types.get(line.operands[1], "")) if line.operation == "dynamic-update-slice" else 0
                uses[operand].append(_Use(line.operation, place == 0, _size(line.type), update))
    return uses


def _operations(instruction: Instruction, types: dict[str, str], computations: dict[str, list[Instruction]]) -> float:
    """FLOPs of the products in an instruction, 2 per multiply-add; custom calls have none."""
    if instruction.operation == "fusion":
        body = computations[_called(instruction, "calls")]
        inner = {line.name: line.type for line in body}
        return sum(_operations(line, inner, computations) for line in body)
    if instruction.operation not in ("dot", "convolution"):
        return 0.0
    left, right = (_shape(types[operand]) for operand in instruction.operands[:2])
    if instruction.operation == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(axis) for axis in contracting[1].split(",") if axis] if contracting else []
        return 2.0 * math.prod(_shape(instruction.type)) * math.prod(left[axis] for axis in axes)
    # The TPU compiler turns all products into convolutions; their spatial axes are heads or batches.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        raise ValueError(f"convolution {instruction.name} names no dim_labels")
    out = _shape(instruction.type)
    window = dict(re.findall(r"(\w+)=([\dx_]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0]))
    pads = window["pad"].split("x") if "pad" in window else []
    strides = window["stride"].split("x") if "stride" in window else []
    taps = 1
    for axis in (letter for letter in labels[3] if letter.isdigit()):
        size, taken = left[labels[1].index(axis)], right[labels[2].index(axis)]
        before = int(pads[int(axis)].split("_")[0]) if pads else 0
        step = int(strides[int(axis)]) if strides else 1
        places = range(out[labels[3].index(axis)])
        taps *= sum(0 <= place * step + tap - before < size for place in places for tap in range(taken))
    return 2.0 * left[labels[1].index("b")] * right[labels[2].index("i")] * right[labels[2].index("o")] * taps


def _shape(type_: str) -> list[int]:
    found = _SHAPE.search(type_)
    return [int(size) for size in found[2].split(",") if size] if found else []
