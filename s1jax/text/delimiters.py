"""The delimiters of a chat format as token ids: all that the sampler sees of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Delimiters:
    """The token ids that budget forcing needs; `s1jax.text.chat` encodes them from strings.

    Attributes:
      think_start: forced after the prompt.
      think_end: forced when thinking ends.
      newline: forced before think_end when thinking is cut and its last id's text does not end in a newline.
      final_answer: forced after think_end when thinking is cut.
      end: sampled ids that mean "I have finished thinking"; includes every id of `stop`.
      stop: ids that end the answer.
      ends_in_newline: all ids whose text ends in a newline.
      num_ids: ids 0..num_ids-1 may be known to the tokenizer; see `illegal` for holes.
      illegal: ids below num_ids that the tokenizer does not know.
      pad: emitted by finished rows; never part of a result.
    """

    think_start: tuple[int, ...]
    think_end: tuple[int, ...]
    newline: tuple[int, ...]
    final_answer: tuple[int, ...]
    end: tuple[int, ...]
    stop: tuple[int, ...]
    ends_in_newline: tuple[int, ...]
    num_ids: int
    illegal: tuple[int, ...] = ()
    pad: int = 0
