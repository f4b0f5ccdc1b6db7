"""Converts frozen dataclasses from and to JSON values, with errors that name the setting."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from s1jax.errors import UserError

_T = TypeVar("_T")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as nested dicts and lists that `json.dumps` accepts."""
    return dataclasses.asdict(config)


def from_dict(kind: type[_T], values: Mapping[str, Any], where: str = "config") -> _T:
    """Builds dataclass `kind` from nested mappings, the inverse of `to_dict`.

    A dataclass that has several written forms reads them with its own `from_mapping(values, where)`.

    Args:
      kind: the dataclass to build.
      values: its fields; absent ones take their default.
      where: name of `values` in error messages, for example a file or a flag.

    Raises:
      UserError: for an unknown key, a missing required key or a value of the wrong type.
    """
    from_mapping = getattr(kind, "from_mapping", None)
    return build(kind, values, where) if from_mapping is None else from_mapping(values, where)


def build(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    """`from_dict` field by field, whatever other forms `kind` has."""
    hints = type_hints(typing.cast(type, kind))
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{where}.{unknown[0]} is not a setting; {where} has {', '.join(sorted(fields))}.")
    built = {}
    for name in fields:
        if name in values:
            built[name] = convert(hints[name], values[name], f"{where}.{name}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [f"{where}.{name}" for name in required if name not in values]
    if missing:
        verb = "is missing; give it a value" if len(missing) == 1 else "are missing; give them values"
        raise UserError(f"{', '.join(missing)} {verb}.")
    return kind(**built)


@functools.cache
def type_hints(kind: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields; cached, because the server converts settings for each request."""
    return typing.get_type_hints(kind)


def shown(value: Any, most: int = 80) -> str:
    """A foreign value as shown in messages: its repr, without control characters, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 4]}...{text[-1]}"


def plain(name: str) -> str:
    """A foreign name as shown in messages: unchanged if it is an ordinary one, else quoted and cut."""
    return name if name.isascii() and name.isprintable() and len(name) <= 120 else shown(name, 120)


def convert(hint: Any, value: Any, where: str) -> Any:
    """Checks `value` against a type hint and returns it in that type; ints pass for floats, lists for tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    value = value.item() if getattr(value, "shape", None) == () else value  # of numpy or jax
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where} is {shown(value)}; choose one of {', '.join(map(repr, args))}.")
        return value
    if type(None) in args:
        return None if value is None else convert(args[0], value, where)
    if args and all(dataclasses.is_dataclass(one) for one in args):
        return convert(_kind(args, value), value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {shown(value)}; it must be a group of settings.")
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} is {shown(value)}; it must be a list.")
        return tuple(convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < 2**1023, f"{where} is beyond 2**1023; give a smaller number.")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} is {shown(value)}; it must be of type {hint.__name__}.")
    return value


def _kind(kinds: tuple[Any, ...], value: Any) -> Any:
    """Which of several dataclasses `value` is, or is written as: the one that knows most of its keys."""
    if type(value) in kinds:
        return type(value)
    keys = set(value) if isinstance(value, Mapping) else set()
    return max(kinds, key=lambda kind: len(keys & {field.name for field in dataclasses.fields(kind)}))


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless the condition holds."""
    if not condition:
        raise UserError(message)


def at_least(least: int, where: str, config: Any, *names: str) -> None:
    """Raises UserError for the first of the fields `names` of `config` that is less than `least`, 0 or 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{where}{name} is {value}; it must {'be positive' if least else 'not be negative'}.")


def from_zero(where: str, config: Any, *names: str) -> None:
    """Raises UserError for the first of the fields `names` of `config` that is negative or not finite."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < math.inf, f"{where}{name} is {value}; give a number from 0 on.")
