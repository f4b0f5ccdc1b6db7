"""On-policy distillation: completes a batch with answers that the student samples, which a teacher then scores.

A step is a function of (seed, step) and of the weights: the prompts are those of the step's batch, the noise of a
sequence is that of (seed, step, place in the batch), and the sampler is the engine with the weights of the step. So a
resumed run samples what the uninterrupted one did.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh

from s1jax.checkpoint import store
from s1jax.config.experiment import Experiment, RolloutConfig
from s1jax.config.sampling import SamplingParams
from s1jax.data import packing
from s1jax.data.batches import Batches
from s1jax.data.packing import Batch, Example
from s1jax.data.sources import CORPUS, CorpusBatches
from s1jax.engine import seeds
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest, Sample, longest
from s1jax.errors import UserError
from s1jax.model.decoder import Params
from s1jax.text import chat as chat_lib


def make(
    experiment: Experiment, metadata: store.Metadata, batches: Batches | CorpusBatches, mesh: Mesh
) -> OnPolicy | None:
    """Returns what samples the rows of on-policy steps; None where there are none.

    Args:
      experiment: of the student.
      metadata: of the student.
      batches: whose prompts are answered.
      mesh: of the weights.

    Raises:
      UserError: the settings do not go with on-policy steps; or as `OnPolicy`.
    """
    share = experiment.distil.on_policy
    if not share:
        return None
    if isinstance(batches, CorpusBatches):
        raise UserError(f"distil.on_policy is {share}, but data.source {CORPUS} has no prompts; give rows, or 0.")
    if experiment.data.batching != "padded":
        raise UserError(
            f"distil.on_policy is {share}, but packed rows have no room for answers whose length is not known; set"
            " data.batching=padded."
        )
    if jax.process_count() > 1:
        raise UserError(
            f"distil.on_policy is {share}, but the engine samples on the devices of one process, and this run has"
            f" {jax.process_count()}; use one host, or set it to 0."
        )
    return OnPolicy(experiment, metadata, batches, mesh)


class OnPolicy:
    """The student's own answers as batches; see the module's text."""

    def __init__(self, experiment: Experiment, metadata: store.Metadata, batches: Batches, mesh: Mesh):
        """Checks the settings; makes no engine yet.

        Args:
          experiment: with `distil.on_policy` above 0.
          metadata: of the student.
          batches: whose prompts are answered.
          mesh: of the weights.

        Raises:
          UserError: a prompt with an answer of the most tokens may exceed data.block_size, or the wait string cannot be
            written.
        """
        distil, self._data = experiment.distil, experiment.data
        self._share, self._config, self._mesh = distil.on_policy, metadata.config, mesh
        self._dtype = experiment.train.compute_dtype
        self._delimiters = chat_lib.delimiters(metadata.tokenizer, metadata.chat)
        self._wait = chat_lib.encode_wait(metadata.tokenizer, metadata.chat, self._delimiters, distil.rollout.wait)
        self._params = sampling_params(distil.rollout)
        self._rows = batches.num_rows
        self._length = min(self._data.block_size + 1, metadata.config.context_length)
        self._engine: Engine | None = None
        for example in batches.examples:
            ids = longest(self._request(prompt(example), 0, example.name), self._delimiters)
            if ids > self._length:
                raise UserError(
                    f"{example.name}: its prompt and an answer of distil.rollout can have {ids} ids, more than the"
                    f" {self._length} of a row; lower distil.rollout.max_thinking_tokens or max_answer_tokens, or raise"
                    " data.block_size."
                )

    def is_due(self, step: int) -> bool:
        """Whether the rows of a step, counted from 0, are sampled: `on_policy` of all steps, spread evenly."""
        return math.floor((step + 1) * self._share) > math.floor(step * self._share)

    def complete(self, step: int, params: Params, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Samples an answer for each prompt of a batch.

        Args:
          step: counted from 0.
          params: weights of the student, in the layout of training.
          batch: arrays [B, T] with one sequence in a row.

        Returns:
          The batch of the same prompts with the sampled answers: what was sampled carries loss, the id that ended an
          answer included, and what budget forcing put there does not. And metrics: `sampled_ended`, the share of
          answers whose thinking and answer ended by themselves; `sampled_tokens`, the mean number of sampled ids.
        """
        if self._engine is None:
            mesh = self._mesh if self._mesh.size > 1 else None
            self._engine = Engine(
                params, config=self._config, slots=self._rows, cache_length=self._length, dtype=self._dtype, mesh=mesh
            )
        else:
            self._engine.update_weights(params)
        seed = self._data.seed % 2**32
        requests = [
            self._request(ids, seeds.derive(seed, step + 1, place), f"row {place} of step {step + 1}")
            for place, ids in enumerate(prompts(batch))
        ]
        samples = dict(self._engine.sample(requests, self._delimiters))
        made = [answered(request, samples[place]) for place, request in enumerate(requests)]
        rows = [[example] for example in made]
        ended = [each.thinking_end == "natural" and each.answer_end == "stop" for each in samples.values()]
        sampled = [np.count_nonzero(~each.forced) for each in samples.values()]
        metrics = {"sampled_ended": float(np.mean(ended)), "sampled_tokens": float(np.mean(sampled))}
        return packing.arrays(rows, len(batch["tokens"]), self._data.block_size, self._data.weighting), metrics

    def _request(self, ids: tuple[int, ...], seed: int, name: str) -> EncodedRequest:
        return EncodedRequest(ids, dataclasses.replace(self._params, seed=seed), self._wait, name)


def sampling_params(rollout: RolloutConfig) -> SamplingParams:
    """The sampling parameters of a rollout."""
    return SamplingParams(**dataclasses.asdict(rollout))


def prompt(example: Example) -> tuple[int, ...]:
    """The ids before the last run of supervised ones: the prompt of the last answer, without think_start."""
    return _prompt(example.ids, example.supervised)


def prompts(batch: Batch) -> list[tuple[int, ...]]:
    """The prompts of a batch with one sequence in a row; rows of padding have none."""
    found = []
    for tokens, targets, weights, segments in zip(
        *(batch[name] for name in ("tokens", "targets", "weights", "segment_ids")), strict=True
    ):
        length = np.count_nonzero(segments)
        if length:
            ids = np.append(tokens[:length], targets[length - 1])
            found.append(_prompt(ids, np.append(False, weights[:length] > 0)))
    return found


def _prompt(ids: np.ndarray, supervised: np.ndarray) -> tuple[int, ...]:
    end = np.flatnonzero(supervised)[-1]
    others = np.flatnonzero(~supervised[:end])
    return tuple(ids[: others[-1] + 1 if len(others) else 0].tolist())


def answered(request: EncodedRequest, sample: Sample) -> Example:
    """A prompt with what was sampled for it as a training example."""
    ids = np.append(np.asarray(request.prompt, np.int32), sample.ids)
    supervised = np.append(np.zeros(len(request.prompt), bool), ~sample.forced)
    return Example(ids.astype(np.int32), supervised, request.name)
