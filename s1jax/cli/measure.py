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

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from s1jax.cli import engine_flags, processes, progress, student, terminal
from s1jax.errors import UserError
from s1jax.io import files, paths

if TYPE_CHECKING:
    import numpy as np

    from s1jax.curation.difficulty import Named
    from s1jax.curation.pass_rate import Rate

Result = TypeVar("Result")
_ROWS = flags.DEFINE_list("rows", [], "Files or folders of rows (JSONL, JSON, CSV, parquet, Arrow).")
_OUT = flags.DEFINE_string("out", "", "Folder for rows.jsonl and tries.jsonl.")
_TASK = flags.DEFINE_string("task", "", "Task whose grading the rows get; empty: mathematics.")
_GRADE = flags.DEFINE_bool("grade", False, "Compare the answer of each row with its solution.")
_CLUSTERS = flags.DEFINE_integer("clusters", 0, "Domains that the questions are divided into; 0: none.", 0)
_ENCODER = flags.DEFINE_string("encoder", "", "Checkpoint whose hidden states are clustered, or the word words.")
_TRIES_OF = flags.DEFINE_string("tries_of", "", "Folder of s1jax distil with a student's answers to the questions.")
_LABELS = flags.DEFINE_string("labels", "", "Text file with one label a line, or subjects: the list that is shipped.")
_LABELS_OF = flags.DEFINE_string("labels_of", "", "Folder of s1jax distil with labels by a teacher; empty: OUT/labels.")
_LABEL_TOKENS = 2048  # of an answer with a label: room for a short thought of models that always think
_SUBJECTS = "subjects"  # --labels without a file
_WORDS = "words"  # --encoder without a model
flags.adopt_module_key_flags(student)


def main() -> int:
    if not _ROWS.value:
        raise UserError("--rows is missing; give a file of rows, or several with commas between them.")
    if not _OUT.value:
        raise UserError("--out is missing; name the folder for rows.jsonl.")
    if not (student.STUDENT.value or _TRIES_OF.value or _GRADE.value or _CLUSTERS.value or _LABELS.value):
        raise UserError("nothing is to be measured; give --student=CKPT, --grade, --clusters=K or --labels=LIST.")
    if student.STUDENT.value and _TRIES_OF.value:
        raise UserError("--student and --tries_of both give pass rates; give one of them.")
    if _CLUSTERS.value and _LABELS.value:
        raise UserError("--clusters and --labels both give domains; give one of them.")
    if _LABELS_OF.value and not _LABELS.value:
        raise UserError("--labels_of goes with --labels=LIST; give the list that the teacher chose from as well.")
    if _ENCODER.value and not _CLUSTERS.value:
        raise UserError("--encoder goes with --clusters=K; give the number of domains as well.")
    if _CLUSTERS.value and not (_ENCODER.value or student.STUDENT.value):
        raise UserError("--clusters needs vectors of the questions; give --encoder=CKPT, or --encoder=words.")
    for flag in (_OUT, student.STUDENT, _ENCODER, _TRIES_OF, _LABELS_OF):
        paths.local(flag.value, f"--{flag.name}")
    student.check()
    engine_flags.parse_mesh(engine_flags.MESH.value)
    if not student.STUDENT.value:
        processes.refuse("s1jax measure without --student")
        return _measure()
    return processes.run(_measure)


def _measure() -> int:
    notes: list[str] = []
    rows = _together(lambda: _read(notes))
    out = _together(_out)
    columns: list[dict[str, Any]] = [dict(row) for _, row in rows]
    said = _add_rates(rows, columns, out, notes)
    if said is None:  # process 0 goes on for all
        return 0
    said += _add_verdicts(rows, columns) + _add_domains(rows, columns, out)
    with files.replace(out / "rows.jsonl") as file:
        for row in columns:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    print("\n".join([*said, f"wrote {len(columns):,} rows to {out / 'rows.jsonl'}"]))
    return 0


def _together(action: Callable[[], Result]) -> Result:
    """Runs `action` in all processes of the run, if there can be several, see `s1jax.parallel.processes`."""
    if not student.STUDENT.value:
        return action()
    from s1jax.parallel.processes import together

    return together(action)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        terminal.note(note)


def _out() -> pathlib.Path:
    """Returns the folder of --out, which exists afterwards."""
    out = pathlib.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is not a folder; give the path of one.")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _read(notes: list[str]) -> list[Named]:
    """Returns the rows of --rows, which JSON can hold."""
    from s1jax.io import readers

    found: list[Named] = []
    for path in _ROWS.value:
        for name, row in readers.read(path, readers.TRAINING, notes):
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except (TypeError, UnicodeEncodeError) as error:
                raise UserError(f"{name} has a value that JSON does not have ({error}); write it as a text.") from None
            found.append((name, row))
    if not found:
        raise UserError(f"{','.join(_ROWS.value)} holds no rows; give at least one question.")
    return found


def _set(row: dict[str, Any], **measured: Any) -> None:
    """Sets columns, or removes those of an earlier measurement where the new one has no value."""
    for name, value in measured.items():
        row.pop(name, None)
        if value is not None:
            row[name] = value


