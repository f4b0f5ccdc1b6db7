"""Rows of a JSONL file to rows of a JSONL file: prompts in, samples with their texts out."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.checkpoint.store import Model
from s1jax.config import Controls, Delimiters, InputError, from_dict, to_dict
from s1jax.sample import generate as generate_lib
from s1jax.text import chat as chat_lib

_CONTROLS = tuple(field.name for field in dataclasses.fields(Controls))
_OUTPUTS = ("thinking", "answer", *(field.name for field in dataclasses.fields(generate_lib.Sample)))


def read_rows(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads a JSONL file of prompt rows; blank lines are skipped.

    Returns:
      the rows, and for each what it is called in messages: `path:line`.

    Raises:
      InputError: if the file is missing, holds no row, or a line is no JSON object.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a JSONL file of prompts.")
    rows, names = [], []
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); give a JSONL file of prompts.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}:{number} is not JSON ({error}); repair or remove the line.") from None
        if not isinstance(row, dict):
            raise InputError(f'{path}:{number} is no JSON object; a row reads {{"question": "..."}}.')
        rows.append(row)
        names.append(f"{path}:{number}")
    if not rows:
        raise InputError(f"{path} holds no rows; give at least one prompt.")
    return rows, names


def sample_rows(
    model: Model,
    rows: Sequence[Mapping[str, Any]],
    defaults: Controls,
    *,
    wait: str = "Wait",
    batch_size: int = 16,
    cache_length: int = 0,
    dtype: str = "float32",
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Samples one continuation of every row.

    Args:
      model: a loaded checkpoint.
      rows: each with `question` (the chat format is put around it) or `prompt_ids` (used as they are; think_start is
        forced after them), and, if it wants, its own `wait` and fields of `Controls`. Other fields are handed through.
      defaults: controls of what a row does not say itself.
      wait: of the rows that have none of their own; may be empty.
      batch_size: rows that run at one time.
      cache_length: see `generate.generate`.
      dtype: of the computation.
      names: what rows are called in messages.
      progress: see `generate.generate`.

    Returns:
      For every row, in order: its own fields; all fields of `generate.Sample`, the arrays as lists; `thinking` and
      `answer`, the texts without delimiters, stop id and white space at their ends (the answer of a cut row begins with
      the forced "Final Answer:"); `controls`, the settings it was sampled with. A field of the row that has one of
      these names is kept as `input_NAME`.

    Raises:
      InputError: before anything runs, for a row that has a bad field or could outgrow the cache.
    """
    names = [f"row {i}" for i in range(len(rows))] if names is None else names
    encoded: dict[str, Delimiters] = {}  # of each wait string

    def encode(text: str) -> Delimiters:
        if text not in encoded:
            encoded[text] = chat_lib.delimiters(model.tokenizer, model.chat, text)
        return encoded[text]

    prompts, controls, waits = [], [], []
    for row, name in zip(rows, names, strict=True):
        prompts.append(prompt_ids(model, row, name))
        controls.append(row_controls(row, defaults, name))
        waits.append(row.get("wait", wait))
        if not isinstance(waits[-1], str):
            raise InputError(f"{name}: wait is {waits[-1]!r}; it must be a string.")
    samples = generate_lib.generate(
        model.params,
        model.config,
        prompts,
        controls,
        encode(wait),
        waits=[encode(text).wait for text in waits],
        names=names,
        batch_size=min(batch_size, len(rows)),
        cache_length=cache_length,
        dtype=dtype,
        progress=progress,
    )
    outputs = []
    for row, sample, control, text in zip(rows, samples, controls, waits, strict=True):
        output = {f"input_{key}" if key in _OUTPUTS else key: value for key, value in row.items()}
        output.update(dataclasses.asdict(sample), ids=sample.ids.tolist(), forced=sample.forced.tolist())
        output["thinking"], output["answer"] = texts(model, sample, encode(text))
        output["controls"] = {**to_dict(control), "wait": text}
        outputs.append(output)
    return outputs


def prompt_ids(model: Model, row: Mapping[str, Any], name: str) -> list[int]:
    """Returns the ids of a row's prompt; `name` is what messages call the row."""
    if ("question" in row) == ("prompt_ids" in row):
        raise InputError(f"{name} must have exactly one of the fields question and prompt_ids.")
    if "question" in row:
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise InputError(f"{name}: question is {row['question']!r}; it must be a text that is not empty.")
        return chat_lib.encode_prompt(model.tokenizer, model.chat, row["question"])
    ids = row["prompt_ids"]
    if not isinstance(ids, (list, tuple)) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise InputError(f"{name}: prompt_ids must be a list of whole numbers.")
    return list(ids)


def row_controls(row: Mapping[str, Any], defaults: Controls, name: str) -> Controls:
    """Returns `defaults` with the controls that the row has of its own."""
    own = {key: row[key] for key in _CONTROLS if key in row}
    if not own:
        return defaults
    try:
        return from_dict(Controls, {**to_dict(defaults), **own}, name)
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from None


def texts(model: Model, sample: generate_lib.Sample, delimiters: Delimiters) -> tuple[str, str]:
    """Returns the text of thinking and of the answer so far, without delimiters, stop id and outer white space."""
    start = len(delimiters.think_start)
    thinking = model.tokenizer.decode(sample.ids[start : start + sample.thinking_tokens].tolist()).strip()
    if not sample.answer_tokens:
        return thinking, ""
    # Counted from the end: whether a newline was forced before think_end differs from row to row.
    begin = len(sample.ids) - sample.answer_tokens
    begin -= len(delimiters.final_answer) if sample.thinking_end == "cut" else 0
    end = len(sample.ids) - (sample.answer_end == "stop")
    return thinking, model.tokenizer.decode(sample.ids[begin:end].tolist()).strip()
