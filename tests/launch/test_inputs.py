"""`launch.inputs`: which paths a command of launch.train starts from, known without any package."""

import json
import pathlib
import subprocess
import sys

import pytest

from launch import inputs
from s1jax.config import presets
from s1jax.data import s1k
from s1jax.errors import UserError
from tests.launch.stand_ins import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# As a fresh machine has it: the standard library alone (-S: no site-packages).
ISOLATED = [sys.executable, "-S", "-m", "launch.inputs"]


def paths(output):
    return {line.split("\t")[0]: line.split("\t")[1] for line in output.splitlines()}


def test_all_configs_are_read_as_ml_collections_reads_them():
    code = (
        "import json, pathlib, sys; sys.path.insert(0, '.')\n"
        "from launch import inputs\n"
        "print(json.dumps([inputs._settings(name) for name in sys.argv[1:]]), 'ml_collections' in sys.modules)\n"
    )
    names = [str(path.relative_to(ROOT)) for path in CONFIGS]
    done = [
        subprocess.run(
            [sys.executable, *flags, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for flags in ([], ["-S"])
    ]
    assert done[0].stdout == done[1].stdout
    found = json.loads(done[0].stdout.rpartition(" ")[0])
    assert len(found) == len(CONFIGS) and all(set(settings) == set(inputs.SETTINGS) for settings in found)
    assert found[names.index("configs/smollm2_gsm8k.py")]["config.init_from"] == "runs/smollm2"


def test_flags_come_after_the_file_and_the_last_one_counts():
    flags = ["--config=configs/smollm2_gsm8k.py", "--config.data.source", "a b.jsonl", "-config.init_from=one"]
    done = subprocess.run(
        [*ISOLATED, "list", *flags, "--config.init_from=README.md"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    source, start = (line.split("\t") for line in done.stdout.splitlines())
    assert source == ["config.data.source", "a b.jsonl", "-", "0"]
    assert start[:2] == ["config.init_from", "README.md"] and int(start[3]) == (ROOT / "README.md").stat().st_size


def test_an_experiment_is_known_by_its_name():
    done = subprocess.run(
        [*ISOLATED, "list", "--config=smollm2_gsm8k", "--config.data.source=README.md"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and paths(done.stdout) == {
        "config.data.source": "README.md", "config.init_from": "runs/smollm2"
    }, done.stderr  # fmt: skip


def test_what_is_not_there_is_one_sentence_each(tmp_path):
    command = [*ISOLATED, "check", "--config=configs/smollm2_gsm8k.py"]
    done = subprocess.run([*command, "--config.init_from=s1jax"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: config.data.source runs/gsm8k_rows.jsonl does not exist here; give a file or folder of rows.\n"
    )
    there = [f"--config.data.source={tmp_path}", "--config.init_from=package:countdown_base"]
    assert subprocess.run([*command, *there], cwd=ROOT).returncode == 0
    mixed = [f"--config.data.source={tmp_path}:0.5,s1k:.2,none.jsonl:0.3", there[1]]
    done = subprocess.run([*command, *mixed], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: config.data.source none.jsonl does not exist here; give a file or folder of rows.\n"


def test_names_that_are_no_paths_are_those_that_the_readers_know():
    names = inputs.SETTINGS["config.data.source"]
    with pytest.raises(UserError) as error:
        s1k.load_rows("no such file")
    assert all(name in str(error.value) for name in names if name != "countdown_corpus")
    settings = presets.experiment({"data": {"source": "countdown_corpus"}, "init_from": "package:countdown_base"})
    assert settings.data.source in names


def test_a_stamp_changes_with_what_is_there(tmp_path):
    folder = tmp_path / "rows"
    assert inputs._stamp(folder) == ("-", 0)
    folder.mkdir()
    stamps = [inputs._stamp(folder)]
    for name, text in (("a", "1"), ("b", "1"), ("a", "12")):
        (folder / name).write_text(text)
        stamps.append(inputs._stamp(folder))
    assert len({stamp for stamp, _ in stamps}) == 4 and [size for _, size in stamps] == [0, 1, 2, 3]
    assert inputs._stamp(folder) == stamps[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give list or check"),
        (["list"], "--config is missing"),
        (["check", "--config=none.py"], "none.py is not a file"),
    ],
)
def test_bad_flags_are_one_sentence(capsys, arguments, words):
    assert inputs.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_config_that_needs_more_of_ml_collections_is_left_to_launch_train(tmp_path):
    config = tmp_path / "own.py"
    config.write_text(
        "from ml_collections import config_dict\n\n\ndef get_config():\n    return config_dict.create()\n"
    )
    flags = [f"--config={config}", "--config.data.source=none.jsonl"]
    done = subprocess.run([*ISOLATED, "list", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3 and paths(done.stdout) == {"config.data.source": "none.jsonl"}
    done = subprocess.run(
        [sys.executable, "-m", "launch.inputs", "list", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    config.write_text("raise RuntimeError('broken')\n")
    assert pathlib.Path(config).exists()
    done = subprocess.run(
        [sys.executable, "-m", "launch.inputs", "check", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "the file of --config does not load: RuntimeError: broken" in done.stderr
