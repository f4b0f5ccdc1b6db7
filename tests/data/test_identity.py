"""Identity of questions."""

import hashlib

import pytest

from s1jax.data import identity


def test_the_id_is_the_hash_of_the_normalised_text():
    assert identity.question_id("  What\tis\n 1 + 1? ") == hashlib.sha256(b"What is 1 + 1?").hexdigest()[:32]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ﬁnd x", "find x", True),  # a ligature
        ("a\u00a0b", "a b", True),  # a space that does not break
        ("x²", "x2", True),  # NFKC writes both alike
        ("Find x", "find x", False),
        ("gcd of 48", "gcd of 40", False),
    ],
)
def test_texts_that_are_one_question(one, other, same):
    assert (identity.question_id(one) == identity.question_id(other)) is same


def test_a_lone_surrogate_has_an_id():
    assert identity.question_id("\ud800") != identity.question_id("")
