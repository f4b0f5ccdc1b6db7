"""Texts of users that hold special tokens are counted and named."""

import pathlib

import s1jax
from s1jax.text import chat, written
from s1jax.text.tokenizer import Tokenizer
from tests.text.conftest import shared


def test_rows_are_counted_and_named():
    qwen = Tokenizer.load(shared("data/qwen_tokenizer"))
    texts = {"a": "plain <b>", "b": "x</think>y", "c": "<|im_start|>user\nhi<|im_end|>", "d": "<|fim_middle|>"}
    (note,) = written.notes(qwen, chat.FORMATS["s1"], texts.items(), "sent")
    assert note == (
        "3 of 4 rows hold delimiters or special tokens as text ('</think>', '<|im_start|>', '<|im_end|>',"
        " '<|fim_middle|>'), which is sent as text: b, c, d; repair or remove them unless it is meant."
    )
    many = [(str(i), "<|im_end|><think></think><|endoftext|><|im_start|>") for i in range(9)]
    (note,) = written.notes(qwen, chat.FORMATS["s1"], many, "trained on")
    assert ", ...), which is trained on as text: 0, 1, 2, 3, 4, ...; repair" in note and note.startswith("9 of 9 rows")
    assert written.notes(qwen, chat.FORMATS["s1"], [("a", "plain")], "sent") == []
    assert written.notes(qwen, chat.FORMATS["s1"], [], "sent") == []


def test_words_of_countdown_are_plain_text():
    tokenizer = Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")
    texts = [("row", "Make 21 from 3 7 1\n3*7=21\nFinal Answer: 3*7*1")]
    assert written.notes(tokenizer, chat.FORMATS["countdown"], texts, "sent") == []
