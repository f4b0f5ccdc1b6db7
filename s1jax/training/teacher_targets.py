"""The call `s1jax.teacher_logits`: scores the rows of an experiment with a teacher, into a folder of targets."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from s1jax.checkpoint import digests, store
from s1jax.config import presets
from s1jax.config.experiment import DistilConfig, Experiment
from s1jax.data import packing, sources, teacher_format
from s1jax.data.packing import Example
from s1jax.data.teacher_format import Settings
from s1jax.data.teacher_writer import Writer
from s1jax.errors import UserError
from s1jax.io import paths
from s1jax.model.attention import dispatch, rule
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import sharding
from s1jax.parallel.processes import together
from s1jax.training import prepare, teacher_outputs
from s1jax.training import step as step_lib
from s1jax.training import teacher as teacher_lib
from s1jax.training.callbacks import Callbacks

_MULTIPLE = 64  # of ids, to which the longest row is rounded up
_FLUSH_SECONDS = 60.0  # of work that a killed process loses, at most


@dataclasses.dataclass(frozen=True)
class Made:
    """What a call did.

    Attributes:
      rows: that the folder has now, of those that were asked for.
      scored: rows of these that this call scored.
      tokens: that the teacher read.
      positions: that got targets.
      bytes_per_position: on the disk, keys and bounds of rows included; 0 where nothing was scored.
      seconds: of scoring, compilation included.
    """

    rows: int
    scored: int
    tokens: int
    positions: int
    bytes_per_position: float
    seconds: float


def teacher_logits(
    experiment: Experiment | Mapping[str, Any],
    teacher: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str = "top_k",
    size: int = 0,
    seed: int = 0,
    dtype: str = "",
    rows: int = 8,
    callbacks: Callbacks | None = None,
) -> Made:
    """Scores the training rows of an experiment with a teacher; prints nothing.

        made = s1jax.teacher_logits(experiment, "runs/teacher", "targets")
        s1jax.train({**experiment, "distil": {"targets": "targets"}}, "runs/student")

    The rows are encoded as for training with the same experiment. Rows that the folder has are not scored again, so the
    same call goes on after a process that was killed. On several hosts every process makes the same call, with a folder
    that the first one writes and all of them see.

    Args:
      experiment: data, tokenizer, chat format and mesh of the run that is to use the targets.
      teacher: checkpoint or training workdir with the same tokenizer.
      out: folder of the targets.
      kind: `top_k` keeps the most probable ids with the mass of the rest, `counts` draws from the teacher.
      size: k (64 by default), or the number of draws (50 by default).
      seed: of the draws. They are a function of it, the row's tokens and the position.
      dtype: of the teacher's weights and activations; by default float32 on a CPU and bfloat16 elsewhere.
      rows: of a batch, rounded up to what the mesh splits; each has as many examples as fit.
      callbacks: `on_note`, `on_start`, `on_phase` and `on_step` are called, the last one with `step`, which counts
        rows, and `tokens_per_second`.

    Raises:
      UserError: for settings, rows, a teacher or a folder that are wrong, or a full disk.
    """
    callbacks = callbacks or Callbacks()
    settings = experiment if isinstance(experiment, Experiment) else presets.experiment(experiment)
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if kind not in ("top_k", "counts"):
        raise UserError(f"kind is {kind!r}; it is top_k or counts.")
    size = size or (64 if kind == "top_k" else 50)
    folder = paths.local(out, "--out")
    paths.local(teacher, "--teacher")
    with contextlib.ExitStack() as held:
        start = prepare.hold("--teacher", os.fspath(teacher), held)
        if start is None:
            raise UserError("--teacher is empty; name a checkpoint.")
        asked = _Asked(os.fspath(teacher), kind, size, seed, dtype, rows)
        scorer = together(lambda: _Scorer(settings, start, asked, callbacks))
        writer = together(lambda: _open(scorer, folder, held))
        return scorer.run(writer)


def _open(scorer: _Scorer, folder: pathlib.Path, held: contextlib.ExitStack) -> Writer | None:
    return held.enter_context(Writer(folder, scorer.settings)) if jax.process_index() == 0 else None


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Arguments of a call, with its defaults."""

    teacher: str
    kind: Any  # top_k or counts
    size: int
    seed: int
    dtype: Any  # a name, which `Experiment` knows
    rows: int


