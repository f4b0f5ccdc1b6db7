"""The folder of a checkpoint: found once, held, and the next newest where it goes away all the same."""

import errno
import shutil

import pytest

from s1jax.checkpoint import digests, locate
from s1jax.errors import UserError


def make(workdir, *steps):
    for step in steps:
        folder = locate.step_folder(workdir, step)
        folder.mkdir(parents=True)
        (folder / "s1jax.json").write_text(str(step))
        digests.write(folder)


def test_the_newest_step_and_its_number(tmp_path):
    make(tmp_path, 2, 10, 9)
    (tmp_path / "checkpoints" / "11").mkdir()  # not finished
    for other in ("²", "010", "x"):
        (tmp_path / "checkpoints" / other).mkdir()
        (tmp_path / "checkpoints" / other / "digests.json").write_text("{}")
    folder = locate.resolve(tmp_path)
    assert folder.name == "10" and locate.finished_steps(tmp_path) == [2, 9, 10]
    assert locate.step_of(folder) == 10 and locate.step_of(tmp_path) is None
    assert locate.resolve(folder) == folder


def test_what_is_held_is_not_removed(tmp_path):
    make(tmp_path, 1)
    with locate.hold(tmp_path) as folder, locate.hold(folder):
        make(tmp_path, 2)
        assert not locate.remove(folder) and digests.is_there(folder)
        with locate.hold(tmp_path) as newer:
            assert newer.name == "2"
    assert locate.remove(folder) and not folder.exists()
    make(tmp_path, 3)
    locate.step_folder(tmp_path, 3).joinpath("digests.json").unlink()
    assert locate.remove(locate.step_folder(tmp_path, 3)), "what was never finished"


def test_without_locks_the_next_newest_is_read(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    make(tmp_path, 1)
    seen = []

    def use(folder):
        seen.append(folder.name)
        if len(seen) < 4:  # another process moves on meanwhile
            make(tmp_path, len(seen) + 1)
            assert locate.remove(folder)
        return (folder / "s1jax.json").read_text()

    assert locate.using(tmp_path, use) == "4" and seen == ["1", "2", "3", "4"]


def test_errors_of_a_checkpoint_that_is_there_are_not_tried_again(tmp_path):
    make(tmp_path, 1)
    seen = []

    def use(folder):
        seen.append(folder)
        raise UserError("no")

    with pytest.raises(UserError, match=r"^no$"):
        locate.using(tmp_path, use)
    assert len(seen) == 1

    def gone(folder):
        shutil.rmtree(folder)
        raise FileNotFoundError(folder)

    with pytest.raises(UserError, match="workdir without a finished checkpoint"):
        locate.using(tmp_path, gone)


def test_one_that_is_being_removed_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "_PAUSE", 0.0)
    make(tmp_path, 1)
    monkeypatch.setattr("s1jax.io.files.take", lambda file, shared: False)
    with pytest.raises(UserError, match=r"checkpoints/1 is being removed by another process; run the same command"):
        locate.using(tmp_path, lambda folder: folder)
