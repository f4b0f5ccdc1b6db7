"""`python -m launch.plan` from the outside, for fake CPU devices: its figures against formulas, and its refusals."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from jax.experimental import topologies

from s1jax.errors import UserError
from s1jax.plan import targets
from tests.cli import forks

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ["--config=configs/countdown_s1.py", "--config.data.batching=padded", "--config.train.attention=chunked"]


@pytest.fixture(scope="module")
def run():
    with forks.Forks("launch.plan", "s1jax.cli.plan", "s1jax.plan.planner") as server:
        yield server.run


def test_plan_of_fully_sharded_training(run, tmp_path):
    out = tmp_path / "plan.json"
    done = run(*SMALL, "--target=cpu:8", f"--out={out}", "--config.cost.per_device_hour=2", "--mfu=0.5")
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(out.read_text())
    assert "model FLOPs" in done.stdout and "315 steps" in done.stdout
    assert done.stdout.startswith("cpu:8: 8 devices, fsdp=8 remat=") and plan["settings"].startswith("fsdp=8 remat=")
    # The embedded base: 4 layers, D 128, F 384, 4/2 heads of 32, V 126 (128 over 8 devices), 16 rows of 192.
    layers = 4 * (128 * 32 * (4 + 2 + 2 + 4) + 3 * 128 * 384)
    tokens, pairs = 16 * 192, 16 * 192 * 192
    expected = 6 * (layers + 128 * 128) * tokens + 14 * 4 * 4 * 32 * pairs  # scores are made again: 4 + 10
    assert plan["executed_flops"] * 8 == expected
    # Every device holds an eighth of matrices and norms and all of the biases, in float32, and both moments of them.
    weights = (layers + 126 * 128 + 4 * 2 * 128 + 128) / 8 + 4 * 8 * 32
    assert plan["memory"]["parameters"] == 4 * weights
    assert plan["memory"]["moments"] == pytest.approx(2 * 4 * weights, abs=16)  # and two counters of steps
    assert plan["memory"]["peak"] > 3 * 4 * weights + plan["memory"]["layer inputs"]
    # The layers' weights are gathered forward and backward, and their gradients meet once.
    assert plan["collectives"]["all-gather"] >= 2 * 4 * layers
    recipe = plan["recipe"]
    seconds = plan["model_flops"] / 0.5 / 1e11
    assert recipe["step_seconds"] == pytest.approx(seconds)
    assert recipe["dollars"] == pytest.approx(315 * seconds / 3600 * 8 * 2)


def test_packed_rows_are_planned_by_the_tokens_of_all_rows(run, tmp_path):
    """By tokens a step; and what training would call MFU, which counts no place without a token."""
    out = tmp_path / "plan.json"
    tokens = ["--config.data.batching=packed", "--config.train.batch_size=0", "--config.train.batch_tokens=1600"]
    done = run(*SMALL, *tokens, "--num_tokens=8e4", "--target=cpu:8", f"--out={out}", "--mfu=0.5")
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(out.read_text())
    recipe, layer = plan["recipe"], 4 * (128 * 32 * (4 + 2 + 2 + 4) + 3 * 128 * 384)
    assert plan["rows"] == 8 and plan["block_size"] == 192  # 1600 // 192
    assert recipe["tokens"] == pytest.approx(5 * 8e4, rel=0.02)
    assert recipe["padding"] == pytest.approx(1 - recipe["tokens"] / recipe["steps"] / (8 * 192))
    assert (
        0 < recipe["padding"] < 0.15 and f", {100 * recipe['padding']:.0f} % of the places are padding" in done.stdout
    )
    assert recipe["sequences_per_step"] == pytest.approx(5000 / recipe["steps"])
    # Lengths spread evenly up to twice the mean of 80: 1,000 rows of l (l + 1) / 2 pairs.
    pairs = 1000 * (160**2 / 3 + 80) / 2 * 5
    flops = 6 * (layer + 128 * 126 + 4 * 2 * 128 + 4 * 64 * 4 + 128) * recipe["tokens"] + 12 * 4 * 4 * 32 * pairs
    assert recipe["minutes_by_tokens"] == pytest.approx(flops / (8 * 1e11 * 0.5) / 60, rel=0.03)
    assert recipe["minutes_by_tokens"] < recipe["minutes"]


def test_products_that_several_devices_do_alike_are_counted_on_each(run, tmp_path):
    """Two key heads on four devices: each projects to both of them."""
    out = tmp_path / "plan.json"
    model = ["--model=qwen2p5_1p5b", "--config.data.block_size=64", "--config.train.batch_size=8"]
    done = run(*SMALL, *model, "--target=cpu:8", "--config.mesh.tensor=4", f"--out={out}")
    assert done.returncode in (0, 1), done.stderr[-2000:]
    keys = 28 * 2 * 1536 * 2 * 128
    weights = 28 * (1536 * 128 * 2 * 12 + 3 * 1536 * 8960) + keys + 1536 * 151936
    tokens, pairs = 8 * 64, 8 * 64 * 64
    once = 6 * weights * tokens + 14 * 28 * 12 * 128 * pairs
    assert once < json.loads(out.read_text())["executed_flops"] * 8 <= once + 3 * 6 * keys * tokens


def test_another_attention_than_asked_for_is_told(run, tmp_path):
    out = tmp_path / "plan.json"
    done = run(*SMALL, "--config.train.attention=splash", "--target=cpu:1", f"--out={out}")
    note = "train.attention=splash runs on TPU only; chunked is used instead."
    assert done.returncode == 0 and f"  note: {note}\n" in done.stdout, done.stderr[-2000:]
    assert json.loads(out.read_text())["note"] == note


def test_a_checkpoint_that_is_not_here_has_the_shape_that_it_is_named_after(run, tmp_path):
    """As the shipped configs name theirs. Its rows are those of config.data, and what does not fit ends with 1."""
    out = tmp_path / "plan.json"
    size = ["--config.train.batch_size=1", "--config.data.block_size=64", "--config.data.num_rows=10"]
    size += ["--config.data.batching=padded", "--config.train.batch_tokens=0"]
    done = run("--config=configs/s1_qwen2p5_1p5b.py", *size, "--target=cpu:1", "--mfu=0.2", f"--out={out}")
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stdout.startswith("note: runs/qwen2p5_1p5b is not here; its shape is taken to be that of qwen2p5_1p5b.")
    assert "\nIt does not fit. --config.train.mlp_parts=4: " in done.stdout and done.stdout.endswith("devices.\n")
    plan = json.loads(out.read_text())
    assert not plan["fits"] and plan["memory"]["parameters"] == 4 * 1_543_714_304
    assert plan["recipe"]["steps"] == 50
    assert "50 steps" in done.stdout and "at 20 % MFU, padding included" in done.stdout


def test_search_prints_what_it_tries_and_puts_the_mlp_in_parts_where_nothing_else_fits(run):
    settings = ["--config.train.batch_size=12288", "--config.data.block_size=64"]
    done = run(*SMALL, "--target=cpu:1", "--search", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    tried = dict(line.split(": ") for line in done.stdout.splitlines() if line.startswith("fsdp="))
    policies = ("none", "save_dots", "save_attention", "full")  # the first is the config's own
    forms = [f"remat={remat} accumulation={n}" for remat in policies for n in (1, 12288)]
    forms.insert(7, "remat=full accumulation=1 mlp_parts=4")
    assert list(tried) == [f"fsdp=1 {form}" for form in forms]
    fits = [form for form in forms if "does not fit" not in tried[f"fsdp=1 {form}"]]
    assert fits == [*forms[1:6:2], *forms[7:]]
    shown = [line[2:].split(": ") for line in done.stdout.splitlines() if line.startswith("  fsdp=")]
    assert f"\nthe fastest of {len(fits)} that fit:\n" in done.stdout
    assert sorted(name for name, _ in shown) == sorted(f"fsdp=1 {form}" for form in fits)
    seconds = [float(line.split("step ")[1].split()[0]) for _, line in shown]
    assert seconds == sorted(seconds)
    assert f"\ncpu:1: 1 devices, {shown[0][0]}, 12288 rows" in done.stdout


CANDIDATES = """
import json, sys
from absl import flags
from s1jax.cli import plan
from s1jax.config.experiment import Experiment, MeshConfig, TrainConfig
from s1jax.config.model import ModelConfig

