"""Files that are written in one go: whole or not at all, by several processes at a time, and never through a link."""

from __future__ import annotations

import errno
import os
import pathlib
import stat

import pytest

from s1jax import files


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
