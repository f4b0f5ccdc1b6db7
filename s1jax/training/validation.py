"""The loss of a model on examples that it is not trained on."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from s1jax.config.experiment import TrainConfig
from s1jax.config.lora import OFF, LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.model.decoder import Params
from s1jax.parallel import sharding
from s1jax.training import lora as lora_lib
from s1jax.training import step as step_lib
from s1jax.training.losses.cross_entropy import batch_loss
from s1jax.training.prepare import Source


class Validation:
    """Measures sum(weights * loss) / sum(weights) over all batches of a source, with the loss of a training step.

    The load-balancing loss of experts is left out.
    """

    def __init__(
        self,
        config: ModelConfig,
        train: TrainConfig,
        mesh: Mesh,
        source: Source,
        abstract: Params,
        loss: step_lib.Loss = batch_loss,
        lora: LoraConfig = OFF,
    ):
        """Compiles nothing yet.

        Args:
          config: of the model.
          train: types, attention kernel and chunk sizes, as in a training step.
          mesh: that the weights and the batches are placed on.
          source: its batches are all read for each measurement.
          abstract: shapes, types and shardings of the master weights.
          loss: of a batch.
          lora: of the adapters, if the master weights are such.
        """
        train = dataclasses.replace(train, router_aux_loss=0.0)
        micro_loss = step_lib.make_loss(config, train, mesh, loss, lora=lora)

        def sums(params: Params, batch: step_lib.Batch, *frozen: step_lib.Frozen) -> tuple[jax.Array, jax.Array]:
            params = step_lib.compute_params(params, config, train, lora)
            return micro_loss(params, batch, *frozen)[0], batch["weights"].sum()

        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        base = [step_lib.Frozen(base=lora_lib.base_shardings(config, lora, train, mesh))] if lora.rank else []
        self._sums = jax.jit(
            sums,
            in_shardings=(shardings, sharding.token_sharding(mesh), *base),
            out_shardings=sharding.replicated(mesh),
        )
        self._compiled: jax.stages.Compiled | None = None
        self._mesh, self._source = mesh, source

    def __call__(self, params: Params, base: Params | None = None) -> float:
        """Returns the mean loss, a float32 number, the same in all processes; `base` is that of adapters."""
        frozen = [] if base is None else [step_lib.Frozen(base=base)]
        total = weight = 0.0
        for batch in self._source.iterate():
            arrays = sharding.put_batch(batch, self._mesh)
            if self._compiled is None:
                self._compiled = step_lib.compile_for(jax.default_backend(), self._sums.lower(params, arrays, *frozen))
            part, of_part = jax.device_get(self._compiled(params, arrays, *frozen))
            total, weight = total + float(part), weight + float(of_part)
        return float(np.float32(total / weight))
