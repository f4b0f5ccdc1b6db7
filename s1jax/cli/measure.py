"""Measures what the rules of `s1jax curate` read of rows: pass rates, verdicts, domains.

    python -m launch.measure --rows=FILE,FILE --out=FOLDER --student=CKPT --tries=8 [--stop_above=0.5] [--task=gsm8k]
        [--max_thinking_tokens=N] [--max_answer_tokens=N] [--temperature=T] [--seed=N] [--batch_size=B]
    python -m launch.measure --rows=FILE,FILE --out=FOLDER --clusters=50 --encoder=CKPT
    python -m launch.measure --rows=FILE,FILE --out=FOLDER --grade

FOLDER/rows.jsonl has the rows with all their columns and those that were measured:

    pass_rate, pass_tries   right answers / tries of the student, and the tries       --student
    correct                 whether the teacher's answer in the row is right          --grade
    domain                  the cluster of the question                               --clusters

A verdict needs a column `solution` or `answer` to grade against, as in `s1jax evaluate`: the bare answer, or a worked
solution that ends in a final answer. --task names the grading: mathematics by default, or that of a task of
`s1jax evaluate` (gsm8k, aime24, gpqa, choices, countdown, ...). Rows that cannot be graded are counted and keep their
place without the columns. --stop_above=0.5 stops trying a question once it is certain that the student is right in more
than half of all tries.

A try depends on the question, its number, the student and the sampling flags, never on the place of a row. All tries
are kept in FOLDER/tries.jsonl: the same command goes on after an interruption, and with rows added, removed or
reordered it samples only what is new. The same command may run in several processes, as `s1jax sample` does.

Clusters are those of k-means, of the questions' vectors: means of the last hidden states of --encoder (by default
--student), or with --encoder=words the weights of their words, which needs no model.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from s1jax.cli import engine_flags, processes, progress, student, terminal
from s1jax.errors import UserError
from s1jax.io import files, paths

if TYPE_CHECKING:
    import numpy as np

    from s1jax.curation.difficulty import Named

Result = TypeVar("Result")
_ROWS = flags.DEFINE_list("rows", [], "Files or folders of rows (JSONL, JSON, CSV, parquet, Arrow).")
_OUT = flags.DEFINE_string("out", "", "Folder for rows.jsonl and tries.jsonl.")
_TASK = flags.DEFINE_string("task", "", "Task whose grading the rows get; empty: mathematics.")
_GRADE = flags.DEFINE_bool("grade", False, "Compare the answer of each row with its solution.")
_CLUSTERS = flags.DEFINE_integer("clusters", 0, "Domains that the questions are divided into; 0: none.", 0)
_ENCODER = flags.DEFINE_string("encoder", "", "Checkpoint whose hidden states are clustered, or the word words.")
_WORDS = "words"  # --encoder without a model
flags.adopt_module_key_flags(student)


def main() -> int:
    if not _ROWS.value:
        raise UserError("--rows is missing; give a file of rows, or several with commas between them.")
    if not _OUT.value:
        raise UserError("--out is missing; name the folder for rows.jsonl.")
    if not (student.STUDENT.value or _GRADE.value or _CLUSTERS.value):
        raise UserError("nothing is to be measured; give --student=CKPT, --grade or --clusters=K.")
    if _ENCODER.value and not _CLUSTERS.value:
        raise UserError("--encoder goes with --clusters=K; give the number of domains as well.")
    if _CLUSTERS.value and not (_ENCODER.value or student.STUDENT.value):
        raise UserError("--clusters needs vectors of the questions; give --encoder=CKPT, or --encoder=words.")
    for flag in (_OUT, student.STUDENT, _ENCODER):
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
    said += _add_verdicts(rows, columns) + _add_domains(rows, columns)
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
    if not student.STUDENT.value:
        _say(notes)
        return []
    from s1jax.checkpoint import store
    from s1jax.curation import difficulty
    from s1jax.parallel import shares

    graded = _together(lambda: difficulty.graded(rows, _TASK.value))
    share = shares.share()
    if share.is_first:
        _say([*notes, *graded.notes()])
    rates = store.using(
        student.STUDENT.value,
        lambda folder: student.rates(folder, graded, out, share),
    )
    if rates is None:
        return None
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


def _add_domains(rows: Sequence[Named], columns: Sequence[dict[str, Any]]) -> list[str]:
    """Adds domains, if they are asked for, and returns what to say of them."""
    if not _CLUSTERS.value:
        return []
    from s1jax.checkpoint import store
    from s1jax.curation import domains, word_vectors

    texts = domains.questions(rows)
    if _ENCODER.value == _WORDS:
        vectors = word_vectors.embed(texts)
    else:
        vectors = store.using(_ENCODER.value or student.STUDENT.value, lambda folder: _vectors(folder, texts))
    found = domains.cluster(texts, vectors, _CLUSTERS.value, student.SEED.value)
    for row, domain in zip(columns, found, strict=True):
        _set(row, domain=domain)
    return [domains.summary(found)]


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
