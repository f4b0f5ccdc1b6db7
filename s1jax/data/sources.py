"""Makes the batches of a training run from its settings."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Iterator, Sequence

from s1jax.config.experiment import DataConfig, Experiment, held_out
from s1jax.data import batches as batches_lib
from s1jax.data import conditional, mix, packing, s1k, turns, validation
from s1jax.data.packing import Batch
from s1jax.data.s1k import Row
from s1jax.data.teacher_logits import Folder
from s1jax.errors import UserError, install
from s1jax.io import paths
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


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run is trained and validated on.

    Attributes:
      batches: of the training steps.
      validation: the batches of one pass over the validation rows; None without data.validation.
      notes: sentences about the rows: their origin, which were dropped or truncated, which look wrong.
    """

    batches: batches_lib.Batches | CorpusBatches
    validation: batches_lib.Batches | None
    notes: list[str]


def make(
    experiment: Experiment,
    tokenizer: Tokenizer,
    fmt: ChatFormat,
    row_shards: int,
    share: int = 0,
    shares: int = 1,
) -> Data:
    """Loads the rows of `experiment.data`, encodes them, applies the length limit and lays them out in batches.

    Args:
      experiment: data and train settings.
      tokenizer: of the model.
      fmt: chat format.
      row_shards: parts that the rows of a micro-batch are split into on the devices.
      share: which share of the rows this process reads.
      shares: number of shares.

    Raises:
      UserError: if something is wrong with the source or its rows.
    """
    data, train = experiment.data, experiment.train
    multiple = row_shards * train.accumulation
    notes: list[str] = []
    made: batches_lib.Batches | CorpusBatches
    if data.source == CORPUS:
        if experiment.distil.targets and experiment.distil.weight:
            raise UserError(f"data.source {CORPUS} has no end, so distil.targets cannot have its rows; leave it out.")
        made = _corpus(experiment, tokenizer, multiple, share, shares)
        held = s1k.flat(validation.split([], data, notes)[1])
    else:
        # After the split, so that the turns of a conversation are all trained on or all validated on.
        rows, held = map(s1k.flat, validation.split(_load(data, notes), data, notes))
        rows, held = _with_instructions(data, tokenizer, fmt, rows, held)
        examples = _examples(data, tokenizer, fmt, rows, "trained on", notes)
        notes += _end_inside(tokenizer, fmt, rows)
        teacher = _targets(experiment, tokenizer, fmt, examples, notes)
        made = _batches(experiment, examples, multiple, share, shares, _taken(data, examples, notes), teacher)
        notes += _empty_rows(made, multiple)
        if importlib.util.find_spec("grain") is None:
            notes.append(
                f"grain is not installed, so batches are made between steps; {install('data')} makes them ahead."
            )
        if data.batching == "packed":
            notes += _packed(experiment, made, multiple)
    if not held:
        return Data(made, None, notes)
    examples = _examples(data, tokenizer, fmt, held, "validated on", notes)
    return Data(made, _batches(_one_pass(experiment), examples, row_shards, share, shares), notes)


def _corpus(experiment: Experiment, tokenizer: Tokenizer, multiple: int, share: int, shares: int) -> CorpusBatches:
    data, train = experiment.data, experiment.train
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
    return CorpusBatches(data, train.steps, train.batch_size, share, shares)


def _load(data: DataConfig, notes: list[str]) -> list[Row]:
    sources = mix.parse(data.source).sources
    if len(sources) > 1 and CORPUS in sources:
        raise UserError(f"data.source {data.source} mixes {CORPUS}, which has no rows; leave it out.")
    found = (_load_one(dataclasses.replace(data, source=source), notes) for source in sources)
    return [dataclasses.replace(row, source=i) for i, rows in enumerate(found) for row in rows]


def _load_one(data: DataConfig, notes: list[str]) -> list[Row]:
    if data.source == "countdown":
        return [
            Row(example.question, example.trace, example.answer, f"countdown row {i}")
            for i, example in enumerate(problems.sft_examples(data.num_rows or 1000, data.seed))
        ]
    return s1k.load_rows(data.source, data.traces, data.num_rows, notes, loss_on=data.loss_on)


def _with_instructions(
    data: DataConfig, tokenizer: Tokenizer, fmt: ChatFormat, rows: list[Row], held: list[Row]
) -> tuple[list[Row], list[Row]]:
    """Rows to train on and to validate on, with the instructions of `data.control`."""
    if not data.control:
        return rows, held
    if held_out(data.validation) is None:
        made = conditional.make_rows(rows, data.control, tokenizer, fmt)
        return made, conditional.make_rows(held, data.control, tokenizer, fmt) if held else []
    # Rows of one source have one median of the trace length.
    made = conditional.make_rows(rows + held, data.control, tokenizer, fmt)
    return made[: len(rows)], made[len(rows) :]


