"""Tables and picture of the curation story, from the figures of its students and what became of the planted defects."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s1jax.data import identity
from s1jax.io import files
from s1jax.tasks.countdown import pool as pool_lib
from s1jax.tasks.countdown import problems

# Weights of the decoders, for FLOPs: a student's forward and backward pass cost 6 a weight and token, the teacher's
# forward pass 2, once.
STUDENT, TEACHER = 205_760, 804_736
PASSES = 5
# The order of the tables.
ARMS = (
    "random", "finished", "right", "whole pool", "whole pool, five passes", "curated", "random, logits",
    "random, logits, equal FLOPs", "curated, logits",
)  # fmt: skip
# Pairs of arms whose difference the story is about: (better, other).
COMPARED = (
    ("curated", "random"),
    ("curated", "whole pool"),
    ("curated", "finished"),
    ("curated", "right"),
    ("random, logits", "random"),
    ("random, logits, equal FLOPs", "random"),
    ("curated, logits", "curated"),
    ("random, logits", "curated"),
)


def equal_flops(steps: int) -> int:
    """Steps with stored logits that cost, with the teacher's one pass over the rows, what `steps` without them cost."""
    return round(steps * (1 - 2 * TEACHER / (6 * STUDENT * PASSES)))


def results(
    out: pathlib.Path, planted: Sequence[pool_lib.Planted], found: Mapping[str, Mapping[str, Any]], price: str
) -> dict[str, Any]:
    """Returns every figure of the story as JSON values.

    Args:
      out: folder of the story.
      planted: the pool.
      found: figures of each student by name.
      price: dollars per million prompt and output tokens of the teacher.
    """
    evaluation = problems.problems("test")[: len(next(iter(found.values()))["right"])]
    leaked = {_key(one.problem) for one in planted if one.kind in pool_lib.LEAKS}
    fresh = [i for i, problem in enumerate(evaluation) if _key(problem) not in leaked]
    known = [i for i in range(len(evaluation)) if i not in set(fresh)]
    runs = [figures for figures in found.values() if figures["run"]["arm"] != "teacher"]
    teacher = [figures for figures in found.values() if figures["run"]["arm"] == "teacher"]
    by_arm = {arm: [run for run in runs if run["run"]["arm"] == arm] for arm in ARMS}
    arms = {arm: _arm(some, fresh, known) for arm, some in by_arm.items() if some}
    return {
        "pool": len(planted),
        "evaluation": {"problems": len(evaluation), "fresh": len(fresh), "leaked": len(known)},
        "arms": arms,
        "differences": [_difference(runs, one, other, fresh) for one, other in COMPARED if {one, other} <= set(arms)],
        "defects": defects(out, planted),
        "teacher": _teacher(out, price),
        "teacher_of_logits": _arm(teacher, fresh, known)["accuracy"] if teacher else None,
        "runs": [_one(run, fresh) for run in runs],
    }


def _one(run: Mapping[str, Any], fresh: Sequence[int]) -> dict[str, Any]:
    """A student's figures for the record."""
    right = run["right"]
    own = {"accuracy": round(_share([right[i] for i in fresh])[0], 2), "of_all_problems": round(_share(right)[0], 2)}
    return {**{name: value for name, value in run.items() if name != "right"}, **own}


def _key(problem: problems.Problem) -> tuple[tuple[int, ...], int]:
    """The same for a problem in any order of its numbers."""
    return tuple(sorted(problem.numbers)), problem.target


def _share(right: Sequence[int]) -> tuple[float, float]:
    """Accuracy in % and its standard error."""
    if not right:
        return math.nan, math.nan
    mean = statistics.mean(right)
    return 100 * mean, 100 * math.sqrt(mean * (1 - mean) / len(right))


def _arm(runs: Sequence[Mapping[str, Any]], fresh: Sequence[int], known: Sequence[int]) -> dict[str, Any]:
    """Figures of an arm over its students; accuracy is on problems that no row of the pool holds."""
    shares = [_share([run["right"][i] for i in fresh])[0] for run in runs]
    return {
        "students": len(runs),
        "steps": runs[0]["run"]["steps"],
        "accuracy": round(statistics.mean(shares), 2),
        "error": round(_error(shares, [[run["right"][i] for run in runs] for i in fresh]), 2),
        "leaked_accuracy": round(statistics.mean(_share([run["right"][i] for i in known])[0] for run in runs), 2)
        if known
        else None,
        "thinking_tokens": round(statistics.mean(run["thinking_tokens"] for run in runs), 1),
        "cut": round(statistics.mean(run["cut"] for run in runs), 1),
    }


def _error(by_student: Sequence[float], by_problem: Sequence[Sequence[float]]) -> float:
    """Standard error in points: that over students and that over problems, added in squares.

    Students differ by seed, base and rows; problems are a sample as well. Both are counted, so this is at least as
    large as either alone.
    """
    means = [statistics.mean(verdicts) for verdicts in by_problem]
    students = statistics.variance(by_student) / len(by_student) if len(by_student) > 1 else 0.0
    sampled = 100**2 * statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    return math.sqrt(students + sampled)


def _difference(runs: Iterable[Mapping[str, Any]], one: str, other: str, fresh: Sequence[int]) -> dict[str, Any]:
    """Difference of two arms, pair by pair: students with the same base and seed, problem by problem."""
    by_arm: dict[str, dict[tuple[str, int], Sequence[int]]] = collections.defaultdict(dict)
    for run in runs:
        by_arm[run["run"]["arm"]][run["run"]["base"], run["run"]["seed"]] = run["right"]
    pairs = [(by_arm[one][key], by_arm[other][key]) for key in by_arm[one] if key in by_arm[other]]
    points = [100 * statistics.mean(a[i] - b[i] for i in fresh) for a, b in pairs]
    error = _error(points, [[a[i] - b[i] for a, b in pairs] for i in fresh])
    return {
        "arm": one, "against": other, "pairs": len(pairs), "points": round(statistics.mean(points), 2),
        "error": round(error, 2), "of_pairs": [round(value, 2) for value in points],
    }  # fmt: skip


