"""A folder of teacher targets: what a teacher expects at every supervised position of training rows.

    FOLDER/teacher_logits.json         what all targets of the folder have in common (`Settings`)
    FOLDER/targets-NNNNN.safetensors   rows of targets; each file appears whole
    FOLDER/.lock                       of the process that writes

The key of a row is the SHA-256 of its token ids and of its mask of supervised tokens. So targets are found whatever the
order of the rows, and those of other tokens are never used: another tokenizer, chat format, system prompt or limit of
the length gives other keys. A position has either the teacher's k most probable ids with the mass of the rest, or the
counts of N draws from the teacher. Ids take as many bytes as the vocabulary needs, log-probabilities two.

A file has these arrays, for R rows with P positions and E ids in all:
  keys        uint8 [R, 32].
  digests     uint8 [R, 32], SHA-256 of what the other arrays have of the row.
  positions   int64 [R + 1], the first position of each row, and P.
  entries     int64 [R + 1], the first id of each row, and E.
  ids         uint8 [E, bytes], little-endian; of counts `id * 2**bits + count`.
  logprobs    float16 [E], natural logarithms; top-k only.
  rest        float32 [P], logarithm of the mass outside the k ids; top-k only.
  lengths     uint16 [P], how many ids a position has; counts only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, Literal

import numpy as np
import safetensors

from s1jax.config import schema
from s1jax.data.packing import Example
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer

FORMAT = 1
SETTINGS = "teacher_logits.json"
REMEDY = "choose another folder, or remove that one"
_MOST = 1024  # ids of a position, and draws


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all targets of a folder have in common.

    Attributes:
      kind: `top_k`: the most probable ids with the mass of the rest; `counts`: draws from the teacher.
      size: k, or the number N of draws.
      seed: of the draws; 0 for top-k.
      num_ids: of the vocabulary, 1 + the largest id.
      tokenizer: SHA-256 of the vocabulary, see `vocabulary`.
      teacher: fingerprint of the teacher's checkpoint.
      dtype: of activations of the teacher.
      chat: fields of the chat format that the rows had. Other rows may have another one: their keys differ.
      source: path of the teacher's checkpoint, for people.
    """

    kind: Literal["top_k", "counts"]
    size: int
    seed: int
    num_ids: int
    tokenizer: str
    teacher: str
    dtype: str
    chat: dict[str, Any]
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _MOST:
            what = "k" if self.kind == "top_k" else "the number of draws"
            raise UserError(f"{what} is {self.size}; give 1 to {_MOST}.")

    @property
    def count_bits(self) -> int:
        return self.size.bit_length() if self.kind == "counts" else 0

    @property
    def id_bytes(self) -> int:
        return -(-((self.num_ids - 1).bit_length() + self.count_bits) // 8) or 1


@dataclasses.dataclass(frozen=True)
class Targets:
    """Targets of P positions.

    Attributes:
      ids: int32 [P, W]; where a position has fewer than W ids, the others have probability 0.
      probabilities: float32 [P, W], of the ids.
      rest: float32 [P], probability of all other ids; None for counts, where it is 0.
    """

    ids: np.ndarray
    probabilities: np.ndarray
    rest: np.ndarray | None


def key(example: Example) -> bytes:
    """SHA-256 of a row's token ids and of its mask of supervised tokens."""
    digest = hashlib.sha256(len(example.ids).to_bytes(8, "little"))
    digest.update(example.ids.astype("<i4").tobytes() + example.supervised.astype(bool).tobytes())
    return digest.digest()


def vocabulary(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's tokens with their ids, in hexadecimal digits."""
    legal = np.flatnonzero(tokenizer.legal_ids(tokenizer.num_ids)).tolist()
    return hashlib.sha256(json.dumps([legal, tokenizer.tokens(legal)]).encode()).hexdigest()


def chat_fields(fmt: ChatFormat) -> dict[str, Any]:
    """The fields of a chat format as JSON values."""
    return json.loads(json.dumps(schema.to_dict(fmt)))


def pack(values: np.ndarray, settings: Settings) -> np.ndarray:
    """uint64 [E] as little-endian bytes uint8 [E, bytes]."""
    return values.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : settings.id_bytes].copy()


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack`."""
    whole = np.zeros((len(packed), 8), np.uint8)
    whole[:, : packed.shape[1]] = packed
    return whole.view("<u8").reshape(-1)


def top_k(arrays: dict[str, np.ndarray], settings: Settings) -> Targets:
    """The targets of one row from its part of a file's `ids`, `logprobs` and `rest`."""
    count = len(arrays["rest"])
    # Two bytes a log-probability: the sum of all is off by up to 0.1 %, which would be a gradient where there is none.
    mass = np.exp(arrays["logprobs"].astype(np.float64)).reshape(count, settings.size)
    rest = np.exp(arrays["rest"].astype(np.float64))
    total = mass.sum(1) + rest
    ids = unpack(arrays["ids"]).astype(np.int32).reshape(count, settings.size)
    return Targets(ids, (mass / total[:, None]).astype(np.float32), (rest / total).astype(np.float32))


def counts_of(arrays: dict[str, np.ndarray], settings: Settings) -> Targets:
    """The targets of one row from its part of a file's `ids` and `lengths`."""
    lengths = arrays["lengths"].astype(np.int64)
    values, bits = unpack(arrays["ids"]), settings.count_bits
    ids = np.zeros((len(lengths), int(lengths.max(initial=1))), np.int32)
    probabilities = np.zeros(ids.shape, np.float32)
    there = np.arange(ids.shape[1]) < lengths[:, None]
    ids[there] = (values >> np.uint64(bits)).astype(np.int32)
    probabilities[there] = (values & np.uint64(2**bits - 1)).astype(np.float32) / np.float32(settings.size)
    return Targets(ids, probabilities, None)


def content_digest(arrays: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of a row's parts of the arrays of a file."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(len(arrays[name]).to_bytes(8, "little") + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.digest()


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of targets in a folder, in order."""
    return sorted(folder.glob("targets-*.safetensors"))


def damaged(path: pathlib.Path, why: str) -> UserError:
    """An error that says which file is damaged."""
    return UserError(f"{path} is damaged ({why}); remove it and run s1jax teacher_logits again, which adds its rows.")


def open_shard(path: pathlib.Path) -> Any:  # safetensors has no public name for the type
    """Maps a file of targets into memory.

    Raises:
      UserError: it is damaged.
    """
    files.check_own(path)
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise damaged(path, str(error)) from None


def shard_keys(path: pathlib.Path) -> list[bytes]:
    """The keys of a file's rows.

    Raises:
      UserError: it is damaged.
    """
    try:
        found = open_shard(path).get_tensor("keys")
    except safetensors.SafetensorError as error:
        raise damaged(path, str(error)) from None
    return [row.tobytes() for row in found]


def read_settings(folder: pathlib.Path) -> Settings:
    """The settings of a folder.

    Raises:
      UserError: it is not a folder of targets, or they are damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise UserError(f"{folder} is not a folder of teacher targets: it has no {SETTINGS}; give one of them.")
    try:
        values = json.loads(path.read_text())
        version = values.pop("format")
        settings = Settings(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); {REMEDY}.") from None
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, and this version of s1jax reads {FORMAT}; update s1jax.")
    return settings
