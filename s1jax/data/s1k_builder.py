"""TFDS builder of s1K, s1K-1.1 and other rows in their form, written as array_record and read without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from s1jax.data import s1k
from s1jax.errors import UserError
from s1jax.io import hub

_S1K = ("question", "thinking_trajectories", "attempt")
_S1K_1_1 = (
    "question",
    *(f"{whose}_{what}" for whose in ("gemini", "deepseek") for what in ("thinking_trajectory", "attempt")),
)
_SYSTEM = "system"
_ABOUT = ("solution", "cot_type", "source_type", "metadata")


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """One variant.

    Attributes:
      repository: dataset repository of the hub.
      columns: columns that a row must have; empty for `rows`, where the first row decides.
      about: optional columns; a missing one becomes the empty string.
    """

    repository: str = ""
    columns: tuple[str, ...] = ()
    about: tuple[str, ...] = ()


class S1k(tfds.core.GeneratorBasedBuilder):
    """1,000 questions with thinking traces (arXiv 2501.19393); one split, `train`, in the order of the source."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's own name and form)
        Config(name="s1k", repository="simplescaling/s1K", columns=_S1K, about=_ABOUT),
        Config(name="s1k_1_1", repository="simplescaling/s1K-1.1", columns=_S1K_1_1, about=_ABOUT),
        Config(name="rows"),
    ]

    def __init__(self, *, source: str = "", **kwargs: Any):
        """Args: source, a local file or folder of rows (see `s1k.records`), empty for the hub; the rest is TFDS's."""
        self._source = source
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        columns = config.columns or _columns_of(self._source)
        features: dict[str, Any] = {name: tfds.features.Text() for name in (*columns, *config.about, "name")}
        if "thinking_trajectories" in features:
            features["thinking_trajectories"] = tfds.features.Sequence(tfds.features.Text())
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/simplescaling/s1",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(self._source or download(self.builder_config.repository))}

    def _generate_examples(self, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
        columns = [name for name in self.info.features if name != "name"]
        for number, (name, record) in enumerate(s1k.records(source)):
            missing = [column for column in columns if column not in record and column not in (*_ABOUT, _SYSTEM)]
            if missing:
                raise UserError(
                    f"{name} has no column {missing[0]}, but {', '.join(sorted(record)) or 'none'}; add it."
                )
            if record.get(_SYSTEM) and _SYSTEM not in columns:
                raise UserError(
                    f"{name} has a column {_SYSTEM}, which the first row has not; add it there, may be empty."
                )
            for whose in ("gemini", "deepseek"):  # refuses broken rows now, not when the copy is read
                if "thinking_trajectories" in columns or f"{whose}_thinking_trajectory" in columns:
                    s1k.row_of(record, whose, name)
            example: dict[str, Any] = {column: _as_text(record.get(column)) for column in columns}
            if "thinking_trajectories" in columns:
                parts = record["thinking_trajectories"]
                example["thinking_trajectories"] = [parts] if isinstance(parts, str) else list(parts)
            yield number, {**example, "name": name}


def prepare(config: str, source: str = "", data_dir: str | None = None) -> pathlib.Path:
    """Writes the array_record copy of a config, unless it exists, and returns its folder.

    Args:
      config: `s1k`, `s1k_1_1` or `rows`.
      source: local file or folder of rows; empty downloads the config's repository from the hub.
      data_dir: folder of prepared datasets; None is TFDS's own default.

    Raises:
      UserError: if a row is broken, the hub cannot be reached, or `rows` would overwrite an earlier copy.
    """
    if config == "rows" and not source:
        raise UserError("config rows needs a source; give a JSONL or parquet file, or a folder of them.")
    builder = S1k(source=str(source), config=config, data_dir=data_dir, file_format="array_record")
    folder = pathlib.Path(builder.data_dir)
    if not folder.exists():
        builder.download_and_prepare()
    elif source:
        raise UserError(f"{folder} holds a prepared dataset already; remove it or give another data_dir.")
    return folder


def download(repository: str) -> str:
    """Downloads the rows of a dataset repository of the hub (or finds them in its cache) and returns their folder.

    Raises:
      UserError: if there is no network or no such repository.
    """
    try:
        folder, _ = hub.snapshot(repository, ["*.parquet", "*.jsonl"], kind="dataset")
        return str(folder)
    except Exception as error:  # requests, httpx, OSError and the library's own, by version
        raise UserError(
            f"{repository} cannot be downloaded from the hub ({type(error).__name__}); download it elsewhere and give"
            " its folder as data.source."
        ) from error


def _columns_of(source: str) -> tuple[str, ...]:
    """Returns the columns of a source's first row that matter here."""
    name, record = next(iter(s1k.records(source)), ("", {}))
    known = dict.fromkeys((*_S1K, *_S1K_1_1))
    traces = [column for column in known if "thinking" in column]
    if not any(column in record for column in traces):
        raise UserError(f"{name or source} has none of the columns {', '.join(traces)}; rename the one with the trace.")
    return tuple(column for column in (*known, _SYSTEM) if column in record)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
