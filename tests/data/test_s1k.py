"""Rows from JSONL, parquet and a prepared TFDS copy, and what is said about bad ones."""

import builtins
import json
import os
import pathlib
import subprocess
import sys

import pytest

from s1jax.data import s1k
from s1jax.data.s1k import Row, load_rows
from s1jax.errors import UserError

S1K = {"question": "q {}\nü", "thinking_trajectories": ["t {}", "Wait 世界"], "attempt": "a {}", "solution": "s {}"}
S1K_1_1 = {
    "question": "q {}",
    "gemini_thinking_trajectory": "gemini {}",
    "gemini_attempt": "ga {}",
    "deepseek_thinking_trajectory": "deepseek {}",
    "deepseek_attempt": "da {}",
    "solution": "s {}",
}


def record(columns, i: int) -> dict:
    return {key: [v.format(i) for v in value] if isinstance(value, list) else value.format(i)
            for key, value in columns.items()}  # fmt: skip


def write_jsonl(path: pathlib.Path, records) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def write_parquet(path: pathlib.Path, records) -> pathlib.Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("write, suffix", [(write_jsonl, "jsonl"), (write_parquet, "parquet")])
def test_s1k_columns(write, suffix, tmp_path):
    path = write(tmp_path / f"rows.{suffix}", [record(S1K, i) for i in range(300)])
    rows = load_rows(str(path))
    assert len(rows) == 300
    assert rows[7] == Row("q 7\nü", "t 7\nWait 世界", "a 7", f"{path}:8")
    assert load_rows(str(path), "gemini") == rows  # one trace only: nothing to choose
    assert load_rows(str(path), num_rows=5) == rows[:5]


@pytest.mark.parametrize("write, suffix", [(write_jsonl, "jsonl"), (write_parquet, "parquet")])
def test_s1k_1_1_columns(write, suffix, tmp_path):
    path = write(tmp_path / f"rows.{suffix}", [record(S1K_1_1, i) for i in range(4)])
    assert load_rows(str(path), "gemini")[3] == Row("q 3", "gemini 3", "ga 3", f"{path}:4")
    assert load_rows(str(path), "deepseek")[3] == Row("q 3", "deepseek 3", "da 3", f"{path}:4")


def test_a_trace_may_be_one_string(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "thinking_trajectories": "one", "attempt": "a"}])
    assert load_rows(str(path))[0].trace == "one"


def test_folder_reads_its_files_in_order_without_the_test_split(tmp_path):
    write_jsonl(tmp_path / "data" / "train-00001.jsonl", [record(S1K, 1)])
    write_parquet(tmp_path / "data" / "train-00000.parquet", [record(S1K, 0)])
    write_jsonl(tmp_path / "more.jsonl", [record(S1K, 2)])
    write_jsonl(tmp_path / "data" / "test-00000.jsonl", [record(S1K, 3)])
    write_jsonl(tmp_path / "data" / "validation.jsonl", [record(S1K, 4)])
    (tmp_path / "README.md").write_text("no rows")
    notes: list[str] = []
    assert [row.answer for row in load_rows(str(tmp_path), notes=notes)] == ["a 0", "a 1"]
    assert (
        "data/train-00000.parquet, data/train-00001.jsonl; left out: validation (data/validation.jsonl, 1" in notes[0]
    )
    assert "test (data/test-00000.jsonl, 1 row), in no split (more.jsonl, 1 row)" in notes[0]
    assert load_rows(str(tmp_path / "data" / "test-00000.jsonl"))[0].answer == "a 3"  # asked for by name


def test_a_folder_may_have_folders_named_like_files_and_no_dangling_links(tmp_path):
    write_jsonl(tmp_path / "a.jsonl" / "b.jsonl", [record(S1K, 0)])
    assert [row.name for row in load_rows(str(tmp_path))] == [f"{tmp_path}/a.jsonl/b.jsonl:1"]
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"c\.jsonl is a link to a file that does not exist; repair or remove it"):
        load_rows(str(tmp_path))


