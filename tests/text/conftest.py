"""Small tokenizers of every kind, trained here on the same few lines."""

import io
import json
import pathlib

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from s1jax.text.tokenizer import Tokenizer

CORPUS = [
    "Make 21 from 3 7 1",
    "try 7-1=6: 6+3=9 no 6-3=3 no 6*3=18 no",
    "Wait try 7*1=7: 7+3=10 no 7*3=21 yes so (7*1)*3",
    "Final Answer: (7*1)*3",
    "The quick brown fox jumps over the lazy dog.\nLet me think about it again.\n\nSo the answer is 12.",
    "user assistant system think answer Answer: You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "naïve café 世界 😀",
] * 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]  # added beside the model, after a hole of HOLE ids
HOLE = 3
KINDS = ["byte_level", "metaspace", "sentencepiece_bpe", "sentencepiece_unigram"]


def shared(name: str) -> pathlib.Path:
    """A file of ../shared; skips the test where it is missing."""
    path = pathlib.Path(__file__).parents[3] / "shared" / name
    if not path.exists():
        pytest.skip(f"needs ../shared/{name}, which is not here")
    return path


def _added(tokens: list[str], start: int) -> list[dict]:
    fixed = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return [dict(id=start + i, content=token, **fixed) for i, token in enumerate(tokens)]


def _write_huggingface(folder: pathlib.Path, spec: dict) -> None:
    """Adds the special tokens after those of the model, the later ones after a hole, and writes the folder."""
    vocab = spec["model"]["vocab"]
    # The library numbers added tokens that the model lacks by itself; in the model's vocabulary they keep their ids.
    for tokens, gap in ((SPECIAL, 0), (ADDED, HOLE)):
        start = max(vocab.values()) + 1 + gap
        spec["added_tokens"] += _added(tokens, start)
        vocab.update({token: start + i for i, token in enumerate(tokens)})
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "chat_template": "{{ 'ü' }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _byte_level(folder: pathlib.Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # asks for a space that must not come
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    _write_huggingface(folder, json.loads(tokenizer.to_str()))


def write_metaspace(folder: pathlib.Path) -> None:
    """As Llama's: a space in front, words by U+2581, unknown characters as bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    lines = [line for text in CORPUS for line in text.splitlines()]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, special_tokens=specials))
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:1]  # the bytes are ordinary tokens
    _write_huggingface(folder, spec)


def _sentencepiece(folder: pathlib.Path, kind: str) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.splitlines()),
        model_writer=model,
        vocab_size=400,
        model_type=kind,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<|im_start|>"],
        control_symbols=["<|im_end|>", "<|endoftext|>"],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    added = {token: size + HOLE + i for i, token in enumerate(ADDED)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    """kind -> tokenizer folder."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    _byte_level(made["byte_level"])
    write_metaspace(made["metaspace"])
    _sentencepiece(made["sentencepiece_bpe"], "bpe")
    _sentencepiece(made["sentencepiece_unigram"], "unigram")
    return made


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, folders) -> Tokenizer:
    """Each kind of tokenizer in turn."""
    return Tokenizer.load(folders[request.param])
