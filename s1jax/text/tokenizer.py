"""Text to ids and back: Hugging Face `tokenizer.json` and SentencePiece `.model` files behind one small class.

Text becomes its own ids and nothing more: no beginning-of-sequence, no dummy leading space. Texts are encoded in parts
here (prompt, delimiter, trace, ...), and a part in the middle of a row must not bring a space of its own.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from s1jax.config import InputError

# What a tokenizer folder may hold besides its model; kept byte for byte so that other libraries read what is saved.
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

# A ModelProto holding only `normalizer_spec { add_dummy_prefix: false }` (fields 3 and 3 of sentencepiece_model.proto).
# Protocol buffers merge on concatenation, so appending it to a model file switches the dummy prefix off.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class _Backend(Protocol):
    """What the two libraries are reduced to."""

    vocab: dict[str, int]  # every token, special ones included

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def texts(self, ids: Sequence[int]) -> list[str]: ...


class Tokenizer:
    """A tokenizer of either kind.

    Attributes:
      files: the files it was loaded from, name -> bytes.
      num_ids: 1 + the largest id; ids below it may be unknown, see `legal_ids`.
    """

    def __init__(self, files: dict[str, bytes], where: str = "the tokenizer"):
        """Use `load`.

        Args:
          files: `tokenizer.json` or one `*.model` file, and any of the companion files, name -> bytes.
          where: what the files are called in messages.

        Raises:
          InputError: if no tokenizer is among the files or it does not parse.
        """
        self.files = dict(files)
        self._where = where
        config = self._companion("tokenizer_config.json")
        models = [name for name in files if name.endswith(".model")]
        self._backend: _Backend
        if "tokenizer.json" in files:
            self._backend = _HuggingFace(files["tokenizer.json"], f"{where}/tokenizer.json")
        elif len(models) == 1:
            added = dict(self._companion("added_tokens.json"))
            try:
                for id_, token in config.get("added_tokens_decoder", {}).items():
                    added[token["content"]] = int(id_)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise InputError(
                    f"{where}/tokenizer_config.json: added_tokens_decoder is no table of tokens; get the file again."
                ) from None
            if not all(isinstance(token, str) and type(id_) is int for token, id_ in added.items()):
                raise InputError(
                    f"{where} has an added token that is no text or whose id is no number; repair its files."
                )
            self._backend = _SentencePiece(files[models[0]], added, f"{where}/{models[0]}")
        else:
            raise InputError(
                f"{where} holds {'no' if not models else 'more than one'} tokenizer; give a folder with one"
                " tokenizer.json or one SentencePiece .model file, or the path of such a file."
            )
        self.num_ids = 1 + max(self._backend.vocab.values())
        self._named: dict[str, str | None] = {}
        for key in ("eos", "pad"):
            token = config.get(f"{key}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise InputError(
                    f"{where}/tokenizer_config.json: {key}_token is {token!r}; it must be one token; repair the file."
                )
            self._named[key] = token

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Tokenizer:
        """Reads a tokenizer folder, a `tokenizer.json` or a SentencePiece `.model` file.

        A folder's `tokenizer.json` wins over its `.model`. Companion files beside it (`tokenizer_config.json` and the
        like) tell added tokens, end of sequence and padding, and are kept for `save`.

        Raises:
          InputError: if the path does not exist, holds no tokenizer, or its tokenizer does not parse.
        """
        path = pathlib.Path(path)
        if not path.exists():
            raise InputError(f"tokenizer {path} does not exist; give a folder with a tokenizer.json or .model file.")
        folder = path if path.is_dir() else path.parent
        beside = {p.name: p for p in sorted(folder.iterdir()) if p.is_file()}
        files = {name: beside[name].read_bytes() for name in _COMPANIONS if name in beside}
        if path.is_file():
            files[path.name if path.suffix == ".model" else "tokenizer.json"] = path.read_bytes()
        else:
            files |= {name: p.read_bytes() for name, p in beside.items() if _is_model(name)}
        return cls(files, str(folder))

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the files it was loaded from, byte for byte, into `folder` (made if needed)."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, nothing added; special tokens written in the text become their ids."""
        return self._backend.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, special tokens included; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids])

    def knows(self, token: str) -> bool:
        """Whether `token` is one id of the vocabulary."""
        return token in self._backend.vocab

    def id_of(self, token: str) -> int:
        """Returns the id of one token of the vocabulary.

        Raises:
          InputError: if the vocabulary does not hold it.
        """
        if token not in self._backend.vocab:
            raise InputError(f"token {token!r} is not in the tokenizer {self._where}; give a tokenizer that has it.")
        return self._backend.vocab[token]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the tokens of those `ids` that the vocabulary holds."""
        names = {id_: token for token, id_ in self._backend.vocab.items()}
        return [names[id_] for id_ in ids if id_ in names]

    @property
    def eos_id(self) -> int | None:
        """The id that the tokenizer's own files call end of sequence, or None."""
        return self._named_id("eos")

    @property
    def pad_id(self) -> int | None:
        """The id that the tokenizer's own files call padding, or None."""
        return self._named_id("pad")

    def legal_ids(self, rows: int) -> np.ndarray:
        """Returns bool [rows], rows of the embedding: whether the tokenizer knows the id.

        Raises:
          InputError: if the tokenizer has ids beyond `rows`.
        """
        if rows < self.num_ids:
            raise InputError(
                f"the tokenizer {self._where} has ids up to {self.num_ids - 1}, but the vocabulary of the model has"
                f" {rows} rows; give the tokenizer that belongs to the model."
            )
        legal = np.zeros(rows, bool)
        legal[list(self._backend.vocab.values())] = True
        return legal

    def ends_in_newline(self) -> list[int]:
        """Returns, in order, every id whose text ends in a newline."""
        ids = sorted(self._backend.vocab.values())
        return [id_ for id_, text in zip(ids, self._backend.texts(ids), strict=True) if text.endswith("\n")]

    def _named_id(self, key: str) -> int | None:
        token = self._named[key]
        if token is not None:
            return self._backend.vocab.get(token)
        return self._backend.named.get(key) if isinstance(self._backend, _SentencePiece) else None

    def _companion(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        try:
            values = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._where}/{name} is not JSON ({error}); repair or remove it.") from None
        if not isinstance(values, dict):
            raise InputError(f"{self._where}/{name} is no JSON object; repair or remove it.")
        return values


