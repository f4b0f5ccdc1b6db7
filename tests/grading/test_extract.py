"""Where the final answer is found in a text, and that this takes linear time."""

import sys

import pytest

from s1jax.grading import extract


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
        (r"\boxed{", ""),
        (r"\boxed", ""),
        ("no box", ""),
        ("", ""),
    ],
)
def test_boxed_matches_braces_and_takes_the_last_box(text, answer):
    assert extract._joined(text, extract._boxes(text)) == answer


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
        # Headings are no marks.
        ("So \\boxed{18}.\n\n#### Verification\n9*2=18 as wanted.", "18"),
        ("**Answer: 18**\n\n#### **Check**\n9*2=18.", "18"),
        ("#### Step 1: Eggs\n16-7=9\n#### 2. Money\n9*2=18\n\nThe sum is 18.", "18."),
        ("So it is\n#### 18 dollars\n", "18 dollars"),
        ("#### 18\n\nQuestion: the next one", "18"),
        ("Final Answer: 5\n\nThe answer: is therefore clear.", "5"),
        ("my answers: 12", "my answers: 12"),
        ("the answer is 12", "12"),
        ("Final Answer:", ""),
        ("", ""),
    ],
)
def test_the_last_mark_with_something_behind_it_wins(text, answer):
    assert extract.extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: The final answer is $\\frac12$. I hope it is correct.", "\\frac12"),
        ("The final answer is $42$. I hope it is correct.", "42"),
        ("Final Answer: The final answer is $42$. I hope it is correct. Note: " + "and so on " * 900, "42"),
        ("<answer>70</answer>", "70"),
        ("<answer>\n\\frac{1}{2}\n</answer> as said", "\\frac{1}{2}"),
        ("<answer>so \\boxed{70}</answer>", "70"),
        ("\\(\\boxed{70}\\).</answer>", "70"),
        ("答案：42", "42"),
        ("最终答案：42", "42"),
        ("因此，答案为 $\\boxed{42}$。", "42"),
        ("La réponse est 12.", "12."),
        ("Ответ: 33", "33"),
        ("정답: 21", "21"),
        ("The roots are $\\boxed{2}$ and $\\boxed{-5}$.", "2, -5"),
        ("$\\boxed{2}$, $\\boxed{-5}$ or $\\boxed{3}$", "2, -5, 3"),
        ("\\boxed{3}. I was wrong, and so I do it again: \\boxed{4}", "4"),
        ("\\boxed{3}, no, \\boxed{4}", "4"),
        ("Final Answer: $5$ or $7$", "5, 7"),
        ("Final Answer: The largest $n$ is 34.", "34."),
        ("Final Answer: The area of $ABC$ is $12$ for $x=3$.", "12"),
        ("We know $a=3$. So there are 12 of them.", "12 of them."),
        ("so the answer is 5. Check: 2+3=5 and 7-1=6.", "5"),
    ],
)
def test_ways_to_say_an_answer(text, answer):
    assert extract.extract(text) == answer


def test_an_answer_has_a_bound():
    assert extract.extract("\\boxed{" + "1" * 5000 + "}") == "1" * extract.LONGEST
    assert extract.extract("Answer: " + "so " * 20000 + "7").endswith("so 7")


HOSTILE = [
    "Final Answer{}", "Final Answer:{}x", "Answer{}:", "{}\nFinal Answer: 7", "#### {}\nx y", "<answer>{}",
    "\\boxed{}{{7}}", "$\\boxed{{7}}{}\\boxed{{8}}$", "I hope it is correct.{}x",
]  # fmt: skip
REPEATED = [
    "\\boxed{",
    "\\boxed{7}",
    "####\n",
    "answer: ",
    "the answer is ",
    "$",
    "\\(",
    "\n",
    " is",
    "{",
    "<answer>",
    "*",
    "1,",
    "a. A",
    "\\boxed 7 ",
    "\\",
    "} ",
    "Final Answer:\n",
]


def steps(text):
    """Calls and lines of Python that `extract` takes, which no load of the machine changes."""
    count = 0

    def step(*_):
        nonlocal count
        count += 1
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        extract.extract(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("part", REPEATED)
def test_twice_the_text_takes_twice_the_steps(part):
    once, twice = (steps(part * (count // len(part))) for count in (6_000, 12_000))
    assert twice < 2.5 * once + 200


@pytest.mark.parametrize(
    "text", [text.format(" " * 40_000) for text in HOSTILE] + [p * (48_000 // len(p)) for p in REPEATED]
)
def test_hostile_texts_end(text):
    """A quadratic pattern takes many seconds for one of these, and the suite its hours."""
    assert len(extract.extract(text)) <= extract.LONGEST