flags.FLAGS(["plan"])
model = ModelConfig.dense(vocab_size=64, d_model=16, mlp_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8)
train = TrainConfig(batch_size=16, remat="none", accumulation=2)
for mesh in (MeshConfig(data=2, tensor=2), MeshConfig()):
    tried = plan._candidates(Experiment(model=model, mesh=mesh, train=train), 8, 16)
    print(json.dumps([plan._name(attempts[0]) for attempts in tried]))
"""


def test_search_keeps_the_axes_that_were_given():
    """In a process of its own: launchers have flags of the same names."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CANDIDATES], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given, free = ([name.split(" remat=") for name in json.loads(line)] for line in done.stdout.splitlines())
    assert {mesh for mesh, _ in given} == {"data=2 fsdp=2 tensor=2"}
    policies = ("none", "save_dots", "save_attention", "full")
    assert {rest for _, rest in given} == {f"{remat} accumulation={n}" for remat in policies for n in (1, 2, 4)}
    inner = [f"fsdp={8 // n} {axis}={n}" for axis in ("sequence", "tensor") for n in (2, 4, 8)]
    assert {mesh for mesh, _ in free} == {"fsdp=8", *inner}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=v9:4"], "--target=v9:4 is not a target"),
        (["--target=cpu:0"], "--target=cpu:0 has no device; give at least 1"),
        (["--target=v5p:2x0x2"], "--target=v5p:2x0x2 has no device"),
        (
            ["--target=cpu:3", "--search"],
            "the 16 rows of a step (config.train.batch_size) do not divide over the 3 dev",
        ),
        (["--target=cpu:200000"], "--target=cpu:200000: fake devices take memory and time; give at most 1024"),
        (["--target=cpu:8", "--mfu=20"], "--mfu=20.0 is not a share of the peak; give 0 to 1, for example --mfu=0.2"),
        (["--target=cpu:8", "--out=nowhere/plan.json"], "--out=nowhere/plan.json: there is no folder nowhere; make it"),
        (["--target=cpu:8", "--out=configs"], "--out=configs is a folder"),
        (["--target=cpu:8", "--out=/proc/plan.json"], "--out=/proc/plan.json can't be written (No such file"),
        (["--target=h100:12"], "hosts have 8 GPUs"),
        (["--target=cpu:3"], "a step of train.batch_size=16 has 16 rows, which mesh.fsdp = 3 does not divide"),
        (["--target=cpu:8", "--config.mesh.sequence=8", "--config.data.block_size=200"], "a multiple of 16"),
        (["--target=cpu:4", "--config.mesh.tensor=3"], "does not divide the 4 devices"),
        ([], "--target=CHIP:ARRANGEMENT"),
        (["--target=cpu:8", "--num_tokens=1e4"], "--num_tokens is for packed rows; set --config.data.batching=packed"),
        (
            [
                *("--target=cpu:8", "--config.data.batching=packed", "--config.train.batch_size=0"),
                "--config.train.batch_tokens=1600",
            ],
            "the rows of countdown take is not known; give --num_tokens, or --config.train.steps",
        ),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    done = run(*SMALL, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (
            "ABORTED: Internal error when accessing libtpu multi-process lockfile.",
            "another process holds libtpu's lock",
        ),
        ("ABORTED: The TPU is already in use by process with pid 42.", "another process holds libtpu's lock; wait"),
        ("ALREADY_EXISTS: x", "another process holds libtpu's lock"),
        ("UNKNOWN: open(/dev/accel0): Device or resource busy", "another process holds libtpu's lock"),
        ("NOT_FOUND: no topology v5p:9x9", "pip install 's1jax\\[tpu-aot\\]', or choose another arrangement"),
    ],
)
def test_a_compiler_in_use_is_told_from_a_missing_one(monkeypatch, reason, sentence):
    def refuse(**_):
        raise RuntimeError(reason)

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match=sentence):
        targets.devices(targets.parse("v5p:2x2x1"))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is installed")
def test_a_missing_compiler_is_named_with_its_extra(run):
    done = run(*SMALL, "--target=v5p:2x2x1")
    assert done.returncode == 2
    assert "pip install 's1jax[tpu-aot]'" in done.stderr and "Traceback" not in done.stderr


def test_flags_of_sampling_and_of_training_are_not_mixed(run):
    done = run(*SMALL, "--target=cpu:1", "--batch_size=4", "--weight_dtype=fp8")
    assert done.returncode and "--batch_size, --weight_dtype: read only with --sample; leave it out." in done.stderr
    done = run("--sample", "--model=gpt_oss_20b", "--target=cpu:1", "--rows_per_step=2")
    assert done.returncode and "--rows_per_step: not read with --sample; leave it out." in done.stderr
    done = run("--sample", "--model=gpt_oss_20b", "--target=cpu:1", "--weight_dtype=int4")
    assert done.returncode and "--sample plans weights in bfloat16, fp8 or mxfp4" in done.stderr
