"""Splits by name: the rules against `datasets` itself where it is installed, and cases that need no library."""

import itertools
import pathlib
import random

import pytest

from s1jax.io import splits

CASES = pathlib.Path(__file__).resolve().parents[3] / "shared" / "cases" / "splits"
KNOWN = {
    "a": {"train": ["train.jsonl"], "validation": ["dev.jsonl", "val.jsonl"], "test": ["eval.jsonl", "test.jsonl"]},
    "b": {"train": ["train/rows.jsonl"], "test": ["test/rows.jsonl"]},
    "c": {"train": ["data/math-train.jsonl"], "test": ["data/math-test.jsonl"]},
}
# Folders of files; what `datasets` 5.2.0 said of them is what it says here, checked below where it is installed.
FOLDERS = [
    (["rows.jsonl", "more/rows.jsonl"], {"train": ["rows.jsonl", "more/rows.jsonl"]}),
    (["train.jsonl", "more.jsonl"], {"train": ["train.jsonl"]}),
    (["test.jsonl"], {"test": ["test.jsonl"]}),
    (["latest.jsonl", "contest.jsonl", "trained.jsonl"], {"train": ["latest.jsonl", "contest.jsonl", "trained.jsonl"]}),
    (["x_test0.jsonl", "x1train.jsonl"], {"train": ["x1train.jsonl"], "test": ["x_test0.jsonl"]}),
    (["Test.jsonl", "rows.jsonl"], {"train": ["Test.jsonl", "rows.jsonl"]}),
    (["my-test/rows.jsonl", "train.jsonl"], {"test": ["my-test/rows.jsonl"]}),
    (["test-train.jsonl", "a.jsonl"], {"train": ["test-train.jsonl"], "test": ["test-train.jsonl"]}),
    (
        ["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl", "train.jsonl"],
        {"test_sft": ["data/test_sft-00000-of-00001.jsonl"], "train_sft": ["data/train_sft-00000-of-00001.jsonl"]},
    ),
    (["deep/evaluation/1/rows.jsonl", "deep/rows.jsonl"], {"test": ["deep/evaluation/1/rows.jsonl"]}),
    (["default/train-00000-of-00002.jsonl"], {"train": ["default/train-00000-of-00002.jsonl"]}),
]


def made_up(count: int) -> list[list[str]]:
    """Folders of names that are put together from the rules' own words and from words that are nearly theirs."""
    words = ["train", "training", "valid", "validation", "dev", "val", "test", "testing", "eval", "evaluation"]
    words += ["rows", "math", "tests", "trains", "devel", "evals", "Train", "data", "x"]
    draw = random.Random(7)
    names = ["".join(draw.choice([word, word + draw.choice("-._ 07") + draw.choice(words)]) for word in draw.sample(
        words, draw.choice([1, 1, 2]))) for _ in range(400)]  # fmt: skip
    folders = []
    for _ in range(count):
        paths = {
            "/".join([*draw.sample(names, draw.choice([0, 0, 1, 2])), draw.choice(names) + ".jsonl"])
            for _ in range(draw.randint(1, 5))
        }
        folders.append(sorted(paths))
    return folders


@pytest.mark.parametrize(("paths", "expected"), FOLDERS)
def test_names_decide(paths, expected):
    assert splits.assign(paths) == expected


def by_datasets(folder: pathlib.Path) -> dict[str, set[str]]:
    """What the library says of a folder."""
    data_files = pytest.importorskip("datasets.data_files", reason="the datasets library is not installed")
    patterns = data_files.get_data_patterns(str(folder))
    found = data_files.DataFilesDict.from_patterns(patterns, str(folder))
    return {str(split): {str(pathlib.Path(f).relative_to(folder)) for f in files} for split, files in found.items()}


def test_the_same_as_datasets(tmp_path):
    folders = [paths for paths, _ in FOLDERS] + made_up(25)
    seen = set()
    for i, paths in enumerate(folders):
        for path in paths:
            file = tmp_path / str(i) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        found = {split: set(files) for split, files in splits.assign(paths).items()}
        assert found == by_datasets(tmp_path / str(i)), paths
        seen |= set(found)
    assert seen >= {"train", "validation", "test", "train_sft"}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_shared_cases(name):
    folder = CASES / name
    if not folder.is_dir():
        pytest.skip("needs ../shared/cases/splits, which is not here")
    paths = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jsonl"))
    assert splits.assign(paths) == KNOWN[name]
    assert by_datasets(folder) == {split: set(files) for split, files in KNOWN[name].items()}


def test_all_words_and_separators():
    words = {"train": ("train", "training"), "validation": ("validation", "valid", "dev", "val"),
             "test": ("test", "testing", "eval", "evaluation")}  # fmt: skip
    for split, separator in itertools.product(words, "-._ 0123456789"):
        for word in words[split]:
            for path in (f"{word}{separator}1.jsonl", f"a{separator}{word}.jsonl", f"a{separator}{word}/rows.jsonl"):
                assert splits.assign([path]) == {split: [path]}, path