def _is_model(name: str) -> bool:
    return name == "tokenizer.json" or name.endswith(".model")


class _HuggingFace:
    """A `tokenizer.json`."""

    def __init__(self, content: bytes, where: str):
        import tokenizers  # here, so that SentencePiece users do not need it

        try:
            text = _without_dummy_space(content.decode())
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise InputError(
                f"{where} is no tokenizer that the tokenizers library reads ({error}); get the file again."
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        if not self.vocab:
            raise InputError(f"{where} has an empty vocabulary.")

    def encode(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # a word-level vocabulary without an unknown token refuses what it does not hold
            raise InputError(f"the tokenizer cannot encode {text[:80]!r} ({error}); change the text.") from None

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def texts(self, ids: Sequence[int]) -> list[str]:
        return self._tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)


def _without_dummy_space(text: str) -> str:
    """Returns a `tokenizer.json` that puts no space before a text and takes none away when decoding."""
    spec = json.loads(text)
    parts = [spec.get("normalizer"), spec.get("pre_tokenizer"), spec.get("decoder")]
    changed = False
    while parts:
        part = parts.pop()
        if not isinstance(part, dict):
            continue
        for inner in ("normalizers", "pretokenizers", "decoders"):  # the members of a Sequence
            if inner in part:
                dropped = "Strip" if inner == "decoders" else "Prepend"  # a normalizer's Strip means something else
                kept = [p for p in part[inner] if p["type"] != dropped]
                changed |= len(kept) < len(part[inner])
                part[inner] = kept
                parts += kept
        if part.get("prepend_scheme", "never") != "never":  # Metaspace
            part["prepend_scheme"] = "never"
            part.pop("add_prefix_space", None)
            changed = True
        if part.get("add_prefix_space"):  # ByteLevel
            part["add_prefix_space"] = False
            changed = True
    return json.dumps(spec) if changed else text


class _SentencePiece:
    """A SentencePiece model, and tokens that were added beside it."""

    def __init__(self, content: bytes, added: dict[str, int], where: str):
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = processor.LoadFromSerializedProto(content + _NO_DUMMY_PREFIX)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{where} is no SentencePiece model ({error}); get the file again.") from None
        if not loaded or not processor.vocab_size():
            raise InputError(f"{where} is no SentencePiece model; get the file again.")
        self._processor = processor
        self.vocab: dict[str, int] = {}
        self._bytes: dict[int, bytes] = {}  # the text of an id; a character may be spread over several
        special = dict(added)
        for id_ in range(processor.vocab_size()):
            piece = processor.id_to_piece(id_)
            if processor.is_unused(id_):
                continue
            self.vocab[piece] = id_
            if processor.is_byte(id_):
                self._bytes[id_] = bytes([int(piece[1:-1], 16)])  # <0x0A>
            elif processor.is_control(id_) or processor.is_unknown(id_):
                self._bytes[id_] = piece.encode()
                if processor.is_control(id_):
                    special[piece] = id_  # SentencePiece itself never makes a control id from text
            else:
                self._bytes[id_] = piece.replace("\u2581", " ").encode()
        for token, id_ in added.items():
            self.vocab[token] = id_
            self._bytes[id_] = token.encode()
        self._special = special
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)")
        named = {"eos": processor.eos_id(), "pad": processor.pad_id()}
        self.named = {key: id_ for key, id_ in named.items() if id_ >= 0}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._pattern.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._text, ids)).decode("utf-8", errors="replace")

    def texts(self, ids: Sequence[int]) -> list[str]:
        return [self._text(i).decode("utf-8", errors="replace") for i in ids]

    def _text(self, id_: int) -> bytes:
        return self._bytes.get(id_, b"")
