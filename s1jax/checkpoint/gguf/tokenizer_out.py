"""A tokenizer as the metadata of a GGUF file.

Byte-level BPE keeps its merges (`tokenizer.ggml.model` = gpt2). BPE on characters with a fallback to bytes, which
SentencePiece makes, becomes pieces with scores (`llama`): a score is the negative place of the first merge that makes
the piece, because llama.cpp merges the pair whose result has the highest score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np

from s1jax.checkpoint.gguf import words as words_lib
from s1jax.checkpoint.gguf.container import Value
from s1jax.config.schema import shown
from s1jax.errors import UserError
from s1jax.text import chat as chat_lib
from s1jax.text import template
from s1jax.text.backends import proto_fields
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer

_TYPES = gguf.TokenType
_MARKER = re.compile(r"<[|｜].+[|｜]>")  # of a chat turn; some tokenizers do not call them special
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NO_SCORE = -1000.0  # as llama.cpp's converter has for tokens that no merge makes
_REMEDY = "the checkpoint cannot be written as GGUF; convert it with --to_hf"


def metadata(tokenizer: Tokenizer, chat: ChatFormat, rows: int) -> dict[str, Value]:
    """All keys `tokenizer.*`.

    Args:
      tokenizer: of the model.
      chat: its format becomes the chat template; its tokens end a text.
      rows: V; ids that the tokenizer does not know are written as unused tokens.

    Raises:
      UserError: llama.cpp has no such tokenizer.
    """
    if "tokenizer.json" not in tokenizer.files:
        return {
            **_sentencepiece(tokenizer, tokens := [f"[PAD{index}]" for index in range(rows)]),
            **_special(tokenizer, chat, tokens),
            "tokenizer.chat_template": template.to_jinja(chat),
        }
    content = json.loads(tokenizer.files["tokenizer.json"])
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"the tokenizer is of kind {shown(model.get('type'))}, and llama.cpp needs BPE; {_REMEDY}.")
    vocab = {**model["vocab"], **{token["content"]: token["id"] for token in content.get("added_tokens", [])}}
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [int(_TYPES.UNUSED)] * rows
    for token, index in vocab.items():
        tokens[index], types[index] = token, int(_TYPES.NORMAL)
    for added in content.get("added_tokens", []):
        special = added["special"] or _MARKER.fullmatch(added["content"])
        types[added["id"]] = int(_TYPES.CONTROL if special else _TYPES.USER_DEFINED)
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    kind = _scored if model.get("byte_fallback") else _byte_level
    return {
        **kind(content, tokens, types, merges),
        **_special(tokenizer, chat, tokens),
        "tokenizer.chat_template": template.to_jinja(chat),
    }


def _byte_level(
    content: dict[str, Any], tokens: list[str], types: list[int], merges: Sequence[tuple[str, ...]]
) -> dict[str, Value]:
    words = words_lib.read(content)
    pre = None if words is None else words_lib.name(words)
    if pre is None:
        raise UserError(f"the tokenizer cuts text into words in a way that llama.cpp has no known name for; {_REMEDY}.")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.add_space_prefix": False,
    }


def _scored(
    content: dict[str, Any], tokens: list[str], types: list[int], merges: Sequence[tuple[str, ...]]
) -> dict[str, Value]:
    """As pieces with scores; UserError where merges are in an order that scores cannot have."""
    if not _plain_pieces(content):
        raise UserError(f"the tokenizer changes or cuts text in a way that llama.cpp does not; {_REMEDY}.")
    places: dict[str, list[int]] = {}
    for place, (left, right) in enumerate(merges):
        places.setdefault(left + right, []).append(place)
    for piece, made in places.items():
        if made[-1] - made[0] >= len(made):
            raise UserError(
                f"the tokenizer makes {shown(piece)} by merges of different ranks, which the scores of llama.cpp cannot"
                f" say; {_REMEDY}."
            )
    scores = [-float(places[token][0]) if token in places else _NO_SCORE for token in tokens]
    for index, token in enumerate(tokens):
        if _BYTE.fullmatch(token):
            types[index] = int(_TYPES.BYTE)
    unknown = content["model"].get("unk_token")
    prefix = '"Prepend"' in json.dumps(content.get("normalizer")) or '"prepend_scheme": "always"' in json.dumps(
        content.get("pre_tokenizer")
    )
    return {
        **_of_scores(tokens, scores, types, prefix),
        **({"tokenizer.ggml.unknown_token_id": tokens.index(unknown)} if unknown in tokens else {}),
    }


def _plain_pieces(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json does no more than to mark spaces before it merges."""
    normalizers = words_lib.parts(content.get("normalizer"), "normalizers")
    cuts = words_lib.parts(content.get("pre_tokenizer"), "pretokenizers")
    space = {"String": " "}
    return all(
        part["type"] == "Prepend" or (part["type"] == "Replace" and part["pattern"] == space) for part in normalizers
    ) and all(part["type"] == "Metaspace" or (part["type"] == "Split" and part["pattern"] == space) for part in cuts)


