"""Tokenizers out to GGUF and back, and llama.cpp's own tokens for the same texts."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from s1jax.checkpoint.gguf import file as file_lib
from s1jax.checkpoint.gguf import tokenizer as tokenizer_lib
from s1jax.checkpoint.gguf import tokenizer_out, words
from s1jax.errors import UserError
from s1jax.text import chat as chat_lib
from s1jax.text.chat import FORMATS
from s1jax.text.tokenizer import Tokenizer
from tests.checkpoint import llama_cpp
from tests.checkpoint.test_gguf_out import CONFIGS, TOKENIZER, export, weights, write
from tests.text.conftest import CORPUS

TEXTS = (
    "I've DON'T we'll 1234567, and 12 of 98!",
    " leading,  double   and trailing  ",
    "for i in range(10):\n    x[i] = 3.14 * i**2  # comment\n\n\n\treturn",
    "naïve café, Ωμέγα and ÉTÉ: \u4e16\u754c\u3053\u3093, 😀 ½ ﬁ \u00a0 x\u0301",
    "\r\n\r\n $\\frac{1}{2} \\le x^2 < 1{,}000$ HTTPServer camelCase\n/path/",
    "",
)


def _trained(pre, words_, seed=0):
    """A byte-level BPE of some merges that cuts words as `words_` do."""
    draw = np.random.default_rng(seed)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {token: i for i, token in enumerate(alphabet)}, []
    space = "\u0120"
    pairs = [
        "  ",
        " a",
        "ll",
        "12",
        "123",
        "'t",
        "an",
        "or",
        "..",
        " (",
        "HT",
        "TT",
        "45",
        "\u00c3\u00a9",
        "\u010a\u010a",
    ]
    pairs = [(pair[:-1].replace(" ", space), pair[-1].replace(" ", space)) for pair in pairs]
    draw.shuffle(pairs)
    for left, right in sorted(pairs, key=lambda pair: len(pair[0] + pair[1])):
        if {left, right} <= vocab.keys() and left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    made = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges)).to_str())
    made |= words.spec(words_) | {"decoder": words.BYTE_LEVEL}
    made["model"]["ignore_merges"] = words_.ignore_merges
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made["added_tokens"] = [
        {"id": len(vocab) + i, "content": token, **flags}
        for i, token in enumerate(("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    ]
    about = {"eos_token": "<|im_end|>"}
    return Tokenizer({"tokenizer.json": json.dumps(made).encode(), "tokenizer_config.json": json.dumps(about).encode()})


def _export(path, tokenizer, chat=FORMATS["s1_plain"]):
    config = CONFIGS["llama_tied"].__class__.dense(
        **{**CONFIGS["llama_tied"].flat(), "vocab_size": tokenizer.num_ids + 3}
    )
    write.write_model(path, weights(config), config, tokenizer, chat, file_type="F32")


def _read(path):
    parts = tokenizer_lib.read_tokenizer(file_lib.open_file(path), "m.gguf")
    names = ("tokenizer.json", "tokenizer_config.json")
    return Tokenizer({name: json.dumps(part).encode() for name, part in zip(names, parts, strict=True)})


@pytest.mark.parametrize("pre", words.WORDS)
def test_every_way_of_cutting_words_comes_back(tmp_path, pre):
    tokenizer = _trained(pre, words.WORDS[pre])
    _export(tmp_path / "m.gguf", tokenizer)
    found = _read(tmp_path / "m.gguf")
    assert not tokenizer.difference(found) and tokenizer.num_ids == found.num_ids
    assert found.eos_id == tokenizer.eos_id
    for text in TEXTS:
        assert found.encode(text) == tokenizer.encode(text)
        assert found.decode(found.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("pre", words.WORDS)
def test_llama_cpp_cuts_words_alike(tmp_path, pre):
    llama_cpp.folder()
    tokenizer = _trained(pre, words.WORDS[pre])
    _export(tmp_path / "m.gguf", tokenizer)
    texts = TEXTS if not words.WORDS[pre].nfc else [text for text in TEXTS if "\u0301" not in text]  # it does no NFC
    found = llama_cpp.tokenize(tmp_path / "m.gguf", [(text, False) for text in texts])
    assert found["texts"] == [tokenizer.encode(text) for text in texts]
    assert not found["addsBos"]


def test_llama_cpp_reads_our_prompts(tmp_path):
    """The template as the file has it, rendered by jinja2, becomes the ids of our prompt."""
    jinja2 = pytest.importorskip("jinja2.sandbox")
    llama_cpp.folder()
    export(tmp_path / "m.gguf", CONFIGS["llama"], weights(CONFIGS["llama"]))
    chat = FORMATS["s1_plain"]
    environment = jinja2.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = llama_cpp.tokenize(tmp_path / "m.gguf", [])["template"]
    messages = [{"role": "user", "content": "What is 12 plus 30?"}]
    text = environment.from_string(template).render(messages=messages, add_generation_prompt=True)
    prompt = chat_lib.encode_prompt(TOKENIZER, chat, "What is 12 plus 30?")
    want = [*prompt, *chat_lib.delimiters(TOKENIZER, chat).think_start]
    found = llama_cpp.tokenize(tmp_path / "m.gguf", [(text, True)])
    assert found["texts"] == [want]
    assert found["eos"] == found["eot"] == TOKENIZER.id_of("<|im_end|>")


def _scored(prefix):
    """BPE on characters with bytes for others, as SentencePiece's models are in a tokenizer.json."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [
        *"\u2581abcdefghijklmnopqrstuvwxyz0123456789ABC,.",
        "\u2581a",
        "an",
        "on",
        "in",
        "\u2581th",
        "th",
        "ll",
        "don",
        "12",
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    order = ["th", "in", "on", "an", "\u2581a", "\u2581th", "ll", "don", "12"]
    merges = [[piece[:cut], piece[cut:]] for piece in order for cut in range(1, len(piece))
              if piece[:cut] in vocab and piece[cut:] in vocab]  # fmt: skip
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    first = {"type": "Prepend", "prepend": "\u2581"}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": piece, **flags, "special": True} for i, piece in enumerate(pieces[:3])]
    added += [{"id": len(pieces), "content": "\n\n", **flags, "special": False},
              {"id": len(pieces) + 1, "content": "<turn|>", **flags, "special": True}]  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None,
        "normalizer": {"type": "Sequence", "normalizers": [first, space]} if prefix else space,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {**vocab, "\n\n": len(pieces), "<turn|>": len(pieces) + 1}, "merges": merges,
        },
    }  # fmt: skip
    about = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    return Tokenizer(
        {"tokenizer.json": json.dumps(content).encode(), "tokenizer_config.json": json.dumps(about).encode()}
    )


