"""Rows of prompts to rows of samples: prompts in, samples with their texts out."""

from __future__ import annotations

import dataclasses
import functools
import json
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.checkpoint.store import Metadata, Model
from s1jax.config.sampling import SamplingParams
from s1jax.config.schema import to_dict
from s1jax.engine import seeds, stops
from s1jax.engine.fields import OUTPUTS, row_controls
from s1jax.engine.programs import Request, Sample
from s1jax.engine.scheduler import answer_begin
from s1jax.errors import UserError
from s1jax.io import readers
from s1jax.text import chat as chat_lib
from s1jax.text.delimiters import Delimiters


def read_rows(path: str | os.PathLike[str], notes: list[str] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads prompt rows from a file, or from the test split of a folder, see `s1jax.io.readers`.

    Args:
      path: of the file or folder.
      notes: gets a sentence on the files taken and left out of a folder.

    Returns:
      the rows, and for each what it is called in messages: `path:row`.

    Raises:
      UserError: if there is no file, it holds no row, or a row cannot be read or written as JSON.
    """
    rows, names = [], []
    for name, row in readers.read(path, readers.EVALUATION, notes):
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which no output could hold
            raise UserError(f"{name} is no valid Unicode ({error.reason}); repair the row.") from None
        except ValueError:
            raise UserError(f"{name} has a number that is no JSON (NaN, infinity); repair it.") from None
        except TypeError as error:  # bytes and dates of parquet
            raise UserError(f"{name} has a value that JSON has not ({error}); write it as a string.") from None
        rows.append(dict(row))
        names.append(name)
    if not rows:
        raise UserError(f"{path} holds no rows; give at least one prompt.")
    return rows, names


class Encoder:
    """Turns rows of text into requests of one model, and samples into rows of text."""

    def __init__(self, model: Model | Metadata):
        self._model = model
        self._waits: dict[str, tuple[int, ...]] = {}  # ids of each wait string

    @functools.cached_property
    def delimiters(self) -> Delimiters:
        """The delimiters of the model's chat format."""
        return chat_lib.delimiters(self._model.tokenizer, self._model.chat)

    def _wait(self, wait: str) -> tuple[int, ...]:
        if wait not in self._waits:
            model = self._model
            self._waits[wait] = chat_lib.encode_wait(model.tokenizer, model.chat, self.delimiters, wait)
        return self._waits[wait]

    def requests(
        self,
        row: Mapping[str, Any],
        defaults: SamplingParams,
        name: str,
        *,
        system: str = "",
        index: int = 0,
    ) -> list[Request]:
        """Encodes a row for each of its `n` samples, which differ in their seeds.

        Args:
          row: see `request`, as for the next two.
          defaults: controls.
          name: in messages.
          system: system prompt.
          index: of the row in its file or call; where it has no seed of its own, its noise depends on this.

        Raises:
          UserError: for a bad field.
        """
        first = self.request(row, defaults, name, system=system)
        controls = first.controls
        if controls.temperature == 0:
            return [first]
        place = index if row.get("seed") is None else 0
        each = [seeds.derive(controls.seed, place, repetition) for repetition in range(controls.n)]
        return [dataclasses.replace(first, controls=dataclasses.replace(controls, seed=seed, n=1)) for seed in each]

    def request(self, row: Mapping[str, Any], defaults: SamplingParams, name: str, *, system: str = "") -> Request:
        """Encodes a row.

        Args:
          row: has `question` (the chat format is put around it) or `prompt_ids` (used as they are; think_start is
            forced after them), and, if it wants, its own `system` and fields of `SamplingParams`. Other fields are
            handed through to `output`, unless they are settings of another program or look like a control that was
            misspelt, see `s1jax.engine.fields`.
          defaults: controls of what the row does not say itself.
          name: what messages call it.
          system: system prompt, if the row has none of its own; empty: that of the chat format, if it has one.

        Raises:
          UserError: for a bad field.
        """
        if not isinstance(row, Mapping):
            raise UserError(f'{name} is {row!r:.80}; a row reads {{"question": "..."}}.')
        prompt = tuple(prompt_ids(self._model, row, name, system))
        controls = row_controls(row, defaults, name)
        find_stop = stops.Finder(self._model.tokenizer.decode, controls.stop) if controls.stop else None
        try:
            ids = self._wait(controls.wait)
        except UserError as error:  # of all rows alike, where they have no wait of their own
            raise UserError(f"{name}: {error}" if "wait" in row else str(error)) from None
        return Request(prompt, controls, ids, name, find_stop)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._model.tokenizer.decode(ids)

    def texts(self, sample: Sample, request: Request) -> tuple[str, str]:
        """The texts of thinking and of the answer so far, see the function `texts`."""
        return texts(self._model, sample, self.delimiters, request.controls.stop)

    def output(self, row: Mapping[str, Any], request: Request, sample: Sample, *, system: str = "") -> dict[str, Any]:
        """The row's own fields; all fields of `Sample`, the arrays as lists; and three more.

        `thinking` and `answer` are the texts without delimiters, stop id and white space at their ends (the answer of
        a cut row begins with the forced "Final Answer:"); `controls` are the settings it was sampled with. A field of
        the row that has one of these names, or that of a run's `fingerprint`, is kept as `input_NAME`.
        """
        output: dict[str, Any] = {}
        for key, value in row.items():
            name = f"input_{key}" if key in OUTPUTS else key
            while name != key and name in row:  # an input_NAME of its own, as an output that is sampled again has it
                name = f"input_{name}"
            output[name] = value
        output.update(dataclasses.asdict(sample), ids=sample.ids.tolist(), forced=sample.forced.tolist())
        output["thinking"], output["answer"] = texts(self._model, sample, self.delimiters, request.controls.stop)
        output["controls"] = {**to_dict(request.controls), "stop": list(request.controls.stop)}
        used = _system(row, system)
        if used:
            output["controls"]["system"] = used
        return output


def _system(row: Mapping[str, Any], system: str) -> Any:
    """The system prompt of a row: its own, if it has one, else `system`."""
    return system if row.get("system") is None else row["system"]


def prompt_ids(model: Model | Metadata, row: Mapping[str, Any], name: str, system: str = "") -> list[int]:
    """Returns the ids of a row's prompt.

    Args:
      model: its tokenizer and chat format.
      row: has `question` or `prompt_ids`, and may have `system`.
      name: what messages call the row.
      system: system prompt, if the row has none of its own.

    Raises:
      UserError: for a bad field.
    """
    system = _system(row, system)
    if not isinstance(system, str):
        raise UserError(f"{name}: system is {system!r:.80}; it must be a string.")
    readers.check_length(system, name, "system")
    if ("question" in row) == ("prompt_ids" in row):
        has = [field for field in ("messages", "conversations", "prompt", "problem", "text") if field in row]
        more = f" It has {has[0]}: put the user's text in question and a system prompt in system." if has else ""
        raise UserError(f"{name} must have exactly one of the fields question and prompt_ids.{more}")
    if "question" in row:
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise UserError(f"{name}: question is {row['question']!r}; it must be a text that is not empty.")
        readers.check_length(row["question"], name, "question")
        try:
            return chat_lib.encode_prompt(model.tokenizer, model.chat, row["question"], system)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    if system:
        raise UserError(f"{name}: system goes with question, not with prompt_ids, which are used as they are.")
    ids = row["prompt_ids"]
    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    whole = isinstance(ids, (list, tuple)) and all(isinstance(i, numbers.Integral) for i in ids)
    if not whole or any(isinstance(i, bool) for i in ids):
        raise UserError(f"{name}: prompt_ids must be a list of whole numbers.")
    return [int(i) for i in ids]


def texts(
    model: Model | Metadata, sample: Sample, delimiters: Delimiters, stop: tuple[str, ...] = ()
) -> tuple[str, str]:
    """Returns the texts of thinking and answer so far, without delimiters, stop id, stop string or outer space."""
    start = len(delimiters.think_start)
    thinking = model.tokenizer.decode(sample.ids[start : start + sample.thinking_tokens].tolist()).strip()
    if not sample.answer_tokens:
        return thinking, ""
    begin, num_forced = answer_begin(sample, delimiters)
    if sample.stop_reason is not None:
        return thinking, stops.Finder(model.tokenizer.decode, stop).before(
            sample.ids[begin:].tolist(), num_forced
        ).strip()
    end = len(sample.ids) - (sample.answer_end == "stop")
    return thinking, model.tokenizer.decode(sample.ids[begin:end].tolist()).strip()