@pytest.mark.parametrize(("kind", "value"), [("string", b"\xff"), ("timestamp", 0)])
def test_parquet_with_values_that_are_none(tmp_path, kind, value):
    """Text that is not UTF-8 and a time in a zone that there is not: writers don't look at either."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if kind == "string":
        column = pyarrow.array([value]).cast(pyarrow.binary()).view(pyarrow.string())
    else:
        column = pyarrow.array([value], pyarrow.timestamp("us", "Nowhere/Zone"))
    parquet.write_table(pyarrow.table({"question": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable parquet file \(.*\); write it again"):
        load_rows(str(tmp_path / "a.parquet"))


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(record(S1K, 0)) + "\n  \r\n" + json.dumps(record(S1K, 1)))
    assert [row.name for row in load_rows(str(path))] == [f"{path}:2", f"{path}:4"]


GOOD = json.dumps(record(S1K, 0))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"question": "q", ', r"a\.jsonl:2 is not JSON \(.*\); repair or remove"),
        (b"\xff\xfe{}", r"a\.jsonl:2 is not JSON"),
        ("[" * 100000, r"a\.jsonl:2 is not JSON"),
        ('["q", "t", "a"]', r"a\.jsonl:2 is a JSON list, not an object"),
        ('{"thinking_trajectories": ["t"], "attempt": "a"}', r"a\.jsonl:2 has no column question, but attempt, "),
        ('{"question": "q", "attempt": "a"}', r"a\.jsonl:2 has neither column thinking_trajectories nor deepseek_th"),
        ("{}", r"a\.jsonl:2 has neither column thinking_trajectories .*but none; rename"),
        ('{"question": "q", "thinking_trajectories": ["t"]}', r"a\.jsonl:2 has no column attempt"),
        ('{"question": "q", "deepseek_thinking_trajectory": "t"}', r"a\.jsonl:2 has no column deepseek_attempt"),
        ('{"question": " \\n", "thinking_trajectories": ["t"], "attempt": "a"}', r":2: column question is empty"),
        (
            '{"question": "q", "thinking_trajectories": [], "attempt": "a"}',
            r":2: column thinking_traj.* is empty; fill",
        ),
        ('{"question": "q", "thinking_trajectories": ["", " "], "attempt": "a"}', r":2: column thinking_.* is empty"),
        ('{"question": "q", "thinking_trajectories": ["t"], "attempt": ""}', r":2: column attempt is empty"),
        (
            '{"question": "q", "thinking_trajectories": null, "attempt": "a"}',
            r":2: column thinking_.* is NoneType, not",
        ),
        (
            '{"question": "q", "thinking_trajectories": [1], "attempt": "a"}',
            r":2: column thinking_.* is list, not text",
        ),
        ('{"question": 3, "thinking_trajectories": ["t"], "attempt": "a"}', r":2: column question is int, not text"),
        (
            '{"question": "\\ud800", "thinking_trajectories": ["t"], "attempt": "a"}',
            r":2: column question is not valid",
        ),
    ],
)
def test_bad_lines(line, message, tmp_path):
    path = tmp_path / "a.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode() + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        load_rows(str(path))
    assert "\n" not in str(caught.value)
    assert len(load_rows(str(path), num_rows=1)) == 1  # what is not asked for is not read


def test_traces_that_a_source_lacks(tmp_path):
    gemini = {key: value for key, value in record(S1K_1_1, 0).items() if not key.startswith("deepseek")}
    path = write_jsonl(tmp_path / "a.jsonl", [gemini])
    assert load_rows(str(path), "gemini")[0].trace == "gemini 0"
    with pytest.raises(UserError, match=r"nor deepseek_thinking_trajectory, but gemini_attempt.*other data\.traces"):
        load_rows(str(path), "deepseek")


def test_bad_sources(tmp_path):
    with pytest.raises(UserError, match=r"data\.source .*nowhere does not exist; give a JSONL, JSON, CSV"):
        load_rows(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"is a folder without files of rows; give one that holds JSONL"):
        load_rows(str(tmp_path))
    (tmp_path / "rows.csv").write_text("question")
    with pytest.raises(UserError, match=r"rows\.csv has no rows"):
        load_rows(str(tmp_path / "rows.csv"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl has no rows"):
        load_rows(str(tmp_path / "empty.jsonl"))
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"bad\.parquet is not a readable parquet file"):
        load_rows(str(tmp_path / "bad.parquet"))
    path = write_jsonl(tmp_path / "two.jsonl", [record(S1K, i) for i in range(2)])
    with pytest.raises(UserError, match=r"two\.jsonl has 2 rows, data\.num_rows asks for 3; .*smaller data\.num_rows"):
        load_rows(str(path), num_rows=3)


def test_gsm8k_reads_as_rows(tmp_path):
    source = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"
    if not source.exists():
        pytest.skip("needs ../shared/data/gsm8k_train.jsonl, which is not here")
    with source.open() as lines:
        found = [json.loads(line) for line in lines]
    rows = [
        {"question": one["question"], "thinking_trajectories": [one["answer"]], "attempt": one["answer"].split()[-1]}
        for one in found
    ]
    assert len(load_rows(str(write_jsonl(tmp_path / "gsm8k.jsonl", rows)), num_rows=1000)) == 1000


def run_alone(code: str) -> None:
    """Runs `code` in a fresh interpreter."""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


# The TFDS copy.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """config -> (source file, prepared folder)."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    from s1jax.data import s1k_builder

    folder = tmp_path_factory.mktemp("tfds")
    columns = {"s1k": S1K, "s1k_1_1": S1K_1_1, "rows": S1K_1_1}
    found = {}
    for config, kind in columns.items():
        source = write_jsonl(folder / f"{config}.jsonl", [record(kind, i) for i in range(25)])
        found[config] = source, s1k_builder.prepare(config, str(source), str(folder / "out"))
    return found