_SCORED_CHAT = chat_lib.with_delimiters(
    _scored(False),
    FORMATS["s1_plain"].__class__(
        before_question="<s>", after_question="<turn|>", think_start="a", think_end="b", turn_end="<turn|>", special=()
    ),
)


@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_with_scores(tmp_path, prefix):
    tokenizer = _scored(prefix)
    _export(tmp_path / "m.gguf", tokenizer, _SCORED_CHAT)
    found = _read(tmp_path / "m.gguf")
    assert not tokenizer.difference(found) and tokenizer.num_ids == found.num_ids
    for text in (*TEXTS, "thin on land\n\n\n don't"):
        assert found.encode(text, after="") == tokenizer.encode(text, after="")
    assert found.eos_id == tokenizer.eos_id


@pytest.mark.parametrize("prefix", [False, True])
def test_llama_cpp_merges_by_scores_alike(tmp_path, prefix):
    llama_cpp.folder()
    tokenizer = _scored(prefix)
    _export(tmp_path / "m.gguf", tokenizer, _SCORED_CHAT)
    texts = [text for text in (*TEXTS, "thin on land, don in all an12") if text and (not prefix or text[0] != " ")]
    found = llama_cpp.tokenize(tmp_path / "m.gguf", [(text, False) for text in texts])
    assert found["texts"] == [tokenizer.encode(text, after="" if prefix else None) for text in texts]
    assert found["addsBos"] and (found["bos"], found["eot"]) == (1, tokenizer.id_of("<turn|>"))