def _examples(
    data: DataConfig, tokenizer: Tokenizer, fmt: ChatFormat, rows: list[Row], use: str, notes: list[str]
) -> list[packing.Example]:
    """Encodes rows and applies `data.too_long`; `use` says in the notes what the rows are for."""
    _check_traces(tokenizer, fmt, rows)
    fitted = packing.fit(batches_lib.encode_rows(tokenizer, fmt, rows), data.block_size, data.too_long)
    notes += [
        f"{len(names)} of {len(rows)} rows{'' if use == 'trained on' else f' that are {use}'} are longer than"
        f" data.block_size {data.block_size} and were {verb}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for names, verb in ((fitted.dropped, "dropped"), (fitted.truncated, "truncated"))
        if names
    ]
    texts = ((row.name, "\n".join(_texts(row))) for row in rows)
    notes += written.notes(tokenizer, fmt, texts, use)
    return fitted.examples


def _texts(row: Row) -> Iterator[str]:
    """All texts of users in a row."""
    yield from (row.question, row.trace, row.answer, row.system)
    for message in turns.without_tags(row.history):  # those tags are read as such
        yield from (message.content, message.thinking or "")


def _batches(
    experiment: Experiment,
    examples: list[packing.Example],
    multiple: int,
    share: int,
    shares: int,
    taken: Sequence[int] = (),
    teacher: Folder | None = None,
) -> batches_lib.Batches:
    data, train = experiment.data, experiment.train
    return batches_lib.Batches(
        examples,
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
        taken=taken,
        teacher=teacher,
    )


def _targets(
    experiment: Experiment, tokenizer: Tokenizer, fmt: ChatFormat, examples: list[packing.Example], notes: list[str]
) -> Folder | None:
    """The targets of all examples, if the run distils from stored ones."""
    distil = experiment.distil
    if not distil.targets or not distil.weight:
        return None
    folder = Folder(paths.local(distil.targets, "config.distil.targets"))
    folder.check(examples, tokenizer, fmt)
    kept = f"the {folder.settings.size} most probable ids"
    if folder.settings.kind == "counts":
        kept = f"{folder.settings.size} draws (at most {folder.width} ids)"
    notes.append(f"targets of {folder.settings.source}: {kept} of each supervised token.")
    return folder


def _taken(data: DataConfig, examples: list[packing.Example], notes: list[str]) -> list[int]:
    """Examples that an epoch takes of each source of a mix with weights; empty for all of them."""
    mixed = mix.parse(data.source)
    sizes = [sum(example.source == i for example in examples) for i in range(len(mixed.sources))]
    if 0 in sizes:
        raise UserError(f"no row is left of {mixed.sources[sizes.index(0)]}; give more rows, or a larger block.")
    taken = mix.takes(sizes, mixed.weights) if mixed.weights else sizes
    if len(sizes) > 1:
        each = ", ".join(
            f"{count:,} of the {size:,} of {name} ({100 * count / sum(taken):.1f} %)"
            for count, size, name in zip(taken, sizes, mixed.sources, strict=True)
        )
        notes.append(f"an epoch has {sum(taken):,} examples: {each}.")
    return taken if mixed.weights else []


def _one_pass(experiment: Experiment) -> Experiment:
    """Settings of one epoch in batches of the size of a training step's micro-batch, which is known to fit."""
    train, block = experiment.train, experiment.data.block_size
    size = -(-train.batch_size // train.accumulation)
    tokens = max(block, train.batch_tokens // train.accumulation) if train.batch_tokens else 0
    one = dataclasses.replace(train, batch_size=size, batch_tokens=tokens, epochs=1, steps=0)
    return dataclasses.replace(experiment, train=one)


def _empty_rows(made: batches_lib.Batches, multiple: int) -> list[str]:
    empty = made.num_rows - made.filled_rows
    if not empty:
        return []
    split = "mesh.data * mesh.fsdp * train.accumulation"
    return [
        f"a step has {made.filled_rows} rows at most, and {split} = {multiple} does not divide them: {empty} rows"
        " of every step are empty; a divisor has none, for example with a larger mesh.sequence."
    ]


def _packed(experiment: Experiment, made: batches_lib.Batches, multiple: int) -> list[str]:
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
    """A note on the rows whose trace contains the token that ends thinking; none if it is a special token."""
    if fmt.think_end.startswith(tuple(fmt.special)):
        return []
    end = tokenizer.encode(fmt.think_end)[0]
    inside = [row.name for row in rows if end in tokenizer.encode_text(fmt.after_think_start + row.trace)]
    if not inside:
        return []
    more = ", ..." if len(inside) > 1 else ""
    return [
        f"{len(inside)} of {len(rows)} traces contain the first id of think_end {fmt.think_end!r}, which ends"
        f" thinking when it is sampled: {inside[0]}{more}; a delimiter with an id of its own is safe."
    ]
