"""The tokenizer of a Hugging Face folder, written so that transformers rebuilds it id for id."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from s1jax.errors import UserError
from s1jax.text import chat, template
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer

_CONFIG, _TEMPLATE, _MODULE = "tokenizer_config.json", "chat_template.jinja", "tokenization_exported.py"
_CODE = """\
from transformers import {0}


class ExportedTokenizer({0}):
    \"\"\"The general class, which takes the tokenizer's files as they are.\"\"\"
"""
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What is encoded and decoded by both libraries.
_TEXTS = (
    "Make 21 from 3 7 1",
    "What is 12 plus 30?",
    " leading, trailing and  double  spaces ",
    "line\n\n  indented\tand a tab\r\n",
    "naïve café, Ωμέγα, 世界, 😀, ½ and ﬁ",
    "for i in range(10):\n    x[i] = 3.14 * i**2  # comment",
    "$\\frac{1}{2} \\le x^2 < 1{,}000$ so \\boxed{42}.",
    "I've DON'T we'll 1234567 , . ! ?",
    "",
    "\n",
)
_RANDOM = 10  # further texts, made of random ids


def write(folder: pathlib.Path, tokenizer: Tokenizer, fmt: ChatFormat) -> str:
    """Writes a tokenizer's files with the chat template of a format, and compares what transformers makes of them.

    A `tokenizer.json` is given to transformers' general class, which keeps it unchanged; those of a family put their
    own pre-tokenizer and decoder in its place. A SentencePiece model gets Llama's class or the general one, whichever
    agrees. transformers 5 gives Qwen2's class to every model of type qwen2, whatever tokenizer_config.json says, unless
    a class of the folder's own is named there: where Qwen2's class differs, such a file is written, with three lines.
    `tokenizer_config.json` keeps its other fields. The template is written to it and to `chat_template.jinja`.

    Args:
      folder: of a model with its config.json, or of adapters without one.
      tokenizer: to be written.
      fmt: chat format of the model.

    Returns:
      a sentence on what was compared, or that transformers is not installed.

    Raises:
      UserError: if transformers reads other ids or another text than s1jax whatever the class; names the text.
    """
    tokenizer.save(folder)
    jinja = template.to_jinja(fmt)
    (folder / _TEMPLATE).write_text(jinja, encoding="utf-8")
    about = _about(tokenizer, fmt) | {"chat_template": jinja}
    model = folder / "config.json"
    is_qwen2 = model.exists() and json.loads(model.read_text()).get("model_type") == "qwen2"
    problem = ""
    for candidate in _candidates(tokenizer, about.get("legacy") is True, is_qwen2):
        (folder / _MODULE).unlink(missing_ok=True)
        if "auto_map" in candidate:
            (folder / _MODULE).write_text(_CODE.format(candidate["tokenizer_class"]), encoding="utf-8")
        text = json.dumps(about | candidate, indent=2, ensure_ascii=False) + "\n"
        (folder / _CONFIG).write_text(text, encoding="utf-8")
        if importlib.util.find_spec("transformers") is None:
            return (
                "transformers is not installed, so its reading of the exported tokenizer was not compared; the class is"
                f" {candidate['tokenizer_class']}."
            )
        problem = _difference(folder, tokenizer, fmt)
        if not problem:
            count = len(_TEXTS) + _RANDOM
            return f"transformers reads the exported tokenizer and chat template alike: {count} texts, both ways."
    raise UserError(f"transformers reads the exported tokenizer otherwise than s1jax: {problem}; nothing was exported.")


def _about(tokenizer: Tokenizer, fmt: ChatFormat) -> dict[str, Any]:
    """Returns the tokenizer's own tokenizer_config.json, without what the classes below would do twice."""
    about: dict[str, Any] = json.loads(tokenizer.files.get(_CONFIG, b"{}"))
    for name in ("auto_map", "add_prefix_space", "fix_mistral_regex"):
        about.pop(name, None)
    for name, token in about.items():
        if name.endswith("_token") and isinstance(token, dict):  # of an older release, which transformers 5 refuses
            about[name] = token.get("content")
    about["eos_token"] = about.get("eos_token") or fmt.turn_end
    return about | {"clean_up_tokenization_spaces": False}


def _candidates(tokenizer: Tokenizer, legacy: bool, is_qwen2: bool) -> list[dict[str, Any]]:
    """Returns the fields that choose a class of transformers, the likeliest first."""
    as_qwen2 = False
    if "tokenizer.json" in tokenizer.files:
        classes: list[dict[str, Any]] = [{"tokenizer_class": "PreTrainedTokenizerFast"}]
        spec = json.loads(tokenizer.files["tokenizer.json"])
        as_qwen2 = _is_qwens(spec)
    else:
        more = {"legacy": legacy, "add_bos_token": False, "add_eos_token": False}
        classes = [{"tokenizer_class": kind, **more} for kind in ("LlamaTokenizer", "PreTrainedTokenizerFast")]
    if not is_qwen2:
        return classes
    reference = f"{pathlib.Path(_MODULE).stem}.ExportedTokenizer"
    named = [fields | {"auto_map": {"AutoTokenizer": [None, reference]}} for fields in classes]
    return classes + named if as_qwen2 else named


def _is_qwens(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts words as transformers' class for Qwen2 does."""
    words = (spec.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    kinds = [(spec.get(part) or {}).get("type") for part in ("normalizer", "model", "decoder")]
    pattern = (words[0].get("pattern") or {}).get("Regex")
    spaced = any(part.get("add_prefix_space") for part in words)
    return kinds == ["NFC", "BPE", "ByteLevel"] and pattern == _QWEN2_WORDS and not spaced


def _difference(folder: pathlib.Path, tokenizer: Tokenizer, fmt: ChatFormat) -> str:
    """Says how transformers' tokenizer of a folder differs from `tokenizer`; empty if it does not."""
    import transformers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs: Any = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of many libraries
        return f"it cannot load it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    for text in _texts(tokenizer):
        try:
            ids = tokenizer.encode(text, after="")
        except UserError:  # a vocabulary of words that the text is not made of
            continue
        other = list(theirs(text, add_special_tokens=False)["input_ids"])
        if other != ids:
            return f"{text[:60]!r} has the ids {_cut(other)} there and {_cut(ids)} here"
        said, want = theirs.decode(ids), tokenizer.decode(ids)
        if said != want and said != want.removeprefix(" "):  # Llama's decoder takes the leading space away
            return f"the ids {_cut(ids)} read {said[:60]!r} there and {want[:60]!r} here"
    return _template_difference(theirs, tokenizer, fmt)


def _template_difference(theirs: Any, tokenizer: Tokenizer, fmt: ChatFormat) -> str:
    question = "Make 21 from 3 7 1"
    for system in ("", "Be brief."):
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": question}]
        try:
            prompt = chat.encode_prompt(tokenizer, fmt, question, system)
        except UserError:  # no system turn, or words that the vocabulary has not
            continue
        want = [*prompt, *chat.delimiters(tokenizer, fmt).think_start]
        found = list(theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
        if found != want:
            return f"the chat template gives {_cut(found)} for {question!r}, and s1jax {_cut(want)}"
    return ""


def _texts(tokenizer: Tokenizer) -> Iterator[str]:
    yield from _TEXTS
    known = np.flatnonzero(tokenizer.legal_ids(tokenizer.num_ids))
    draw = np.random.default_rng(0)
    for _ in range(_RANDOM):
        yield tokenizer.decode(draw.choice(known, 12).tolist())


def _cut(ids: list[int]) -> str:
    return str(ids[:40])[:-1] + (", ...]" if len(ids) > 40 else "]")
