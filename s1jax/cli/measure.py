"""Measures what the rules of `s1jax curate` read of rows: pass rates, verdicts, domains.

    python -m launch.measure --rows=FILE,FILE --out=FOLDER --student=CKPT --tries=8 [--stop_above=0.5] [--task=gsm8k]
        [--max_thinking_tokens=N] [--max_answer_tokens=N] [--temperature=T] [--seed=N] [--batch_size=B]
    python -m launch.measure --rows=FILE,FILE --out=FOLDER --clusters=50 --encoder=CKPT
    python -m launch.measure --rows=FILE,FILE --out=FOLDER --grade
    python -m launch.measure --rows=FILE,FILE --out=FOLDER --tries_of=FOLDER2
    python -m launch.measure --rows=FILE,FILE --out=FOLDER --labels=LIST [--labels_of=FOLDER3]

FOLDER/rows.jsonl has the rows with all their columns and those that were measured:

    pass_rate, pass_tries   right answers / tries of the student, and the tries       --student or --tries_of
    correct                 whether the teacher's answer in the row is right          --grade
    domain                  the cluster of the question, or a label                   --clusters or --labels

A verdict needs a column `solution` or `answer` to grade against, as in `s1jax evaluate`: the bare answer, or a worked
solution that ends in a final answer. --task names the grading: mathematics by default, or that of a task of
`s1jax evaluate` (gsm8k, aime24, gpqa, choices, countdown, ...). Rows that cannot be graded are counted and keep their
place without the columns. --stop_above=0.5 stops trying a question once it is certain that the student is right in more
than half of all tries.

A try depends on the question, its number, the student and the sampling flags, never on the place of a row. All tries
are kept in FOLDER/tries.jsonl: the same command goes on after an interruption, and with rows added, removed or
reordered it samples only what is new. The same command may run in several processes, as `s1jax sample` does.

A student at an endpoint answers through `s1jax distil --answers=8`, and --tries_of names its folder. Answers that were
cut or refused are tries that were not right; requests that failed are none.

Clusters are those of k-means, of the questions' vectors: means of the last hidden states of --encoder (by default
--student), or with --encoder=words the weights of their words, which needs no model.

Labels are those of LIST, a text file with one label a line, or `subjects`, the list that comes with s1jax. A teacher
names them through `s1jax distil` with a template: without its answers the command writes FOLDER/template.txt and
FOLDER/questions.jsonl, and says how to ask. Answers that name none of the labels are counted, and their rows keep their
place without a domain.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from s1jax.cli import engine_flags, processes, progress, terminal
from s1jax.cli.lazy_engine import LazyEngine
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.io import files, paths

if TYPE_CHECKING:
    import numpy as np

    from s1jax.curation.difficulty import PassRates
    from s1jax.curation.domains import Clusters
    from s1jax.curation.labels import Labels
    from s1jax.curation.measurement import Measurement
    from s1jax.io.journals import Share

_ROWS = flags.DEFINE_list("rows", [], "Files or folders of rows (JSONL, JSON, CSV, parquet, Arrow).")
_OUT = flags.DEFINE_string("out", "", "Folder for rows.jsonl and tries.jsonl.")
_TASK = flags.DEFINE_string("task", "", "Task whose grading the rows get; empty: mathematics.")
_STUDENT = flags.DEFINE_string("student", "", "Checkpoint, training workdir or package:NAME that is tried.")
_TRIES = flags.DEFINE_integer("tries", 8, "Answers of the student to each question, at most.", 1)
_STOP_ABOVE = flags.DEFINE_float(
    "stop_above", None, "Stop trying a question once its pass rate is certain to be above this.", 0.0
)
_THINKING = flags.DEFINE_integer("max_thinking_tokens", None, "Thinking is cut here; by default that of the task.", 0)
_ANSWER = flags.DEFINE_integer("max_answer_tokens", None, "Limit of an answer; by default that of the task.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Above 0 where there is more than one try.", 0.0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Smallest set of tokens with at least this probability.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "The k most probable tokens; 0: all.", 0)
_SYSTEM = flags.DEFINE_string("system", "", "System prompt; empty: that of the chat format.")
_TRIES_OF = flags.DEFINE_string("tries_of", "", "Folder of s1jax distil with a student's answers to the questions.")
_GRADE = flags.DEFINE_bool("grade", False, "Compare the answer of each row with its solution.")
_CLUSTERS = flags.DEFINE_integer("clusters", 0, "Domains that the questions are divided into; 0: none.", 0)
_ENCODER = flags.DEFINE_string("encoder", "", "Checkpoint whose hidden states are clustered, or the word words.")
_LABELS = flags.DEFINE_string("labels", "", "Text file with one label a line, or subjects: the list that is shipped.")
_LABELS_OF = flags.DEFINE_string("labels_of", "", "Folder of s1jax distil with labels by a teacher; empty: OUT/labels.")
_SEED = flags.DEFINE_integer("seed", 0, "Of tries, together with the question and the number of a try; of clusters.", 0)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Tries, or questions of the encoder, that are run at one time.", 1)

_LABEL_TOKENS = 2048  # of an answer with a label: room for a short thought of models that always think
_SUBJECTS = "subjects"  # --labels without a file
_WORDS = "words"  # --encoder without a model


def main() -> int:
    _check()
    if not _STUDENT.value:
        processes.refuse("s1jax measure without --student")
        return _measure()
    return processes.run(_measure)


def _check() -> None:
    """Refuses flags that make no sense."""
    if not _ROWS.value:
        raise UserError("--rows is missing; give a file of rows, or several with commas between them.")
    if not _OUT.value:
        raise UserError("--out is missing; name the folder for rows.jsonl.")
    if not (_STUDENT.value or _TRIES_OF.value or _GRADE.value or _CLUSTERS.value or _LABELS.value):
        raise UserError("nothing is to be measured; give --student=CKPT, --grade, --clusters=K or --labels=LIST.")
    if _STUDENT.value and _TRIES_OF.value:
        raise UserError("--student and --tries_of both give pass rates; give one of them.")
    if _CLUSTERS.value and _LABELS.value:
        raise UserError("--clusters and --labels both give domains; give one of them.")
    if _LABELS_OF.value and not _LABELS.value:
        raise UserError("--labels_of goes with --labels=LIST; give the list that the teacher chose from as well.")
    if _ENCODER.value and not _CLUSTERS.value:
        raise UserError("--encoder goes with --clusters=K; give the number of domains as well.")
    if _CLUSTERS.value and not (_ENCODER.value or _STUDENT.value):
        raise UserError("--clusters needs vectors of the questions; give --encoder=CKPT, or --encoder=words.")
    if _STOP_ABOVE.value is not None and _STOP_ABOVE.value >= 1:
        raise UserError(f"--stop_above is {_STOP_ABOVE.value:g}, which no rate exceeds; give less than 1.")
    if _STUDENT.value and _TRIES.value > 1 and not _TEMPERATURE.value:
        raise UserError(f"--temperature=0 gives {_TRIES.value} equal tries; raise it, or give --tries=1.")
    for flag in (_OUT, _STUDENT, _ENCODER, _TRIES_OF, _LABELS_OF):
        paths.local(flag.value, f"--{flag.name}")
    out = pathlib.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is not a folder; give the path of one.")
    engine_flags.parse_mesh(engine_flags.MESH.value)


def _measure() -> int:
    from s1jax.checkpoint import store

    if _STUDENT.value:
        from s1jax.parallel import shares

        share = shares.share()
        store.using(_STUDENT.value, lambda folder: _measure_with(folder, share))
    else:
        _measure_with(None, None)
    return 0


def _measure_with(student: pathlib.Path | None, share: Share | None) -> None:
    """Measures with the student's checkpoint in `student`, if there is one; the first process writes and prints."""
    from s1jax.curation import measure as measure_lib

    with contextlib.ExitStack() as stack:
        asked: list[Measurement] = []
        if student is not None and share is not None:
            asked.append(_pass_rates(student, share, stack))
        if _TRIES_OF.value:
            from s1jax.curation.answered import TriesOf

            asked.append(TriesOf(_lines(pathlib.Path(_TRIES_OF.value)), _TRIES_OF.value, _TASK.value))
        if _GRADE.value:
            from s1jax.curation.verdicts import Correct

            asked.append(Correct(_TASK.value))
        if _CLUSTERS.value:
            asked.append(_clusters())
        if _LABELS.value:
            asked.append(_labels())

        def note(sentence: str) -> None:
            stack.close()  # the bar would be drawn over it
            if share is None or share.is_first:
                terminal.note(sentence)

        found = measure_lib.measure(_ROWS.value, _OUT.value, asked, on_note=note)
    if found is not None:
        where = pathlib.Path(_OUT.value) / measure_lib.ROWS
        print("\n".join([*(columns.summary for columns in found), f"wrote {len(found[0].values):,} rows to {where}"]))


