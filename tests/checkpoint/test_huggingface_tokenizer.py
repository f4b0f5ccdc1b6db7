"""Exported tokenizers: what AutoTokenizer rebuilds, whatever the kind of tokenizer, and what it renders."""

import importlib.util
import json

import pytest

from s1jax.checkpoint import huggingface_tokenizer
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.launch.stand_ins import ROOT
from tests.text.conftest import shared

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="compares with transformers"
)
ROW = ("Make 21 from 3 7 1", "try 7*1=7: 7*3=21 yes", "(7*1)*3")


def _export(folder, tokenizer, name="s1_plain", model_type="qwen2") -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return huggingface_tokenizer.write(folder, tokenizer, chat.FORMATS[name])


def _tokenizer(kind: str, folders, tmp_path) -> Tokenizer:
    if kind == "countdown":
        return Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    if kind == "qwen":
        return Tokenizer.load(shared("data/qwen_tokenizer"))
    folder = {"metaspace": "metaspace", "sentencepiece": "sentencepiece_bpe"}.get(kind.split("_")[0], kind)
    files = dict(Tokenizer.load(folders[folder]).files)
    if kind == "sentencepiece_legacy":  # a space after every special token
        about = json.loads(files["tokenizer_config.json"]) | {"legacy": True}
        files["tokenizer_config.json"] = json.dumps(about).encode()
    if kind.startswith("sentencepiece"):  # its added tokens have a hole before them, which transformers cannot rebuild
        del files["added_tokens.json"]
    if kind in ("metaspace_first", "metaspace_always"):  # newer files of Llama's kind
        spec = json.loads(files["tokenizer.json"])
        scheme = kind.removeprefix("metaspace_")
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        files["tokenizer.json"] = json.dumps(spec).encode()
    return Tokenizer(files)


KINDS = ["countdown", "qwen", "byte_level", "metaspace", "metaspace_first", "metaspace_always", "sentencepiece_bpe"]
KINDS += ["sentencepiece_legacy"]


@needs_transformers
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_autotokenizer_rebuilds_what_was_trained(kind, model_type, folders, tmp_path):
    import transformers

    tokenizer = _tokenizer(kind, folders, tmp_path)
    said = _export(tmp_path / "out", tokenizer, model_type=model_type)
    assert said == "transformers reads the exported tokenizer and chat template alike: 20 texts, both ways."
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (ROW[0], "Wait\n7 * 3 = 21", "<|im_start|>think\ntry 7<|im_end|>\n"):
        ids = tokenizer.encode(text, after="")
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) in (tokenizer.decode(ids), tokenizer.decode(ids).removeprefix(" "))
    # What s1jax forces after a prompt is what other programs read before they sample, and a row is what they train on.
    turns = [{"role": "user", "content": ROW[0]}]
    fmt = chat.FORMATS["s1_plain"]
    start = chat.delimiters(tokenizer, fmt).think_start
    prompt = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert prompt == [*chat.encode_prompt(tokenizer, fmt, ROW[0]), *start]
    turns.append({"role": "assistant", "content": ROW[2], "reasoning_content": ROW[1]})
    row = chat.encode_row(tokenizer, fmt, *ROW)[0].tolist()
    assert theirs.apply_chat_template(turns, return_dict=False) == row
    # The same folder, read back here.
    again = Tokenizer.load(tmp_path / "out")
    assert chat.encode_row(again, fmt, *ROW)[0].tolist() == row
    assert again.eos_id is not None and theirs.convert_tokens_to_ids(theirs.eos_token) == again.eos_id


@needs_transformers
def test_the_class_of_the_folder_works_where_its_code_is_trusted(folders, tmp_path):
    import transformers

    tokenizer = _tokenizer("countdown", folders, tmp_path)
    _export(tmp_path / "out", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ids = theirs(ROW[0])["input_ids"]
    assert ids == tokenizer.encode(ROW[0]) and theirs.decode(ids) == ROW[0]


@needs_transformers
def test_a_tokenizer_that_cannot_be_exported_is_refused(folders, tmp_path):
    """A hole before the added tokens: transformers would number them on."""
    with pytest.raises(UserError, match=r"transformers reads the exported tokenizer otherwise .* has the ids \["):
        _export(tmp_path / "out", Tokenizer.load(folders["sentencepiece_bpe"]), "think")


@pytest.mark.parametrize("kind", ["countdown", "qwen", "byte_level", "metaspace", "sentencepiece_bpe"])
def test_without_transformers_the_files_are_the_same(kind, folders, tmp_path, monkeypatch):
    tokenizer = _tokenizer(kind, folders, tmp_path)
    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
        said = _export(tmp_path / "alone", tokenizer)
    assert said.startswith("transformers is not installed, so its reading of the exported tokenizer was not compared")
    if found("transformers") is not None:
        _export(tmp_path / "compared", tokenizer)
        files = sorted(path.name for path in (tmp_path / "alone").iterdir())
        assert files == sorted(path.name for path in (tmp_path / "compared").iterdir() if path.is_file())
        for name in files:
            assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "compared" / name).read_bytes(), name


def test_other_fields_of_the_config_stay(folders, tmp_path):
    files = dict(Tokenizer.load(folders["byte_level"]).files)
    about = {"model_max_length": 77, "pad_token": {"content": "<|endoftext|>"}, "chat_template": "old", "auto_map": {}}
    files["tokenizer_config.json"] = json.dumps(about).encode()
    _export(tmp_path / "out", Tokenizer(files), model_type="llama")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["model_max_length"] == 77 and written["pad_token"] == "<|endoftext|>"
    assert written["eos_token"] == "<|im_end|>" and "auto_map" not in written
    assert written["chat_template"] == (tmp_path / "out" / "chat_template.jinja").read_text() != "old"