@pytest.mark.parametrize("config", ["s1k", "s1k_1_1", "rows"])
@pytest.mark.parametrize("traces", ["gemini", "deepseek"])
def test_prepared_copy_gives_the_same_rows(config, traces, prepared):
    source, folder = prepared[config]
    rows = load_rows(str(source), traces)
    assert load_rows(str(folder), traces) == rows and len(rows) == 25  # names and order, too
    assert load_rows(str(folder), traces, 3) == rows[:3]
    assert any(path.name.endswith("array_record-00000-of-00001") for path in folder.iterdir())


def test_prepared_copy_keeps_the_published_columns(prepared):
    records = dict(s1k.records(prepared["s1k"][1]))
    first = records[f"{prepared['s1k'][0]}:1"]
    assert first == {**record(S1K, 0), "cot_type": "", "source_type": "", "metadata": ""}


def test_prepared_copy_keeps_system_turns(prepared, tmp_path):
    """A column that changes the example is copied as well; TFDS's own splits are the folder's."""
    from s1jax.data import s1k_builder
    from s1jax.io import readers

    records = [{**record(S1K, 0), "system": "Be brief."}, record(S1K, 1)]
    source = write_jsonl(tmp_path / "a.jsonl", records)
    folder = s1k_builder.prepare("rows", str(source), str(tmp_path / "out"))
    assert load_rows(str(folder)) == load_rows(str(source)) and load_rows(str(folder))[0].system == "Be brief."
    assert len(list(readers.read(folder, readers.EVALUATION, notes := []))) == 2
    assert "split train is taken" in notes[0]
    with pytest.raises(UserError, match=r"has the split train, but no test; give the file"):
        list(readers.read(folder, ("test",)))
    late = write_jsonl(tmp_path / "b.jsonl", records[::-1])
    with pytest.raises(UserError, match=r"b\.jsonl:2 has a column system, which the first row has not; add it there"):
        s1k_builder.prepare("rows", str(late), str(tmp_path / "more"))


