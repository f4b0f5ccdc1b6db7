"""The index of n-grams: what it finds, and that it finds nothing else."""

import random

from s1jax.curation.ngrams import Index, ngrams


def test_ngrams_are_all_runs():
    assert list(ngrams(["a", "b", "c", "d"], 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(ngrams(["a", "b"], 3)) == []
    assert list(ngrams(["a", "b"], 1)) == [("a",), ("b",)]


def test_the_index_finds_what_a_search_through_all_texts_finds():
    draw = random.Random(0)
    texts = [[draw.choice("abc") for _ in range(draw.randint(0, 12))] for _ in range(40)]
    index = Index(texts, 4)
    assert len(index) == len({gram for text in texts for gram in ngrams(text, 4)})
    for _ in range(300):
        words = [draw.choice("abcd") for _ in range(draw.randint(0, 9))]
        for start in range(len(words) - 3):
            gram = tuple(words[start : start + 4])
            holders = [
                number
                for number, text in enumerate(texts)
                if any(tuple(text[i : i + 4]) == gram for i in range(len(text)))
            ]
            assert list(index.holders(gram)) == holders


def test_the_ngrams_of_a_text_are_different_and_in_order():
    index = Index([["a", "b", "a", "b", "c"]], 2)
    assert index.grams(0) == (("a", "b"), ("b", "a"), ("b", "c"))


def test_clean_text_meets_a_large_index_nowhere():
    """With hashes of 32 bits, 20,000 x 300,000 pairs of n-grams would meet once or twice."""
    draw = random.Random(1)
    vocabulary = [f"w{number}" for number in range(2000)]
    index = Index(([f"eval{draw.choice(vocabulary)}" for _ in range(200)] for _ in range(104)), 8)
    assert len(index) > 20_000
    texts = (draw.choices(vocabulary, k=300) for _ in range(1000))
    assert not any(index.holders(gram) for text in texts for gram in ngrams(text, 8))
