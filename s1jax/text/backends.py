"""The two libraries that read tokenizer files, with the small interface that `s1jax.text.tokenizer.Tokenizer` needs."""

from __future__ import annotations

import functools
import itertools
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from s1jax.errors import UserError

# A ModelProto holding only `normalizer_spec { add_dummy_prefix: false }` (fields 3 and 3 of sentencepiece_model.proto).
# Protocol buffers merge on concatenation, so appending it to a model file switches the dummy prefix off.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Piece(NamedTuple):
    """A stretch of a text.

    Attributes:
      text: the characters.
      is_user_text: True for text of users, which never becomes a special token; False for strings of a chat format.
    """

    text: str
    is_user_text: bool = True


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern with one group that finds the tokens, the longest first."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)()")


def _is_of_library(error: BaseException) -> bool:
    """Whether an error may come from the tokenizers library.

    Its panics are not `Exception`s; a pattern that backtracks too often causes one. The library limits the backtracking
    of one match (about a second) and the depth of a pattern. A pattern that is slow at many places of a text is only
    limited by `MAX_CHARACTERS` in tokenizer.py.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _is_word(token: str) -> bool:
    """Whether an added token is ordinary text: runs of blanks (GPT-NeoX, Gemma) and words that somebody added."""
    return "".join(token.replace("\u2581", " ").split()).isalnum() or not token.replace("\u2581", " ").strip()


class _Library:
    """One `tokenizer.json` in the tokenizers library, with and without the space that it puts before a text."""

    def __init__(self, spec: dict[str, Any], original: str | None = None):
        import tokenizers  # here, so that SentencePiece users do not need it

        def load(text: str) -> Any:
            made = tokenizers.Tokenizer.from_str(text)
            made.no_truncation()
            made.no_padding()
            return made

        text = json.dumps(spec) if original is None else original
        self.whole = load(text)
        inside = _without_dummy_space(text)
        self.inside = self.whole if inside == text else load(inside)
        self._added = _pattern(token.content for token in self.whole.get_added_tokens_decoder().values())

    def encode(self, text: str, after: str | None) -> list[int]:
        if after is None and self.inside is not self.whole:
            # The space that transformers puts after a special token inside the part is kept; none is put before its
            # start.
            found = self._added.search(text)
            at = found.start() if found else len(text)
            return self._ids(self.inside, text[:at]) + (self._ids(self.whole, text[at:]) if found else [])
        ids = self._ids(self.whole, (after or "") + text)
        return ids[1:] if after else ids

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:  # a word-level vocabulary without an unknown token refuses what it does not hold
            if not _is_of_library(error):
                raise
            raise UserError(f"the tokenizer cannot encode {text[:80]!r} ({error}); change the text.") from None
        return ids


class HuggingFace:
    """A `tokenizer.json`."""

    def __init__(self, content: bytes, where: str):
        try:
            self._library = _Library(json.loads(content), content.decode())
        except ImportError:
            raise
        except BaseException as error:  # the library raises bare Exception
            if not _is_of_library(error):
                raise
            raise UserError(
                f"{where} is not a tokenizer that the tokenizers library can read ({error}); get the file again."
            ) from None
        self._content = content
        self._tokenizer = self._library.inside
        self.vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        if not self.vocab:
            raise UserError(f"{where} has an empty vocabulary.")
        self.special = {
            token.content: id_
            for id_, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special or not _is_word(token.content)
        }
        self.pattern = _pattern(self.special)
        self._special_ids = frozenset(self.special.values())
        self._mark = secrets.token_hex(16)

    def encode(self, text: str, after: str | None) -> list[int]:
        return self._library.encode(text, after)

    def encode_pieces(self, pieces: Sequence[Piece], after: str | None) -> list[int]:
        wanted = [
            self.special[token]
            for piece in pieces
            if not piece.is_user_text
            for token in self.pattern.findall(piece.text)
        ]
        ids = self._library.encode("".join(piece.text for piece in pieces), after)
        if [id_ for id_ in ids if id_ in self._special_ids] == wanted:
            return ids
        # A user's text contains special tokens. In `_marked` special tokens have secret names, which only this line
        # writes.
        marked = "".join(text if is_user else self.pattern.sub(rf"{self._mark}\1", text) for text, is_user in pieces)
        return self._marked.encode(marked, self._mark + after if after else after)

    @functools.cached_property
    def _marked(self) -> _Library:
        """The same tokenizer with other names for special tokens, made when it is first needed (seconds for Qwen's)."""
        return _Library(_renamed(json.loads(self._content), self.special.keys(), self._mark))

    @functools.cached_property
    def rules(self) -> list[tuple[Any, ...]]:
        """What tokens a text becomes besides their ids: the merges in order, or the pieces with their scores."""
        model = json.loads(self._content)["model"]
        if "merges" in model:
            return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        return [] if isinstance(model["vocab"], dict) else [tuple(piece) for piece in model["vocab"]]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def texts(self, ids: Sequence[int]) -> list[str]:
        return self._tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)


def _without_dummy_space(text: str) -> str:
    """Returns a `tokenizer.json` that puts no space before a text and takes none away when decoding."""
    spec = json.loads(text)
    changed = False
    for key, dropped in (("normalizer", "Prepend"), ("decoder", "Strip")):
        if isinstance(spec.get(key), dict) and spec[key].get("type") == dropped:
            spec[key], changed = None, True
    parts = [spec.get("normalizer"), spec.get("pre_tokenizer"), spec.get("decoder")]
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