def _of_scores(tokens: list[str], scores: list[float], types: list[int], prefix: bool) -> dict[str, Value]:
    """What all tokenizers with scores have.

    Raises:
      UserError: some byte has no token: llama.cpp writes characters that are not in the vocabulary so.
    """
    if types.count(int(_TYPES.BYTE)) != 256:
        raise UserError(f"the tokenizer has no token for some bytes, which llama.cpp needs; {_REMEDY}.")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _sentencepiece(tokenizer: Tokenizer, tokens: list[str]) -> dict[str, Value]:
    """A SentencePiece model; fills `tokens`. UserError where it is not BPE, or changes the text first."""
    import sentencepiece

    (content,) = (data for name, data in tokenizer.files.items() if name.endswith(".model"))
    about = dict(proto_fields(content))  # of sentencepiece_model.proto: 2 trainer, 3 normalizer
    trainer, normalizer = (dict(proto_fields(part)) if isinstance(part := about.get(n), bytes) else {} for n in (2, 3))
    if trainer.get(3, 1) != 2:
        raise UserError(f"the tokenizer is a SentencePiece model of another kind than BPE; {_REMEDY}.")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise UserError(
            f"the tokenizer's SentencePiece model changes the text or its spaces first, and llama.cpp does not; "
            f"{_REMEDY}."
        )
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    types, scores = [int(_TYPES.UNUSED)] * len(tokens), [_NO_SCORE] * len(tokens)
    for index in range(processor.vocab_size()):
        tokens[index], scores[index] = processor.id_to_piece(index), processor.get_score(index)
        kinds = {
            _TYPES.UNUSED: processor.is_unused, _TYPES.BYTE: processor.is_byte, _TYPES.CONTROL: processor.is_control,
            _TYPES.UNKNOWN: processor.is_unknown,
        }  # fmt: skip
        types[index] = int(next((kind for kind, has in kinds.items() if has(index)), _TYPES.NORMAL))
    own = set(tokens[: processor.vocab_size()])
    for index in map(int, np.flatnonzero(tokenizer.legal_ids(tokenizer.num_ids))):
        (token,) = tokenizer.tokens([index])
        if token not in own or tokenizer.is_special(token):
            tokens[index] = token
            types[index] = int(_TYPES.CONTROL if tokenizer.is_special(token) else _TYPES.USER_DEFINED)
    return {
        **_of_scores(tokens, scores, types, bool(normalizer.get(3, 1))),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        **({"tokenizer.ggml.bos_token_id": processor.bos_id()} if processor.bos_id() >= 0 else {}),
    }


def _special(tokenizer: Tokenizer, chat: ChatFormat, tokens: list[str]) -> dict[str, Value]:
    """Which tokens begin, end and pad a text.

    The first token is put before a text only if the tokenizer does so by itself and prompts of the chat format begin
    with it, too. llama.cpp leaves it out where the template writes it.
    """
    delimiters = chat_lib.delimiters(tokenizer, chat)
    end = tokenizer.id_of(chat.turn_end)
    own = tokenizer.eos_id
    found: dict[str, Value] = {
        "tokenizer.ggml.eos_token_id": own if own is not None and own in delimiters.stop else end,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.padding_token_id": delimiters.pad,
    }
    about = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    first = about.get("bos_token")
    first = first.get("content") if isinstance(first, dict) else first
    begins = bool(first) and chat.before_question.startswith(str(first))
    if first in tokens:
        found["tokenizer.ggml.bos_token_id"] = tokens.index(str(first))
    found["tokenizer.ggml.add_bos_token"] = begins and bool(about.get("add_bos_token", _adds(tokenizer, str(first))))
    found["tokenizer.ggml.add_eos_token"] = False
    return found


def _adds(tokenizer: Tokenizer, first: str) -> bool:
    """Whether a tokenizer.json puts a token before every text."""
    post = json.loads(tokenizer.files.get("tokenizer.json", b"{}")).get("post_processor") or {}
    parts = post.get("processors", [post])
    templates = [part.get("single") or [] for part in parts if part.get("type") == "TemplateProcessing"]
    return any(one and one[0].get("SpecialToken", {}).get("id") == first for one in templates)
