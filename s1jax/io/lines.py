"""Writes a JSON object as one line of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def encoded(row: Mapping[str, Any]) -> bytes:
    """Returns an object as JSON in UTF-8 with a newline at its end.

    Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, are escaped, so any reader of JSON takes the line.
    """
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"
