"""An engine that loads its weights when it samples, so that a mistyped flag is answered at once."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from s1jax.cli import engine_flags
from s1jax.config.sampling import SamplingParams

if TYPE_CHECKING:
    from s1jax.checkpoint.store import Metadata
    from s1jax.engine.description import Description
    from s1jax.engine.engine import Engine
    from s1jax.engine.request import EngineProgress, Output, Request

# Up to this many tokens all calls share one compiled program: for short rows compiling takes longer than sampling.
_SHARED_LENGTH = 1024


class LazyEngine:
    """The engine that the flags ask for, as `s1jax.evaluation.runner.Engine`; it loads the weights when it samples.

    Attributes:
      model: the checkpoint without its weights.
    """

    def __init__(self, folder: pathlib.Path, checkpoint: str, slots: int):
        """Reads the description of a checkpoint.

        Args:
          folder: of the checkpoint.
          checkpoint: as the user named it.
          slots: batch slots.
        """
        from s1jax.checkpoint import store

        self.model: Metadata = store.load_metadata(folder)
        self._folder, self._checkpoint, self._slots, self._length = folder, checkpoint, slots, 0

    def describe(self) -> Description:
        """See `Engine.describe`."""
        # Imported here and not above: a mistyped flag is answered at once.
        import jax

        from s1jax.checkpoint import digests, store
        from s1jax.engine.description import Description

        return Description(
            checkpoint=self._checkpoint,
            weights=digests.fingerprint(self._folder),
            step=store.step_of(self._folder),
            dtype=engine_flags.dtype(),
            cache_dtype=engine_flags.CACHE_DTYPE.value,
            weight_dtype=engine_flags.WEIGHT_DTYPE.value,
            batch_size=self._slots,
            devices=tuple(device.device_kind for device in jax.devices()),
        )

    def check(self, requests: Sequence[Request], params: SamplingParams, /) -> int:
        """See `Engine.check`; the engine that will be loaded has room for these requests."""
        from s1jax.engine import limits
        from s1jax.engine.encoding import Encoder

        longest = limits.longest(Encoder(self.model), requests, params, self.model.config.context_length)
        length = -(-longest // 64) * 64
        # 0: each run for itself.
        self._length = length if length <= min(_SHARED_LENGTH, self.model.config.context_length) else 0
        return longest

    def stream(
        self,
        prompts: Iterable[Request],
        params: SamplingParams | None = None,
        /,
        *,
        system: str = "",
        progress: EngineProgress | None = None,
    ) -> Iterator[tuple[int, Output]]:
        """See `Engine.stream`."""
        return self._engine.stream(prompts, params, system=system, progress=progress)

    @functools.cached_property
    def _engine(self) -> Engine:
        return engine_flags.engine(os.fspath(self._folder), self._slots, self._length)