def test_prepare_reuses_and_refuses(prepared):
    from s1jax.data import s1k_builder

    source, folder = prepared["s1k"]
    data_dir = str(folder.parents[2])
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert s1k_builder.prepare("s1k", data_dir=data_dir) == folder  # no source: what is there is used, no hub
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="holds a prepared dataset already"):
        s1k_builder.prepare("s1k", str(source), data_dir)
    with pytest.raises(UserError, match="config rows needs a source"):
        s1k_builder.prepare("rows", data_dir=data_dir)


@pytest.mark.parametrize(
    "config, records, message",
    [
        (
            "rows",
            [record(S1K, 0), {**record(S1K, 1), "thinking_trajectories": [" "]}],
            r"bad\.jsonl:2: column thinking",
        ),
        ("rows", [record(S1K, 0), record(S1K_1_1, 1)], r"bad\.jsonl:2 has no column (thinking_traj|attempt)"),
        ("rows", [{"question": "q"}], r"bad\.jsonl:1 has none of the columns thinking_trajectories, gemini"),
        ("rows", [{"text": "q"}], r"bad\.jsonl:1 has none of the columns thinking_traj"),
        ("s1k", [record(S1K_1_1, 0)], r"bad\.jsonl:1 has no column (thinking_traj|attempt)"),
    ],
)
def test_prepare_refuses_bad_rows_and_leaves_nothing(config, records, message, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from s1jax.data import s1k_builder

    source = write_jsonl(tmp_path / "bad.jsonl", records)
    with pytest.raises(UserError, match=message):
        s1k_builder.prepare(config, str(source), str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*array_record*"))


def test_damaged_copy(prepared, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="is not a prepared dataset that can be read"):
        load_rows(str(tmp_path))


def test_hub_without_network(monkeypatch, tmp_path):
    """The hub's client is stood in for: no test needs a network."""
    pytest.importorskip("tensorflow_datasets")
    import huggingface_hub

    from s1jax.data import s1k_builder

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"simplescaling/s1K cannot be downloaded .*give its folder as data\.source"):
        s1k_builder.prepare("s1k", data_dir=str(tmp_path / "out"))


def test_hub_snapshot_is_prepared_once(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    import huggingface_hub

    from s1jax.data import s1k_builder

    snapshot = tmp_path / "snapshot"
    write_parquet(snapshot / "data" / "train-00000-of-00001.parquet", [record(S1K_1_1, i) for i in range(4)])
    asked = []

    def download(repository, **kwargs):
        asked.append((repository, kwargs["repo_type"]))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(s1k_builder.prepare, "__defaults__", ("", str(tmp_path / "out")))
    for _ in range(2):
        rows = load_rows("s1k_1_1", "gemini")
        assert [row.trace for row in rows] == [f"gemini {i}" for i in range(4)]
    assert asked == [("simplescaling/s1K-1.1", "dataset")]


def test_without_tfds_a_sentence(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tensorflow_datasets"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "s1jax.data.s1k_builder", raising=False)
    monkeypatch.delattr("s1jax.data.s1k_builder", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match=r"data.source s1k needs tensorflow-datasets, which is not .*pip install \"s1jax\[data\]\""
    ):
        load_rows("s1k")


def test_core_imports_without_what_it_does_not_use(tmp_path):
    """JSONL needs none of tfds, grain, array_record, pyarrow, the hub client, TensorFlow and jax."""
    path = write_jsonl(tmp_path / "a.jsonl", [record(S1K, 0)])
    code = f"""
import sys
from s1jax.data import batches, packing, s1k
from s1jax.text import chat, tokenizer
assert len(s1k.load_rows({str(path)!r})) == 1
lazy = {{"tensorflow_datasets", "grain", "array_record", "pyarrow", "huggingface_hub", "tensorflow", "jax",
         "tokenizers", "sentencepiece"}}
assert not lazy & set(sys.modules), lazy & set(sys.modules)
"""
    run_alone(code)


def test_the_copy_needs_no_tensorflow(prepared):
    code = f"""
import sys
from s1jax.data import s1k
assert len(s1k.load_rows({str(prepared["s1k"][1])!r})) == 25
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    run_alone(code)
