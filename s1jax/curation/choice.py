"""Chooses rows of a pool by `selection`, as s1 does or as we do."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from s1jax.curation import answers, selection
from s1jax.curation.row import Drop, Row
from s1jax.curation.selection import Candidate, Selection
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step

NAME = "selection"
UNKNOWN = "unknown"  # the domain of rows without one
LONG = 5600  # trace tokens above which a right answer to MATH is chosen before the draws (paper, appendix)
UNIFORM_SHARE = 0.7  # of the rows, after which the released notebook draws domains by the benchmarks' mix

# Sources as s1's collect_data.py names them, and the datasets' own names.
_MATH = ("openaimath", "competition_math", "hendrycks_math", "math")


@dataclasses.dataclass(frozen=True)
class Chooser:
    """A rule of the set that chooses rows.

    Attributes:
      size: rows to choose; 0 chooses all.
      seed: of the draws.
      paper: rank by length of trace with s1's choice before the draws; otherwise by difficulty.
      mixed: draw the last rows' domains by the mix of AIME and GPQA.
    """

    size: int
    seed: int
    paper: bool
    mixed: bool

    def __call__(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Mapping[str, Drop]]:
        found = self.select(rows)
        places = {pick.id: place for place, pick in enumerate(found.picks)}
        kept = sorted((row for row in rows if row.id in places), key=lambda row: places[row.id])
        return kept, {row.id: self.drop(row) for row in rows if row.id not in places}

    def select(self, rows: Sequence[Row]) -> Selection:
        """Returns what is drawn, in the order of the draws."""
        return self.draw(map(self.candidate, rows), collections.Counter(filter(None, map(mixed_domain, rows))))

    def draw(self, candidates: Iterable[Candidate], counts: Mapping[tuple[str, str], int]) -> Selection:
        """Returns what is drawn out of candidates; `counts` is for `mix`."""
        found = list(candidates)
        return selection.select(
            found, self.size or len(found), self.seed, by_rank=self.paper,
            mix_after=round(UNIFORM_SHARE * self.size) if self.mixed else None, mix=mix(counts) if self.mixed else None,
        )  # fmt: skip

    def drop(self, row: Row) -> Drop:
        """Says of a row that it was not drawn."""
        return Drop(NAME, "not drawn", f"domain {domain_of(row)}")

    def candidate(self, row: Row) -> Candidate:
        """Returns what the draws need to know of a row."""
        if self.paper:
            return Candidate(row.id, domain_of(row), (-answers.length(row),), is_first(row))
        return Candidate(row.id, domain_of(row), (difficulty_class(row), selection.shuffled(self.seed, row.id)))


def s1(settings: Settings, *, mixed: bool) -> Step:
    """Returns Algorithm 1 of the paper, or with `mixed` what the released notebook does."""
    chooser = Chooser(settings.size, settings.seed, paper=True, mixed=mixed)
    return Step(
        NAME, rows=chooser, needs=("domain", "trace_tokens", "correct", "source_type"),
        of_a_teacher=True,
        settings={"size": settings.size, "seed": settings.seed, "draws": "s1_code" if mixed else "s1_paper"},
    )  # fmt: skip


def ours(settings: Settings) -> Step:
    """Returns our selection: domains uniformly, in a domain the questions that the student solves now and then."""
    chooser = Chooser(settings.size, settings.seed, paper=False, mixed=False)
    return Step(
        NAME, rows=chooser, wants=("domain", "pass_rate"),
        settings={"size": settings.size, "seed": settings.seed, "draws": "ours"},
    )  # fmt: skip


def domain_of(row: Row) -> str:
    """Returns the domain of a row, `unknown` if it has none."""
    return str(row.columns.get("domain") or UNKNOWN)


def difficulty_class(row: Row) -> int:
    """Returns how early a row is drawn in its domain: 0 first.

    0: solved in up to half of the tries, so that there is something to learn that can be learnt. 1: never solved,
    which may be too hard, or the reference may be wrong. 2: solved in more than half of the tries, or not tried.
    """
    rate = row.columns.get("pass_rate")
    if rate is None or rate > 0.5:
        return 2
    return 0 if rate > 0 else 1


def benchmark_of(row: Row) -> str:
    """Returns `aime`, `gpqa` or `math` by the column `source_type`; empty for other sources."""
    name = str(row.columns.get("source_type", "")).lower()
    for benchmark in ("aime", "gpqa"):
        if benchmark in name:
            return benchmark
    return "math" if any(part in _MATH for part in name.split("/")) else ""


def is_first(row: Row) -> bool:
    """Whether Algorithm 1 chooses a row before the draws: right, and of AIME or GPQA, or of MATH with a long trace."""
    kind = benchmark_of(row)
    if not row.columns.get("correct") or not kind:
        return False
    return kind != "math" or answers.length(row) > LONG


def mixed_domain(row: Row) -> tuple[str, str] | None:
    """Returns benchmark and domain of a row that counts for the notebook's mix; None for others."""
    kind = benchmark_of(row)
    return (kind, domain_of(row)) if kind in ("aime", "gpqa") else None


def mix(counts: Mapping[tuple[str, str], int]) -> dict[str, float]:
    """Returns the weights of domains in the notebook's last draws: AIME's rows, and GPQA's scaled to half as many.

    Args:
      counts: (benchmark, domain) -> rows.
    """
    sums = {kind: sum(n for (k, _), n in counts.items() if k == kind) for kind in ("aime", "gpqa")}
    scale = 0.5 * sums["aime"] / sums["gpqa"] if sums["gpqa"] else 0.0
    weights: dict[str, float] = {}
    for (kind, domain), count in counts.items():
        weights[domain] = weights.get(domain, 0) + (count if kind == "aime" else int(count * scale))
    return {domain: weight for domain, weight in weights.items() if weight > 0}
