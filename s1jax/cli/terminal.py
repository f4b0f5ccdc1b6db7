"""Makes standard output and standard error safe to write to.

A run of hours must not end because its terminal is gone, the disk of its log is full or the locale is ASCII: its
results are in files. And foreign text (a model's answer, a tensor's name) must not control the terminal.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import Any

LOST = 1  # exit code if the work is done but standard output could not be written
PIPE_CLOSED = 141  # the same if its reader has left: what shells report after SIGPIPE

# All control characters but tab and newline, and the marks that change the direction of text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    r"""Returns `text` with every control character written out, as in `\x1b`.

    Tabs and newlines stay. A carriage return before a newline is dropped. So the text cannot set a title, fill the
    clipboard, clear the screen or fake another line.
    """
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1], text.replace("\r\n", "\n"))


def note(sentence: str) -> None:
    """Prints a note at once, so that the log of a long run has it from the start."""
    print(f"note: {safe(sentence)}", flush=True)


class _File(io.FileIO):
    """A file descriptor that drops all output after the first write that failed."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return len(data)


def prepare() -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams whose writes never raise.

    Closed descriptors are opened on the null device first. Otherwise the next file would get their number, and messages
    would be written into it. Characters that the locale can't write appear as in `\\u2588`.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        was_closed = _open_null(number)
        if number == 0 or not (was_closed or _is_plain(stream, number)):
            continue  # replaced by a caller, as pytest does
        raw = _File(number, "w", closefd=False)
        if was_closed:
            raw.lost = OSError(errno.EBADF, os.strerror(errno.EBADF))
        encoding = "utf-8" if stream is None else stream.encoding
        lines = stream is None or stream.line_buffering
        through = stream is not None and stream.write_through
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines, write_through=through
            ),
        )


def lost() -> OSError | None:
    """The first error of standard output since `prepare`; None if everything was written."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return None
    stream.flush()
    raw = getattr(stream.buffer, "raw", None)
    return raw.lost if isinstance(raw, _File) else None


def _is_plain(stream: Any, number: int) -> bool:
    return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number


def _open_null(number: int) -> bool:
    """Opens the null device as descriptor `number` if that is closed; returns whether it was."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        return True
    return False
