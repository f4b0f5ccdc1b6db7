"""The journal of a run: what a killed process leaves, and that one process at a time writes it."""

import pytest

from s1jax.errors import UserError
from s1jax.io.journal import Journal


def test_rows_outlive_the_process_and_half_a_line_does_not(tmp_path):
    with Journal(tmp_path / "j", "run") as journal:
        journal.append({"index": 1, "text": "ä"})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"fingerprint": "run", "ind')
    with Journal(tmp_path / "j", "run") as journal:
        assert journal.rows == [{"fingerprint": "run", "index": 1, "text": "ä"}]
        journal.append({"index": 2})
    with Journal(tmp_path / "j", "run") as journal:
        assert [row["index"] for row in journal.rows] == [1, 2]
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(UserError, match="j belongs to another run"):
        Journal(tmp_path / "j", "another")
    assert (tmp_path / "j").read_bytes() == before


def test_a_line_may_be_torn_anywhere(tmp_path):
    path = tmp_path / "j"
    with Journal(path, "run") as journal:
        for index in range(2):
            journal.append({"index": index, "text": "ä\r\u2028\x85\n"})
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(path, "run") as journal:
            assert [row["index"] for row in journal.rows] == list(range(whole[:size].count(b"\n")))
            journal.append({"index": 9})
        with Journal(path, "run") as journal:
            assert [row["index"] for row in journal.rows] == [*range(whole[:size].count(b"\n")), 9]


@pytest.mark.parametrize("text", [b"my notes", b"my\rnotes", b'{"fingerprint": "other', b'{"finger: x', b" "])
def test_a_text_without_a_newline_at_its_end_is_not_taken_for_a_torn_line(tmp_path, text):
    line = b'{"fingerprint": "run", "index": 0}\n'
    for before in (b"", line):
        (tmp_path / "j").write_bytes(before + text)
        with pytest.raises(UserError, match="j is not the output of a run; choose another file"):
            Journal(tmp_path / "j", "run")
        assert (tmp_path / "j").read_bytes() == before + text


def test_a_second_writer_is_refused(tmp_path):
    with Journal(tmp_path / "j", "run") as journal:
        journal.append({"index": 1})
        with pytest.raises(UserError, match=r"another process writes .*j; wait"):
            Journal(tmp_path / "j", "run")
        journal.append({"index": 2})
    with Journal(tmp_path / "j", "run") as journal:
        assert [row["index"] for row in journal.rows] == [1, 2]
        journal.remove()
        other = Journal(tmp_path / "j", "another")  # a file of its own
    other.append({"index": 3})
    other.close()
    assert b"another" in (tmp_path / "j").read_bytes()


def test_nothing_is_left_of_a_run_without_rows(tmp_path):
    with Journal(tmp_path / "j", "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path):
    with Journal(tmp_path / "other", "run") as journal:
        journal._file.close()
        journal._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        with pytest.raises(OSError, match="No space left") as caught:
            journal.append({"index": 1})
        assert caught.value.filename == str(tmp_path / "other")
        journal._file = None


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "j").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="j is a link, which is not followed; remove it"):
        Journal(tmp_path / "j", "run")
    assert not (tmp_path / "elsewhere").exists()
