"""Domains by a teacher: lists, what is asked, which label an answer names; what is unknown is said."""

import pytest

from s1jax.curation import labels
from s1jax.errors import UserError

SOME = ("algebra", "linear algebra", "number theory", "physics", "11-XX")


def line(row_id, content, number=0, state="done"):
    """A line of the journal of answers."""
    return {"id": row_id, "answer": number, "state": state, "content": content}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("algebra", "algebra"),
        ("  **Linear Algebra.**\n\n", "linear algebra"),
        ("Subject: linear algebra", "linear algebra"),
        ("It asks for primes.\n\n`Number  theory`", "number theory"),
        ("algebra\nphysics", "physics"),
        ("11-xx", "11-XX"),
        ("physics or algebra", None),
        ("Algebra and linear algebra", None),
        ("geometry", None),
        ("geophysics", None),
        ("", None),
        ("...", None),
    ],
)
def test_an_answer_names_one_label_or_none(answer, label):
    assert labels.label_of(answer, SOME) == label


def test_the_own_list_names_itself():
    assert 40 <= len(labels.SUBJECTS) == len(set(labels.SUBJECTS))
    for label in labels.SUBJECTS:
        assert labels.label_of(f"The subject is {label}.", labels.SUBJECTS) == label


def test_unknown_answers_are_said_and_counted():
    answers = [
        *(line("a", "algebra", 0), line("a", "physics", 1), line("a", "Physics!", 2)),
        *(line("b", "geometry"), line("b", "physics", 1, "cut"), line("b", "geometry", 2)),
        *(line("c", "physics", 0), line("c", "algebra", 1)),
        *(line("elsewhere", "nonsense"), line("d", "", 0, "failed")),
    ]
    domains, notes = labels.assign(["a", "b", "c", "a", "d"], answers, SOME)
    assert domains == ["physics", None, "algebra", "physics", None]
    assert notes == [
        "2 answers name none of the 5 labels, or several: 'geometry'.",
        "answers without a label: 1 cut, 1 failed.",
        "2 of 5 rows have no domain; their column `domain` is left out.",
    ]
    shuffled = [answers[i] for i in (7, 1, 4, 0, 9, 8, 2, 6, 5, 3)]
    assert labels.assign(["a", "b", "c", "a", "d"], shuffled, SOME) == (domains, notes)
    with pytest.raises(UserError, match=r"none of the rows has a domain; .* 2 answers name none"):
        labels.assign(["b"], answers, SOME)


def test_a_list_is_read_and_shown_to_the_teacher(tmp_path):
    path = tmp_path / "msc.txt"
    path.write_text("\ufeff# own codes\n11\tNumber theory\n\n15\n  52\t Convex geometry \n")
    found = labels.read(path)
    assert found == {"11": "Number theory", "15": "", "52": "Convex geometry"}
    text = labels.template(found)
    assert "- 11: Number theory\n- 15\n- 52: Convex geometry\n" in text
    assert text.count("{question}") == 1 and text.endswith("{question}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("algebra\n", "has 1 labels"),
        ("algebra\nAlgebra.\n", "2: 'Algebra.' is there already as 'algebra'"),
        ("algebra\n--\n", "2: the label '--' has neither letters nor digits"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, content, words):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        labels.read(path)
