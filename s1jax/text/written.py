"""Reports which texts of users contain delimiters or special tokens, which are encoded as plain text."""

from __future__ import annotations

from collections.abc import Iterable

from s1jax.text.chat import FORMATS, ChatFormat
from s1jax.text.tokenizer import Tokenizer


def notes(tokenizer: Tokenizer, fmt: ChatFormat, texts: Iterable[tuple[str, str]], use: str) -> list[str]:
    """Returns a sentence that counts and names them, or nothing.

    A text about chat formats contains them on purpose. More often an exporter has left them in, a trace continues after
    its own `</think>`, or a prompt was already rendered with a chat template.

    Args:
      tokenizer: its special tokens are searched for.
      fmt: the model's; the special tokens of all other formats are searched for too, because data moves between models.
      texts: (name, text) of each row.
      use: what is done with them, such as `trained on`.
    """
    known = dict.fromkeys(token for one in (fmt, *FORMATS.values()) for token in one.special)
    found: dict[str, None] = {}
    names, count = [], 0
    for name, text in texts:
        count += 1
        inside = [*tokenizer.special_tokens_in(text), *(token for token in known if token in text)]
        if inside:
            names.append(name)
            found |= dict.fromkeys(inside)
    if not names:
        return []
    shown = ", ".join(map(repr, list(found)[:4])) + (", ..." if len(found) > 4 else "")
    return [
        f"{len(names)} of {count} rows hold delimiters or special tokens as text ({shown}), which is {use} as text:"
        f" {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; repair or remove them unless it is meant."
    ]
