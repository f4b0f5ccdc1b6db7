"""Rows of prompts to rows of samples: prompts in, samples with their texts out."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import numbers
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from s1jax import readers
from s1jax.checkpoint.store import Model
from s1jax.config import Controls, InputError, from_dict, to_dict
from s1jax.delimiters import Delimiters
from s1jax.sample import seeds
from s1jax.sample.generate import Request, Sample
from s1jax.text import chat as chat_lib

CONTROLS = tuple(field.name for field in dataclasses.fields(Controls))
_OUTPUTS = ("thinking", "answer", "controls", "fingerprint", *(field.name for field in dataclasses.fields(Sample)))

# `speed` is a name of its own, and looks like `seed`.
_KNOWN = {"question", "speed", "prompt_ids", "wait", *CONTROLS, *_OUTPUTS, *(f"input_{name}" for name in _OUTPUTS)}
_CLOSE = 0.85  # of 1: a letter more or less in the shortest of the controls' names


def read_rows(path: str | os.PathLike[str], notes: list[str] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads prompt rows from a file, or from the test split of a folder, see `s1jax.readers`.

    Args:
      path: of the file or folder.
      notes: gets a sentence on the files taken and left out of a folder.

    Returns:
      the rows, and for each what it is called in messages: `path:row`.

    Raises:
      InputError: if there is no file, it holds no row, or a row cannot be read or written as JSON.
    """
    rows, names = [], []
    for name, row in readers.read(path, readers.EVALUATION, notes):
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which no output could hold
            raise InputError(f"{name} is no valid Unicode ({error.reason}); repair the row.") from None
        except ValueError:
            raise InputError(f"{name} has a number that is no JSON (NaN, infinity); repair it.") from None
        except TypeError as error:  # bytes and dates of parquet
            raise InputError(f"{name} has a value that JSON has not ({error}); write it as a string.") from None
        rows.append(dict(row))
        names.append(name)
    if not rows:
        raise InputError(f"{path} holds no rows; give at least one prompt.")
    return rows, names


class Encoder:
    """Turns rows of text into requests of one model, and samples into rows of text."""

    def __init__(self, model: Model):
        self._model = model
        self._delimiters: dict[str, Delimiters] = {}  # of each wait string

    def delimiters(self, wait: str) -> Delimiters:
        """The ids of the model's chat format with the wait string `wait`."""
        if wait not in self._delimiters:
            self._delimiters[wait] = chat_lib.delimiters(self._model.tokenizer, self._model.chat, wait)
        return self._delimiters[wait]

    def request(self, row: Mapping[str, Any], defaults: Controls, wait: str, name: str, index: int = 0) -> Request:
        """Encodes a row.

        Args:
          row: has `question` (the chat format is put around it) or `prompt_ids` (used as they are; think_start is
            forced after them), and, if it wants, its own `wait` and fields of `Controls`. Other fields are handed
            through to `output`, unless they look like a control that was misspelt.
          defaults: controls of what the row does not say itself.
          wait: if it has none of its own; may be empty.
          name: what messages call it.
          index: of the row in its file or call; where it has no seed of its own, its noise depends on this.

        Raises:
          InputError: for a bad field.
        """
        if not isinstance(row, Mapping):
            raise InputError(f'{name} is {row!r:.80}; a row reads {{"question": "..."}}.')
        own = row.get("wait", wait)
        if not isinstance(own, str):
            raise InputError(f"{name}: wait is {own!r}; it must be a string.")
        prompt = tuple(prompt_ids(self._model, row, name))
        controls = row_controls(row, defaults, name)
        if "seed" not in row and controls.temperature > 0:
            controls = dataclasses.replace(controls, seed=seeds.derive(controls.seed, index))
        try:
            ids = self.delimiters(own).wait
        except InputError as error:  # of all rows alike, where they have no wait of their own
            raise InputError(f"{name}: {error}" if "wait" in row else str(error)) from None
        return Request(prompt, controls, ids, name)

    def output(self, row: Mapping[str, Any], request: Request, sample: Sample, wait: str) -> dict[str, Any]:
        """The row's own fields; all fields of `Sample`, the arrays as lists; and three more.

        `thinking` and `answer` are the texts without delimiters, stop id and white space at their ends (the answer of
        a cut row begins with the forced "Final Answer:"); `controls` are the settings it was sampled with. A field of
        the row that has one of these names, or that of a run's `fingerprint`, is kept as `input_NAME`.
        """
        wait = row.get("wait", wait)
        output: dict[str, Any] = {}
        for key, value in row.items():
            name = f"input_{key}" if key in _OUTPUTS else key
            while name != key and name in row:  # an input_NAME of its own, as an output that is sampled again has it
                name = f"input_{name}"
            output[name] = value
        output.update(dataclasses.asdict(sample), ids=sample.ids.tolist(), forced=sample.forced.tolist())
        output["thinking"], output["answer"] = texts(self._model, sample, self.delimiters(wait))
        output["controls"] = {**to_dict(request.controls), "wait": wait}
        return output


def prompt_ids(model: Model, row: Mapping[str, Any], name: str) -> list[int]:
    """Returns the ids of a row's prompt; `name` is what messages call the row."""
    if ("question" in row) == ("prompt_ids" in row):
        raise InputError(f"{name} must have exactly one of the fields question and prompt_ids.")
    if "question" in row:
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise InputError(f"{name}: question is {row['question']!r}; it must be a text that is not empty.")
        readers.check_length(row["question"], name, "question")
        try:
            return chat_lib.encode_prompt(model.tokenizer, model.chat, row["question"])
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    ids = row["prompt_ids"]
    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    whole = isinstance(ids, (list, tuple)) and all(isinstance(i, numbers.Integral) for i in ids)
    if not whole or any(isinstance(i, bool) for i in ids):
        raise InputError(f"{name}: prompt_ids must be a list of whole numbers.")
    return [int(i) for i in ids]


def row_controls(row: Mapping[str, Any], defaults: Controls, name: str) -> Controls:
    """Returns `defaults` with the controls that the row has of its own.

    Raises:
      InputError: one of them has a bad value, or a field has nearly the name of one.
    """
    for key in row:
        meant = _meant(key)
        if meant:
            raise InputError(f"{name}: {key} is no control; write {meant} if it is meant, else give it another name.")
    own = {key: row[key] for key in CONTROLS if key in row}
    if not own:
        return defaults
    try:
        return from_dict(Controls, {**to_dict(defaults), **own}, name)
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from None


@functools.lru_cache(maxsize=1024)
def _meant(key: Any) -> str:
    """The control whose name was misspelt; empty for all other fields."""
    if key in _KNOWN or not isinstance(key, str):
        return ""
    names = (*CONTROLS, "wait")
    return next(iter(difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=_CLOSE)), "")


def texts(model: Model, sample: Sample, delimiters: Delimiters) -> tuple[str, str]:
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