def _renamed(spec: dict[str, Any], tokens: Set[str], mark: str) -> dict[str, Any]:
    """Returns a `tokenizer.json` with `mark` before the name of each of `tokens`; their ids stay."""
    for added in spec["added_tokens"]:
        if added["content"] in tokens:
            added["content"] = mark + added["content"]
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {mark + token if token in tokens else token: id_ for token, id_ in model["vocab"].items()}
    else:  # Unigram: pairs of a piece and its score
        model["vocab"] = [[mark + piece if piece in tokens else piece, *rest] for piece, *rest in model["vocab"]]
    if model.get("unk_token") in tokens:
        model["unk_token"] = mark + model["unk_token"]
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, pair[0] + pair[1][prefix:]} & tokens]
    return spec


def _user_defined(model: bytes) -> list[str]:
    """Returns the user-defined symbols of a ModelProto; the library's Python class does not name their type."""
    pieces = []
    for field, piece in proto_fields(model):
        if field == 1 and isinstance(piece, bytes):  # pieces: 1 text, 2 score, 3 type
            values = dict(proto_fields(piece))
            if values.get(3) == 4 and isinstance(text := values[1], bytes):
                pieces.append(text.decode())
    return pieces


def proto_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a protocol buffer, values of a fixed width as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        length = varint() if tag & 7 == 2 else 4 if tag & 7 == 5 else 8
        yield tag >> 3, message[at : at + length]
        at += length


class SentencePiece:
    """A SentencePiece model, and tokens that were added beside it."""

    def __init__(self, content: bytes, added: dict[str, int], where: str, legacy: bool = False):
        """Reads a model; `legacy` puts the model's dummy prefix after special tokens, too, as transformers' does."""
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        self._prefixing = sentencepiece.SentencePieceProcessor()  # the model's own dummy prefix, if it has one
        try:
            loaded = processor.LoadFromSerializedProto(content + _NO_DUMMY_PREFIX)
            loaded = loaded and self._prefixing.LoadFromSerializedProto(content)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{where} is not a SentencePiece model ({error}); get the file again.") from None
        if not loaded or not processor.vocab_size():
            raise UserError(f"{where} is not a SentencePiece model; get the file again.")
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
                special[piece] = id_  # SentencePiece itself never encodes such a name as one token
            else:
                self._bytes[id_] = piece.replace("\u2581", " ").encode()
        for token, id_ in added.items():
            self.vocab[token] = id_
            self._bytes[id_] = token.encode()
        user_defined = [piece for piece in _user_defined(content) if len(piece) > 1 and not _is_word(piece)]
        special |= {piece: self.vocab[piece] for piece in user_defined}
        self._all, self._words = _pattern(special), _pattern(filter(_is_word, special))
        self.special = {token: id_ for token, id_ in special.items() if not _is_word(token)}
        self.pattern = _pattern(self.special)
        # By lookahead, to find overlapping symbols as well.
        self._user_defined = re.compile(f"(?={_pattern(user_defined).pattern})") if user_defined else None
        self._legacy = legacy
        named = {"eos": processor.eos_id(), "pad": processor.pad_id()}
        self.named = {key: id_ for key, id_ in named.items() if id_ >= 0}

    def encode(self, text: str, after: str | None) -> list[int]:
        return self.encode_pieces([Piece(text, is_user_text=False)], after)

    def encode_pieces(self, pieces: Sequence[Piece], after: str | None) -> list[int]:
        parts: list[tuple[str, str]] = [("", "")]  # special token, the plain text after it
        for text, is_user_text in pieces:
            first, *rest = (self._words if is_user_text else self._all).split(text)
            parts[-1] = (parts[-1][0], parts[-1][1] + first)
            parts += zip(rest[::2], rest[1::2], strict=True)
        ids: list[int] = []
        for i, (token, plain) in enumerate(parts):
            ids += [self.vocab[token]] if token else []
            prefixed = after == "" or (bool(after) and self._legacy) if i == 0 else self._legacy
            if plain.startswith((" ", "\u2581")):
                prefixed = False  # the text brings its own, as in transformers
            for j, part in enumerate(self._cut(plain)):
                ids += (self._prefixing if prefixed and not j else self._processor).encode(part)
        return ids

    def _cut(self, text: str) -> list[str]:
        """Returns the parts of a plain text, cut inside the symbols that SentencePiece would make from them."""
        if self._user_defined is None:
            return [text]
        cuts = [0, *(found.start() + 1 for found in self._user_defined.finditer(text)), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(cuts)]

    @property
    def rules(self) -> list[tuple[Any, ...]]:
        """The pieces with their scores."""
        pieces = range(self._processor.vocab_size())
        return [(self._processor.id_to_piece(id_), self._processor.get_score(id_)) for id_ in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._text, ids)).decode("utf-8", errors="replace")

    def texts(self, ids: Sequence[int]) -> list[str]:
        return [self._text(i).decode("utf-8", errors="replace") for i in ids]

    def _text(self, id_: int) -> bytes:
        return self._bytes.get(id_, b"")
