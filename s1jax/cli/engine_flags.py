"""Flags that `s1jax sample`, `s1jax evaluate` and `s1jax serve` share, and the engine that they describe."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from s1jax.cli import terminal
from s1jax.config.experiment import MeshConfig
from s1jax.config.sampling import SAMPLING_DTYPES
from s1jax.errors import UserError

if TYPE_CHECKING:
    from s1jax.engine.engine import Engine

DTYPE = flags.DEFINE_enum(
    "dtype",
    "",
    ["", *SAMPLING_DTYPES["dtype"]],
    "Dtype of the weights; by default float32 on a CPU, bfloat16 elsewhere.",
)
CACHE_DTYPE = flags.DEFINE_enum(
    "cache_dtype", "", ["", *SAMPLING_DTYPES["cache_dtype"]], "Dtype of the KV cache; by default that of the weights."
)
WEIGHT_DTYPE = flags.DEFINE_enum(
    "weight_dtype",
    "",
    ["", *SAMPLING_DTYPES["weight_dtype"]],
    "int8: matrices with one scale per output; int4: one per output and 32 inputs, output projection in int8; fp8: of "
    "the layers, as published FP8 blocks; mxfp4: of experts, as in gpt-oss.",
)
MESH = flags.DEFINE_list(
    "mesh", ["data=-1"], "Mesh axes and their devices, as in training: data=2,tensor=4; -1: all remaining devices."
)


def thinking_share(thinking: int, num_ids: int) -> str:
    """`, 61 % thinking`: the share of the tokens so far; empty before the first."""
    return f", {100 * thinking / num_ids:.0f} % thinking" if num_ids else ""


def parse_mesh(texts: list[str]) -> MeshConfig:
    """Returns the mesh that `--mesh` names; axes that it leaves out have one device.

    Raises:
      UserError: for an unknown axis, the same axis twice, or a size that is not a number.
    """
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    axes: dict[str, int] = {}
    for text in texts:
        name, _, number = text.strip().partition("=")
        if name not in names or name in axes or not re.fullmatch(r"-?[0-9]{1,9}", number):
            raise UserError(f"--mesh has {text!r}; give axes out of {', '.join(names)} as in tensor=4.")
        axes[name] = int(number)
    return MeshConfig(**dict.fromkeys(names, 1) | axes)


def dtype() -> str:
    """The dtype of weights and activations."""
    from s1jax.engine import engine as engine_lib

    return DTYPE.value or engine_lib.default_dtype()


def engine(checkpoint: str, slots: int, cache_length: int, adapters: Mapping[str, str] | None = None) -> Engine:
    """Loads a checkpoint onto the mesh that the flags describe; with several processes, each onto its own devices.

    It prints a line on stderr when it loads, and one before the first sample, when it compiles. Compiled programs are
    cached in $XDG_CACHE_HOME/s1jax, or in JAX_COMPILATION_CACHE_DIR, so that a second process need not compile them.

    Raises:
      UserError: for a mesh that does not fit the devices or the model, or a checkpoint that can't be loaded.
    """
    import jax

    from s1jax.engine import engine as engine_lib
    from s1jax.parallel import mesh as mesh_lib

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home: Any = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", os.fspath(pathlib.Path(home) / "s1jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    mesh = mesh_lib.make_mesh(parse_mesh(MESH.value), jax.local_devices())
    first = jax.process_index() == 0
    if first:
        print(f"loading {terminal.safe(checkpoint)} ...", file=sys.stderr, flush=True)
    made = engine_lib.Engine(
        checkpoint,
        slots=slots,
        cache_length=cache_length,
        dtype=dtype(),
        cache_dtype=CACHE_DTYPE.value,
        weight_dtype=WEIGHT_DTYPE.value,
        mesh=mesh if mesh.size > 1 else None,
        adapters=adapters,
    )

    def say(_: str) -> None:
        """Says once what the first call waits for; cached programs are only read."""
        made.counts.announce = None
        print("compiling ...", file=sys.stderr, flush=True)

    made.counts.announce = say if first else None
    return made


def say_step(checkpoint: str, folder: pathlib.Path) -> None:
    """Says on stderr which step of a training run `checkpoint` stands for, if there are several."""
    from s1jax.checkpoint import store

    step = store.step_of(folder)
    if step is not None and pathlib.Path(checkpoint).absolute() != folder:
        print(f"note: --checkpoint={terminal.safe(checkpoint)} is read at its newest step {step}", file=sys.stderr)
