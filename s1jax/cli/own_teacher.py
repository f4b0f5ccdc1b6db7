"""The flags of a teacher in the process, and the engine that they describe."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from s1jax.cli import engine_flags

if TYPE_CHECKING:
    from s1jax.engine.engine import Engine
    from s1jax.serve.in_process import EngineTeacher

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "Teacher in this process in place of --endpoint: checkpoint, training workdir or package:NAME."
)
SLOTS = flags.DEFINE_integer("slots", 16, "Batch slots of --checkpoint: answers that are decoded at one time.", 1)
CACHE_TOKENS = flags.DEFINE_integer("cache_tokens", 0, "KV cache of --checkpoint in tokens; 0: what fits.", 0)
CACHE_LENGTH = flags.DEFINE_integer(
    "cache_length", 0, "Longest sequence of --checkpoint in tokens; 0: the context length of the model.", 0
)


def make(name: str = "") -> EngineTeacher:
    """Returns the teacher of --checkpoint; loads nothing yet.

    Args:
      name: of the model in the answers; empty: the last part of the checkpoint's path.

    Raises:
      UserError: there is no such checkpoint, or a flag of the engine is invalid.
    """
    from s1jax.serve.in_process import EngineTeacher

    engine_flags.parse_mesh(engine_flags.MESH.value)
    return EngineTeacher.of(
        CHECKPOINT.value, model=name, cache_tokens=CACHE_TOKENS.value, make=_load,
        weight_dtype=engine_flags.WEIGHT_DTYPE.value, cache_dtype=engine_flags.CACHE_DTYPE.value,
    )  # fmt: skip


def _load(folder: pathlib.Path) -> Engine:
    engine_flags.say_step(CHECKPOINT.value, folder)
    return engine_flags.engine(os.fspath(folder), SLOTS.value, CACHE_LENGTH.value)