class _Scorer:
    """One process's part of a call."""

    def __init__(self, experiment: Experiment, start: pathlib.Path, asked: _Asked, callbacks: Callbacks):
        """Reads the rows and checks the settings; loads no weights yet."""
        self._callbacks, self._start, self._dtype = callbacks, start, asked.dtype
        kind, size = asked.kind, asked.size
        self._mesh = mesh_lib.make_mesh(experiment.mesh)
        student, about = prepare.make_metadata(experiment), store.load_metadata(start)
        self._config = about.config
        try:
            teacher_lib.common_ids(
                student.tokenizer, about.tokenizer, student.config.vocab_size, about.config.vocab_size
            )
        except UserError as error:
            raise UserError(f"--teacher={asked.teacher}: {error}") from error
        sharding.param_shardings(self._config, self._mesh)
        self._legal = student.tokenizer.legal_ids(self._config.vocab_size)
        if kind == "top_k" and size > np.count_nonzero(self._legal):
            raise UserError(f"k is {size}, but the tokenizer has {np.count_nonzero(self._legal)} ids; give less.")
        self.settings = Settings(
            kind=kind,
            size=size,
            seed=asked.seed if kind == "counts" else 0,
            num_ids=student.tokenizer.num_ids,
            tokenizer=teacher_format.vocabulary(student.tokenizer),
            teacher=digests.fingerprint(start),
            dtype=asked.dtype,
            chat=teacher_format.chat_fields(student.chat),
            source=asked.teacher,
        )
        self._examples = self._read(experiment, student)
        shards = mesh_lib.row_shards(self._mesh)
        self._rows = -(-asked.rows // shards) * shards
        self._train = dataclasses.replace(
            experiment.train, compute_dtype=asked.dtype, remat="none", attention=self._attention(experiment)
        )

    def _read(self, experiment: Experiment, student: store.Metadata) -> list[Example]:
        """The rows of the experiment, each once, the longest first."""
        shards = mesh_lib.row_shards(self._mesh)
        plain = dataclasses.replace(experiment, distil=DistilConfig())  # the targets that are made here may be its own
        data = sources.make(plain, student.tokenizer, student.chat, shards)
        for note in data.notes:
            self._callbacks.on_note(note)
        if isinstance(data.batches, sources.CorpusBatches):
            raise UserError(f"data.source {sources.CORPUS} has no end, so its targets cannot be kept; give rows.")
        examples = data.batches.examples
        limit = self._config.context_length
        long = [example.name for example in examples if example.length > limit]
        if long:
            raise UserError(f"{long[0]} has more ids than the teacher's context_length {limit}; lower data.block_size.")
        once = {teacher_format.key(example): example for example in examples if example.num_targets}
        return sorted(once.values(), key=lambda example: -example.length)

    def _attention(self, experiment: Experiment) -> Any:
        tokens = self._mesh.shape[mesh_lib.TOKENS]
        needs, head_dim = rule.needs(self._config), self._config.head_dim
        return dispatch.choose("auto", jax.default_backend(), self._dtype, True, tokens, head_dim, needs)[0]

    def run(self, writer: Writer | None) -> Made:
        """Scores what the folder lacks; `writer` is that of process 0."""
        pending = self._pending(writer)
        before = len(self._examples) - len(pending)
        self._callbacks.on_start(before, len(self._examples))
        if not pending:
            return Made(before, 0, 0, 0, 0.0, 0.0)
        begun = flushed = time.monotonic()
        self._callbacks.on_phase("loading the teacher")
        params = store.load_model(self._start, mesh=self._mesh, dtype=self._dtype).params
        self._callbacks.on_phase("compiling")
        block = self._block(pending)
        program, tokens, done = self._program(block), 0, before
        for batch in packing.fill([example.length for example in pending], block, self._rows):
            examples = [[pending[i] for i in row] for row in batch]
            found = jax.device_get(program(params, self._arrays(examples, block)))
            self._callbacks.on_phase("scoring")
            done += sum(map(len, examples))
            tokens += sum(example.length for row in examples for example in row)
            if writer is not None:
                self._add(writer, examples, found)
                if time.monotonic() - flushed > _FLUSH_SECONDS:
                    writer.flush()
                    flushed = time.monotonic()
            rate = tokens / (time.monotonic() - begun)
            self._callbacks.on_step({"step": done, "tokens_per_second": rate})
        if writer is not None:
            writer.flush()
        positions = sum(example.num_targets for example in pending)
        each = 0.0 if writer is None else writer.written_bytes / max(positions, 1)
        return Made(len(self._examples), len(pending), tokens, positions, each, time.monotonic() - begun)

    def _pending(self, writer: Writer | None) -> list[Example]:
        """The rows that the folder lacks, as process 0 sees it."""
        known = writer.known if writer is not None else set()
        lacks = np.array([teacher_format.key(example) not in known for example in self._examples])
        if jax.process_count() > 1:
            lacks = multihost_utils.broadcast_one_to_all(lacks)
        return [example for example, missing in zip(self._examples, lacks.tolist(), strict=True) if missing]

    def _block(self, pending: Sequence[Example]) -> int:
        """Length of the rows: the longest example, rounded up as far as the teacher reads it."""
        shards = self._mesh.shape[mesh_lib.TOKENS]
        multiple = 2 * shards if shards > 1 else 1
        longest = pending[0].length
        wanted = -(-longest // _MULTIPLE) * _MULTIPLE
        block = max(longest, min(wanted, self._config.context_length))
        return -(-block // multiple) * multiple

    def _arrays(self, examples: list[list[Example]], block: int) -> dict[str, jax.Array]:
        share, shares = sharding.row_share(self._mesh)
        size = self._rows // shares
        mine = examples[share * size : (share + 1) * size]
        batch = packing.arrays(mine, size, block, "token")
        if self.settings.kind == "counts":
            batch["uniforms"] = np.zeros((size, block, self.settings.size), np.float32)
            for r, row in enumerate(mine):
                for place, example in _placed(row):
                    batch["uniforms"][r, place] = uniforms(example, self.settings.seed, self.settings.size)
        return sharding.put_batch(batch, self._mesh)

    def _program(self, block: int) -> Callable[..., Any]:
        output = step_lib.output_of(self._config, self._train, self._train.attention, self._mesh)
        legal, mesh = jnp.asarray(self._legal), self._mesh
        chunk = max(1, self._train.loss_chunk * mesh_lib.row_shards(mesh) // self._rows)
        unplace = np.argsort(sharding.places(block, mesh.shape[mesh_lib.TOKENS]).reshape(-1))

        def score(params: Any, batch: step_lib.Batch) -> Any:
            head, _ = output(params, batch)
            if self.settings.kind == "top_k":
                found: Any = teacher_outputs.top_k(head, legal, self.settings.size, chunk, mesh)
            else:
                found = teacher_outputs.draws(head, legal, batch["uniforms"], chunk, mesh)
            return jax.tree.map(lambda x: x[:, unplace], found)

        return jax.jit(score, out_shardings=sharding.replicated(mesh))

    def _add(self, writer: Writer, examples: list[list[Example]], found: Any) -> None:
        for r, row in enumerate(examples):
            for place, example in _placed(row):
                if self.settings.kind == "top_k":
                    writer.add_top_k(example, *(array[r, place] for array in found))
                else:
                    writer.add_draws(example, found[r, place])


def _placed(row: Sequence[Example]) -> list[tuple[np.ndarray, Example]]:
    """Each example of a packed row with the places of its supervised targets."""
    found, start = [], 0
    for example in row:
        found.append((start + np.flatnonzero(example.supervised[1:]), example))
        start += example.length
    return found


def uniforms(example: Example, seed: int, count: int) -> np.ndarray:
    """float32 [P, count] in [0, 1) for the supervised targets of a row: a function of seed, row and position."""
    digest = hashlib.sha256(seed.to_bytes(16, "little", signed=True) + teacher_format.key(example)).digest()
    # Raw Philox draws: NumPy keeps the stream of a bit generator over its versions.
    raw = np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)).random_raw(example.num_targets * count)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(-1, count)
