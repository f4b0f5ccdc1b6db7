"""The tokenizer of a GGUF file's metadata as the files of a Hugging Face tokenizer."""

from __future__ import annotations

from typing import Any

import gguf

from s1jax.checkpoint.gguf.metadata import get
from s1jax.config.schema import shown
from s1jax.errors import UserError

# How text is cut into words before byte-level BPE, by `tokenizer.ggml.pre`. Patterns are those of the models' published
# tokenizer.json files.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN_WORDS.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


def read_tokenizer(reader: gguf.GGUFReader, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rebuilds a tokenizer from the metadata.

    Control tokens become special added tokens, user-defined ones plain added tokens; unused ids (padding of the
    vocabulary) are left out, so that they are never sampled.

    Returns:
      the contents of tokenizer.json and of tokenizer_config.json (which tokens end and pad a text).

    Raises:
      UserError: the file has no tokenizer, no byte-level BPE, or cuts words in a way not known here.
    """
    kind, pre = (get(reader, where, f"tokenizer.ggml.{key}", str) for key in ("model", "pre"))
    remedy = "pass --tokenizer=DIR with the model's Hugging Face tokenizer"
    if kind != "gpt2":
        raise UserError(f"{where} has a tokenizer of type {shown(kind)}, not byte-level BPE (gpt2); {remedy}.")
    normalizer, ignore_merges = None, False
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    if pre in ("qwen2", "deepseek-r1-qwen", "llama-bpe", "llama3"):
        llama3 = pre.startswith("llama")
        pattern = {"Regex": _LLAMA3_WORDS if llama3 else _QWEN_WORDS}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        pre_tokenizers = [split, byte_level]
        normalizer = {"type": "NFC"} if pre == "qwen2" else None
        ignore_merges = llama3
    elif pre == "smollm":
        pre_tokenizers = [{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}]
    elif pre == "gpt-2":
        pre_tokenizers = [{**byte_level, "use_regex": True}]
    else:
        raise UserError(f"{where}: tokenizer.ggml.pre is {shown(pre)}, a way of cutting words unknown here; {remedy}.")

    tokens, merges, types = (
        get(reader, where, f"tokenizer.ggml.{key}", list, []) for key in ("tokens", "merges", "token_type")
    )
    if not tokens or len(types) != len(tokens):
        raise UserError(f"{where} has {len(tokens)} tokens and {len(types)} token types; {remedy}.")
    if not all(isinstance(text, str) for text in (*tokens, *merges)):
        raise UserError(f"{where} has tokens or merges that are not text; {remedy}.")
    known = gguf.TokenType
    vocab, added = {}, []
    for index, (token, token_type) in enumerate(zip(tokens, types, strict=True)):
        if token_type == known.UNUSED:
            continue
        vocab[token] = index  # added tokens too: the tokenizers library gives new numbers to tokens that are not here
        if token_type == known.NORMAL:
            continue
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added.append({"id": index, "content": token, **flags, "special": token_type != known.USER_DEFINED})
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise UserError(f"{where}: merge {shown(merge)} names tokens that are not in the vocabulary; {remedy}.")
    named = {"eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in named.items():
        index = get(reader, where, f"tokenizer.ggml.{key}", int)
        if index is not None and 0 <= index < len(tokens):
            about[name] = tokens[index]
    template = get(reader, where, "tokenizer.chat_template", str)
    if template:
        about["chat_template"] = template
    model = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    return model, about
