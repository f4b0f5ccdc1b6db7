"""What a resumed run makes of the metrics that are there."""

import json
import time

import jax
import pytest

from s1jax.config.experiment import Experiment, MeshConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import metrics

MODEL = ModelConfig.dense(vocab_size=128, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)


@pytest.mark.parametrize("line", [b"{}", b"5", b"\xff\xfe", b'{"step": 1}'])
def test_damaged_metrics_are_named(tmp_path, line):
    log = metrics.RunLog(
        tmp_path, Experiment(model=MODEL), MODEL, mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1]), 0.0
    )
    good = one_line(1)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good, line, one_line(2)]) + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a line of a run's metrics"):
        log.begin(1, 6)
    (tmp_path / "metrics.jsonl").write_bytes(good + b"\n" + line)  # as a killed run leaves it
    with log:
        assert log.begin(1, 6) == ""
    assert log.last == json.loads(good)


def one_line(step, **changes):
    """A line as a run writes it, as far as a resumed one reads it."""
    values = {"loss": 1.0, "tokens": 4, "supervised_tokens": 2, "padding": 0.5, "seconds": 0.1, "mfu": None}
    times = {"wall_seconds": 10.0 * step, "dollars": float(step), "dollars_to_go": 0.0, "peak_memory_bytes": None}
    return json.dumps({"step": step, **values, **times, **changes}).encode()


def begun(folder, lines, start=4):
    """A log of a run that is resumed at step `start`, and what it says."""
    (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    log = metrics.RunLog(folder, Experiment(model=MODEL), MODEL, log_mesh(), time.monotonic())
    return log, log.begin(start, 6)


def test_lines_that_are_missing_are_said(tmp_path):
    lines = [one_line(step) for step in range(1, 5)]
    assert begun(tmp_path, lines)[1] == "" and begun(tmp_path, [*lines, one_line(5)])[1] == ""
    log, said = begun(tmp_path, lines[:2])
    assert f"{tmp_path}/metrics.jsonl has no line of 2 of the 4 steps that the checkpoint has, from step 3 on" in said
    assert log.summary(False)["tokens"] == 8
    assert "1 of the 4 steps that the checkpoint has, from step 2 on" in begun(tmp_path, [lines[0], *lines[2:]])[1]
    assert "1 of the 4 steps" in begun(tmp_path, [*lines[:3], lines[3][:-9]])[1], "torn"
    (tmp_path / "metrics.jsonl").unlink()
    log = metrics.RunLog(tmp_path, Experiment(model=MODEL), MODEL, log_mesh(), 0.0)
    assert "4 of the 4 steps that the checkpoint has, from step 1 on" in log.begin(4, 6)


def log_mesh():
    return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])


def test_every_flipped_bit_of_the_structure_is_noticed(tmp_path):
    """Of every byte one bit. What may go unnoticed is the value of a number, which nothing else says."""
    lines = [one_line(step) for step in range(1, 5)]
    whole = b"".join(line + b"\n" for line in lines)
    before = json.loads(b"[" + b",".join(lines) + b"]")
    silent = 0
    for place in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        try:
            log, said = begun(tmp_path, bytes(damaged).split(b"\n")[:-1])
        except UserError as error:
            assert f"{tmp_path}/metrics.jsonl:" in str(error)
            continue
        if said:
            continue
        silent += 1
        assert [set(record) for record in log._records] == [set(record) for record in before] or (
            whole[place : place + 1].isalpha()
        )
        assert [record["step"] for record in log._records] == [1, 2, 3, 4]
        log.summary(False)
    assert silent < len(whole) / 4


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ((1, 2, 2, 3), r":3 is of step 2, after a line of step 2; remove"),
        ((1, 3, 2, 4), r":3 is of step 2, after a li"),
    ],
)
def test_steps_out_of_order_are_named(tmp_path, steps, sentence):
    with pytest.raises(UserError, match=sentence):
        begun(tmp_path, [one_line(step) for step in steps])


def test_time_that_was_lost_is_not_forgotten_by_a_process_that_takes_no_step(tmp_path):
    """150 steps, of which 50 were lost; then one that dies while it compiles, then one that goes on."""
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(one_line(n) + b"\n" for n in range(1, 151)))
    values = dict.fromkeys(("loss", "learning_rate", "grad_norm", "supervised", "tokens", "pairs"), 1.0)
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    for _ in range(2):
        began = time.monotonic()
        with metrics.RunLog(tmp_path, Experiment(model=MODEL), MODEL, mesh, began) as log:
            log.begin(100, 200)
            assert log.last["step"] == 100
    with metrics.RunLog(tmp_path, Experiment(model=MODEL), MODEL, mesh, time.monotonic()) as log:
        log.begin(100, 200)
        log.start_clock()
        assert 1500 <= log.write(101, values, 8)["wall_seconds"] < 1500 + time.monotonic() - began
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == list(range(1, 102)) and kept[-1]["dollars"] == 150