def _add_rates(
    rows: Sequence[Named], columns: Sequence[dict[str, Any]], out: pathlib.Path, notes: list[str]
) -> list[str] | None:
    """Adds pass rates, if they are asked for, and returns what to say of them; None in all processes but the first."""
    from s1jax.curation import answered, difficulty

    if not student.STUDENT.value:
        _say(notes)
        if not _TRIES_OF.value:
            return []
        graded = difficulty.graded(rows, _TASK.value)
        found, more = answered.rates(graded, _lines(pathlib.Path(_TRIES_OF.value)), _TRIES_OF.value)
        _say([*graded.notes(), *more])
        return _set_rates(columns, found)
    from s1jax.checkpoint import store
    from s1jax.parallel import shares

    graded = _together(lambda: difficulty.graded(rows, _TASK.value))
    share = shares.share()
    if share.is_first:
        _say([*notes, *graded.notes()])
    rates = store.using(
        student.STUDENT.value,
        lambda folder: student.rates(folder, graded, out, share),
    )
    return None if rates is None else _set_rates(columns, rates)


def _set_rates(columns: Sequence[dict[str, Any]], rates: Sequence[Rate | None]) -> list[str]:
    """Sets the columns of pass rates, and returns what to say of them."""
    from s1jax.curation import difficulty

    for row, rate in zip(columns, rates, strict=True):
        _set(row, **(rate.columns if rate else {"pass_rate": None, "pass_tries": None}))
    _say(difficulty.notes(rates))
    return [difficulty.summary(rates)]


def _add_verdicts(rows: Sequence[Named], columns: Sequence[dict[str, Any]]) -> list[str]:
    """Adds whether the answers of rows are right, if that is asked for, and returns what to say of them."""
    if not _GRADE.value:
        return []
    from s1jax.curation import verdicts

    found, notes = verdicts.grade(rows, _TASK.value)
    _say(notes)
    for row, verdict in zip(columns, found, strict=True):
        _set(row, correct=verdict)
    return [f"{found.count(True):,} answers are right, {found.count(False):,} are wrong"]


def _lines(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields what became of the requests of a folder of `s1jax distil`."""
    from s1jax.distillation.answers import ANSWERS, Index

    if not (folder / ANSWERS).exists():
        raise UserError(f"{folder} has no {ANSWERS}; give the folder of a run of s1jax distil.")
    index = Index(folder).read()
    return index.texts(iter(index.entries))


def _add_domains(rows: Sequence[Named], columns: Sequence[dict[str, Any]], out: pathlib.Path) -> list[str]:
    """Adds domains, if they are asked for, and returns what to say of them."""
    if not (_CLUSTERS.value or _LABELS.value):
        return []
    from s1jax.curation import domains

    texts = domains.questions(rows)
    found = _clusters(texts) if _CLUSTERS.value else _labels(texts, out)
    for row, domain in zip(columns, found, strict=True):
        _set(row, domain=domain)
    return [domains.summary(found)]


def _labels(texts: Sequence[str], out: pathlib.Path) -> list[str | None]:
    """Returns the label that a teacher gave each question; says how to ask where it has not."""
    from s1jax.curation import labels
    from s1jax.data import identity
    from s1jax.distillation.answers import ANSWERS

    chosen = dict.fromkeys(labels.SUBJECTS, "") if _LABELS.value == _SUBJECTS else labels.read(_LABELS.value)
    folder = pathlib.Path(_LABELS_OF.value) if _LABELS_OF.value else out / "labels"
    if not (folder / ANSWERS).exists():
        files.write_text(out / "template.txt", labels.template(chosen))
        asked = [json.dumps({"question": text}, ensure_ascii=False) + "\n" for text in dict.fromkeys(texts)]
        files.write_text(out / "questions.jsonl", "".join(asked))
        raise UserError(
            f"{folder} has no labels yet; ask a teacher with s1jax distil --questions={out / 'questions.jsonl'}"
            f' --out={folder} --template="$(cat {out / "template.txt"})" --max_tokens={_LABEL_TOKENS}'
            " --allow_no_thinking --endpoint=URL --model=NAME, then give this command again."
        )
    ids = [identity.question_id(text) for text in texts]
    found, notes = labels.assign(ids, _lines(folder), chosen)
    _say(notes)
    return found


def _clusters(texts: Sequence[str]) -> list[str]:
    """Returns the number of each question's cluster."""
    from s1jax.checkpoint import store
    from s1jax.curation import domains, word_vectors

    if _ENCODER.value == _WORDS:
        vectors = word_vectors.embed(texts)
    else:
        vectors = store.using(_ENCODER.value or student.STUDENT.value, lambda folder: _vectors(folder, texts))
    return domains.cluster(texts, vectors, _CLUSTERS.value, student.SEED.value)


def _vectors(folder: pathlib.Path, texts: Sequence[str]) -> np.ndarray:
    """Returns the vectors of questions by the checkpoint in `folder`; each different question is run once."""
    import numpy as np

    from s1jax.checkpoint import store
    from s1jax.engine import embed

    engine_flags.say_step(_ENCODER.value or student.STUDENT.value, folder)
    model = store.load_model(folder, dtype=engine_flags.dtype())
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    ids = [model.tokenizer.encode_text(text) for text in places]
    if longer := sum(len(row) > model.config.context_length for row in ids):
        terminal.note(f"{longer:,} questions exceed {model.config.context_length} tokens; their first ones are read.")
    with progress.Bar("reading questions", len(ids)) as bar:
        found = embed.embed(
            model.params,
            model.config,
            ids,
            dtype=engine_flags.dtype(),
            batch_size=student.BATCH.value,
            progress=bar.update,
        )
    return found[np.array([places[text] for text in texts])]
