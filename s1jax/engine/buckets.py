"""Few sizes for many lengths, because every shape is a program to compile."""

from __future__ import annotations


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()


def bucket(length: int) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, ... that holds `length`; between powers of two less is wasted."""
    size = max(32, power_of_two(length))
    return size * 3 // 4 if size > 32 and length <= size * 3 // 4 else size
