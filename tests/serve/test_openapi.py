import json
import random
import re

import pytest

from s1jax.serve import openapi, settings
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from tests.serve import replies

DEFAULTS = Defaults(model="s1", context_length=10_000, aliases=("other",))
READ = {path: (read, smallest) for path, read, smallest, _, _ in openapi._APIS}
# Fields whose meaning hangs on others, and their values are tested with these.
WITH = {
    "stream_options": {"stream": True}, "think_longer": {"messages": []},
}  # fmt: skip


def values(schema: dict, rng: random.Random) -> list:
    """Values at the borders of a schema, inside and outside, and others of any type."""
    found = [None, True, False, 0, 1, -1, 2, 1.5, "", "a", [], ["a"], {}, {"a": 1}]
    for each in (schema, *schema.get("anyOf", [])):
        found += each.get("enum", [])
        for bound in (each.get("minimum"), each.get("maximum")):
            found += [] if bound is None else [bound, bound - 1, bound + 1]
        if "maxItems" in each:
            found += [["a"] * each["maxItems"], ["a"] * (each["maxItems"] + 1), [""]]
    found += [replies.junk(rng) for _ in range(20)]
    # JSON schema takes 1.0 for a whole number, and knows nothing of infinity and half characters.
    return [v for v in found if not re.search(r"Infinity|NaN|\\ud800|\d\.0\b|e\+", json.dumps(v))]


def fields(schema: dict, path: tuple[str, ...] = ()):
    """All fields of a schema, those of objects inside included."""
    for name, field in schema["properties"].items():
        yield (*path, name), field
        if "properties" in field:
            yield from fields(field, (*path, name))


@pytest.mark.parametrize("path", READ)
def test_each_field_is_accepted_exactly_where_the_document_says(path):
    jsonschema = pytest.importorskip("jsonschema")
    read, smallest = READ[path]
    schema, rng, seen = openapi.body(path, DEFAULTS), random.Random(0), [0, 0]
    for names, field in fields(schema):
        if names in (("messages",), ("input",)):
            continue
        validator = jsonschema.Draft202012Validator(field)
        for value in values(field, rng):
            body = value
            for name in reversed(names):
                body = {name: body}
            for name in names[:1]:
                body = {**smallest, **WITH.get(name, {}), **body}
            valid = validator.is_valid(value)
            try:
                read(Reader(body), DEFAULTS)
                accepted = True
            except ApiError as error:
                accepted = False
                if _hangs_on_others(names, value, error):
                    continue
            assert accepted == valid, (names, value)
            seen[accepted] += 1
    assert min(seen) > 300


def _hangs_on_others(names: tuple[str, ...], value, error: ApiError) -> bool:
    """Whether a value that is right in itself is refused for what else is, or is not, in the body."""
    missing = names == ("think_longer",) or error.param == "think_longer.id"
    return (
        missing
        or (names == ("logprobs",) and value == 1)
        or (names[0] in ("min_thinking_tokens",) and error.param is None)
        or "is not a field of this API" in error.message
    )


@pytest.mark.parametrize("path", READ)
def test_every_field_that_a_parser_reads_is_in_the_document(path):
    read, smallest = READ[path]
    reader = Reader({**smallest, "stream": True})
    read(reader, DEFAULTS)
    documented = openapi.body(path, DEFAULTS)["properties"]
    assert set(reader.known) == set(documented)
    for name, field in documented.items():
        assert field.get("description"), f"{name} has no description"
    for name in (*settings.REFUSED, *settings.IGNORED, "thinking_token_budget", "model", "stream"):
        assert name in documented
    for group in ("reasoning", "thinking", "chat_template_kwargs", "stream_options"):
        assert set(reader.groups[group].known) == set(documented[group]["properties"])


def test_the_document_is_openapi():
    document = openapi.document(DEFAULTS, "1.2.3")
    assert json.loads(json.dumps(document)) == document
    assert set(document["paths"]) > {*READ, "/health"}
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_dict(document)
    assert schema.validate() is None and schema.statistic.operations.total == len(document["paths"])


@pytest.mark.parametrize("path", READ)
def test_messages_are_described_as_they_are_read(path):
    jsonschema = pytest.importorskip("jsonschema")
    read, smallest = READ[path]
    (name,) = {"messages", "input", "prompt"} & set(smallest)
    validator = jsonschema.Draft202012Validator(openapi.body(path, DEFAULTS))
    validator.validate(smallest)
    for bad in (None, [], 3, {}, [3], [None]):
        body = {**smallest, name: bad}
        if name == "prompt" and bad == [3]:
            continue  # one id
        assert not validator.is_valid(body), bad
        with pytest.raises(ApiError):
            read(Reader(body), DEFAULTS)
