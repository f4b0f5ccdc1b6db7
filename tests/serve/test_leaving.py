"""What a hand-off sends, and what it never sends."""

import re

import pytest

from s1jax.serve import leaving
from s1jax.serve.leaving import Send
from s1jax.text.messages import Message

CHAT = [Message("system", "be kind"), Message("user", "first"), Message("assistant", "one"), Message("user", "last")]


def test_the_last_question_leaves_and_no_more():
    assert leaving.messages(CHAT, "hm", Send()) == [{"role": "user", "content": "last"}]
    assert leaving.messages(CHAT[:3], "hm", Send()) == leaving.messages([], "", Send()) == []


def test_each_switch_adds_its_part():
    assert [m["content"] for m in leaving.messages(CHAT, "hm", Send(system=True))] == ["be kind", "last"]
    assert [m["content"] for m in leaving.messages(CHAT, "hm", Send(history=True))] == ["first", "one", "last"]
    (only,) = leaving.messages(CHAT, "hm", Send(thinking=True))
    assert only["content"].startswith("last\n\n") and only["content"].endswith("\nhm")
    assert Send(system=True, history=True).names() == ["last question", "system", "history"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("write to jo.doe+x@mail.example.org now", "mail"),
        ("write to jo＠mail.example.org", "mail"),
        ("jo\u200b@mail.example.org", "mail"),
        ("use sk-proj-0123456789abcdefXYZ", "keys"),
        ("ghp_0123456789abcdefghijABCD", "keys"),
        ("AKIAIOSFODNN7EXAMPLE", "keys"),
        ("-----BEGIN RSA PRIVATE KEY-----", "keys"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x", "keys"),
        ("my password: hunter22", "keys"),
        ("card 4111 1111 1111 1111", "digits"),
        ("account 123456789", "digits"),
        ("call +44 20 7946 0958", "digits"),
        ("call (212) 555-0123", "digits"),
        ("078-05-1120", "digits"),
        ("DE89 3704 0044 0532 0130 00", "digits"),
        ("١٢٣٤٥٦٧٨٩", "digits"),
        ("４１１１１１１１１", "digits"),
        ("project BLUEBIRD", "own 2"),
    ],
)
def test_what_must_stay_is_found(text, name):
    own = [re.compile("redwing"), re.compile("bluebird", re.IGNORECASE)]
    assert leaving.blocked_by(["harmless", text], list(leaving.PATTERNS), own) == name
    assert not leaving.blocked_by([text], [], [])


@pytest.mark.parametrize(
    "text",
    [
        "Use 3, 7, 25, 50, 75 and 100 to make 952.",
        "3 7 25 50 75 100 952",
        "What is 12345678 / 3.14159265?",
        "Let a_1 = 2024 and x @ y = x + y. Find 10 @ 20.",
        "In 1999-2004 it rained 365 days. Is a secret token worth it?",
    ],
)
def test_problems_of_mathematics_may_leave(text):
    assert leaving.blocked_by([text], list(leaving.PATTERNS)) == ""