@pytest.fixture(scope="module")
def piece_models(tmp_path_factory):
    """SentencePiece models: BPE as Llama 2's, of one that changes spaces, and of the kind unigram."""
    found = {}
    for name, options in {
        "bpe": {},
        "spaces": {"remove_extra_whitespaces": True},
        "unigram": {"model_type": "unigram", "vocab_size": 330},
    }.items():  # fmt: skip
        stream = io.BytesIO()
        usual = dict(model_type="bpe", vocab_size=340, byte_fallback=True, remove_extra_whitespaces=False)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=stream, normalization_rule_name="identity", minloglevel=2,
            **{**usual, **options},
        )  # fmt: skip
        about = {"added_tokens_decoder": {"340": {"content": "<turn|>"}}, "bos_token": "<s>", "eos_token": "</s>"}
        files = {"tokenizer.model": stream.getvalue(), "tokenizer_config.json": json.dumps(about).encode()}
        found[name] = Tokenizer(files)
    return found


def test_a_sentencepiece_model(tmp_path, piece_models):
    tokenizer = piece_models["bpe"]
    _export(tmp_path / "m.gguf", tokenizer, _SCORED_CHAT)
    found = _read(tmp_path / "m.gguf")
    assert found.num_ids == tokenizer.num_ids and found.id_of("<turn|>") == 340 and found.eos_id == tokenizer.eos_id
    for text in (*TEXTS, *CORPUS[:7]):
        if text.startswith(" "):  # transformers reads the two kinds differently there
            continue
        assert found.encode(text, after="") == tokenizer.encode(text, after="")


def test_llama_cpp_reads_a_sentencepiece_model(tmp_path, piece_models):
    llama_cpp.folder()
    _export(tmp_path / "m.gguf", piece_models["bpe"], _SCORED_CHAT)
    texts = [text for text in (*TEXTS, *CORPUS[:7]) if text and text[0] != " "]
    found = llama_cpp.tokenize(tmp_path / "m.gguf", [(text, False) for text in texts])
    assert found["texts"] == [piece_models["bpe"].encode(text, after="") for text in texts]


@pytest.mark.parametrize(("name", "sentence"), [("spaces", "changes the text or its spaces"), ("unigram", "than BPE")])
def test_sentencepiece_models_that_llama_cpp_has_not(piece_models, name, sentence):
    with pytest.raises(UserError, match=sentence):
        tokenizer_out.metadata(piece_models[name], _SCORED_CHAT, 512)


def test_tokenizers_that_llama_cpp_has_not():
    other = json.loads(TOKENIZER.files["tokenizer.json"])
    other["pre_tokenizer"] = {"type": "Whitespace"}
    spread = json.loads(_scored(False).files["tokenizer.json"])
    spread["model"]["merges"] = [["t", "h"], ["i", "n"], ["\u2581t", "h"], ["\u2581", "th"]]
    spread["model"]["vocab"]["\u2581t"] = 400
    spread["model"]["merges"] = [["\u2581t", "h"], ["t", "h"], ["i", "n"], ["\u2581", "th"]]
    for content, sentence in (
        (other, "cuts text into words in a way that llama.cpp has no known name for"),
        (spread, "makes '▁th' by merges of different ranks, which the scores of llama.cpp cannot"),
        ({**other, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "of kind 'WordLevel', and"),
    ):
        tokenizer = Tokenizer({"tokenizer.json": json.dumps(content).encode()})
        with pytest.raises(UserError, match=sentence):
            tokenizer_out.metadata(tokenizer, FORMATS["s1_plain"], 512)
