"""Paths that are refused, and names that libraries would read in their own way."""

import os
import pathlib

import pytest

from s1jax.errors import UserError
from s1jax.io import paths


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(folder))
    return folder


def test_a_plain_path_stays_what_it_is(tmp_path, temporary):
    with paths.plain(tmp_path / "runs" / "a b-ö,1e-4@x~") as path:
        assert path == tmp_path / "runs" / "a b-ö,1e-4@x~" and not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["a[b]", "a\\b", "a*", "a?", "gs:", "%20", "{a,b}", "a\nb", "a|b", "a#b"])
def test_any_other_gets_a_link_that_goes_away(tmp_path, temporary, name):
    folder = tmp_path / name
    with paths.plain(folder) as path:
        path.joinpath("x").mkdir(parents=True) if folder.exists() else folder.mkdir()
        assert path.samefile(folder) and name not in os.fspath(path)
        with paths.plain(folder) as same:  # as another process has it
            assert same == path
        assert path.samefile(folder)
        with paths.plain(tmp_path / (name + "2")) as other:
            assert other != path
    assert not list(temporary.iterdir()) and folder.is_dir()


def test_a_link_of_somebody_else_is_not_followed(tmp_path, temporary):
    with paths.plain(tmp_path / "a[b]") as link:
        place = link.parent
    place.mkdir()
    (place / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="does not lead to"), paths.plain(tmp_path / "a[b]"):
        pass
    assert not place.exists(), "a folder of one's own, which the next one makes again"
    place.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"{place.name} is not a folder"), paths.plain(tmp_path / "a[b]"):
        pass
    assert place.is_symlink()


def test_temporary_files_under_a_strange_name_are_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "t[x]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path / "t[x]"))
    with pytest.raises(UserError, match="set TMPDIR"), paths.plain(tmp_path / "a[b]"):
        pass


def test_local_paths():
    for text in ("runs/x", "/a/b", "a:b", "C:/x", "./gs", "qwen/model", "~", "", "package:x"):
        assert paths.local(text, "--out") == pathlib.Path(text)
    for text in ("gs://b/x", "S3://b", "hf://a", "memory://x", "gs:/b"):
        with pytest.raises(UserError, match=f"--out={text} is a URL, .* mount the bucket"):
            paths.local(text, "--out")
    with pytest.raises(UserError, match=r"--out='a\\udcff' is not UTF-8"):
        paths.local("a\udcff", "--out")
    with pytest.raises(UserError, match="holds a NUL"):
        paths.local("a\0", "--out")
