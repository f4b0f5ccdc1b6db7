"""Groups of layers."""

import pytest

from s1jax.config.grouping import group
from s1jax.config.layers import GQA, Dense, Layer

_LAYERS = {name: Layer(GQA(1, 1, 2), Dense(width)) for width, name in enumerate("abcd", 1)}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("aaaa", "4a"),
        ("ababab", "3ab"),
        ("aab" * 4 + "aa", "4aab 2a"),
        ("abbbb", "1a 4b"),
        ("aaabbbb", "3a 4b"),
        ("abcd", "1a 1b 1c 1d"),
        ("aabaabd", "2aab 1d"),
        ("a", "1a"),
    ],
)
def test_layers_become_the_patterns_that_cover_most(layers, expected):
    found = group([_LAYERS[name] for name in layers])
    names = {layer: name for name, layer in _LAYERS.items()}
    assert " ".join(f"{one.repeat}{''.join(names[layer] for layer in one.pattern)}" for one in found) == expected
    assert [layer for one in found for layer in one.pattern * one.repeat] == [_LAYERS[name] for name in layers]
