"""Words: what each form takes for one, and which texts are the same in it."""

import random

import pytest

from s1jax.curation.words import EXACT, FORMS, letters, number_blind, size, skeleton, unmarked, white_space


def test_each_form_of_one_text():
    text = "The Ｃafé\tsold 1,200.5 cups (20m²) in May-2024!"
    found = {name: " ".join(words(text)) for name, words in FORMS.items()}
    assert found == {
        "white_space": "the ｃafé sold 1,200.5 cups (20m²) in may-2024!",
        "letters": "the café sold 1 200 5 cups 20m2 in may 2024",
        "sorted_numbers": "the café sold 1 5 200 cups 20m2 in may 2024",
        "number_blind": "the café sold 0 cups 0 m 0 in may 0",
        "without_digits": "the café sold cups m in may",
        "unmarked": "the café sold 1200 5 cups 20 m 2 in may 2024",
        "skeleton": "the café sold 0 cups 0 m 0 in may 0",
    }
    long = "9" * 5000
    assert FORMS["sorted_numbers"](f"from {long} 08 7") == ["from", "7", "08", long]
    assert set(EXACT) | set(EXACT.values()) <= set(FORMS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\left( x \right)", "(x)"),
        (r"\dfrac{1}{2}\,\text{cm}", "1/2 cm"),
        (r"3 \cdot 4 \leq 5", "3·4≤5"),
        (r"\pi r^2", "πr²"),
        (r"\begin{align*} a &= 1 \\ b &= 2 \end{align*}", "a=1, b=2"),
        (r"10{,}000", "10,000"),
        (r"10\,000", "10000"),
        ("$A B C$", "ABC"),
        (r"\lfloor x \rfloor", "⌊x⌋"),
        (r"\mathbb{R}~is", "R is"),
        (r"a\nb".replace("b", "2"), "a 2"),
        ("求x的值", "求 x 的 值"),
        (r"\angle ABC in \triangle ABC", "∠ABC in △ABC"),
    ],
)
def test_settings_of_mathematics_that_are_the_same(one, other):
    assert unmarked(one) == unmarked(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sin x", r"\cos x"),
        ("x + 1", "x + 2"),
        (r"\inf S", r"\sup S"),
        (r"\leftharpoon", ""),  # not \left
        (r"\notanumber", ""),  # not \not or \n
        ("ABC", "ABD"),
        ("1,00", "100"),
    ],
)
def test_what_is_not_the_same(one, other):
    assert unmarked(one) != unmarked(other)


def test_numbers_are_one_sign():
    assert skeleton("twenty-one of 3 1/2") == ["0", "of", "0"]
    assert skeleton("Each one") == ["each", "0"]
    assert number_blind("3 1/2") == ["0", "0", "0"]


def test_the_size_counts_words_that_say_something():
    assert size(skeleton("Find x if x^2 + 3x = 12 and 4 > a")) == 3  # find, if, and
    assert size(skeleton("求最大的整数")) == 6
    assert size([]) == 0


def test_every_text_has_words():
    """No text is too odd: of random characters every form is a list of words that are not empty."""
    draw = random.Random(0)
    signs = [
        "\\",
        "$",
        "{",
        "}",
        "~",
        "0",
        "1",
        ",",
        ".",
        " ",
        "\n",
        "a",
        "Z",
        "é",
        "\u0301",
        "中",
        "²",
        "½",
        "\ud800",
        "_",
    ]
    for _ in range(500):
        text = "".join(draw.choices(signs, k=draw.randint(0, 30)))
        for words in FORMS.values():
            assert all(isinstance(word, str) and word for word in words(text))
    assert white_space("") == letters("\\,~$") == []
