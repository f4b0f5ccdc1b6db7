"""One small class for two kinds of tokenizers: Hugging Face `tokenizer.json` and SentencePiece `.model` files.

No beginning-of-sequence token is added. Texts are encoded in parts (prompt, delimiter, trace, ...). Tokenizers such as
Llama's put a space before a text, and some before each text after a special token. The argument `after` says what
precedes a part, so that the parts get the spaces that transformers gives to the whole text.

Text of users is encoded as text: only strings of a chat format become special tokens, never a question, a trace or an
answer. Added tokens that are not special count as special here (Qwen3's <think> is one). Exceptions are added tokens
that consist of letters, digits and white space only: these are words.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from s1jax.errors import UserError
from s1jax.io import assets
from s1jax.io import files as files_lib
from s1jax.text.backends import HuggingFace, Piece, SentencePiece

# Companion files of a tokenizer; kept byte for byte, so that other libraries can read what is saved.
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


MAX_CHARACTERS = 10_000_000  # of one text; a million tokens are about four million characters


class _Backend(Protocol):
    """The interface of both libraries."""

    vocab: dict[str, int]  # every token, special ones included
    special: dict[str, int]  # text of users never becomes one of these
    pattern: re.Pattern[str]  # finds them

    @property
    def rules(self) -> list[tuple[Any, ...]]: ...

    def encode(self, text: str, after: str | None) -> list[int]: ...

    def encode_pieces(self, pieces: Sequence[Piece], after: str | None) -> list[int]: ...

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
          UserError: if no tokenizer is among the files or it does not parse.
        """
        self.files = dict(files)
        self._where = where
        config = self._companion("tokenizer_config.json")
        models = [name for name in files if name.endswith(".model")]
        self._backend: _Backend
        if "tokenizer.json" in files:
            self._backend = HuggingFace(files["tokenizer.json"], f"{where}/tokenizer.json")
        elif len(models) == 1:
            added = dict(self._companion("added_tokens.json"))
            try:
                for id_, token in config.get("added_tokens_decoder", {}).items():
                    added[token["content"]] = int(id_)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise UserError(
                    f"{where}/tokenizer_config.json: added_tokens_decoder is not a table of tokens; get the file again."
                ) from None
            if not all(isinstance(token, str) and type(id_) is int for token, id_ in added.items()):
                raise UserError(
                    f"{where} has an added token that is not text, or whose id is not a number; repair its files."
                )
            legacy = config.get("legacy") is True
            self._backend = SentencePiece(files[models[0]], added, f"{where}/{models[0]}", legacy)
        else:
            raise UserError(
                f"{where} holds {'no' if not models else 'more than one'} tokenizer; give a folder with one"
                " tokenizer.json or one SentencePiece .model file, or the path of such a file."
            )
        self.num_ids = 1 + max(self._backend.vocab.values())
        self._last_special: dict[str, str | None] = {}
        self._named: dict[str, str | None] = {}
        for key in ("eos", "pad"):
            token = config.get(f"{key}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise UserError(
                    f"{where}/tokenizer_config.json: {key}_token is {token!r}; it must be one token; repair the file."
                )
            self._named[key] = token

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Tokenizer:
        """Reads a tokenizer folder, a `tokenizer.json`, a SentencePiece `.model` file or `package:NAME`.

        A folder's `tokenizer.json` wins over its `.model`. Companion files (such as `tokenizer_config.json`) name added
        tokens, end of sequence and padding; they are kept for `save`.

        Raises:
          UserError: if the path does not exist, holds no tokenizer, or its tokenizer does not parse.
        """
        path = assets.path(path)
        if not path.exists():
            raise UserError(f"tokenizer {path} does not exist; give a folder with a tokenizer.json or .model file.")
        folder = path if path.is_dir() else path.parent
        beside = {p.name: p for p in sorted(folder.iterdir()) if p.is_file()}
        for name, file in beside.items():
            if file != path and (name in _COMPANIONS or _is_model(name)):
                files_lib.check_own(file)
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

    def encode(self, text: str, after: str | None = None) -> list[int]:
        """Returns the ids of `text`; special tokens written in the text become their ids.

        Args:
          text: a string of a chat format, or a text that contains one.
          after: what precedes the text. None: plain text, so no space is added. Empty: nothing; the result is that of
            transformers with `add_special_tokens=False`. A special token: that token.
        """
        return self._backend.encode(_bounded(text), after)

    def encode_text(self, text: str, after: str | None = None) -> list[int]:
        """Returns the ids of a user's text: delimiters in it stay text. `after` as in `encode`."""
        return self.encode_pieces([Piece(text)], after)

    def encode_pieces(self, pieces: Sequence[Piece], after: str | None = None) -> list[int]:
        """Returns the token ids of pieces that form one text; words may span their borders."""
        _bounded("".join(piece.text for piece in pieces))
        return self._backend.encode_pieces(pieces, after)

    def special_tokens_in(self, text: str) -> list[str]:
        """Returns the special tokens that are written out in a text, in order, each once."""
        return list(dict.fromkeys(self._backend.pattern.findall(text)))

    def last_special(self, text: str) -> str | None:
        """Returns the special token that `text` ends with, or None."""
        if text not in self._last_special:  # of the few strings of a chat format
            ends = [token for token in self._backend.special if token and text.endswith(token)]
            self._last_special[text] = max(ends, key=len, default=None)
        return self._last_special[text]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, special tokens included; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids])

    def knows(self, token: str) -> bool:
        """Whether `token` is a single token of the vocabulary."""
        return token in self._backend.vocab

    def is_special(self, token: str) -> bool:
        """Whether `token` is a single token that text of users never becomes."""
        return token in self._backend.special

    def id_of(self, token: str) -> int:
        """Returns the id of one token of the vocabulary.

        Raises:
          UserError: if the vocabulary does not hold it.
        """
        if token not in self._backend.vocab:
            raise UserError(f"token {token!r} is not in the tokenizer {self._where}; give a tokenizer that has it.")
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
          UserError: if the tokenizer has ids beyond `rows`.
        """
        if rows < self.num_ids:
            raise UserError(
                f"the tokenizer {self._where} has ids up to {self.num_ids - 1}, but the vocabulary of the model has"
                f" {rows} rows; give the tokenizer that belongs to the model."
            )
        legal = np.zeros(rows, bool)
        legal[list(self._backend.vocab.values())] = True
        return legal

    def difference(self, other: Tokenizer) -> str:
        """Says where `other` gives other ids, in a few words with one example; empty where it gives the same.

        Compared are the ids of all tokens that this one has, and how texts become tokens (merges, scores of pieces)
        where both are of the same kind. Tokens that only `other` has do not count, see `lacks`.
        """
        ours, theirs = self._backend.vocab, other._backend.vocab
        names = {id_: token for token, id_ in theirs.items()}
        for token, id_ in sorted(ours.items(), key=lambda item: item[1]):
            if theirs.get(token) != id_:
                its = repr(names[id_]) if id_ in names else "nothing"
                return f"id {id_} is {token!r} in {self._where} and {its} in {other._where}"
        if type(self._backend) is type(other._backend):
            pairs = itertools.zip_longest(self._backend.rules, other._backend.rules)
            for number, (rule, its_rule) in enumerate(pairs):
                if rule != its_rule:
                    return f"merge {number} is {rule} in {self._where} and {its_rule} in {other._where}"
        return ""

    def lacks(self, other: Tokenizer) -> list[tuple[int, str]]:
        """Returns (id, token) of what only `other` has, in order."""
        ours = set(self._backend.vocab.values())
        return sorted((id_, token) for token, id_ in other._backend.vocab.items() if id_ not in ours)

    def ends_in_newline(self) -> list[int]:
        """Returns, in order, every id whose text ends in a newline."""
        ids = sorted(self._backend.vocab.values())
        return [id_ for id_, text in zip(ids, self._backend.texts(ids), strict=True) if text.endswith("\n")]

    def _named_id(self, key: str) -> int | None:
        token = self._named[key]
        if token is not None:
            return self._backend.vocab.get(token)
        return self._backend.named.get(key) if isinstance(self._backend, SentencePiece) else None

    def _companion(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        try:
            values = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._where}/{name} is not JSON ({error}); repair or remove it.") from None
        if not isinstance(values, dict):
            raise UserError(f"{self._where}/{name} is not a JSON object; repair or remove it.")
        return values


def _bounded(text: str) -> str:
    """Returns `text`; UserError for one that would take gigabytes: the libraries need about 230 bytes a character."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"a text of {len(text):,} characters, which begins {text[:40]!r}, is longer than the {MAX_CHARACTERS:,}"
            " that are encoded at one time; shorten it."
        )
    return text


def _is_model(name: str) -> bool:
    return name == "tokenizer.json" or name.endswith(".model")
