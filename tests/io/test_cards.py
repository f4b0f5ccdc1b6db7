"""Splits that a folder's README declares, against `datasets` where it is installed."""

import json
import pathlib

import pytest

from s1jax.errors import UserError
from s1jax.io import cards, readers

FILES = ["data/train-0.jsonl", "data/test-0.jsonl", "extra/more.jsonl", "main/x1.jsonl", "main/x2.jsonl"]
# The text of `configs`, and what is taken.
CARDS = [
    ("", {}),
    ("license: mit\n", {}),
    (
        "configs:\n- config_name: a\n  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n"
        "    path: [data/test-*, extra/**]\n",
        {"train": ["data/train-0.jsonl"], "test": ["data/test-0.jsonl", "extra/more.jsonl"]},
    ),
    ("configs:\n- config_name: a\n  data_files: '**/x[0-1].jsonl'\n", {"train": ["main/x1.jsonl"]}),
    ("configs:\n- config_name: a\n  data_files: ['main/x?.jsonl']\n", {"train": ["main/x1.jsonl", "main/x2.jsonl"]}),
    (
        "configs:\n- config_name: a\n  data_files: extra/more.jsonl\n- config_name: b\n  data_files: main/*\n"
        "  default: true\n",
        {"train": ["main/x1.jsonl", "main/x2.jsonl"]},
    ),
    (
        "configs:\n- config_name: default\n  data_dir: data\n- config_name: b\n  data_files: main/*\n",
        {"train": ["data/train-0.jsonl"], "test": ["data/test-0.jsonl"]},
    ),
]
WRONG = [
    ("configs:\n- config_name: main\n- config_name: other\n", r"has the configs main, other and no default; give"),
    ("configs:\n- config_name: a\n  data_files: gone/*\n", r"names files of split train that are not in"),
    ("configs:\n- config_name: a\n  data_dir: gone\n", r"names files of config a that are not in"),
    ("configs: 3\n", "configs is not a list of objects with config_name"),
    ("configs: [\n", "begins with YAML that cannot be read"),
    ("configs:\n- config_name: a\n  data_files: [{split: train}]\n", r"data_files holds .*; write objects with split"),
]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"name": name}) + "\n")
    return tmp_path


def write(folder: pathlib.Path, text: str) -> None:
    (folder / "README.md").write_text(f"---\n{text}---\n# A set\n\n---\n" if text else "# A set\n")


@pytest.mark.parametrize(("text", "expected"), CARDS)
def test_the_readme_decides(folder, text, expected):
    write(folder, text)
    assert cards.assign(folder, FILES) == expected


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_readmes(folder, text, message):
    write(folder, text)
    with pytest.raises(UserError, match=message) as caught:
        list(readers.read(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "expected"), CARDS[2:])
def test_the_same_as_datasets(folder, text, expected, tmp_path_factory):
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    datasets.disable_progress_bars()
    write(folder, text)
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path_factory.mktemp("cache")))
    assert {split: sorted(rows["name"]) for split, rows in found.items()} == expected
    notes: list[str] = []
    assert [record["name"] for _, record in readers.read(folder, notes=notes)] == expected["train"]
    assert "in no split (" in notes[0]
