r"""Answers that mean the same and are written differently: LaTeX, plain text, Unicode, sentences."""

import re
import time

import pytest

from s1jax.evaluate import grading, notation, units


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        (" **$1,234.00.$** ", "1,234.00"),
        ("US$5", "5"),
        ("\u20b912", "12"),
        ("\u201c7\u201d", "7"),
        ("1 1/2", "3/2"),
        ("-1 1/2 cups", "-3/2 cups"),
        ("1\u00bd", "3/2"),
        ("\u00be", "3/4"),
        ("10\u207b\u2079", "1e-9"),
        ("1.5\u00d710\u00b3", "1.5e3"),
        ("3 x 10^5 people", r"3\times 10^5 people"),
        ("1e-9 eV", r"1\times 10^{-9} eV"),
        ("x\u00b2", "x^{2}"),
        ("3\u221a13", r"3\sqrt{13}"),
        ("2 sqrt(3)", r"2 \sqrt{3}"),
        ("ln 2", r"\ln  2"),
        ("a sin", "a sin"),
        ("negative 2", "-2"),
        ("50 percent", "50%"),
        ("1,000, 2,000", "1000, 2000"),
        ("100,200,300", "100,200,300"),
        ("(x,y)=(1,200)", "(x,y)=(1,200)"),
        ("1,000+2,000=$3,000", "1000+2000=3000"),
        ("y=3, x=5", "(5,3)"),
        (r"x=5 \text{ and } y=3", "(5,3)"),
        ("x=2, x=3", "x=2, x=3"),
        ("x_1=2, x_2=3", "x_1=2, x_2=3"),
        ("m=3, n=4, m+n=7", "m=3, n=4, m+n=7"),
    ],
)
def test_one_way_of_writing(answer, written):
    assert notation.normalize(answer) == written


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        (r"The area is $2\pi$.", r"2\pi."),
        (r"The area is \(2\pi\) square units.", r"2\pi square units."),
        ("The final answer is (3, 4).", "(3, 4)."),
        ("It is y = 2x + 3", "y = 2x + 3"),
        (r"\text{The answer is }5", "5"),
        ("The area of $R$ is 5", "5"),
        ("The probability that $x>3$ is 0.4", "0.4"),
        (r"The area is $2\pi$, which is 6.28", r"2\pi, which is 6.28"),
        ("$2$ ways", "$2$ ways"),
        ("There are $12$ ways and $3$ colors", "$12$ ways and $3$ colors"),
        ("He pays $5 and earns $7", "He pays $5 and earns $7"),
        ("between $5-$7", "between $5-$7"),
        (r"from \$5 to \$7", r"from \$5 to \$7"),
        ("The winner is Evelyn", "The winner is Evelyn"),
    ],
)
def test_what_a_sentence_says(sentence, answer):
    assert notation.said(sentence) == answer


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        (r"2\pi cm", r"2\pi"),
        ("5! ways", "5!"),
        ("3x dollars", "3x"),
        ("12 apples", ""),
        ("the 12", ""),
        (r"4 \times 20 students = 80 students", ""),
        (r"4 \times 20 students", r"4 \times 20"),
        (r"2\pi or so", ""),
        ("2xy", ""),
        ("x^2 + ab", None),
        ("f(2x ab", None),
    ],
)
def test_the_formula_before_the_first_word(text, formula):
    assert notation.head(text) == formula


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Fractions, signs and mixed numbers.
        ("\\tfrac12", "0.5"),
        ("1\\frac34", "7/4"),
        ("-3/4", "\\frac{-3}{4}"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-1.5"),
        ("0.\\overline{3}", "1/3"),
        ("-0.8\\overline{3}", "-5/6"),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt3}"),
        # Thousands.
        ("11,\\! 111", "11111"),
        ("1\\,000", "1000"),
        ("1 000 000", "1,000,000"),
        ("10^6", "1000000"),
        ("1e3", "1,000"),
        ("4.5\\times 10^{33}", "4.5e33"),
        ("-4.5 \\cdot 10^3", "-4,500"),
        # Units.
        ("5\\text{ cm}^2", "5"),
        ("5 \\mbox{ inches}", "5"),
        ("5 mph", "5"),
        ("50 cents", "50"),
        ("90^\\circ", "90"),
        ("10\\%", "0.1"),
        ("50\\%", "50"),
        ("12.5\\%", "12.5"),
        ("0.5%", "0.5"),
        # Intervals, sets, tuples, matrices.
        ("[1, 2)", "[1,2)"),
        ("x \\in [1,2]", "[1,2]"),
        ("-1<x<5", "(-1,5)"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(3,\\infty)"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("x=\\pm 3", "3,-3"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("\\begin{pmatrix}1\\\\ \\frac12\\end{pmatrix}", "(1, 0.5)"),
        ("\\begin{bmatrix} 1 & -2 \\end{bmatrix}", "\\left(1, -2\\right)"),
        # Whole numbers as AIME writes them.
        ("033", "33"),
        ("000", "0"),
        ("m+n=33", "033"),
        # Bases, letters, words.
        ("4210_5", "4210_{5}"),
        ("4210_5", "4210"),
        ("C", "\\text{(C)}"),
        ("\\text{even}", "even"),
        # Longer than anything that is computed with.
        ("9" * 5000, "9" * 5000),
        # Sentences.
        (r"The area is $2\pi$.", r"2\pi"),
        (r"The answer is $\frac{\sqrt{3}}{2}$.", r"\frac{\sqrt{3}}{2}"),
        (r"It is $\log_2 5$.", r"\log_2 5"),
        ("The result is $5!$", "120"),
        ("The answer is $7x$", "7x"),
        ("The value is $2^{10}$", "1024"),
        (r"The point is $(3,\frac{\pi}{2})$.", r"(3,\frac{\pi}{2})"),
        ("The range is $[-2,7]$.", "[-2,7]"),
        ("The root is $6-5i$.", "6-5i"),
        (r"The domain is $(-\infty,2)\cup(3,\infty)$.", r"(-\infty,2)\cup(3,\infty)"),
        ("The final answer is (3, 4).", "(3,4)"),
        (r"The matrix is $\begin{pmatrix}1&0\\0&1\end{pmatrix}$.", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
        (r"So the area is $2\pi$ square units.", r"It equals \(2\pi\)."),
        ("If $x=3$ then the area is 12", "12"),
        ("So his total cost is 264,000+12,000=$276,000", "276000"),
        ("So, there are 4 x 20 students = 80 students at that level.", "80"),
        ("The stack is 6,200/100 = 62.", "62"),
        # A formula with a word behind it.
        (r"2\pi \text{ cm}", r"2\pi"),
        ("5! ways", "120"),
        ("2^{10} subsets", "1024"),
        ("f(x) = x^2 for all x", "x^2"),
        ("12 a day", "12"),
        # Powers and mixed numbers.
        ("10^-9", r"\frac{1}{10^9}"),
        (r"10^{-9}\text{ eV}", "1e-9 eV"),
        ("3.2 x 10^5 people", "3.2e5"),
        ("10^6 people", "10^6"),
        ("1 1/2 cups", "1.5"),
        ("2 1/2 hours", "2.5"),
        (r"33\frac13\%", r"33\frac13"),
        ("33 1/3%", r"33\frac13"),
        ("50 percent", "0.5"),
        # Plain text and Unicode.
        ("3\u221a13", r"3\sqrt{13}"),
        (r"3\sqrt13", r"3\sqrt{13}"),
        ("(-\u221e, 2) \u222a (3,\u221e)", r"(-\infty,2)\cup(3,\infty)"),
        ("-\u00bd", "-0.5"),
        ("x\u00b2", "x^2"),
        ("1.5\u00b710^3", "1500"),
        ("2*pi", r"2\pi"),
        ("2 sqrt(3)", r"2\sqrt{3}"),
        ("ln 2", r"\ln 2"),
        (r"\varnothing", r"\emptyset"),
        (r"\bigl(1,2\bigr)", "(1,2)"),
        ("$1,000 and $2,000", "1000,2000"),
        # Values of variables, times and words.
        ("y=3, x=5", "(5,3)"),
        ("(1,2),(3,4)", r"\{(1,2),(3,4)\}"),
        ("3:30 PM", "3:30 p.m."),
        ("03:30", "3:30"),
        ("7 AM", "7:00 a.m."),
        ("2:4", "1:2"),
        ("xy", "yx"),
        ("Bob and Alice", "Alice, Bob"),
        ("Bob , Al, and Alice", "Al, Alice, Bob"),
    ],
)
def test_equal_in_another_notation(one, other):
    assert grading.equal(one, other) and grading.equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "[1,2]"),
        ("[0,1)", "[0,1]"),
        ("(1,2)", "(2,1)"),
        ("1,2", "1,2,3"),
        ("12", "1,2"),
        ("1, 200", "1200"),
        ("\\frac{1}{2}", "\\frac{1}{3}"),
        ("\\pi", "3.14"),
        ("4210_5", "4210_6"),
        ("2:3", "3:2"),
        ("33", "330"),
        ("10\\%", "20\\%"),
        ("12.5\\%", "12"),
        ("5\\%", "0.5"),
        ("1 1/2", "11/2"),
        ("0.\\overline{3}", "0.3"),
        ("1e3", "1e4"),
        ("e3", "3"),
        ("3\u20135", "-2"),
        ("-1<x<5", "[-1,5]"),
        ("x<5", "5"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(2,1)"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "(1,2,3,4)"),
        ("9" * 5000, "8"),
        ("0.\\overline{" + "3" * 5000 + "}", "1/3"),
        (r"The area is $2\pi$.", "2"),
        (r"The answer is $\frac{\sqrt{3}}{2}$.", "3"),
        (r"It is $\log_2 5$.", "5"),
        ("The result is $5!$", "5"),
        ("The answer is $7x$", "7"),
        ("The value is $2^{10}$", "10"),
        ("The probability that $x>3$ is 0.4", "3"),
        ("If $x=3$ then the area is 12", "3"),
        (r"2\pi \text{ cm}", "2"),
        ("5! ways", "5"),
        ("2^{10} subsets", "10"),
        ("3x dollars", "3"),
        ("2xy", "2"),
        ("x^2 + ab", "x^2"),
        ("10^-9", "10^-4"),
        ("3.2 x 10^-19 C", "3.2 x 10^-18 C"),
        (r"10^{-9}\text{ eV}", r"10^{-4}\text{ eV}"),
        ("1e-9 eV", "1e-4 eV"),
        ("1 1/2 cups", "0.5"),
        (r"33\frac13\%", r"34\frac13\%"),
        ("50 percent", "5"),
        ("7 a.m.", "7 p.m."),
        ("3:30 PM", "3:30 AM"),
        ("6:60", "3:30"),
        ("x=5,y=3", "(3,5)"),
        ("a=1,b=2,c=3", "(3,2,1)"),
        ("(2,3)", r"\{2,3\}"),
        ("cat", "act"),
        (r"\text{ABC}", r"\text{CBA}"),
        ("Bob beats Alice", "Alice beats Bob"),
        ("ln 2", "2"),
        ("sin 30", "30"),
        ("2 sqrt(3)", "3"),
        ("negative 2", "2"),
        ("1,000, 2,000", "1,2000"),
    ],
)
def test_another_value_in_like_notation(one, other):
    assert not grading.equal(one, other) and not grading.equal(other, one)


@pytest.mark.parametrize(
    "piece",
    ["a ", "1 ", "1a ", "a, ", "and ", "is ", "is 1", "$", "$a", r"\(", "x=", "x=1,", "(", "{", "1,000", "1 1/", "^-",
     "10^", "sqrt(", r"\text{", "pi", "\u00b2", "\u00bd", "per", " ", ":", "1:00 ", "or 1 ", "a.", "12 m/", "[", "A"],
)  # fmt: skip
def test_hostile_answers_take_no_time(piece):
    text = (piece * grading.LONGEST)[: grading.LONGEST]
    begun = time.monotonic()
    for form in (text, f"1{text}", f"{text}!"):
        written = notation.normalize(notation.said(form))
        notation.head(notation.plain(written))
        units.split(written)
        grading.extract(form)
        for pattern in vars(grading).values():
            if isinstance(pattern, re.Pattern):
                assert not (pattern.search(written) is None and pattern.fullmatch(written))
    assert time.monotonic() - begun < 1
