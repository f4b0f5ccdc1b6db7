"""Letters of choices, however a model writes them."""

import pytest

from s1jax.grading import choices as choices_lib


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("Final Answer: C.", "C"),
        ("Answer: **C**", "C"),
        ("Answer: \\boxed{C}", "C"),
        ("so $\\boxed{\\textbf{(C)}}$", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("Answer: C) Elephant", "C"),
        ("Answer: C. Elephant", "C"),
        ("Answer: C: Elephant", "C"),
        ("Answer: (C) Elephant.", "C"),
        ("The answer is A because of the rest", "A"),
        ("The correct option is (C) because (A) is wrong", "C"),
        ("Answer: D), because it is", "D"),
        ("Thinking about A.\nAnswer: B", "B"),
        ("I think C.", "C"),
        ("A cat is C", "C"),
        ("Answer: Elephant", "C"),
        ("Answer: 10", "D"),
        ("Answer: 8 m", "B"),
        ("Answer: B is correct", "B"),
        ("A is correct", "A"),
        ("option b", "B"),
        ("B is right, A is wrong", "B"),
        ("A is right, B is wrong", "A"),
        ("neither A nor C, so B", "B"),
        ("Neither A nor B", None),
        ("not A or B", None),
        ("B is wrong", None),
        ("A lot of words", None),
        ("Answer: 'B'", "B"),
        ('Answer: "B"', "B"),
        ("all but A", None),
        ("all of them except A and B", None),
        ("nothing but A", "A"),
        ("All of this is wrong, but A is right", "A"),
        ("A or B", None),
        ("Both A and B", None),
        ("Answer: None of the above", None),
        ("E", None),
        ("", None),
    ],
)
def test_letters(text, letter):
    assert choices_lib.letter(text, ["7", "8 m", "Elephant", "10"]) == letter


VITAMINS = ["Vitamin D", "Vitamin C", "Vitamin B", "Vitamin A"]
ENERGIES = ["10^-4 eV", "10^-9 eV", "10^-11 eV", "10^-8 eV"]
ORDERS = ["7", "A > B > C", "Elephant", "10"]


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("Vitamin C", VITAMINS, "B"),
        ("vitamin c.", VITAMINS, "B"),
        ("\\text{Vitamin C}", VITAMINS, "B"),
        ("Option B: Vitamin C", VITAMINS, "B"),
        ("B - Vitamin C", VITAMINS, "B"),
        ("**B) Vitamin C**", VITAMINS, "B"),
        ("Vitamin E", VITAMINS, None),
        ("10^-9 eV", ENERGIES, "B"),
        ("$10^{-9}\\,\\text{eV}$", ENERGIES, "B"),
        ("The energy is $10^{-8}$ eV.", ENERGIES, "D"),
        ("10^-7 eV", ENERGIES, None),
        ("A > B > C", ORDERS, "B"),
        ("A but not B", ORDERS, "A"),
        ("A because it is large", ORDERS, "A"),
        ("A since it is large", ORDERS, "A"),
        ("A not so large one", ["7", "8"], "A"),
        ("A large one", ORDERS, None),
        ("Choice C", ORDERS, "C"),
        ("A > C", ORDERS, None),
    ],
)
def test_letters_of_choices_that_hold_letters(text, choices, letter):
    assert choices_lib.letter(f"Final Answer: {text}", choices) == letter
