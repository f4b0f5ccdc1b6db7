"""The tokenizer of a GGUF file's metadata as the files of a Hugging Face tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import gguf

from s1jax.checkpoint.gguf import words as words_lib
from s1jax.checkpoint.gguf.file import File
from s1jax.checkpoint.gguf.metadata import get
from s1jax.config.schema import shown
from s1jax.errors import UserError

_REMEDY = "pass --tokenizer=DIR with the model's Hugging Face tokenizer"
_TYPES = gguf.TokenType
_SPACE = "\u2581"  # SentencePiece's mark of a space


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """What a file says of every id.

    Attributes:
      texts: of the tokens.
      types: of `gguf.TokenType`.
      where: name of the file in errors.
    """

    texts: Sequence[str]
    types: Sequence[int]
    where: str

    def __iter__(self) -> Iterator[tuple[int, str, int]]:
        for index, (text, kind) in enumerate(zip(self.texts, self.types, strict=True)):
            if kind != _TYPES.UNUSED:
                yield index, text, kind

    def vocab(self) -> dict[str, int]:
        """Text -> id; added tokens too, because the tokenizers library gives new numbers to tokens that are not here.

        Unused ids (padding of the vocabulary) are left out, so that they are never sampled.
        """
        return {text: index for index, text, _ in self}

    def added(self) -> list[dict[str, Any]]:
        """Control tokens as special added tokens, user-defined ones as plain added tokens."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": text, **flags, "special": kind != _TYPES.USER_DEFINED}
            for index, text, kind in self
            if kind not in (_TYPES.NORMAL, _TYPES.BYTE)
        ]


def read_tokenizer(reader: File, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rebuilds a tokenizer from the metadata.

    Returns:
      the contents of tokenizer.json and of tokenizer_config.json (which tokens begin, end and pad a text).

    Raises:
      UserError: the file has no tokenizer, one of an unknown kind, or cuts words in a way not known here.
    """
    kind = get(reader, where, "tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{where} has a tokenizer of type {shown(kind)}, not byte-level BPE (gpt2) or BPE with scores (llama); "
            f"{_REMEDY}."
        )
    texts, types = (get(reader, where, f"tokenizer.ggml.{key}", list, []) for key in ("tokens", "token_type"))
    if not texts or len(types) != len(texts):
        raise UserError(f"{where} has {len(texts)} tokens and {len(types)} token types; {_REMEDY}.")
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} has tokens or merges that are not text; {_REMEDY}.")
    tokens = _Tokens(texts, types, where)
    rebuild = _byte_level if kind == "gpt2" else _scored
    model = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens.added()}
    return {**model, **rebuild(reader, tokens)}, _about(reader, tokens)


def _about(reader: File, tokens: _Tokens) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    named = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    for name, key in named.items():
        index = get(reader, tokens.where, f"tokenizer.ggml.{key}", int)
        if index is not None and 0 <= index < len(tokens.texts):
            about[name] = tokens.texts[index]
    adds = get(reader, tokens.where, "tokenizer.ggml.add_bos_token", bool)
    if adds is not None:
        about["add_bos_token"] = adds
    template = get(reader, tokens.where, "tokenizer.chat_template", str)
    if template:
        about["chat_template"] = template
    return about


def _model(vocab: dict[str, int], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    usual = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**usual, **changes, "vocab": vocab, "merges": merges}


def _byte_level(reader: File, tokens: _Tokens) -> dict[str, Any]:
    where = tokens.where
    pre = get(reader, where, "tokenizer.ggml.pre", str)
    if pre not in words_lib.WORDS:
        raise UserError(f"{where}: tokenizer.ggml.pre is {shown(pre)}, a way of cutting words unknown here; {_REMEDY}.")
    words = words_lib.WORDS[pre]
    merges = get(reader, where, "tokenizer.ggml.merges", list, [])
    if not all(isinstance(merge, str) for merge in merges):
        raise UserError(f"{where} has tokens or merges that are not text; {_REMEDY}.")
    vocab = tokens.vocab()
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise UserError(f"{where}: merge {shown(merge)} names tokens that are not in the vocabulary; {_REMEDY}.")
        pairs.append([left, right])
    return {
        **words_lib.spec(words),
        "post_processor": words_lib.BYTE_LEVEL,
        "decoder": words_lib.BYTE_LEVEL,
        "model": _model(vocab, pairs, ignore_merges=words.ignore_merges),
    }


def _scored(reader: File, tokens: _Tokens) -> dict[str, Any]:
    """BPE on characters, with bytes for all other characters; the order of merges is that of the scores."""
    where = tokens.where
    scores = get(reader, where, "tokenizer.ggml.scores", list, [])
    if len(scores) != len(tokens.texts):
        raise UserError(f"{where} has {len(tokens.texts)} tokens and {len(scores)} scores; {_REMEDY}.")
    pieces = {text: scores[index] for index, text, kind in tokens if kind == _TYPES.NORMAL}
    merges = []
    for piece in sorted(pieces, key=pieces.__getitem__, reverse=True):  # stable: of equal ones the lower id first
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [list(pair) for pair in cuts if pair[0] in pieces and pair[1] in pieces]
    prefix = get(reader, where, "tokenizer.ggml.add_space_prefix", bool, True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    unknown = next((text for _, text, kind in tokens if kind == _TYPES.UNKNOWN), None)
    index = get(reader, where, "tokenizer.ggml.unknown_token_id", int)
    if unknown is None and index is not None and 0 <= index < len(tokens.texts):
        unknown = tokens.texts[index]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, replace]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if prefix else replace,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(tokens.vocab(), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }
