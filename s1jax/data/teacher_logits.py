"""Reads the targets of training rows from a folder of teacher targets, see `s1jax.data.teacher_format`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import safetensors

from s1jax.data.packing import Batch, Example
from s1jax.data.teacher_format import (
    Targets,
    chat_fields,
    content_digest,
    counts_of,
    damaged,
    key,
    open_shard,
    read_settings,
    shard_keys,
    shards,
    top_k,
    vocabulary,
)  # fmt: skip
from s1jax.errors import UserError
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer


class Folder:
    """The targets of a folder, for reading. The files are mapped into memory, not read as a whole.

    Attributes:
      settings: of the folder.
      width: W, the most ids of a position.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads which rows there are.

        Raises:
          UserError: it is not a folder of targets, or a file in it is damaged.
        """
        self._folder = folder
        self.settings = read_settings(folder)
        self._files = [open_shard(path) for path in shards(folder)]
        self._paths = shards(folder)
        self._places: dict[bytes, tuple[int, int]] = {}
        self.width = self.settings.size if self.settings.kind == "top_k" else 1
        for number, (path, file) in enumerate(zip(self._paths, self._files, strict=True)):
            self._places |= {one: (number, row) for row, one in enumerate(shard_keys(path))}
            if self.settings.kind == "counts":
                self.width = max(self.width, int(file.get_tensor("lengths").max(initial=0)))
        self._bounds = [(file.get_tensor("positions"), file.get_tensor("entries")) for file in self._files]
        self._digests = [file.get_tensor("digests") for file in self._files]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key_of_row: object) -> bool:
        return key_of_row in self._places

    def check(self, examples: Sequence[Example], tokenizer: Tokenizer, fmt: ChatFormat) -> None:
        """Checks that the folder has targets for all examples.

        Args:
          examples: of a run, after the limit of the length.
          tokenizer: of the student.
          fmt: the chat format of the run.

        Raises:
          UserError: the targets are of another tokenizer, or some examples (named) have none.
        """
        if vocabulary(tokenizer) != self.settings.tokenizer:
            raise UserError(
                f"distil.targets {self._folder} has targets of another tokenizer ({self.settings.num_ids} ids; this"
                f" run's has {tokenizer.num_ids}), so their ids mean other tokens; make them with this run's config."
            )
        missing = [example.name for example in examples if key(example) not in self._places]
        if not missing:
            return
        here, there = chat_fields(fmt), self.settings.chat
        field = next((name for name in here if here[name] != there.get(name)), None)
        why = "their token ids differ from all that were scored"
        if field is not None:
            why = f"the chat format has {field}={there.get(field)!r} there and {here[field]!r} here"
        raise UserError(
            f"distil.targets {self._folder} has no targets for {len(missing)} of {len(examples)} rows"
            f" ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): {why}. Run s1jax teacher_logits with"
            " this config and that folder, which adds them, or give the settings that they were made with."
        )

    def digest(self, example: Example) -> bytes:
        """SHA-256 of the targets of a row that the folder has."""
        number, row = self._places[key(example)]
        return self._digests[number][row].tobytes()

    def read(self, example: Example) -> Targets:
        """The targets of a row that the folder has, in the order of its supervised targets.

        Raises:
          UserError: the file is damaged there.
        """
        return self._read(*self._places[key(example)], example.name)

    def all(self) -> Iterator[Targets]:
        """Yields the targets of all rows, in the order of the files; raises as `read`."""
        for row_key, place in self._places.items():
            yield self._read(*place, f"row {row_key.hex()[:16]}")

    def _read(self, number: int, row: int, name: str) -> Targets:
        file, (positions, entries) = self._files[number], self._bounds[number]
        at, of = slice(*positions[row : row + 2].tolist()), slice(*entries[row : row + 2].tolist())
        parts = {"ids": of, "lengths": at}
        if self.settings.kind == "top_k":
            parts = {"ids": of, "logprobs": of, "rest": at}
        try:
            arrays = {array: file.get_slice(array)[part] for array, part in parts.items()}
        except safetensors.SafetensorError as error:
            raise damaged(self._paths[number], str(error)) from None
        if content_digest(arrays) != self._digests[number][row].tobytes():
            raise damaged(self._paths[number], f"the targets of {name} are not those that were written")
        return counts_of(arrays, self.settings) if self.settings.kind == "counts" else top_k(arrays, self.settings)

    def arrays(self, rows: Sequence[Sequence[Example]], num_rows: int, block_size: int) -> Batch:
        """The targets of a batch, at the places that `packing.arrays` gives to the same rows.

        Returns:
          teacher_ids int32 [num_rows, block_size, W], teacher_probabilities float32 of the same shape, which is 0 for
          ids that are not there, and for top-k teacher_rest float32 [num_rows, block_size].
        """
        shape = num_rows, block_size, self.width
        batch: Batch = {
            "teacher_ids": np.zeros(shape, np.int32),
            "teacher_probabilities": np.zeros(shape, np.float32),
        }
        if self.settings.kind == "top_k":
            batch["teacher_rest"] = np.zeros(shape[:2], np.float32)
        for r, sequences in enumerate(rows):
            start = 0
            for example in sequences:
                found = self.read(example)
                places, width = start + np.flatnonzero(example.supervised[1:]), found.ids.shape[1]
                batch["teacher_ids"][r, places, :width] = found.ids
                batch["teacher_probabilities"][r, places, :width] = found.probabilities
                if found.rest is not None:
                    batch["teacher_rest"][r, places] = found.rest
                start += example.length
        return batch
