"""From an experiment to what the training loop needs: mesh, model metadata, batches and the first weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from s1jax.checkpoint import digests, store
from s1jax.config import experiment as experiment_lib
from s1jax.config import schema
from s1jax.config.experiment import Experiment
from s1jax.data import sources
from s1jax.data.packing import Batch
from s1jax.errors import UserError
from s1jax.io import assets
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding
from s1jax.parallel.processes import together
from s1jax.text import chat as chat_lib
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import lora as lora_lib
from s1jax.training import on_policy as on_policy_lib
from s1jax.training import step as step_lib
from s1jax.training import teacher as teacher_lib
from s1jax.training import trackers
from s1jax.training.losses import sparse_distillation
from s1jax.training.losses.cross_entropy import batch_loss
from s1jax.training.on_policy import OnPolicy


class Source(Protocol):
    """Where batches come from; step s always gives the same batch."""

    num_steps: int

    @property
    def digest(self) -> str:
        """SHA-256 of all examples; empty where the settings say everything."""
        ...

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Yields this process's rows of the batches of steps start, start + 1, ..., num_steps - 1."""
        ...

    def names(self, step: int) -> list[str]:
        """Where the sequences of a step came from."""
        ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    Attributes:
      experiment: the settings, with the attention kernel that runs on this mesh.
      mesh: all devices of the run.
      metadata: what every checkpoint of the run says of itself besides its weights.
      batches: the training data.
      make_params: returns the weights to start from, in the layout of `s1jax.model.decoder`, or the adapters. A
        resumed run does not call it.
      validation: the batches of one pass over the validation rows; None: the run is not validated. Their loss is plain
        cross-entropy, with a teacher, too.
      teacher: of a logit distillation, if it runs beside the student; it has a loss of its own.
      loss: of a step without a teacher: cross-entropy, or that of stored targets.
      on_policy: samples the rows of some steps, which the teacher scores; None: all steps have the rows of the data.
      make_base: returns the frozen weights that adapters are trained for; None: the run trains all weights.
      base: stands for the content of their checkpoint; empty without adapters.
      notes: sentences for the user on the settings and the rows.
    """

    experiment: Experiment
    mesh: Mesh
    metadata: store.Metadata
    batches: Source
    make_params: Callable[[], decoder.Params]
    validation: Source | None = None
    teacher: teacher_lib.Online | None = None
    loss: step_lib.Loss = batch_loss
    on_policy: OnPolicy | None = None
    make_base: Callable[[], decoder.Params] | None = None
    base: str = ""
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def prepare(experiment: Experiment) -> Iterator[Prepared]:
    """Yields the run that an experiment describes. The checkpoints that it reads are not removed during the block.

    Every wrong setting is found here, before the run has a folder: the corrected settings would be another run.

    Raises:
      UserError: for a setting, a source or a row that is wrong, in all processes.
    """
    with contextlib.ExitStack() as held:
        start = hold("config.init_from", experiment.init_from, held)
        teacher = hold("config.distil.teacher", experiment.distil.teacher if experiment.distil.weight else "", held)
        yield together(lambda: _prepare(experiment, start, teacher))


def _prepare(experiment: Experiment, start: pathlib.Path | None, of_teacher: pathlib.Path | None) -> Prepared:
    mesh = mesh_lib.make_mesh(experiment.mesh)
    metadata = make_metadata(experiment, start)
    metadata.tokenizer.legal_ids(metadata.config.vocab_size)  # raises where it has ids that the embedding lacks
    if experiment.data.block_size > metadata.config.context_length:
        raise UserError(
            f"config.data.block_size {experiment.data.block_size} exceeds the model's context_length "
            f"{metadata.config.context_length}; choose a smaller one."
        )
    sharding.check_batch(mesh_lib.row_shards(mesh), experiment.data.block_size, mesh, "the batch")
    sharding.param_shardings(metadata.config, mesh)
    lora = experiment.lora
    lora_lib.check(metadata.config, experiment)
    lora_lib.trained_shardings(metadata.config, lora, mesh)
    step_lib.make_gradients(metadata.config, experiment.train, mesh, lora=lora)
    share, shares = sharding.row_share(mesh)
    data = sources.make(experiment, metadata.tokenizer, metadata.chat, mesh_lib.row_shards(mesh), share, shares)
    notes = experiment_lib.unused(experiment) + data.notes + trackers.check(experiment.log)
    if experiment.optimizer.offload and not step_lib.can_offload(mesh):
        notes.append("config.optimizer.offload is not used: here the devices are the host, and have its memory.")
    teacher = None
    if of_teacher is not None:
        teacher = teacher_lib.make(experiment, of_teacher, metadata.config, metadata.tokenizer, mesh)
        notes += teacher.notes
    loss: step_lib.Loss = batch_loss
    if experiment.distil.targets and experiment.distil.weight:
        legal = metadata.tokenizer.legal_ids(metadata.config.vocab_size)
        loss = functools.partial(sparse_distillation.batch_loss, experiment.distil.weight, legal)
    experiment, fallback = parallel_ops.choose_attention(experiment, metadata.config, mesh, jax.default_backend())
    if fallback:
        notes.append(fallback)

    def make_params() -> decoder.Params:
        if lora.rank:
            return lora_lib.init(metadata.config, lora, experiment.seed, experiment.train.param_dtype, mesh)
        if start is not None:
            return store.load_model(start, mesh=mesh).params
        shardings = sharding.param_shardings(metadata.config, mesh)
        init = jax.jit(decoder.init_params, static_argnums=(0, 2), out_shardings=shardings)
        return init(metadata.config, jax.random.key(experiment.seed), experiment.train.param_dtype)

    make_base, base = None, ""
    if lora.rank:
        assert start is not None  # `check` demands it
        make_base, base = functools.partial(lora_lib.load_base, start, experiment, mesh), digests.fingerprint(start)
        where = experiment.init_from if experiment.init_from.startswith(assets.PREFIX) else str(start.absolute())
        metadata = dataclasses.replace(metadata, adapters=store.AdapterInfo(lora, where, base))
    return Prepared(
        experiment, mesh, metadata, data.batches, make_params, data.validation, teacher, loss,
        on_policy_lib.make(experiment, metadata, data.batches, mesh), make_base, base, tuple(notes),
    )  # fmt: skip


def hold(setting: str, checkpoint: str, held: contextlib.ExitStack) -> pathlib.Path | None:
    """The folder of a checkpoint, which is not removed before `held` is closed: the same one in all processes.

    Raises:
      UserError: in all processes if it is none; begins with the setting.
    """

    def hold(path: str | pathlib.Path) -> pathlib.Path:
        try:
            return held.enter_context(store.hold(path))
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error

    if not checkpoint:
        return None
    mine = together(lambda: hold(checkpoint))
    if jax.process_count() == 1:
        return mine
    step = store.step_of(mine)  # another process may find one that a run has saved meanwhile
    common = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if step is None else step)))
    name = mine.name if common < 0 else str(common)
    return together(lambda: hold(mine.with_name(name)))


def make_metadata(experiment: Experiment, start: pathlib.Path | None = None) -> store.Metadata:
    """Model, tokenizer and chat format of a run, and its settings as provenance.

    Args:
      experiment: the settings.
      start: the folder that `experiment.init_from` stands for; None looks it up.

    Raises:
      UserError: for an unknown chat format, a missing setting, or a tokenizer that lacks a delimiter.
    """
    if experiment.chat and experiment.chat not in chat_lib.FORMATS:
        raise UserError(f"config.chat {experiment.chat!r} is not a chat format; choose {', '.join(chat_lib.FORMATS)}.")
    provenance: dict[str, Any] = {"experiment": schema.to_dict(experiment)}
    if experiment.init_from:
        base = store.load_metadata(start or experiment.init_from)
        fmt = chat_lib.FORMATS[experiment.chat] if experiment.chat else base.chat
        provenance["init_from"] = base.provenance
        return store.Metadata(base.config, base.tokenizer, _chat_format(experiment, base.tokenizer, fmt), provenance)
    assert experiment.model is not None  # Experiment has either
    if not experiment.tokenizer or not experiment.chat:
        raise UserError("config.tokenizer and config.chat are needed where config.init_from is not given.")
    tokenizer = Tokenizer.load(experiment.tokenizer)
    fmt = _chat_format(experiment, tokenizer, chat_lib.FORMATS[experiment.chat])
    return store.Metadata(experiment.model, tokenizer, fmt, provenance)


def _chat_format(experiment: Experiment, tokenizer: Tokenizer, fmt: ChatFormat) -> ChatFormat:
    """The chat format with the delimiters of the experiment.

    Raises:
      UserError: if the tokenizer lacks one. A source without chat would never notice, and nothing could be sampled.
    """
    wanted = experiment.delimiters
    setting = "delimiters" if wanted.think_start or wanted.think_end else "chat"
    try:
        if setting == "delimiters":
            fmt = chat_lib.with_delimiters(tokenizer, fmt, wanted.think_start, wanted.think_end)
        chat_lib.check(tokenizer, fmt)
    except UserError as error:
        raise UserError(f"config.{setting}: {error}") from error
    return fmt