def defects(out: pathlib.Path, planted: Sequence[pool_lib.Planted]) -> dict[str, dict[str, Any]]:
    """Returns for each kind of question what became of its rows: which rule dropped how many, and what is left."""
    rules = dict(_dropped(out / "curated-all" / "dropped.parquet"))
    kept = {row["question"] for row in _lines(out / "curated-all" / "rows.jsonl")}
    before = {row["question"] for row in _lines(out / "questions" / "rows.jsonl")}
    found = {}
    for kind in pool_lib.KINDS:
        asked = [one.question for one in planted if one.kind == kind]
        why = collections.Counter(rules.get(question, "no answer") for question in asked if question not in kept)
        if kind == "duplicate":  # has the id of the row that it repeats
            why, kept_here = collections.Counter({"asked once": len(asked)}), 0
        else:
            kept_here = sum(question in kept for question in asked)
        found[kind] = {
            "rows": len(asked),
            "left_before_the_teacher": sum(question in before for question in asked),
            "dropped_by": dict(why.most_common()),
            "left": kept_here,
        }
    return found


def _dropped(path: pathlib.Path) -> list[tuple[str, str]]:
    """Questions that a curation has dropped, with the rule."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return list(zip(table["question"].to_pylist(), table["rule"].to_pylist(), strict=True))


def _teacher(out: pathlib.Path, price: str) -> dict[str, Any]:
    """Tokens and dollars of the teacher: for the whole pool, and for the questions that were chosen before."""
    before = {identity.question_id(row["question"]) for row in _lines(out / "questions" / "rows.jsonl")}
    entries = {entry["key"]: entry for entry in _lines(out / "answers" / "answers.jsonl")}.values()
    paid = [entry for entry in entries if entry.get("usage")]
    chosen = [entry for entry in paid if entry["id"] in before]

    def total(some: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        some = list(some)
        return {
            "answers": len(some),
            "output_tokens": sum(entry["usage"]["completion_tokens"] for entry in some),
            "dollars": round(sum(entry["dollars"] for entry in some), 4),
        }

    cut = sum(entry["state"] == "cut" for entry in paid)
    return {"dollars_per_million": price, "cut": cut, "whole_pool": total(paid), "chosen_questions": total(chosen)}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def text(results: Mapping[str, Any]) -> str:
    """Returns the tables as Markdown."""
    on = results["evaluation"]
    lines = [
        "# The curation story",
        "",
        f"Accuracy on {on['fresh']} held-out problems that no row of the pool holds, greedy, ± standard error (of"
        " students and problems).",
        "",
        "| trained on | students | steps | accuracy % | thinking tokens | cut % |",
        "|---|---|---|---|---|---|",
    ]
    for arm, found in results["arms"].items():
        steps = found["steps"] or "5 passes"
        lines.append(f"| {arm} | {found['students']} | {steps} | {found['accuracy']:.1f} ± {found['error']:.1f}"
                     f" | {found['thinking_tokens']:.0f} | {found['cut']:.0f} |")  # fmt: skip
    if results["teacher_of_logits"] is not None:
        lines += ["", f"The teacher of logits has {results['teacher_of_logits']:.1f} % of these problems right."]
    lines += ["", "| difference | pairs | points |", "|---|---|---|"]
    for one in results["differences"]:
        points = f"{one['points']:+.1f} ± {one['error']:.1f}"
        lines.append(f"| {one['arm']} against {one['against']} | {one['pairs']} | {points} |")
    lines += ["", "| planted | rows | left before the teacher | left | dropped by |", "|---|---|---|---|---|"]
    for kind, found in results["defects"].items():
        why = ", ".join(f"{rule} {count}" for rule, count in found["dropped_by"].items())
        lines.append(f"| {kind} | {found['rows']} | {found['left_before_the_teacher']} | {found['left']} | {why} |")
    teacher = results["teacher"]
    whole, chosen = teacher["whole_pool"], teacher["chosen_questions"]
    lines += [
        "",
        f"At {teacher['dollars_per_million']} dollars per million prompt and output tokens the teacher's answers cost"
        f" {whole['dollars']:.3f} dollars for the whole pool ({whole['output_tokens']:,} output tokens) and"
        f" {chosen['dollars']:.3f} for the questions that are left before it is asked ({chosen['output_tokens']:,}).",
    ]
    if on["leaked"]:
        shown = ", ".join(f"{arm} {found['leaked_accuracy']:.1f} %" for arm, found in results["arms"].items())
        lines += ["", f"On the {on['leaked']} problems that had leaked into the pool: {shown}."]
    return "\n".join(lines) + "\n"


def draw(results: Mapping[str, Any], path: pathlib.Path) -> bool:
    """Draws the accuracy of all arms; returns whether it could: matplotlib may be missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    arms = results["arms"]
    figure = Figure(figsize=(7.2, 0.55 * len(arms) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(arms)
    colours = ["#1f6feb" if "logits" in name else "#2b8a3e" if name == "curated" else "#868e96" for name in names]
    axes.barh(names, [arms[name]["accuracy"] for name in names], xerr=[2 * arms[name]["error"] for name in names],
              color=colours, capsize=3)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy on fresh problems, %; bars: two standard errors")
    with files.replace(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True
