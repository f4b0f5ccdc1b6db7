"""Makes the batches of a training run from its settings."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

from s1jax.config.experiment import DataConfig, Experiment
from s1jax.data import batches, conditional, packing, s1k
from s1jax.data.packing import Batch
from s1jax.data.s1k import Row
from s1jax.errors import UserError, install
from s1jax.tasks.countdown import corpus, problems
from s1jax.text import written
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer

CORPUS = "countdown_corpus"
_MUCH_PADDING = 0.1  # share of padding above which a note says so


class CorpusBatches:
    """The endless text of the Countdown base model, cut off after `num_steps` batches."""

    digest = ""  # no rows to digest: the settings determine the text

    def __init__(self, data: DataConfig, num_steps: int, num_rows: int, share: int = 0, shares: int = 1):
        """Keeps the settings; generates nothing yet.

        Args:
          data: block size and seed.
          num_steps: steps of the run.
          num_rows: B over all processes.
          share: which share of the rows this process reads.
          shares: number of shares.
        """
        self.num_steps, self.num_rows, self.block_size = num_steps, num_rows, data.block_size
        self._seed = data.seed
        size = num_rows // shares
        self._rows = slice(share * size, (share + 1) * size)

    def names(self, step: int) -> list[str]:
        """Names the origin of a step's text."""
        return [f"{CORPUS} (seed {self._seed}, step {step + 1})"]

    def batch(self, step: int) -> Batch:
        """This process's rows of a step's batch."""
        batch = corpus.corpus_batch(step, rows=self.num_rows, block_size=self.block_size, seed=self._seed)
        return {name: array[self._rows] for name, array in batch.items()}

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Batches of steps start, start + 1, ..., num_steps - 1."""
        return map(self.batch, range(start, self.num_steps))


def make(
    experiment: Experiment,
    tokenizer: Tokenizer,
    fmt: ChatFormat,
    row_shards: int,
    share: int = 0,
    shares: int = 1,
) -> tuple[batches.Batches | CorpusBatches, list[str]]:
    """Loads the rows of `experiment.data.source`, encodes them and applies the length limit.

    Args:
      experiment: data and train settings.
      tokenizer: of the model.
      fmt: chat format.
      row_shards: parts that the rows of a micro-batch are split into on the devices.
      share: which share of the rows this process reads.
      shares: number of shares.

    Returns:
      the batches, and notes about the rows: their origin, which ones were dropped or truncated, which ones look wrong.

    Raises:
      UserError: if something is wrong with the source or its rows.
    """
    data, train = experiment.data, experiment.train
    multiple = row_shards * train.accumulation
    if data.source == CORPUS:
        if not train.steps:
            raise UserError(f"data.source {CORPUS} has no end; give train.steps.")
        if not train.batch_size:
            raise UserError(f"data.source {CORPUS} has full rows; give train.batch_size, not train.batch_tokens.")
        if data.control:
            raise UserError(f"data.control {data.control} needs rows with questions, which {CORPUS} has not; drop it.")
        wrong = [s for i, s in enumerate(problems.SYMBOLS) if not tokenizer.knows(s) or tokenizer.id_of(s) != i]
        if wrong:
            raise UserError(
                f"data.source {CORPUS} is made of Countdown's ids, which the tokenizer does not have for {wrong[0]!r}; "
                "give the tokenizer of configs/countdown_base.py, or another data.source."
            )
        if train.batch_size % multiple:
            raise UserError(
                f"train.batch_size {train.batch_size} does not divide by mesh.data * mesh.fsdp * train.accumulation ="
                f" {multiple}; choose a multiple of it."
            )
        return CorpusBatches(data, train.steps, train.batch_size, share, shares), []
    notes: list[str] = []
    if data.source == "countdown":
        rows = [
            Row(example.question, example.trace, example.answer, f"countdown row {i}")
            for i, example in enumerate(problems.sft_examples(data.num_rows or 1000, data.seed))
        ]
    else:
        rows = s1k.load_rows(data.source, data.traces, data.num_rows, notes)
    if data.control:
        rows = conditional.make_rows(rows, data.control, tokenizer, fmt)
    _check_traces(tokenizer, fmt, rows)
    fitted = packing.fit(batches.encode_rows(tokenizer, fmt, rows), data.block_size, data.too_long)
    notes += [
        f"{len(names)} of {len(rows)} rows are longer than data.block_size {data.block_size} and were {verb}: "
        + ", ".join(names[:3])
        + (", ..." if len(names) > 3 else "")
        for names, verb in ((fitted.dropped, "dropped"), (fitted.truncated, "truncated"))
        if names
    ]
    texts = ((row.name, "\n".join((row.question, row.trace, row.answer, row.system))) for row in rows)
    notes += written.notes(tokenizer, fmt, texts, "trained on")
    inside = _end_inside(tokenizer, fmt, rows)
    if inside:
        more = ", ..." if len(inside) > 1 else ""
        notes.append(
            f"{len(inside)} of {len(rows)} traces contain the first id of think_end {fmt.think_end!r}, which ends"
            f" thinking when it is sampled: {inside[0]}{more}; a delimiter with an id of its own is safe."
        )
    made = batches.Batches(
        fitted.examples,
        batch_size=train.batch_size,
        batch_tokens=train.batch_tokens,
        block_size=data.block_size,
        batching=data.batching,
        weighting=data.weighting,
        seed=data.seed,
        epochs=train.epochs,
        steps=train.steps,
        row_multiple=multiple,
        share=share,
        shares=shares,
    )
    empty = made.num_rows - made.filled_rows
    if empty:
        split = "mesh.data * mesh.fsdp * train.accumulation"
        notes.append(
            f"a step has {made.filled_rows} rows at most, and {split} = {multiple} does not divide them: {empty} rows"
            " of every step are empty; a divisor has none, for example with a larger mesh.sequence."
        )
    if importlib.util.find_spec("grain") is None:
        notes.append(f"grain is not installed, so batches are made between steps; {install('data')} makes them ahead.")
    if data.batching == "packed":
        notes += _packed(experiment, made, multiple)
    return made, notes


def _packed(experiment: Experiment, made: batches.Batches, multiple: int) -> list[str]:
    """Notes on the content of a packed step, and on how to reduce its padding."""
    block, tokens = made.block_size, experiment.train.batch_tokens
    rows = f"{made.num_rows} rows of data.block_size {block}"
    padding = f"{100 * made.padding:.0f} % of its places are padding"
    if tokens:
        return [
            f"a step has {rows} (train.batch_tokens {tokens}) with {made.sequences_per_step:.1f} sequences on average;"
            f" {padding}."
        ]
    if made.padding < _MUCH_PADDING:
        return []
    full = math.ceil(made.tokens_per_step / block)  # rows needed for the average number of tokens per step
    fewer = min(made.num_rows, -(-full // multiple) * multiple)
    return [
        f"a step has {rows} for its {experiment.train.batch_size} sequences (train.batch_size); {padding}. For less,"
        f" set train.batch_size=0 and, for example, train.batch_tokens={fewer * block}: a step then takes sequences"
        f" until its {fewer} rows are full."
    ]


def _check_traces(tokenizer: Tokenizer, fmt: ChatFormat, rows: list[Row]) -> None:
    """Refuses a trace that contains a plain-text think_end: training would end thinking inside of it."""
    end = fmt.think_end.strip()
    if tokenizer.special_tokens_in(end):
        return  # a special token is never encoded from the text of a trace
    for row in rows:
        if end in row.trace:
            raise UserError(
                f"{row.name}: the trace contains think_end {end!r}, which is plain text, so that thinking would end"
                " there; change the trace, or choose a delimiter that is a special token."
            )


def _end_inside(tokenizer: Tokenizer, fmt: ChatFormat, rows: list[Row]) -> list[str]:
    """Names of the rows whose trace contains the token that ends thinking; empty if it is a special token."""
    if fmt.think_end.startswith(tuple(fmt.special)):
        return []
    end = tokenizer.encode(fmt.think_end)[0]
    return [row.name for row in rows if end in tokenizer.encode_text(fmt.after_think_start + row.trace)]
