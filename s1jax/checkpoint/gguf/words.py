"""How text is cut into words before byte-level BPE, by the name that llama.cpp has for it (`tokenizer.ggml.pre`).

The patterns are those of the models' published tokenizer.json files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
# Letters by case: o200k_base (gpt-oss, Phi-4-mini) has contractions and digits in threes, Mistral's Tekken neither.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_O200K = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}|\p{{N}}{{1,3}}{_REST}"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}{_REST}"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)


class Words(NamedTuple):
    """A way of cutting words.

    Attributes:
      patterns: each cuts what those before it left whole.
      digits: every digit is a word; before GPT-2's pattern.
      gpt2: GPT-2's pattern, which the tokenizers library has built in.
      nfc: text is normalised first.
      ignore_merges: a word that is a token stays one, whatever its merges.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    nfc: bool = False
    ignore_merges: bool = False


# The first name of several alike is written.
WORDS = {
    "qwen2": Words((_QWEN,), nfc=True),
    "deepseek-r1-qwen": Words((_QWEN,)),
    "llama-bpe": Words((_LLAMA3,), ignore_merges=True),
    "llama3": Words((_LLAMA3,), ignore_merges=True),
    "llama-v3": Words((_LLAMA3,), ignore_merges=True),
    "dbrx": Words((_LLAMA3,)),
    "smaug-bpe": Words((_LLAMA3,)),
    "gpt-4o": Words((_O200K,)),
    "tekken": Words((_TEKKEN,), ignore_merges=True),
    "deepseek-v3": Words(_DEEPSEEK_V3),
    "smollm": Words(digits=True, gpt2=True),
    "gpt-2": Words(gpt2=True),
    "olmo": Words(gpt2=True, nfc=True),
}

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def spec(words: Words) -> dict[str, Any]:
    """The parts of a tokenizer.json that cut words: `normalizer` and `pre_tokenizer`."""
    parts: list[dict[str, Any]] = []
    if words.digits:
        parts.append({"type": "Digits", "individual_digits": True})
    for pattern in words.patterns:
        parts.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    parts.append({**BYTE_LEVEL, "use_regex": words.gpt2})
    return {
        "normalizer": {"type": "NFC"} if words.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
    }


def read(content: dict[str, Any]) -> Words | None:
    """The inverse of `spec`; None: the tokenizer.json cuts words in a way that `Words` does not describe."""
    normalizers = parts(content.get("normalizer"), "normalizers")
    if any(part != {"type": "NFC"} for part in normalizers):
        return None
    cuts = parts(content.get("pre_tokenizer"), "pretokenizers")
    if not cuts or cuts[-1].get("type") != "ByteLevel" or cuts[-1].get("add_prefix_space"):
        return None
    patterns, digits = [], False
    for number, part in enumerate(cuts[:-1]):
        if part.get("type") == "Digits" and part.get("individual_digits") and not number:
            digits = True
        elif part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            patterns.append(str(part["pattern"].get("Regex")))
        else:
            return None
    ignore_merges = bool(content["model"].get("ignore_merges"))
    return Words(tuple(patterns), digits, bool(cuts[-1].get("use_regex", True)), bool(normalizers), ignore_merges)


def name(words: Words) -> str | None:
    """The name that is written for a way of cutting words; NFC, which llama.cpp does not do, need not fit."""
    exact = [key for key, known in WORDS.items() if known == words]
    close = [key for key, known in WORDS.items() if known._replace(nfc=words.nfc) == words]
    return next(iter(exact + close), None)


def parts(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """A part of a tokenizer.json as a list: the members of a Sequence, itself, or nothing."""
    if part is None:
        return []
    return list(part[members]) if part.get("type") == "Sequence" else [part]