def _pass_rates(folder: pathlib.Path, share: Share, stack: contextlib.ExitStack) -> PassRates:
    """Returns the measurement of pass rates; a bar that it shows ends with `stack`."""
    from s1jax.curation import graded
    from s1jax.curation.difficulty import PassRates

    if share.is_first:
        engine_flags.say_step(_STUDENT.value, folder)
    bars: list[progress.Bar] = []

    def report(done: int, total: int, speed: float) -> None:
        if not bars:
            bars.append(stack.enter_context(progress.Bar("trying", total, shown=share.is_first)))
        bars[0].update(done, f"{speed:,.0f} tokens/s")

    limits = graded.limits(_TASK.value)
    params = SamplingParams(
        max_thinking_tokens=limits[0] if _THINKING.value is None else _THINKING.value,
        max_answer_tokens=limits[1] if _ANSWER.value is None else _ANSWER.value,
        temperature=_TEMPERATURE.value, top_p=_TOP_P.value, top_k=_TOP_K.value, seed=_SEED.value,
    )  # fmt: skip
    return PassRates(
        LazyEngine(folder, _STUDENT.value, _BATCH.value), _TRIES.value, _STOP_ABOVE.value, _TASK.value, params,
        _SYSTEM.value, share, report,
    )  # fmt: skip


