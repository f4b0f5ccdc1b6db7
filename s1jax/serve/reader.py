"""Reads the fields of a JSON object, with errors that name them."""

from __future__ import annotations

import collections
import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from s1jax.config.schema import shown

_CLOSE = 0.85  # of 1, as in `s1jax.engine.fields`
MOST = 2**31 - 1  # of whole numbers: what an int32 holds
_OBJECTS = 20_000  # in a body: reading more would hold up other requests
_UNKNOWN = 100  # names of fields in a body: each is compared with all known ones


class ApiError(Exception):
    """An answer other than 200: the error object of OpenAI with its HTTP status.

    Attributes:
      message: one sentence that names field and remedy.
      param: path of the field; None if there is none.
      code: a word for programs, such as `model_not_found`; None if there is none.
      type: kind of error, such as `invalid_request_error`.
      status: of HTTP.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        type: str = "invalid_request_error",
        status: int = 400,
    ):
        """Takes the attributes."""
        super().__init__(message)
        self.message, self.param, self.code, self.type, self.status = message, param, code, type, status

    def body(self) -> dict[str, Any]:
        """Returns the body of OpenAI's APIs."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def refuse(path: str, problem: str) -> NoReturn:
    """Raises the 400 of a bad field; `problem` follows its path."""
    raise ApiError(f"{path} {problem}", path)


