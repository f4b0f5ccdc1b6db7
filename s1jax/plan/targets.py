"""Hardware that a step can be compiled for without having it: `v5p:4x4x4`, `v6e:4x4`, `h100:16`, `cpu:8`.

Peaks are those of `s1jax.perf`; the rest are the makers' figures: Google Cloud's pages "TPU v5p", "TPU v6e" and
"TPU v5e" (HBM size and bandwidth, interconnect and its links per chip), NVIDIA's data sheets of H100 SXM and H200
(NVLink 4: 450 GB/s each way; InfiniBand NDR: eight 400 Gb/s ports a host).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from s1jax import perf
from s1jax.errors import UserError
from s1jax.model.mlp import grouped
from s1jax.plan import gpu_descriptions


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      flops: dense bf16 FLOP/s.
      memory: bytes a program may use.
      bandwidth: of that memory, bytes/s.
      interconnect: bytes/s that a device sends and receives: a TPU over all of its links, a GPU to others in its host.
      links: number of links of a TPU chip.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    links: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: `name` as the user wrote it, chip, number of devices, and the compiler's name of the topology."""

    name: str
    kind: str
    chip: Chip
    devices: int
    topology: str

    @property
    def platform(self) -> str:
        """What JAX calls the compiler: `cpu`, `cuda` or `tpu`."""
        return "cpu" if self.kind == "cpu" else "cuda" if self.kind in gpu_descriptions.TEXT else "tpu"

    def interconnect(self, group: list[Any]) -> float:
        """Bytes/s of a gather or a reduction among n of `devices`; each device must receive (n - 1) / n of the whole.

        GPUs of several hosts form as many rings as each host has GPUs in the group, and every ring has its own port.
        TPUs use the links of the axes of the slice that they span, and one link of an axis that is not a ring. The
        makers publish no more than that; a compiler may find a better way.
        """
        if self.platform == "cuda":
            hosts = {device.id // _GPUS_PER_HOST for device in group}
            rings = len(group) / len(hosts)
            return self.chip.interconnect if len(hosts) == 1 else min(self.chip.interconnect, rings * _PORT)
        if self.platform == "cpu":
            return self.chip.interconnect
        sides = [int(n) for n in self.topology.partition(":")[2].split("x")]
        along = [len(set(places)) > 1 for places in zip(*(device.coords for device in group), strict=True)]
        # Cubes of 4 are joined to a torus by switches in between, v5e and v6e along sides of 16.
        cubes = all(side % 4 == 0 for side in sides)
        closed = [cubes if len(sides) == 3 else side == 16 for side in sides]
        links = sum(1 + ring for used, ring in zip(along, closed, strict=False) if used)
        return self.chip.interconnect * max(links, 1) / self.chip.links


def _peak(device_kind: str) -> float:
    peak = perf.peak_flops(device_kind)
    assert peak is not None
    return peak


_GIB = 2.0**30
CHIPS: dict[str, Chip] = {
    "v5p": Chip(_peak("TPU v5p"), 95.74 * _GIB, 2765e9, 600e9, 6),
    "v6e": Chip(_peak("TPU v6e"), 31.25 * _GIB, 1638e9, 448e9, 4),
    "v5e": Chip(_peak("TPU v5e"), 15.75 * _GIB, 819e9, 200e9, 4),
    # For GPUs: the share of memory that s1jax/cli/processes.py lets jax use.
    "h100": Chip(_peak("H100"), 80e9, 3352e9, 450e9),
    "h200": Chip(_peak("H200"), 141e9, 4800e9, 450e9),
    "cpu": Chip(1e11, 16e9, 2e10, 1e10),  # arbitrary figures, for tests
}
_GPUS_PER_HOST = 8
# libtpu's message if another process holds it, or left its lock.
_LOCKED = ("in use", "lockfile", "ALREADY_EXISTS", "resource busy")
_PORT = 50e9  # bytes/s of one of a host's eight ports
_MOST_CPUS = 1024


def parse(text: str) -> Target:
    """Reads a target's name.

    Raises:
      UserError: for an unknown chip or arrangement.
    """
    kind, _, shape = text.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){0,2}", shape):
        raise UserError(
            f"--target={text} is not a target; give CHIP:ARRANGEMENT, for example v5p:4x4x4, v6e:4x4, h100:16 or cpu:8 "
            f"(chips: {', '.join(CHIPS)})."
        )
    devices = math.prod(int(n) for n in shape.split("x"))
    if not devices:
        raise UserError(f"--target={text} has no device; give at least 1 along every side.")
    if kind == "cpu" and devices > _MOST_CPUS:
        raise UserError(f"--target={text}: fake devices take memory and time; give at most {_MOST_CPUS}.")
    topology = f"{kind}:{shape}"
    if kind in gpu_descriptions.TEXT:
        hosts = max(1, devices // _GPUS_PER_HOST)
        if devices > _GPUS_PER_HOST and devices % _GPUS_PER_HOST:
            raise UserError(f"--target={text}: hosts have {_GPUS_PER_HOST} GPUs; give 1 to 8, or a multiple of 8.")
        topology = f"1x{hosts}x{devices // hosts}"
    return Target(text, kind, CHIPS[kind], devices, topology)


@contextlib.contextmanager
def answering_for(target: Target) -> Iterator[None]:
    """Emulates the target's platform while a program is traced and lowered: answers questions about its devices.

    JAX has no public way to say that the target of the compiler has cuDNN, or how many processors it has.
    """
    answers: dict[tuple[Any, str], Any] = {(grouped, "jax"): _JaxOn(target.platform)}
    if target.platform == "cuda":
        from jax._src.cudnn import fused_attention_stablehlo as cudnn
        from jax.experimental.pallas.ops.gpu import transposed_ragged_dot_mgpu as weight_gradient

        answers |= {
            (cudnn, "check_cudnn_version"): lambda: 91000,
            (cudnn, "check_compute_capability"): lambda capability: float(capability) <= 9.0,
            (cudnn, "is_cuda_compute_capability_equal"): lambda capability: float(capability) == 9.0,
            (weight_gradient, "jax"): _JaxOn("cuda"),
        }
    asked = {(module, name): getattr(module, name) for module, name in answers}
    try:
        for (module, name), answer in answers.items():
            setattr(module, name, answer)
        yield
    finally:
        for (module, name), function in asked.items():
            setattr(module, name, function)


class _JaxOn:
    """`jax` on a platform, with a first device that has the processors of an H100 SXM."""

    core_count = 132

    def __init__(self, platform: str):
        self._platform = platform

    def default_backend(self) -> str:
        return self._platform

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    def devices(self) -> list[_JaxOn]:
        return [self]


def devices(target: Target) -> list[Any]:
    """Returns the target's devices, to build a mesh. Only those of `cpu` can run programs.

    Raises:
      UserError: if the compiler is not installed, is in use, or does not know the arrangement.
    """
    import jax
    from jax.experimental import topologies

    if target.platform == "cpu":
        return jax.devices()[: target.devices]
    extra = "gpu-aot" if target.platform == "cuda" else "tpu-aot"
    try:
        if target.platform == "cuda":
            description = topologies.get_topology_desc(
                platform="cuda",
                topology_name=target.kind,
                target_config=gpu_descriptions.TEXT[target.kind],
                topology=target.topology,
            )
        else:
            description = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    except Exception as error:  # the plugins raise various errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if target.platform == "tpu" and any(words in reason for words in _LOCKED):
            raise UserError(
                f"--target={target.name}: another process holds libtpu's lock; wait for it to end."
            ) from None
        raise UserError(
            f"--target={target.name}: its compiler gives no such machine ({reason}); "
            f"install it with python -m pip install 's1jax[{extra}]', or choose another arrangement."
        ) from None
    return list(description.devices)
