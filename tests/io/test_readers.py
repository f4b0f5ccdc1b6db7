"""One reader for all files: each format gives the same rows, and what is wrong ends in a sentence with file and row."""

import csv
import gzip
import json
import os
import pathlib

import pytest

from s1jax.errors import UserError
from s1jax.io import readers

ROWS = [
    {"question": 'q 1, "so"\nü', "answer": "世界", "none": None},
    {"question": "q 2", "answer": "a\u2028b", "none": "x"},
    {"question": "q 3", "answer": "", "none": None},
]


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path: pathlib.Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(path: pathlib.Path, stream: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    open_ = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with open_(str(path), table.schema) as sink:
        sink.write_table(table, max_chunksize=2)


def write_parquet(path: pathlib.Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(lines()),
    "a.ndjson": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines()),
    "a.data": lambda path: path.write_bytes(lines()),  # JSONL goes by many names
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "b.json": lambda path: path.write_bytes(b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode()),
    "c.json": lambda path: path.write_bytes(lines()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines())),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": write_parquet,
    "a.arrow": lambda path: write_arrow(path, stream=True),
    "b.arrow": lambda path: write_arrow(path, stream=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    found = list(readers.read(file))
    assert [where for where, _ in found] == [f"{file}:{number}" for number in (1, 2, 3)]
    wanted = [{k: v or "" for k, v in row.items()} for row in ROWS] if file.suffix in (".csv", ".tsv") else ROWS
    assert [dict(record) for _, record in found] == wanted


def saved(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list([{**row, "m": [{"role": "user", "content": row["question"]}]} for row in ROWS])
    return datasets, data


def test_folders_of_save_to_disk_as_datasets_reads_them(tmp_path):
    datasets, data = saved(tmp_path)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    data.select([2, 0]).save_to_disk(tmp_path / "chosen")  # rows by index are written in their new order
    for name in ("one", "chosen"):
        wanted = datasets.load_from_disk(str(tmp_path / name)).to_list()
        found = list(readers.read(tmp_path / name))
        assert [record for _, record in found] == wanted
        assert found[0][0] == f"{next(iter(sorted((tmp_path / name).glob('data-*'))))}:1"
    datasets.DatasetDict({"train": data, "test": data.select([1]), "validation": data.select([0, 1])}).save_to_disk(
        tmp_path / "dict"
    )
    notes: list[str] = []
    assert [record for _, record in readers.read(tmp_path / "dict", notes=notes)] == data.to_list()
    said = "split train is taken, train; left out: test (test, 1 row), validation (validation, 2 rows)"
    assert notes == [f"{tmp_path / 'dict'}: {said}."]
    assert [record for _, record in readers.read(tmp_path / "dict", readers.EVALUATION)] == data.select([1]).to_list()
    assert len(list(readers.read(tmp_path / "dict" / "validation"))) == 2  # named alone, it is taken
    with pytest.raises(UserError, match="has the splits train, test, validation, but no dev; give the file or the"):
        list(readers.read(tmp_path / "dict", ("dev",)))


def test_files_that_datasets_reads_alike(tmp_path):
    datasets, _ = saved(tmp_path)
    for name, kind in (("a.jsonl", "json"), ("a.json", "json"), ("a.jsonl.gz", "json"), ("a.parquet", "parquet")):
        WRITERS[name](tmp_path / name)
        table = datasets.load_dataset(kind, data_files=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
        assert [record for _, record in readers.read(tmp_path / name)] == table["train"].to_list()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", r"state\.json is not JSON that can be read"),
        ('{"_data_files": 3}', r"state\.json has no list `_data_files` of file names"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', r"state\.json has no list `_data_files` of file names"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow is missing, which state\.json names"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}', r"holds rows by index"),
    ],
)
def test_damaged_folders_of_save_to_disk(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(UserError, match=message):
        list(readers.read(tmp_path))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "dataset_dict.json").write_text('{"splits": ["../x"]}')
    with pytest.raises(UserError, match=r"dataset_dict\.json has no list `splits` of folders"):
        list(readers.read(tmp_path / "more"))


def test_a_folder_says_what_it_leaves_out(tmp_path):
    for name in ("data/train.jsonl", "data/dev.jsonl", "other.jsonl", "data/.hidden.jsonl", "__cache__/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines())
    (tmp_path / "train.jsonl.zst").write_text("")
    (tmp_path / "test.csv").write_bytes(b"\xff")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    notes: list[str] = []
    assert len(list(readers.read(tmp_path, notes=notes))) == 3
    assert notes == [
        f"{tmp_path}: split train is taken, data/train.jsonl; left out: validation (data/dev.jsonl, 3 rows), test"
        " (test.csv, cannot be read), in no split (other.jsonl, 3 rows); not read: linked, train.jsonl.zst."
    ]
    assert len(list(readers.read(tmp_path / "data", readers.EVALUATION, notes := []))) == 3
    assert "split validation is taken, dev.jsonl" in notes[0]


def test_a_folder_of_one_split_needs_no_words(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines())
    notes: list[str] = []
    assert len(list(readers.read(tmp_path, notes=notes))) == 3 and notes == []
    assert len(list(readers.read(tmp_path, readers.EVALUATION, notes))) == 3
    assert "split train is taken, rows.jsonl" in notes[0]  # of what is called train it says so
    (tmp_path / "rows.jsonl").rename(tmp_path / "test.jsonl")
    with pytest.raises(UserError, match=r"has the split test, but no train; give the file or the folder"):
        list(readers.read(tmp_path))


@pytest.mark.parametrize("name", ["test.jsonl", "val/rows.jsonl", "train.jsonl", "rows.jsonl", "math-dev-1.jsonl"])
def test_a_file_of_another_split_that_is_asked_for_by_name_is_read_and_said(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lines())
    given = path if path.parent == tmp_path else path.parent
    notes: list[str] = []
    assert len(list(readers.read(given, notes=notes))) == 3
    other = {"test.jsonl": "test", "val/rows.jsonl": "validation", "math-dev-1.jsonl": "validation"}.get(name)
    said = [f"{given} is read, as it was asked for, although its name says {other}."]
    assert notes == (said if other else [])
    assert list(readers.read(path, readers.EVALUATION, notes := [])) and notes == []


def test_a_file_in_two_splits_is_named(tmp_path):
    (tmp_path / "test-train.jsonl").write_bytes(lines())
    notes: list[str] = []
    assert len(list(readers.read(tmp_path, notes=notes))) == 3
    assert "test-train.jsonl would be in another split, too, by the name" in notes[0]


WRONG = {
    "not.jsonl": (lines() + b'{"question": ', r"not\.jsonl:4 is not JSON \(.*\); repair or remove the line"),
    "list.jsonl": (lines() + b"[1]", r"list\.jsonl:4 is a JSON list, not an object of columns"),
    "numbers.json": (b'[{"a": 1}, 2]', r"numbers\.json:2 is a JSON int, not an object of columns"),
    "open.json": (b'[{"a": 1}, {"a": 2}', r"open\.json:2 is followed by neither a comma nor the end of the array"),
    "half.json": (b'[{"a": 1}, {"a"', r"half\.json:2 is not JSON"),
    "more.json": (b'[{"a": 1}]\n{"a": 2}', r"more\.json has text after its array of 1 rows"),
    "deep.json": (b"[" * 100_000, r"deep\.json:1 is not JSON"),
    "object.json": (b'{\n"a": 1\n}', r"object\.json:1 is not JSON .*\(a \.json file holds one array of rows, or a row"),
    "latin.json": ('[{"a": "é"}]'.encode("latin1"), r"latin\.json is not JSON in UTF-8"),
    "latin.jsonl": ('{"a": "é"}'.encode("latin1"), r"latin\.jsonl:1 is not JSON \('utf-8' codec"),
    "wide.jsonl": (lines().decode().encode("utf-16"), r"wide\.jsonl is not UTF-8 text but begins as UTF-16 does"),
    "wrong.jsonl.gz": (gzip.compress(b"")[:10] + b"\xff" * 20, r"wrong\.jsonl\.gz is a damaged or cut gzip file"),
    "short.jsonl.gz": (gzip.compress(lines())[:-6], r"short\.jsonl\.gz is a damaged or cut gzip file"),
    "plain.jsonl.gz": (lines(), r"plain\.jsonl\.gz is not a gzip file, although its name says so"),
    "packed.jsonl": (gzip.compress(lines()), r"packed\.jsonl is gzip by its content, which its name does not say"),
    "p.jsonl": (b"PAR1abc", r"p\.jsonl is parquet by its content, which its name does not say; rename it"),
    "f.csv": (b"ARROW1\0\0", r"f\.csv is Arrow by its content"),
    "x.parquet.gz": (gzip.compress(b"PAR1"), r"x\.parquet\.gz is parquet in gzip, which is not read; unpack it"),
    "z.jsonl": (b"PK\x03\x04", r"z\.jsonl is a zip file; unpack it"),
    "a.parquet": (b"PAR1", r"a\.parquet is not a readable parquet file"),
    "a.arrow": (b"\xff\xff\xff\xff\x10", r"a\.arrow is not a readable Arrow file"),
    "b.arrow": (b"ARROW1\0\0", r"b\.arrow is not a readable Arrow file"),
    "twice.csv": (b"a,b,a\n1,2,3\n", r"twice\.csv has the column 'a' more than once"),
    "long.csv": (b"a,b\n1,2\n1,2,3\n", r"long\.csv:2 has more fields than the 2 columns"),
    "quote.csv": (b'a,b\n1,"2\n3,4\n', r"quote\.csv is not CSV in UTF-8 \(unexpected end of data\)"),
    "latin.csv": ("a\né\n".encode("latin1"), r"latin\.csv is not CSV in UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_end_in_a_sentence(tmp_path, name):
    content, message = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(readers.read(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_cut_arrow_file_is_refused(tmp_path):
    write_arrow(tmp_path / "a.arrow", stream=True)
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.arrow is not a readable Arrow file \(.*\); write it again"):
        list(readers.read(tmp_path / "a.arrow"))


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet", "a.jsonl.gz"])
def test_flipped_bytes_never_end_the_process(tmp_path, name):
    """Offsets of Arrow are trusted by to_pylist; a wrong one ended the process with a bus error."""
    WRITERS[name](tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    refused = 0
    for i in range(0, len(content), 2):
        content[i] ^= 0xFF
        (tmp_path / name).write_bytes(content)
        content[i] ^= 0xFF
        try:
            list(readers.read(tmp_path / name))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > len(content) / 10


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "nowhere", "does not exist; give a JSONL"),
        (tmp_path / "pipe", "neither a file nor"),
    ):
        with pytest.raises(UserError, match=message):
            list(readers.read(path))
    with pytest.raises(UserError, match="is a folder without files of rows"):
        list(readers.read(tmp_path))


def test_the_rows_before_a_wrong_one_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, nonsense')
    found = readers.read(tmp_path / "a.json")
    assert next(found) == (f"{tmp_path / 'a.json'}:1", {"a": 1})
    with pytest.raises(UserError, match=r"a\.json:2 is not JSON"):
        next(found)


def test_long_lines_and_texts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_BYTES", 1 << 20)
    long = json.dumps({"a": "x" * (1 << 20)})
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + long)
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + long + "]")
    (tmp_path / "a.csv").write_text("a\n1\n" + "x" * (2 << 20))
    for name, message in {
        "a.jsonl": "jsonl:2 is a line of more than 1 MB",
        "a.json": "json:2 is a row of more than 1 MB",
        "a.csv": "field larger than field limit",
    }.items():
        with pytest.raises(UserError, match=message):
            list(readers.read(tmp_path / name))
    readers.check_length("x" * readers.MAX_CHARACTERS, "f:1", "question")
    with pytest.raises(UserError, match=r"f:1: question has 1,000,001 characters; at most 1,000,000 are read; shorten"):
        readers.check_length("x" * (readers.MAX_CHARACTERS + 1), "f:1", "question")
