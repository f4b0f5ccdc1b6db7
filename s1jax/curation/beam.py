"""A curation as a pipeline of Apache Beam: the same rules, for pools that one machine does not hold.

A rule of one row is applied to each element. A rule of a set is applied to the groups of its key. For the selection
each domain keeps the rows that could be drawn, at most `size` + `MOST_RANK`. These are drawn from in one place, as in a
run without Beam, so the ids are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

from s1jax.curation import beam_elements as elements
from s1jax.curation import report, selection
from s1jax.curation.choice import NAME as CHOICE
from s1jax.curation.choice import Chooser
from s1jax.curation.near_duplicates import NearDuplicates
from s1jax.curation.presets import GATE
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.errors import MissingPackageError, UserError


def package(name: str = "") -> Any:
    """Returns apache_beam, or a module of it.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(f"apache_beam{name}")
    except ImportError:
        raise MissingPackageError("--beam", "apache-beam", "beam") from None


def options(text: str) -> Any:
    """Returns the options of a pipeline, as Beam's own programs take them.

    Args:
      text: flags with spaces between them, such as `--runner=DataflowRunner --project=...`.

    Raises:
      UserError: a word is not a flag of Beam.
    """
    module = package(".options.pipeline_options")
    words = text.split()
    try:
        found = module.PipelineOptions(words)
        known = found.get_all_options()
    except SystemExit:
        raise UserError(f"--beam={text!r} is not understood by Apache Beam; see its page on options.") from None
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name not in known and name.removeprefix("no_") not in known:
            raise UserError(f"--beam has {word}, which is not an option of Apache Beam; see its page on options.")
    return found


