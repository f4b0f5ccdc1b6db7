"""Extraction of final answers, and their equality, on the traps that graders are known to fall into."""

import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from s1jax.config import InputError
from s1jax.evaluate import grading

GSM8K = pathlib.Path(__file__).resolve().parents[3] / "shared/data/gsm8k_test.jsonl"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"so \boxed {5}", "5"),
        (r"so \fbox{5}", "5"),
        (r"so $\boxed 5$", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{1}{\sqrt{2}}}} is it", r"\sqrt{\frac{1}{\sqrt{2}}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{x = \boxed{7} + 1}", r"x = \boxed{7} + 1"),
        (r"\boxed{3}, no, \boxed{4}", "4"),
        (r"\boxed{3}, then \boxed{4", "3"),
        (r"\boxed{5} \boxed{}", "5"),
        (r"\boxed{5} \boxed{ \boxed{ }}", "5"),
        (r"\boxed{ \boxed{ 7 } }", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"\boxed", None),
        ("no box", None),
        ("", None),
    ],
)
def test_boxed_matches_braces_and_takes_the_last_box(text, answer):
    assert grading.boxed(text) == answer


def test_boxes_without_end_take_no_time():
    count, begun = 50_000, time.monotonic()
    assert grading.boxed(r"\boxed{" * count + "7" + "}" * count) == "7"
    assert grading.boxed(r"\boxed{" * count) is None
    assert grading.boxed(r"\boxed{7}" + r"\boxed{" * count) == "7"
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: 12", "12"),
        ("Final Answer: (7*1)*3", "(7*1)*3"),
        ("final answer : 12\nand more", "12"),
        ("**Final Answer:** 12", "12"),
        ("**Final Answer**: 12", "12"),
        ("Answer: 12", "12"),
        ("Final Answer:\n\n12\n", "12"),
        ("Final Answer: The final answer is $\\boxed{12}$. I hope it is correct.", "12"),
        ("Final Answer: 11\nNo, wait.\nFinal Answer: 12", "12"),
        ("Answer: 11, but in full: \\boxed{12}", "12"),
        ("First \\boxed{11}.\nAnswer: 12", "12"),
        ("Final Answer: 12\nFinal Answer:", "12"),
        ("Final Answer: 12\nFinal Answer: $\\boxed{ }$", "12"),
        ("\\boxed{12}\nFinal Answer: \\boxed{}", "12"),
        ("The sum is 5.\n#### 12", "12"),
        ("####12", "12"),
        ("a heading ### Answer: 12", "12"),
        ("x #### 12", None),
        # Headings are no marks.
        ("So \\boxed{18}.\n\n#### Verification\n9*2=18 as wanted.", "18"),
        ("**Answer: 18**\n\n#### **Check**\n9*2=18.", "18"),
        ("#### Step 1: Eggs\n16-7=9\n#### 2. Money\n9*2=18\n\nThe sum is 18.", None),
        ("So it is\n#### 18 dollars\n", "18 dollars"),
        ("#### 18\n\nQuestion: the next one", "18"),
        ("Final Answer: 5\n\nThe answer: is therefore clear.", "5"),
        ("my answers: 12", None),
        ("the answer is 12", None),
        ("Final Answer:", None),
        ("", None),
    ],
)
def test_the_last_mark_with_something_behind_it_wins(text, answer):
    assert grading.extract(text) == answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Final Answer: 1,234", "1234"),
        ("Final Answer: 1234.", "1,234"),
        ("Final Answer: $18", "18"),
        ("Final Answer: \\$18.00", "18"),
        ("Final Answer: $18$.", "18"),
        ("Final Answer: \\(18\\)", "18"),
        ("Final Answer: 18 dollars", "18"),
        ("Final Answer: 18 dollars a day.", "18"),
        ("The final answer is: none\n\\boxed{12\\text{ cm}}", "12"),
        ("Answer: 12", "12\\text{ cm}"),
        ("Answer: 1{,}000", "1000"),
        ("Answer: 025", "25"),
        ("Answer: \u22127", "-7"),
        ("Answer: 0.5", "\\frac12"),
        ("Answer: 1/2", "\\dfrac{1}{2}"),
        ("Answer: 5/2", "2\\frac{1}{2}"),
        ("Answer: 2^{1/2}", "\\sqrt{2}"),
        ("Answer: (x+1)^2", "x^2+2x+1"),
        ("Answer: (3, \\pi/2)", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("Answer: 90 degrees", "90^\\circ"),
        ("Answer: 50%", "50\\%"),
        ("Answer: (1,2]", "(1,2]"),
        ("Answer: evelyn", "\\text{Evelyn}"),
        ("Answer: (B)", "B"),
        ("Answer: B.", "B"),
        ("x=5", "5"),
        ("So he earns 18 dollars.", "18"),
        ("Thinking aloud.\n\n18\n", "18"),
        ("Final Answer:\n\\[\n5\n\\]", "5"),
        ("Final Answer:\n$$\n5\n$$", "5"),
        ("So it is\n```text\n5\n```", "5"),
        ("Answer\uff1a5", "5"),
        ("Answer: `5`", "5"),
        ("Answer: \u20ac5", "5"),
        ("Answer: \u20135", "-5"),
        ("\\boxed{\\text{025}}", "25"),
        ("\\boxed{\\textbf{025}}", "25"),
        ("\\boxed{\\text{1,000}}", "1000"),
        ("\\boxed{\\text{The answer is }5}", "5"),
    ],
)
def test_equal_answers_written_differently(text, right):
    assert grading.correct(text, right)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Answer: 7", "-7"),
        ("Answer: 12345", "1234"),
        ("Answer: 1.234", "1,234"),
        ("Answer: 5x", "5"),
        ("Answer: 7!", "7"),
        ("Answer: 3:00", "3"),
        ("Answer: [1,2]", "(1,2]"),
        ("Answer: 0.333", "1/3"),
        ("Answer: A", "B"),
        ("Answer: 18\nAnswer: 19", "18"),
        ("\\boxed{18} or rather \\boxed{19}", "18"),
        ("18\nwhich is nice", "18"),
        ("Answer: (((((", "5"),
        ("Answer:", "5"),
        ("", "5"),
        ("\\boxed{}", "5"),
        ("5", ""),
    ],
)
def test_different_answers(text, right):
    assert not grading.correct(text, right)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_answer_that_explodes_is_wrong_after_the_timeout(monkeypatch):
    monkeypatch.setattr(grading, "TIMEOUT", 1)
    start = time.monotonic()
    assert not grading.correct("Answer: 9^{9^{9}}", "\\frac{1}{7}")
    assert time.monotonic() - start < 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_timeout_that_is_lost_in_a_callback_comes_again():
    class Careless:
        def __del__(self):
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass

    start = time.monotonic()
    with pytest.raises(grading._TooLongError), grading._time_limit(0.1):
        careless = Careless()
        del careless
        time.sleep(10)
    assert time.monotonic() - start < 5
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_endless_answer_is_looked_at_from_its_end():
    text = "Answer: " + "so " * 20000 + "7"
    assert grading.correct(text, "7")
    assert not grading.correct("{" * 100_000, "7")