def _lines(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields what became of the requests of a folder of `s1jax distil`."""
    from s1jax.distillation.answers import ANSWERS, Index

    if not (folder / ANSWERS).exists():
        raise UserError(f"{folder} has no {ANSWERS}; give the folder of a run of s1jax distil.")
    index = Index(folder).read()
    return index.texts(iter(index.entries))


def _clusters() -> Clusters:
    """Returns the measurement of clusters."""
    from s1jax.checkpoint import store
    from s1jax.curation.domains import Clusters

    if _ENCODER.value == _WORDS:
        return Clusters(_CLUSTERS.value, seed=_SEED.value)
    checkpoint = _ENCODER.value or _STUDENT.value
    return Clusters(
        _CLUSTERS.value, lambda texts: store.using(checkpoint, lambda folder: _vectors(folder, texts)), _SEED.value
    )


def _vectors(folder: pathlib.Path, texts: Sequence[str]) -> np.ndarray:
    """Returns the vectors of questions by the checkpoint in `folder`."""
    from s1jax.checkpoint import store
    from s1jax.engine import embed

    engine_flags.say_step(_ENCODER.value or _STUDENT.value, folder)
    model = store.load_model(folder, dtype=engine_flags.dtype())
    with progress.Bar("reading questions", len(texts)) as bar:
        return embed.embed_texts(model, texts, dtype=engine_flags.dtype(), batch_size=_BATCH.value, progress=bar.update)


def _labels() -> Labels:
    """Returns the measurement of labels; says how to ask a teacher that has not answered."""
    from s1jax.curation import domains, labels, measure
    from s1jax.distillation.answers import ANSWERS

    chosen = dict.fromkeys(labels.SUBJECTS, "") if _LABELS.value == _SUBJECTS else labels.read(_LABELS.value)
    out = pathlib.Path(_OUT.value)
    folder = pathlib.Path(_LABELS_OF.value) if _LABELS_OF.value else out / "labels"
    if (folder / ANSWERS).exists():
        return labels.Labels(_lines(folder), list(chosen))
    texts = dict.fromkeys(domains.questions(measure.read(_ROWS.value, terminal.note)))
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / "template.txt", labels.template(chosen))
    asked = [json.dumps({"question": text}, ensure_ascii=False) + "\n" for text in texts]
    files.write_text(out / "questions.jsonl", "".join(asked))
    raise UserError(
        f"{folder} has no labels yet; ask a teacher with s1jax distil --questions={out / 'questions.jsonl'}"
        f' --out={folder} --template="$(cat {out / "template.txt"})" --max_tokens={_LABEL_TOKENS}'
        " --allow_no_thinking --endpoint=URL --model=NAME, then give this command again."
    )
