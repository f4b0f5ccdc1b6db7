"""What a measurement of rows is: a function from all rows to columns."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Named = tuple[str, Mapping[str, Any]]  # what messages call a row (`file:line`), and its columns
Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Columns:
    """What was measured.

    Attributes:
      values: column -> value, one a row; None where a row has no value.
      summary: one line.
    """

    values: Sequence[Mapping[str, Any]]
    summary: str


class Measurement(Protocol):
    """Measures all rows of a pool."""

    def __call__(self, rows: Sequence[Named], out: pathlib.Path, note: Note) -> Columns | None:
        """Returns columns.

        Args:
          rows: of the pool, at least one.
          out: folder for what is kept between two calls.
          note: gets sentences about rows without a value.

        Returns:
          columns; None in all processes of a run but the first.

        Raises:
          UserError: no row has what is to be measured, or a setting makes no sense.
        """
        ...