def runner(found: Any) -> Any:
    """Returns the runner of the options; for DirectRunner one that needs no network.

    Beam's own DirectRunner first tries Prism, a program that it downloads.
    """
    name = found.view_as(package(".options.pipeline_options").StandardOptions).runner
    if name not in (None, "DirectRunner"):
        return name
    fn_runner = package(".runners.portability.fn_api_runner.fn_runner")
    encoded = package(".runners.portability.portable_runner").JobServiceHandle.encode_pipeline_options(
        found.get_all_options()
    )
    provision = package(".portability.api").beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a pipeline gives, as collections of Beam.

    Attributes:
      chosen: lines of rows.jsonl with their places in the order of the draws (bytes).
      dropped: (row without trace, why).
      facts: (name, sum) of what the report counts.
      examples: one list of rows with an evaluation question.
    """

    chosen: Any
    dropped: Any
    facts: Any
    examples: Any


class Graph:
    """Adds a curation to a pipeline."""

    def __init__(self, root: Any, sources: Sequence[str], settings: Settings, steps: Sequence[Step]):
        """Takes the pipeline, files that every worker can read, the settings and the rules."""
        self.beam = package()
        self.root, self.sources, self.settings, self.steps = root, sources, settings, steps
        self.dropped: list[Any] = []  # of each stage
        self.places: Any = None  # id -> place of the chosen rows

    def outputs(self) -> Outputs:
        """Returns the ends of the pipeline."""
        beam = self.beam
        pool = self._pool()
        rows = self._split(
            self._by_key("identity", pool, elements.question, elements.identified, *self._identity()), "identity"
        )
        asked = None
        for step in self.steps:
            if asked is None and (step.of_a_teacher or step.name in (CHOICE, GATE)):
                asked = rows
            rows = self._step(step, rows)
        order = {} if self.places is None else beam.pvalue.AsSingleton(self.places)
        chosen = self._map("lines", rows, elements.line, order, self.settings.chooses_traces)
        facts = [
            self._flat("facts of the pool", pool, elements.pool_facts),
            self._map("facts of the asked", rows if asked is None else asked, elements.tallied, 1),
            self._flat("facts of the chosen", rows, elements.chosen_facts, self.settings.block_size),
            *(
                self._flat(f"facts of the dropped {stage}", dropped, elements.dropped_facts, stage)
                for stage, dropped in enumerate(self.dropped)
            ),
        ]
        dropped = self.dropped | "all dropped" >> beam.Flatten()
        top = beam.combiners.Top.Of(report.EXAMPLES, key=elements.id_of, reverse=True)
        return Outputs(
            chosen,
            dropped,
            facts | "all facts" >> beam.Flatten() | "sums" >> beam.CombinePerKey(elements.added),
            dropped | "leaks" >> beam.Filter(elements.is_leak) | "examples" >> top,
        )

    def _pool(self) -> Any:
        beam = self.beam
        sources = self.root | "sources" >> beam.Create(list(self.sources)) | "spread" >> beam.Reshuffle()
        remote = package(".io.filesystems").FileSystems.open
        return self._flat("read", sources, elements.read, self.settings.traces, self.settings.tokenizer, remote)

    def _identity(self) -> tuple[str, bool]:
        return self.settings.preset, self.settings.chooses_traces

    def _step(self, step: Step, rows: Any) -> Any:
        """Applies one rule and returns the rows that stay."""
        if step.row is not None:
            return self._split(self._map(step.name, rows, elements.judged, step.row), step.name)
        if isinstance(step.rows, Chooser):
            self.places = self._draw(rows, step.rows)
            order = self.beam.pvalue.AsSingleton(self.places)
            return self._split(self._map(step.name, rows, elements.drawn, order, step.rows), step.name)
        if isinstance(step.rows, NearDuplicates):
            dropped = self.beam.pvalue.AsSingleton(self._near(rows, step.rows))
            return self._split(self._map(step.name, rows, elements.near, dropped), step.name)
        if step.by is None:
            raise UserError(
                f"the rule {step.name} looks at all rows at once, which --beam does not do; leave it out with"
                f" --skip={step.name}."
            )
        by = functools.partial(elements.keyed, by=step.by)
        return self._split(self._by_key(step.name, rows, by, elements.grouped, step.rows), step.name)

    def _near(self, rows: Any, rule: NearDuplicates) -> Any:
        """Returns one dict, id of a question -> why it is dropped.

        Bands are grouped with ids alone, and only questions that share a band with others are sent with their words: a
        question has dozens of bands, and few questions share one.
        """
        beam = self.beam
        texts = self._by_key("texts", rows, functools.partial(elements.text, rule=rule), elements.first)
        bands = (
            self._flat("bands", texts, elements.bands, rule, kind=tuple[str, str]) | "same band" >> beam.GroupByKey()
        )
        shared = self._flat("shared bands", bands, elements.shared, kind=tuple[str, Any])
        keyed = self._map("texts by id", texts, elements.by_id, kind=tuple[str, Any])
        groups = (keyed, shared) | "texts and bands" >> beam.CoGroupByKey()
        found = self._by_key(
            "pairs", self._flat("texts by band", groups, elements.by_band), elements.same, elements.pairs, rule
        )
        once = self.root | "once for near-duplicates" >> beam.Create([None])
        return self._map("connected", once, elements.connected, beam.pvalue.AsIter(found), rule)

    def _draw(self, rows: Any, chooser: Chooser) -> Any:
        """Returns one dict, id -> place, of the rows that are drawn."""
        beam = self.beam
        found = self._map("candidates", rows, elements.candidate, chooser, kind=tuple[str, Any])
        top = beam.combiners.Top.PerKey(self.settings.size + selection.MOST_RANK, key=elements.key_of, reverse=True)
        first = found | "before the draws" >> beam.Filter(lambda pair: pair[1].first) | "first" >> beam.Values()
        most = found | "of each domain" >> top | "lists" >> beam.Values() | "each" >> beam.FlatMap(lambda some: some)
        counts = (
            self._flat("benchmarks", rows, elements.mixed, kind=tuple[str, str])
            | "counts of benchmarks" >> beam.combiners.Count.PerElement()
        )
        candidates = (most, first) | "all candidates" >> beam.Flatten()
        return (
            self.root
            | "once" >> beam.Create([None])
            | "draw"
            >> beam.Map(
                elements.places, beam.pvalue.AsIter(candidates), beam.pvalue.AsIter(counts), chooser
            ).with_output_types(Any)
        )

    def _map(self, name: str, rows: Any, function: Any, *more: Any, kind: Any = Any) -> Any:
        return rows | name >> self.beam.Map(_plain(function), *more).with_output_types(kind)

    def _flat(self, name: str, rows: Any, function: Any, *more: Any, kind: Any = Any) -> Any:
        return rows | name >> self.beam.FlatMap(_plain(function), *more).with_output_types(kind)

    def _by_key(self, name: str, rows: Any, by: Any, function: Any, *more: Any) -> Any:
        found = self._map(f"{name} keys", rows, by, kind=tuple[str, Any])
        return self._flat(name, found | f"{name} groups" >> self.beam.GroupByKey(), function, *more)

    def _split(self, judged: Any, name: str) -> Any:
        """Returns the rows that stay; the others are kept in `dropped`."""
        self.dropped.append(self._flat(f"{name} drops", judged, elements.dropped))
        return self._flat(f"{name} keeps", judged, elements.kept)


def _plain(function: Any) -> Any:
    """Returns a function without annotations: Beam would make schemas of rows, which hold columns of any kind."""

    def plain(element, *more):  # type: ignore[no-untyped-def]
        return function(element, *more)

    return plain