def test_grading_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(grading.correct("Answer: 0.5", "\\frac{1}{2}")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": "two and two\nmake <<2+2=4>>4.\n#### 4"}, "4"),
        ({"answer": "#### 70,000"}, "70,000"),
        ({"answer": 25}, "25"),
        ({"answer": 2.5}, "2.5"),
        ({"answer": " 025 "}, "025"),
        ({"answer": "(3, \\frac{\\pi}{2})", "solution": "so $\\boxed{4}$"}, "(3, \\frac{\\pi}{2})"),
        ({"solution": "We see\nthat it is $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        ({"answer": "", "solution": "4"}, "4"),
        ({"answer": None, "solution": "Answer: 4"}, "4"),
    ],
)  # fmt: skip
def test_reference_answers(row, answer):
    assert grading.reference(row, "rows.jsonl:1") == answer


@pytest.mark.parametrize(
    "row",
    [{}, {"question": "2+2"}, {"answer": ""}, {"answer": [4]}, {"answer": True}, *json.loads(
        '[{"answer": NaN}, {"answer": Infinity}, {"answer": -Infinity, "solution": NaN}]'
    )],
)  # fmt: skip
def test_a_row_without_an_answer_is_named(row):
    with pytest.raises(InputError, match=r"rows\.jsonl:3: no answer.*`answer` or `solution`"):
        grading.reference(row, "rows.jsonl:3")


def test_an_answer_that_nothing_can_match_is_named():
    with pytest.raises(InputError, match=r"rows\.jsonl:3: the answer in `answer` has 5000 characters.*give a shorter"):
        grading.reference({"answer": "1" * 5000}, "rows.jsonl:3")


def test_a_worked_solution_without_a_marked_answer_is_named():
    with pytest.raises(InputError, match=r"rows\.jsonl:3: `answer` has several lines"):
        grading.reference({"answer": "first this\nthen that"}, "rows.jsonl:3")


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not at hand (../shared/data)")
def test_all_of_gsm8k_grades_itself_right_and_its_neighbour_wrong():
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    answers = [grading.reference(row, str(GSM8K)) for row in rows]
    assert len(answers) == 1319 and all(answer[-1].isdigit() for answer in answers)
    for row, answer, neighbour in zip(rows, answers, answers[1:] + answers[:1], strict=True):
        assert grading.correct(row["answer"], answer)
        same = answer.replace(",", "") == neighbour.replace(",", "")
        assert grading.correct(f"Final Answer: ${neighbour}", answer) == same


def test_plain_numbers_do_not_wait_for_the_import_of_math_verify():
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "from s1jax.evaluate import grading\n"
        "assert grading.correct('Answer: $1,234.', '1234') and not grading.correct('Answer: 5', '6')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    assert grading.letter(text, ["7", "8 m", "Elephant", "10"]) == letter


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
    assert grading.letter(f"Final Answer: {text}", choices) == letter
