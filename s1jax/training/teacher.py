"""The frozen teacher of a logit distillation: a checkpoint that fits the student, with its weights on the mesh."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from s1jax.checkpoint import digests, store
from s1jax.config.experiment import DistilConfig, Experiment
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model.decoder import Params
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import step as step_lib
from s1jax.training.losses import distillation


@dataclasses.dataclass(frozen=True)
class Online:
    """A teacher that runs beside the student.

    Attributes:
      spec: what the step has to know of it.
      loss: of the student's output against the teacher's.
      on_policy_loss: the same for what the student sampled.
      digest: stands for the checkpoint's content; it belongs to the run's identity.
      make_params: loads the weights onto the mesh, in the compute type.
      notes: sentences for the user.
    """

    spec: step_lib.Teacher
    loss: step_lib.Loss
    on_policy_loss: step_lib.Loss
    digest: str
    make_params: Callable[[], Params]
    notes: tuple[str, ...] = ()


def make(
    experiment: Experiment, folder: pathlib.Path, student: ModelConfig, tokenizer: Tokenizer, mesh: Mesh
) -> Online:
    """Checks a teacher's checkpoint; loads no weights yet.

    Args:
      experiment: of the student.
      folder: the checkpoint that `experiment.distil.teacher` stands for, which is not removed during the run.
      student: its shape.
      tokenizer: the student's.
      mesh: of the run.

    Raises:
      UserError: for a checkpoint that is damaged, has another tokenizer, a shorter context than the rows, or does not
        divide over the mesh; begins with the setting.
    """
    name = f"config.distil.teacher={experiment.distil.teacher}"
    try:
        about = store.load_metadata(folder)
        config = shape(about.config, student.vocab_size)
        for one in (about.config, config):
            sharding.param_shardings(one, mesh)
        legal, notes = common_ids(tokenizer, about.tokenizer, student.vocab_size, about.config.vocab_size)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if experiment.data.block_size > config.context_length:
        raise UserError(
            f"{name}: config.data.block_size {experiment.data.block_size} exceeds its context_length"
            f" {config.context_length}; choose a smaller one, or another teacher."
        )
    chosen, fallback = parallel_ops.choose_attention(experiment, config, mesh, jax.default_backend())
    if fallback and fallback != parallel_ops.choose_attention(experiment, student, mesh, jax.default_backend())[1]:
        notes.append(f"{name}: {fallback}")
    parts = step_lib.mlp_chunks(experiment.train, config)
    if parts != experiment.train.mlp_parts:
        notes.append(
            f"{name}: its mlp_dim {max(config.mlp_dims)} is computed in {parts} parts, because train.mlp_parts"
            f" {experiment.train.mlp_parts} does not divide it."
        )

    def make_params() -> Params:
        params = store.load_model(folder, mesh=mesh, dtype=experiment.train.compute_dtype).params
        return _cut(params, about.config, config, mesh)

    return Online(
        step_lib.Teacher(config, chosen.train.attention),
        loss(experiment.distil, legal),
        loss(dataclasses.replace(experiment.distil, loss=experiment.distil.on_policy_loss, weight=1.0), legal),
        digests.fingerprint(folder),
        make_params,
        tuple(notes),
    )


def shape(teacher: ModelConfig, rows: int) -> ModelConfig:
    """The teacher's shape with as many rows of the vocabulary as the student has."""
    return dataclasses.replace(teacher, vocab_size=rows)


def loss(config: DistilConfig, legal: np.ndarray | None = None) -> step_lib.Loss:
    """The loss of a step with a teacher; `legal`: bool [V], the ids of the tokenizer, None: all."""
    return functools.partial(distillation.batch_loss, config, legal)


def common_ids(ours: Tokenizer, theirs: Tokenizer, rows: int, their_rows: int) -> tuple[np.ndarray, list[str]]:
    """Compares the tokenizers of student and teacher by content.

    Args:
      ours: the student's.
      theirs: the teacher's.
      rows: of the student's embedding.
      their_rows: of the teacher's embedding.

    Returns:
      bool [rows], the ids that both have; sentences on those that only the teacher has.

    Raises:
      UserError: if an id of the student is another token of the teacher or none, or texts become other tokens; names an
        example.
    """
    difference = ours.difference(theirs)
    if difference:
        raise UserError(
            f"its tokenizer is another one than the student's: {difference}; distil from a teacher with the student's"
            " tokenizer, or train on its text alone."
        )
    legal = ours.legal_ids(rows)
    theirs.legal_ids(their_rows)
    more = ours.lacks(theirs)
    if not more:
        return legal, []
    id_, token = more[0]
    what = "an id" if len(more) == 1 else f"{len(more)} ids"
    return legal, [
        f"the teacher has {what} that the student's tokenizer lacks, such as {id_} ({token!r}); its mass there is left"
        " out of the distillation loss."
    ]


def _cut(params: Params, config: ModelConfig, wanted: ModelConfig, mesh: Mesh) -> Params:
    """Weights whose embedding and head are cut, or filled up with zeros, to another number of ids."""
    rows, more = wanted.vocab_size, max(0, wanted.vocab_size - config.vocab_size)
    if config.vocab_size == rows:
        return params
    # The rest is left out of the program, which would make a second copy of it.
    changed = {name: params[name] for name in ("embed", "head") if name in params}
    shardings = sharding.param_shardings(wanted, mesh)

    def change(params: Params) -> Params:
        embed = {"embedding": jnp.pad(params["embed"]["embedding"][:rows], ((0, more), (0, 0)))}
        if "head" not in params:
            return {"embed": embed}
        return {"embed": embed, "head": {"kernel": jnp.pad(params["head"]["kernel"][:, :rows], ((0, 0), (0, more)))}}

    return {**params, **jax.jit(change, out_shardings={name: shardings[name] for name in changed})(changed)}
