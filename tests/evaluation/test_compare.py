"""Several evaluations on one picture: names, formats, what wrong input is answered, `s1jax plot`."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from s1jax.errors import UserError
from s1jax.evaluation import compare, metrics, plot, results
from tests.evaluation.test_metrics import run

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS = [run(5, 10), run(9, 20, families=("budgets", "waits")), run(400, 30, families=("waits",))]


def write(folder, checkpoint="runs/s1", task="sums, 9 problems", **more):
    folder.mkdir(parents=True)
    found = {"asked": {"checkpoint": checkpoint, "task": "sums.jsonl", "wait": "Wait"}, "problems": 9}
    found |= {"runs": [metrics.record(one) for one in RUNS], "model": results.model_name(checkpoint), "task": task}
    (folder / "results.json").write_text(json.dumps(found | more))
    return str(folder / "results.json")


def test_several_results_on_one_picture(tmp_path, monkeypatch):
    first, second = write(tmp_path / "a", "package:base"), write(tmp_path / "b", "runs/tuned")
    drawn = []
    draw = plot.draw
    monkeypatch.setattr(plot, "draw", lambda *given: drawn.append(given) or draw(*given))
    for name, magic in (("curves.png", b"\x89PNG"), ("new/curves.svg", b"<?xml"), ("curves.pdf", b"%PDF")):
        compare.draw([first, tmp_path / "b"], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    (base, tuned), title = drawn[0]
    assert (base.name, tuned.name, title) == ("base", "tuned", "sums, 9 problems") and list(base.runs) == RUNS
    compare.draw([second], tmp_path / "one.png", "mine")
    assert [one.name for one in drawn[-1][0]] == [""] and drawn[-1][1] == "mine"


def test_names_come_from_the_results(tmp_path):
    one = write(tmp_path / "a", "runs/s1")
    other_task = write(tmp_path / "b", "runs/s1", "gsm8k, 50 problems")
    other_path = write(tmp_path / "c", "old/s1")
    same = shutil.copytree(tmp_path / "a", tmp_path / "d") / "results.json"
    # Results of earlier versions name neither model nor task.
    earlier = write(tmp_path / "e", "runs/old", model=None, task=None)

    def names(*files):
        evaluations, title = compare.read(files)
        return [evaluation.name for evaluation in evaluations], title

    assert names(one) == ([""], "s1 on sums, 9 problems") and names(earlier) == ([""], "old on sums.jsonl, 9 problems")
    assert names(one, other_task) == (["s1 on sums, 9 problems", "s1 on gsm8k, 50 problems"], "2 tasks")
    assert names(one, other_path) == (["runs/s1", "old/s1"], "sums, 9 problems")
    assert names(one, same) == ([f"{tmp_path}/a", f"{tmp_path}/d"], "sums, 9 problems")


def test_records_of_the_benchmarks_can_be_drawn():
    folder = ROOT / "benchmarks/results"
    (first, second), title = compare.read([f"{folder}/quickstart.json", f"{folder}/controls.json"])
    assert first.name != second.name and "countdown, 400 problems" in title
    assert len(first.runs) == 10 and dataclasses.asdict(first.runs[0])["accuracy"] == 7.75


@pytest.mark.parametrize(
    ("files", "out", "words"),
    [
        ([], "x.png", "no results are given"),
        (["{a}"], "x.jpg", r"x\.jpg: a picture is written as \.png, \.svg, \.pdf"),
        (["{a}", "{a}/results.json"], "x.png", "is given 2 times"),
        (["nowhere"], "x.png", "nowhere does not exist"),
        (["{empty}"], "x.png", "results.json does not exist; give the results.json of an evaluation, or its folder"),
        (["{broken}"], "x.png", "is not the results.json of an evaluation .JSONDecodeError"),
        (["{other}"], "x.png", "is not the results.json of an evaluation .KeyError: 'asked'"),
        (["{short}"], "x.png", "is not the results.json of an evaluation .TypeError"),
        (["{none}"], "x.png", "has no runs"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, files, out, words):
    write(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/results.json").write_text("{")
    write(tmp_path / "other")
    (tmp_path / "other/results.json").write_text("{}")
    write(tmp_path / "short", runs=[{"name": "no limit", "families": []}])
    write(tmp_path / "none", runs=[])
    names = {file.name: str(file) for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=words):
        compare.draw([file.format(**names) for file in files], tmp_path / out)
    assert not list(tmp_path.glob("x.*"))


def test_the_command_line(tmp_path):
    files = [write(tmp_path / "a", "runs/base"), write(tmp_path / "b", "runs/tuned")]

    def plot_command(*arguments):
        command = [sys.executable, "-m", "launch.plot", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = plot_command(*files, f"--out={tmp_path}/x.svg", "--title=mine")
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path}/x.svg\n"), done.stderr
    assert (tmp_path / "x.svg").stat().st_size
    done = plot_command(*files)
    assert done.returncode == 2 and done.stderr.startswith("error: --out is missing") and not done.stdout
