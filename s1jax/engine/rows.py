"""Rows of files as requests, and outputs as rows: the format that `s1jax sample` reads and writes.

for place, output in rows.stream(engine, [{"question": "..."}], params):
    print(json.dumps(output))
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from s1jax.config.sampling import SamplingParams
from s1jax.config.schema import to_dict
from s1jax.engine import fields
from s1jax.engine.request import EngineProgress, Output, Request
from s1jax.errors import UserError
from s1jax.io import readers

Row = dict[str, Any]  # of JSON values


class Engine(Protocol):
    """What samples requests: `s1jax.Engine`."""

    def stream(
        self,
        prompts: Iterable[Request],
        params: SamplingParams | None = None,
        /,
        *,
        system: str = "",
        progress: EngineProgress | None = None,
    ) -> Iterator[tuple[int, Output]]:
        """Loads whatever is not loaded yet, then yields (place in `prompts`, output) as sequences finish."""


def read(path: str | os.PathLike[str], notes: list[str] | None = None) -> tuple[list[Row], list[str]]:
    """Reads prompt rows from a file, or from the test split of a folder, see `s1jax.io.readers`.

    Args:
      path: of the file or folder.
      notes: gets a sentence on the files of a folder that are read and left out.

    Returns:
      The rows, and for each what error messages call it: `path:row`.

    Raises:
      UserError: if there is no file, it holds no row, or a row cannot be read or written as JSON.
    """
    rows, names = [], []
    for name, row in readers.read(path, readers.EVALUATION, notes):
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which no output could hold
            raise UserError(f"{name} is not valid Unicode ({error.reason}); repair the row.") from None
        except ValueError:
            raise UserError(f"{name} has a number that JSON does not have (NaN, infinity); repair it.") from None
        except TypeError as error:  # bytes and dates of parquet
            raise UserError(f"{name} has a value that JSON has not ({error}); write it as a string.") from None
        rows.append(dict(row))
        names.append(name)
    if not rows:
        raise UserError(f"{path} holds no rows; give at least one prompt.")
    return rows, names


def request(row: Mapping[str, Any], defaults: SamplingParams, name: str, index: int = 0) -> Request:
    """Returns the request that a row stands for.

    Args:
      row: has `question` (the chat template is put around it) or `prompt_ids` (used without one), and may have its own
        `system` and fields of `SamplingParams`. Other fields are handed through to `record`, unless they are settings
        of another program or look like a misspelt setting, see `s1jax.engine.fields`.
      defaults: parameters that the row does not name.
      name: what error messages call the row.
      index: of the row in its file or call. The noise of a row without a `seed` of its own depends on it.

    Raises:
      UserError: for a bad field.
    """
    if not isinstance(row, Mapping):
        raise UserError(f'{name} is {row!r:.80}; a row reads {{"question": "..."}}.')
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise UserError(f"{name}: system is {system!r}; it must be a string.")
    if ("question" in row) == ("prompt_ids" in row):
        has = [field for field in ("messages", "conversations", "prompt", "problem", "text") if field in row]
        more = f" It has {has[0]}: put the user's text in question and a system prompt in system." if has else ""
        raise UserError(f"{name} must have exactly one of the fields question and prompt_ids.{more}")
    prompt: dict[str, Any] = {"prompt_ids": row["prompt_ids"]} if "prompt_ids" in row else {"prompt": row["question"]}
    if "question" in row and (not isinstance(row["question"], str) or not row["question"].strip()):
        raise UserError(f"{name}: question is {row['question']!r}; it must be a text that is not empty.")
    params = fields.row_controls(row, defaults, name)
    return Request(**prompt, params=params, system=system, name=name, index=index if row.get("seed") is None else 0)


def requests(
    rows: Sequence[Mapping[str, Any]],
    defaults: SamplingParams,
    names: Sequence[str],
    indices: Sequence[int] | None = None,
) -> list[Request]:
    """Returns the requests that rows stand for, see `request`; `indices` are 0, 1, ... by default."""
    places = range(len(rows)) if indices is None else indices
    return [request(row, defaults, name, index) for row, name, index in zip(rows, names, places, strict=True)]


def record(row: Mapping[str, Any], output: Output) -> Row:
    """Returns the row of an output file: the fields of the prompt's row and those of the output.

    A field of the row that has the name of an output's field, or of a run's `fingerprint`, is kept as `input_NAME`.
    """
    found: Row = {}
    for key, value in row.items():
        name = f"input_{key}" if key in fields.OUTPUTS else key
        while name != key and name in row:  # an input_NAME of its own, if an output is sampled again
            name = f"input_{name}"
        found[name] = value
    found |= {
        "ids": list(output.token_ids),
        "forced": list(output.forced),
        "thinking_tokens": output.thinking_tokens,
        "answer_tokens": output.answer_tokens,
        "waits": output.waits,
        "thinking_end": output.thinking_end,
        "answer_end": output.answer_end,
        "logprob": output.logprob,
        "stop_reason": output.stop_reason,
        "thinking": output.thinking,
        "answer": output.answer,
        "controls": {**to_dict(output.params), "stop": list(output.params.stop)},
    }
    if output.system:
        found["controls"]["system"] = output.system
    if output.num_samples > 1:
        found["sample_index"] = output.sample_index
    return found


def stream(
    engine: Engine,
    rows: Iterable[Mapping[str, Any]],
    params: SamplingParams | None = None,
    *,
    system: str = "",
    names: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    progress: EngineProgress | None = None,
) -> Iterator[tuple[int, Row]]:
    """Samples rows.

    A row with a `seed` of its own gives the same tokens in any call and at any place. A row without one is sampled with
    a seed that is derived from that of `params` and from the row's index, so that equal rows get different noise.

    Args:
      engine: samples.
      rows: see `request`.
      params: parameters that a row does not name.
      system: system prompt of rows that have none; empty: that of the chat template, if it has one.
      names: what error messages call the rows; `row 0`, ... by default.
      indices: the index of each row in its file, if `rows` are a part of it; 0, 1, ... by default.
      progress: see `s1jax.engine.request.EngineProgress`.

    Yields:
      (place in `rows`, see `record`) as sequences finish, in any order. A row with `n` above 1 has that many outputs,
      and `sample_index` in them counts from 0.

    Raises:
      UserError: before anything runs, for a bad row or argument.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise UserError(f'rows is {rows!r:.80}; give a list of rows, such as [{{"question": "..."}}].')
    rows = list(rows)
    names = _one_for_every_row("names", names, False, [f"row {i}" for i in range(len(rows))])
    indices = _one_for_every_row("indices", indices, True, range(len(rows)))
    defaults = check_params(params)
    asked = requests(rows, defaults, names, indices)
    outputs = engine.stream(asked, defaults, system=system, progress=progress)
    return ((place, record(rows[place], output)) for place, output in outputs)


