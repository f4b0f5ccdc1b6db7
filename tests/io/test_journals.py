"""The journals of several processes: what each reads of the others, and who may write them."""

import threading

import pytest

from s1jax.errors import UserError
from s1jax.io import journals as journals_lib
from s1jax.io.journal import Journal
from s1jax.io.journals import ALONE, Journals, Share


def indices(journals):
    return sorted(row["index"] for row in journals.rows)


def write(path, *rows):
    with Journal(path, "run") as journal:
        for row in rows:
            journal.append({"index": row})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_divide_all_rows(count):
    shares = [Share(process, count) for process in range(count)]
    assert sorted(i for share in shares for i in range(7) if i in share) == list(range(7))
    assert [share.count(7) for share in shares] == [sum(i in share for i in range(7)) for share in shares]


def test_another_number_of_processes_reads_what_there_is(tmp_path):
    """Also a line that a killed process has left half written, which only its owner removes."""
    path = tmp_path / "out.partial"
    for process, row in enumerate([0, 1, 2, 3]):
        write(path.with_name(f"out.partial-{process}") if process else path, row)
    with (tmp_path / "out.partial-2").open("ab") as file:
        file.write(b'{"fingerprint": "run", "ind')
    (tmp_path / "out.partial-old").write_text("somebody's")
    with Journals(path, "run", Share(0, 2)) as first, Journals(path, "run", Share(1, 2)) as second:
        assert indices(first) == indices(second) == [0, 1, 2, 3]
        second.append({"index": 5})
        first.gather(lambda rows: len(rows) < 5)
        assert indices(first) == [0, 1, 2, 3, 5]
        first.remove()
    assert [file.name for file in tmp_path.iterdir()] == ["out.partial-old"]


def test_a_file_of_another_run_or_writer_is_refused(tmp_path):
    path, other = tmp_path / "j", tmp_path / "j-1"
    write(other, 1)
    with pytest.raises(UserError, match="j-1 belongs to another run"):
        Journals(path, "mine", Share(0, 2))
    # A process of an earlier run that has not noticed yet that the others are gone.
    with Journal(other, "run"), pytest.raises(UserError, match=r"another process writes .*j-1; wait"):
        Journals(path, "run", ALONE)
    assert not path.exists()
    with Journals(path, "run", ALONE) as journals:
        assert indices(journals) == [1]


def test_the_others_wait_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(journals_lib, "_LOOK", 0.01)
    with Journals(tmp_path / "j", "run", Share(0, 2)) as first:
        first.append({"index": 0})
        second = Journals(tmp_path / "j", "run", Share(1, 2))
        waiting = threading.Thread(target=second.wait)
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        first.remove()
        waiting.join(60)
        assert not waiting.is_alive() and list(tmp_path.iterdir()) == []


def test_a_process_that_sees_other_files_says_so(tmp_path):
    with pytest.raises(UserError, match="which process 0 has, is not there; all processes have to see the same folder"):
        journals_lib.check_seen(tmp_path / "j", agree=True)
    with pytest.raises(UserError, match="are not those of process 0"):
        journals_lib.check_seen(tmp_path / "j", agree=False)
