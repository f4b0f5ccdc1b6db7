"""Chooses rows to train on, or questions for a teacher, out of a pool.

    s1jax curate --rows=FILE,FILE --out=FOLDER --preset=ours --against=FILE,FILE --size=1000 --seed=0

FILE is whatever training reads (JSONL, JSON, CSV, parquet, Arrow, a folder of them, s1k, s1k_1_1), and questions
without a trace. The presets:

    ours        what later work found to be better, see docs/curation.md
    questions   the same without the rules that read a trace: choose questions before a teacher is paid for answers
    s1_paper    Algorithm 1 of the s1 paper
    s1_code     the notebook that came with it

No chosen row holds a question of the evaluation sets of --against, which are files, folders or tasks of `s1jax
evaluate` (gsm8k, math500, aime24, gpqa, or NAME:FILE). --against=none leaves that out, and the report says so.

FOLDER gets rows.jsonl, which training reads; dropped.parquet, every row that was dropped, with rule, reason and
evidence; report.md, report.json and funnel.png; and stages/, from which the same command with one changed setting goes
on. The same rows and seed give the same choice, in whatever order the rows are read.
"""

from __future__ import annotations

from absl import flags

from s1jax.cli import progress, terminal
from s1jax.curation import pipeline
from s1jax.curation.settings import PRESETS
from s1jax.errors import UserError

_ROWS = flags.DEFINE_list("rows", [], "Files and folders of rows, s1k or s1k_1_1.")
_OUT = flags.DEFINE_string("out", None, "Folder for rows.jsonl, dropped.parquet and the report.")
_PRESET = flags.DEFINE_enum("preset", "ours", PRESETS, "Which rules, in which order, with which settings.")
_AGAINST = flags.DEFINE_list(
    "against", [], "Evaluation sets that no chosen row may hold: files, tasks such as gsm8k,math500, or none."
)
_SIZE = flags.DEFINE_integer("size", 1000, "Rows to choose; 0 keeps all that pass the rules.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
_SKIP = flags.DEFINE_list("skip", [], "Rules of the preset that are left out.")
_TRACES = flags.DEFINE_enum("traces", "deepseek", ["gemini", "deepseek"], "Whose thinking of rows in s1K-1.1's form.")
_TEMPLATES = flags.DEFINE_enum(
    "templates", "keep", ["keep", "one"], "Keep questions that differ in their numbers alone, or one of each template."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Folder, file or checkpoint; counts the tokens of traces without a column trace_tokens."
)
_BLOCK = flags.DEFINE_integer("block_size", 0, "Of the training run; the report says how many rows are longer.", 0)
_TOKENS = flags.DEFINE_float(
    "tokens_per_answer",
    0.0,
    "What a teacher writes per question, for the plan; 0: as measured from rows with an answer.",
    0.0,
)
_DOLLARS = flags.DEFINE_float("dollars_per_million", 0.0, "Price of a million tokens that a teacher writes.", 0.0)
_RIGHT = flags.DEFINE_bool("only_right", False, "Also drop rows whose column `correct` says that the answer is wrong.")
_BEAM = flags.DEFINE_string(
    "beam", None, 'Run on Apache Beam with these options, such as --beam="--runner=DataflowRunner --project=NAME".'
)


def main() -> int:
    if not _ROWS.value or not _OUT.value:
        raise UserError("give --rows=FILE,FILE and --out=FOLDER.")
    bar: list[progress.Bar] = []

    def report(stage: str, number: int, total: int) -> None:
        if not bar:
            bar.append(progress.Bar("curating", total).__enter__())
        bar[0].phase(f"curating: {stage}")
        bar[0].update(number)

    try:
        result = pipeline.curate(
            _ROWS.value, _OUT.value, against=_AGAINST.value,
            preset=_PRESET.value, size=_SIZE.value, seed=_SEED.value, skip=_SKIP.value,
            traces=_TRACES.value, templates=_TEMPLATES.value,
            tokenizer=_TOKENIZER.value, block_size=_BLOCK.value, tokens_per_answer=_TOKENS.value,
            dollars_per_million=_DOLLARS.value, only_right=_RIGHT.value, beam=_BEAM.value,
            on_progress=report, on_note=lambda text: _say(bar, text),
        )  # fmt: skip
    finally:
        if bar:
            bar[0].__exit__(None, None, None)
    for stage in result.stages:
        why = "; ".join(f"{reason} ({count:,})" for reason, count in stage.reasons.items())
        print(terminal.safe(f"{stage.name:<16}{stage.given:>9,} -> {stage.kept:>9,}  {why}".rstrip()))
    if result.plan:
        for name, cost in result.plan.costs.items():
            dollars = f", ${cost.dollars:,.2f}" if result.plan.dollars_per_million else ""
            print(f"a teacher's answers to {name}: {cost.rows:,}, {cost.tokens:,.0f} tokens{dollars}")
    if result.block:
        print(result.block["sentence"])
    print(f"wrote rows.jsonl, dropped.parquet, report.md and report.json to {_OUT.value}")
    return 0


def _say(bar: list[progress.Bar], sentence: str) -> None:
    if bar:
        bar[0].say(f"note: {sentence}")
    else:
        terminal.note(sentence)
