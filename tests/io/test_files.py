"""Files that are written in one go: whole or not at all, by several processes at a time, and never through a link."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from s1jax.errors import UserError
from s1jax.io import files


def test_what_killed_processes_leave_is_removed_and_nothing_else(tmp_path):
    for name in ("rows.jsonl", "a" * 40):
        with pytest.raises(KeyError), files.replace(tmp_path / name):
            (left,) = tmp_path.glob(f".{name[:9]}*")
            other = tmp_path / f"{left.name[:-21]}{'0' * 16}.part"  # another process's, which is killed
            other.write_bytes(b"half")
            raise KeyError
        assert other.exists() and not left.exists()
    kept = [".hidden", ".rows.part", "rows.0123456789abcdef.part", "rows.jsonl"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    files.remove_parts(tmp_path)
    files.remove_parts(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == kept


def test_replace_shows_the_new_file_only_when_it_is_complete(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("old")
    with files.replace(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["rows.json"]


def test_a_block_that_raises_leaves_all_as_it_was(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("old")
    with pytest.raises(KeyError), files.replace(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows.json"]


def test_two_writers_at_a_time_do_not_mix(tmp_path):
    path = tmp_path / "rows.json"
    with files.replace(path) as one:
        one.write(b"one")
        with files.replace(path) as other:
            other.write(b"the other")
        assert path.read_text() == "the other"
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["rows.json"]


def test_permissions_follow_the_umask_or_the_file_that_was_there(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "new", "text")
        (tmp_path / "old").touch(0o600)
        files.write_text(tmp_path / "old", "text")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o640, 0o600]


@pytest.mark.parametrize("write", [lambda path: files.write_text(path, "my"), lambda path: files.create(path).close()])
def test_a_link_is_replaced_and_its_target_kept(tmp_path, write):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("theirs")
    link.symlink_to(target)
    write(link)
    assert target.read_text() == "theirs" and not link.is_symlink()


def test_append_makes_a_file_and_follows_no_link(tmp_path):
    for text in (b"one", b"two"):
        with files.append(tmp_path / "file") as file:
            file.write(text)
    assert (tmp_path / "file").read_bytes() == b"onetwo"
    (tmp_path / "link").symlink_to(tmp_path / "made")
    with pytest.raises(OSError) as error:
        files.append(tmp_path / "link")
    assert error.value.errno == errno.ELOOP and not (tmp_path / "made").exists()


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as error:
        files.write_text(tmp_path / "none" / "file", "text")
    assert error.value.filename == str(tmp_path / "none" / "file")
    with pytest.raises(OSError) as error:
        files.write_text("/dev/null", "text")
    assert error.value.errno == errno.EINVAL and not pathlib.Path("/dev/null").is_file()
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught, files.replace(tmp_path / "folder"):
        pass
    assert caught.value.filename == str(tmp_path / "folder") and caught.value.filename2 is None


def test_a_file_of_the_longest_name_can_be_written(tmp_path):
    for name in ("n" * 255, "界" * 85):
        files.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_sync_tree_takes_every_file_and_follows_no_link(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("/dev/null")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    files.sync_tree(tmp_path)
    assert {os.path.relpath(path, tmp_path) for path in synced} == {"one", "a/two", "a/b/three", "a/b", "a", "."}
    assert synced[-1] == str(tmp_path)


# Folders


def _make(path, text="text"):
    with files.new_folder(path, "--to") as folder:
        (folder / "file").write_text(text)


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    before = os.umask(0o022)
    try:
        with files.new_folder(tmp_path / "a/new") as folder:
            (folder / "file").write_text("text")
            assert not (tmp_path / "a/new").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "a/new/file").read_text() == "text" and os.listdir(tmp_path / "a") == ["new"]
    assert stat.S_IMODE((tmp_path / "a/new").stat().st_mode) == 0o755


def test_nothing_is_left_of_a_folder_whose_block_raises(tmp_path):
    with pytest.raises(KeyError), files.new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("text")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_second_process_for_the_same_folder_is_refused(tmp_path):
    with files.new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("the first")
        with pytest.raises(UserError, match=r"^--to: another process writes .*/new; wait until it has ended"):
            _make(tmp_path / "new")
        _make(tmp_path / "newer")  # whose name begins alike
        _make(tmp_path / "[n]ew")
    assert sorted(os.listdir(tmp_path)) == ["[n]ew", "new", "newer"]
    assert (tmp_path / "new/file").read_text() == "the first"


def test_without_locks_the_second_process_to_end_is_refused(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with pytest.raises(UserError, match="new exists and is not empty"), files.new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("the first to begin")
        _make(tmp_path / "new", "the first to end")
    assert os.listdir(tmp_path) == ["new"] and (tmp_path / "new/file").read_text() == "the first to end"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    code = (
        "import os, sys; from s1jax.io import files\n"
        "with files.new_folder(sys.argv[1]) as folder:\n    (folder / 'half').touch(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "new")], check=False)
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".partial")
    _make(tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]


def test_a_link_in_the_place_of_what_a_killed_process_left_is_not_followed(tmp_path):
    with files.new_folder(tmp_path / "new") as folder:
        name = folder.name
    (tmp_path / "new").rmdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").touch()
    (tmp_path / name).symlink_to(tmp_path / "theirs")
    _make(tmp_path / "new")
    assert (tmp_path / "theirs/file").exists()


def test_an_empty_folder_is_filled_and_anything_else_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    _make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty/file").exists()
    (tmp_path / "file").touch()
    for name in ("empty", "file"):
        with pytest.raises(UserError, match=rf"^--to: .*{name} exists and is not empty; remove it"):
            _make(tmp_path / name)
    with pytest.raises(UserError, match=r"^--to: cannot write .*file.*; choose a folder"):
        _make(tmp_path / "file/new")


def test_own_files_may_be_links_within_their_folder_only(tmp_path):
    """Of Hugging Face's cache: within the repository's folder."""
    (tmp_path / "secret").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/file").touch()
    for name, target in (("inside", "file"), ("outside", "../secret"), ("loop", "loop"), ("dead", "../none")):
        (tmp_path / "model" / name).symlink_to(target)
    for name in ("file", "inside", "missing", "loop"):
        files.check_own(tmp_path / "model" / name)
    for name in ("outside", "dead"):
        with pytest.raises(UserError, match=rf"{name} is a link to '.*', which is not in its folder"):
            files.check_own(tmp_path / "model" / name)
    (tmp_path / "linked").symlink_to("model")
    files.check_own(tmp_path / "linked" / "inside")
