"""The fields of a `quantization_config`: each is used, known to change nothing, or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from s1jax.checkpoint.families.fields import Fields, wrong_type
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError

REMEDY = (
    "get the unquantised model, or load this one with transformers and its quantisation library and save it dequantised"
)


class Settings(Fields):
    """The fields of one `quantization_config` or of an object in it."""

    def __init__(self, values: Mapping[str, Any], where: str):
        super().__init__(values, where, {})

    def one_of(self, key: str, accepted: Sequence[Any], default: Any) -> Any:
        """The value of a field that must be one of `accepted`; `default` where it is null or missing."""
        value = self.raw(key)
        if value is None:
            return default
        if not any(type(value) is type(known) and value == known for known in accepted):
            listed = ", ".join(shown(known) for known in accepted)
            raise UserError(f"{self.where}: {key} is {shown(value)}; s1jax reads {listed}, so {REMEDY}.")
        return value

    def positive(self, key: str, default: int, *, or_all: bool = False) -> int:
        """The value of a field that must be a positive number, or -1 where that stands for all."""
        value = self.optional(key, int, default)
        if value < 1 and not (or_all and value == -1):
            raise UserError(f"{self.where}: {key} is {value}; it must be at least 1, so get the file again.")
        return value

    def block(self, key: str) -> tuple[int, int] | None:
        """The value of a field that must be a block's number of outputs and inputs; None where there is none."""
        value = self.raw(key)
        if value is None:
            return None
        pair = value if isinstance(value, list) and len(value) == 2 else [0, 0]
        if not all(type(size) is int and size > 0 for size in pair):
            raise wrong_type(self.where, key, value, "two positive numbers")
        return pair[0], pair[1]

    def words(self, key: str) -> tuple[str, ...]:
        """The value of a field that must be a list of strings; empty where it is null or missing."""
        value = self.optional(key, list, [])
        if not all(isinstance(word, str) for word in value):
            raise wrong_type(self.where, key, value, "a list of strings")
        return tuple(value)

    def empty(self, *keys: str) -> None:
        """Checks fields that ask for more than s1jax does unless they are null, false or empty."""
        for key in keys:
            if self.raw(key):
                raise UserError(f"{self.where}: {key} is {shown(self.raw(key))}, which s1jax does not read; {REMEDY}.")

    def ignore(self, harmless: str) -> None:
        """Checks that no other field has a value than those that were read and the `harmless` ones.

        Raises:
          UserError: names the first one.
        """
        known = self._read | {*harmless.split()}
        for key, value in self.values.items():
            if key not in known and value is not None:
                raise UserError(
                    f"{self.where}: {plain(key)} is {shown(value)}, a field that s1jax does not know; it may change "
                    "the weights, so remove it only if it does not."
                )


def refuse_skipped(module: str, patterns: Collection[str], where: str, key: str) -> None:
    """Raises UserError if a list of modules that are not quantised names one that is.

    A pattern is a regular expression for the first parts of a module's name, or its last characters (transformers'
    `should_convert_module`).

    Args:
      module: name of a quantised one.
      patterns: of the list.
      where: name of the configuration in errors.
      key: of the list in the configuration.
    """
    end = r"(?:(?<=\.)|(?=\.|$))"
    for pattern in patterns:
        if search(rf"(?:{pattern}){end}", module, where) or module.endswith(pattern):
            raise UserError(
                f"{where}: {key} names {plain(module)} ({shown(pattern)}), whose weights are quantised all the same; "
                f"{REMEDY}."
            )


def search(pattern: str, module: str, where: str) -> bool:
    """Whether a regular expression of the file matches the start of a module's name."""
    try:
        return re.match(pattern, module) is not None
    except re.error:
        raise UserError(f"{where}: {shown(pattern)} is not a regular expression; get the file again.") from None
