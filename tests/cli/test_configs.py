"""Names of experiments in place of paths on the command line."""

import pathlib

import pytest

from s1jax.cli import configs
from s1jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_file_of_configs_has_a_name():
    assert configs.files() == {file.stem: file for file in sorted((ROOT / "configs").glob("*.py"))}


@pytest.mark.parametrize("form", [["--config=NAME"], ["--config", "NAME"], ["-config=NAME"]])
def test_a_name_becomes_a_path(form):
    given = ["s1jax train", *(part.replace("NAME", "countdown_s1") for part in form), "--config.train.steps=2"]
    wanted = [part.replace("countdown_s1", str(ROOT / "configs" / "countdown_s1.py")) for part in given]
    assert configs.with_paths(given, "config") == wanted


def test_a_path_stays_as_given(tmp_path, monkeypatch):
    given = ["x", "--config=configs/countdown_s1.py", "--config", "countdown_s1.py", "--workdir=countdown_s1"]
    assert configs.with_paths(given, "config") == given
    monkeypatch.chdir(tmp_path)
    pathlib.Path("countdown_s1").touch()
    assert configs.with_paths(["x", "--config=countdown_s1"], "config") == ["x", "--config=countdown_s1"]
    assert configs.with_paths(["x", "--config"], "config") == ["x", "--config"]


@pytest.mark.parametrize(("name", "words"), [("countdown_s2", "did you mean countdown_s1? s1jax has countdown_base, "),
                                             ("qqq", "give a file, or one of countdown_base, ")])  # fmt: skip
def test_a_name_that_is_not_there_is_one_sentence(name, words):
    with pytest.raises(UserError, match=f"--config={name} is neither a file nor an experiment of s1jax; ") as error:
        configs.with_paths(["x", f"--config={name}"], "config")
    assert words in str(error.value)