def generate(engine: Engine, rows: Iterable[Mapping[str, Any]], *given: Any, **more: Any) -> list[Row]:
    """Samples rows and returns their outputs in order; arguments and errors are those of `stream`."""
    found = [(place, output.get("sample_index", 0), output) for place, output in stream(engine, rows, *given, **more)]
    return [output for *_, output in sorted(found, key=lambda each: each[:2])]


def check_params(given: Any) -> SamplingParams:
    """Returns `given`, or the defaults if it is None; raises a `UserError` if it is something else."""
    params = SamplingParams() if given is None else given
    if not isinstance(params, SamplingParams):
        raise UserError(f"params is {given!r:.80}; give SamplingParams, as in SamplingParams(max_thinking_tokens=512).")
    return params


def _one_for_every_row(what: str, given: Any, whole: bool, default: Sequence[Any]) -> Sequence[Any]:
    """Returns `given`, or `default` if it is None; refuses anything but whole numbers or strings, one for each row."""
    if given is None:
        return default
    kind = "whole numbers, not negative" if whole else "strings"
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise UserError(f"{what} is {given!r:.80}; give a list of {kind}, one for every row.")
    given = list(given)
    if len(given) != len(default):
        raise UserError(f"{what} has {len(given)} entries for {len(default)} rows; give one for every row.")
    for item in given:
        number = isinstance(item, numbers.Integral) and not isinstance(item, bool) and int(item) >= 0
        if not (number if whole else isinstance(item, str)):
            raise UserError(f"{what} has {item!r:.80}; give a list of {kind}, one for every row.")
    return given
