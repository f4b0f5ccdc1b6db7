"""What an engine samples with, for the records of its samples."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Description:
    """What an engine samples with.

    Attributes:
      checkpoint: path of the checkpoint as it was given; empty if the weights come from none.
      weights: SHA-256 that is equal for equal checkpoints, see `s1jax.checkpoint.digests.fingerprint`; empty likewise.
      step: of the training run that wrote the checkpoint; None if it is not one of a run.
      dtype: of activations.
      cache_dtype: of the KV cache; empty if it is `dtype`.
      weight_dtype: of the matrices; empty if it is `dtype`.
      batch_size: batch slots.
      devices: kind of each device.
    """

    checkpoint: str
    weights: str
    step: int | None
    dtype: str
    cache_dtype: str
    weight_dtype: str
    batch_size: int
    devices: tuple[str, ...]