def loads(data: bytes) -> dict[str, Any]:
    """Parses the body of a request.

    Raises:
      ApiError: it is not a JSON object in UTF-8, has one key twice, is nested too deeply, or has too many objects.
    """
    objects = 0

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal objects
        objects += 1
        if objects > _OBJECTS:
            raise ApiError(f"the body has more than {_OBJECTS} objects; send fewer.")
        found = dict(pairs)
        if len(found) < len(pairs):
            ((twice, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
            raise ApiError(f"the body has the key {plain(twice)} twice; keep one.", plain(twice))
        return found

    def constant(name: str) -> NoReturn:
        raise ApiError(f"the body has the number {name}, which JSON does not know; write a finite number or null.")

    try:
        body = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except RecursionError:
        raise ApiError("the body is nested too deeply; send fewer levels.") from None
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8 at byte {error.start}; send UTF-8.") from None
    except ValueError as error:  # a syntax error, or a number with thousands of digits
        raise ApiError(f"the body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise ApiError(f"the body is {shown(body)}; send a JSON object.")
    return body


def plain(name: str) -> str:
    """A foreign name as it may stand in messages and headers: printable ASCII, at most 80 characters."""
    return name[:80] if name.isascii() and name.isprintable() else ascii(name)[1:-1][:80]


class Reader:
    """Reads an object field by field and notes which fields it knows, with the JSON schema of each.

    A field with the value null counts as missing, unless a method says otherwise.

    Attributes:
      known: JSON schema of each field that was asked for, whether present or not.
      groups: readers of the objects inside, by name.
    """

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        """Takes the object and the path of it in messages."""
        self._values, self._path = values, path
        self.known: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, Reader] = {}
        self._unused: list[str] = []

    def path(self, name: str) -> str:
        """The full name of a field."""
        return f"{self._path}.{name}" if self._path else name

    def has(self, name: str) -> bool:
        """Whether a field is present, null included."""
        return name in self._values

    def value(self, name: str, schema: Mapping[str, Any] | None = None) -> Any:
        """The value of a field, unchecked; None if it is missing. The caller checks that it has the schema."""
        if schema is not None or name not in self.known:
            self.known[name] = dict(schema or {})
        return self._values.get(name)

    def integer(self, name: str, least: int = 0, most: int = MOST) -> int | None:
        """A whole number in [least, most]."""
        value = self.value(name, {"type": ["integer", "null"], "minimum": least, "maximum": most})
        return None if value is None else whole(value, self.path(name), least, most)

    def number(self, name: str, least: float, most: float) -> float | None:
        """A finite number in [least, most]."""
        value = self.value(name, {"type": ["number", "null"], "minimum": least, "maximum": most})
        if value is None:
            return None
        path = self.path(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            refuse(path, f"is {shown(value)}; it must be a number.")
        if not least <= value <= most or not math.isfinite(value):
            refuse(path, f"is {shown(value)}; it must lie in [{least:g}, {most:g}].")
        return float(value)

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self.value(name, {"type": ["boolean", "null"]})
        if value is not None and not isinstance(value, bool):
            refuse(self.path(name), f"is {shown(value)}; it must be true or false.")
        return value

    def text(self, name: str) -> str | None:
        """A string that UTF-8 can hold."""
        value = self.value(name, {"type": ["string", "null"]})
        return None if value is None else string(value, self.path(name))

    def word(self, name: str, words: Iterable[str]) -> str | None:
        """One of some words."""
        words = tuple(words)
        value = self.value(name, {"enum": [*words, None]})
        if value is not None and (not isinstance(value, str) or value not in words):
            refuse(self.path(name), f"is {shown(value)}; choose one of {', '.join(words)}.")
        return value

    def group(self, name: str) -> Reader | None:
        """An object; its own reader is kept, and is empty if it is missing."""
        value = self.value(name, {"type": ["object", "null"]})
        if value is not None and not isinstance(value, Mapping):
            refuse(self.path(name), f"is {shown(value)}; it must be an object.")
        self.groups[name] = Reader(value or {}, self.path(name))
        return None if value is None else self.groups[name]

    def inside(self, value: Any, path: str) -> Reader:
        """The reader of an object that stands in a list; it is kept under its path."""
        if not isinstance(value, Mapping):
            refuse(path, f"is {shown(value)}; it must be an object.")
        self.groups[path] = Reader(value, path)
        return self.groups[path]

    def items(self, name: str) -> list[Any] | None:
        """A list."""
        value = self.value(name, {"type": ["array", "null"]})
        if value is not None and not isinstance(value, list):
            refuse(self.path(name), f"is {shown(value)}; it must be a list.")
        return value

    def unused(self, *names: str) -> None:
        """Marks fields that are accepted without an effect; those that are present are listed as ignored."""
        for name in names:
            if self.value(name, {"description": "Accepted without an effect."}) is not None:
                self._unused.append(self.path(name))

    def only(self, name: str, values: Iterable[Any], remedy: str) -> None:
        """Refuses a field unless it has one of `values`, which ask for nothing."""
        values = tuple(values)
        value = self.value(name, {"enum": [*values, None], "description": f"Not done: {remedy}."})
        if value is not None and not any(type(value) is type(v) and value == v for v in values):
            refuse(self.path(name), f"is {shown(value)}, which s1jax does not do; {remedy}.")

    def schema(self) -> dict[str, Any]:
        """Returns the JSON schema of the object, after it was read."""
        fields = {}
        for name, schema in self.known.items():
            inside = self.groups[name].schema() if name in self.groups else {}
            fields[name] = {**inside, **schema}
        return {"type": "object", "properties": fields}

    def rest(self) -> list[str]:
        """Returns the paths of all fields that have no effect, those of groups included.

        Raises:
          ApiError: a field that is unknown has nearly the name of a known one, or there are too many unknown names.
        """
        return self._rest(set())

    def _rest(self, unknown: set[str]) -> list[str]:
        found, known = list(self._unused), frozenset(self.known)
        for name, value in self._values.items():
            if name in self.known or value is None:
                continue
            unknown.add(name)
            if len(unknown) > _UNKNOWN:
                raise ApiError(f"the body has more than {_UNKNOWN} fields that are not of this API; leave them out.")
            meant = _meant(name, known)
            if meant:
                refuse(plain(self.path(name)), f"is not a field of this API; write {self.path(meant)} if it is meant.")
            found.append(plain(self.path(name)))
        return found + [path for group in self.groups.values() for path in group._rest(unknown)]


def whole(value: Any, path: str, least: int = 0, most: int = MOST) -> int:
    """Returns `value` if it is a whole number in [least, most]; neither true nor 1.0 is one."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(path, f"is {shown(value)}; it must be a whole number.")
    if not least <= value <= most:
        refuse(path, f"is {_digits(value)}; it must lie in [{least}, {most}].")
    return value


def string(value: Any, path: str) -> str:
    """Returns `value` if it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        refuse(path, f"is {shown(value)}; it must be a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(path, "has half of a surrogate pair, which is not a character; send whole characters.")
    return value


def _digits(value: int) -> str:
    """A whole number in messages; Python writes none of more than some thousand digits."""
    return str(value) if abs(value) < 10**20 else "beyond 10**20" if value > 0 else "below -10**20"


def _folded(name: str) -> str:
    """A name without what its spellings differ in."""
    return re.sub(r"[\W_]", "", name).lower()


@functools.lru_cache(maxsize=4096)
def _meant(name: str, known: frozenset[str]) -> str:
    """The known name that was misspelt; empty for all other names."""
    names = sorted(other for other in known if len(other) > 1)
    same = next((other for other in names if _folded(other) == _folded(name)), "")
    return same or next(iter(difflib.get_close_matches(name[:80].lower().replace("-", "_"), names, 1, _CLOSE)), "")
