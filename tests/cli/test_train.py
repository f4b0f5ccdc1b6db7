"""`launch.train` from the outside: one sentence and exit code 2 for wrong input; SIGTERM saves, the run goes on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.cli import forks

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "launch.train"]
BASE = "--config=configs/countdown_base.py"
TINY = [
    "--config.model.num_layers=1", "--config.model.d_model=16", "--config.model.mlp_dim=16",
    "--config.data.block_size=64", "--config.train.batch_size=2", "--config.optimizer.name=adamw",
]  # fmt: skip


def start(*flags):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [*COMMAND, *(flag if isinstance(flag, bytes) else str(flag) for flag in flags)]
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def run():
    """Starts the launcher; what a failed test leaves running is killed."""
    started = []

    def run(*flags):
        started.append(start(*flags))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def answer():
    """Runs the launcher to its end, where it ends before it imports jax."""
    with forks.Forks("launch.train", "s1jax.cli.train") as server:
        yield server.run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wurst=1"], "Unknown command line flag 'wurst'"),
        ([BASE, "surplus"], "'surplus' is not a flag"),
        ([], "--config is missing"),
        ([BASE], "--workdir is missing"),
        ([BASE, "--config.data.sauce=x"], "--config.data.sauce=x is not a setting"),
        ([BASE, "--config.train.steps=2", "--config.train.stepz=3"], "--config.train.stepz=3 is not a setting"),
        (["--config", BASE.split("=")[1], "--config.trian.steps", "3"], "--config.trian.steps is not a setting"),
        (["--config=configs/countdown_s1.py", "--config.model.num_layers=2"], "--config.model.num_layers=2 is not a s"),
        (["--config=configs/nothing.py", "--config.train.steps=2"], "configs/nothing.py is not a readable Python file"),
        ([BASE, "--workdir=w", "--config.optimizer.learning_rate=nan"], "optimizer.learning_rate is nan; give"),
        ([BASE, "--config.train.steps=many"], "--config.train.steps=many: invalid literal"),
        ([BASE, "--config.model=qwen9", "--workdir=w"], "config.model"),
        (
            [BASE, "--config.train.remat=half", "--workdir=w"],
            "train.remat is 'half'; give one of full, save_attention,",
        ),
        ([BASE, "--config.init_from=x", "--workdir=w"], "give exactly one"),
        ([BASE, "--workdir=w", "--profile=6:3"], "--profile=6:3 is neither a step nor FIRST:LAST; give for example"),
        ([BASE, "--workdir=w", "--profile=steps"], "--profile=steps is neither"),
        ([BASE, "--workdir=w", "--profile=0"], "--profile=0 is neither"),
        (
            [BASE, "--workdir=w", "--config.optimizer.moment_dtype=bfloat16", "--config.optimizer.b2=0.99"],
            "optimizer.b2 is 0.99: optimizer.moment_dtype='bfloat16' would round such slow changes away; give at most",
        ),
        ([BASE, "--workdir=w", "--config.checkpoint.keep=-1"], "checkpoint.keep is -1; it must be positive"),
        ([BASE, "--workdir=w", "--config.train.steps=-1"], "train.steps is -1; it must not be negative"),
        (
            [BASE, "--workdir=gs://bucket/w"],
            "--workdir=gs://bucket/w is a URL, and s1jax reads and writes files of this",
        ),
        (
            ["--config=configs/countdown_s1.py", "--config.init_from=s3://b", "--workdir=w"],
            "config.init_from=s3://b is a URL",
        ),
        ([BASE, b"--workdir=w\xff"], "--workdir='w\\udcff' is not UTF-8"),
        (["--config=configs/nothing.py"], "configs/nothing.py is not a readable Python file"),
        (["--config=README.md"], "does not load: SyntaxError"),
        ([BASE, "--workdir=w", f"--config.seed={2**70}"], "config.seed is 1180591620717411303424; it must lie"),
    ],
)
def test_wrong_flags(answer, flags, message):
    """Answered before jax is imported."""
    done = answer(*flags)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "def get_config():\n    return {'model': 'qwen3_0p6b'}\n",
            "get_config of --config's file returns a dict; it must be an ml_collections.ConfigDict.",
        ),
        ("def get_config():\n    raise KeyError('boom')\n", "the file of --config does not load: KeyError: 'boom'"),
        ("config = {}\n", "{file} has no function get_config; give one of configs/."),
    ],
)
def test_files_that_make_no_config(answer, tmp_path, text, sentence):
    file = tmp_path / "config.py"
    file.write_text(text)
    done = answer(f"--config={file}", "--workdir=w")
    assert done.returncode == 2 and done.stderr == f"error: {sentence.format(file=file)}\n"


WRONG_TYPE = "the file of --config does not load: line 5 of {file} (`%s`) makes the setting `%s` a %s, and it is a %s; "


@pytest.mark.parametrize(
    ("shape", "line", "sentence"),
    [
        (
            "",
            "config.model = dict(d_model=64)",
            WRONG_TYPE % ("config.model = dict(d_model=64)", "model", "group of settings", "str")
            + "give the shape to config.defaults(dict(d_model=..., ...)) as configs/countdown_base.py does, or a name.",
        ),
        (
            "",
            "config.train.batch_size = 'many'",
            WRONG_TYPE % ("config.train.batch_size = 'many'", "batch_size", "str", "int")
            + "give it a value of type int.",
        ),
        (
            "dict(d_model=64, num_layers=2, head_dim=8, mlp_dim=64, vocab_size=9)",
            "",
            "config.model.num_heads, config.model.num_kv_heads are missing; give them values.",
        ),
        (
            "dict(d_modell=64)",
            "",
            "config.model.d_modell is not a setting; config.model has ",
        ),
    ],
)
def test_a_shape_that_is_no_shape_is_answered_with_its_fields(answer, tmp_path, shape, line, sentence):
    file = tmp_path / "config.py"
    file.write_text(
        "import ml_collections\nfrom s1jax import config as c\ndef get_config():\n"
        f"    config = ml_collections.ConfigDict(c.defaults({shape}))\n    {line}\n    return config\n"
    )
    done = answer(f"--config={file}", "--workdir=w")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {sentence.format(file=file)}")


def test_a_setting_that_does_not_go_together_leaves_no_folder(run, tmp_path):
    process = run("--config=configs/countdown_s1.py", "--config.train.mlp_parts=5", f"--workdir={tmp_path}/w")
    _, err = process.communicate()
    assert process.returncode == 2 and err.startswith("error: train.mlp_parts=5 wants") and not list(tmp_path.iterdir())


def test_a_chat_format_that_the_tokenizer_lacks(run, tmp_path):
    """The corpus has no chat, so that nothing else would notice before the checkpoint is sampled."""
    process = run(BASE, *TINY, "--config.chat=think", "--config.train.steps=1", f"--workdir={tmp_path}/w")
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith("error: config.chat: delimiter '<think>' is not in the tokenizer; ") and err.count("\n") == 1
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_sigterm_saves_and_the_same_command_goes_on(run, tmp_path):
    flags = [BASE, *TINY, f"--workdir={tmp_path}/w", "--config.train.steps=100000", "--config.checkpoint.every=0"]
    process = run(*flags)
    metrics = tmp_path / "w" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert "stopped at step" in out and "training" in err
    assert err.count("\nSIGTERM: the run stops after the step under way, with a checkpoint; the same command") == 1
    (saved,) = (int(folder.name) for folder in (tmp_path / "w" / "checkpoints").iterdir())
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == saved

    process = run(*flags)
    while metrics.read_text().count("\n") < saved + 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > saved


def test_a_workdir_of_another_run_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 5}))
    process = run(BASE, f"--workdir={tmp_path}")
    _, err = process.communicate()
    assert process.returncode == 2 and "holds another run" in err
