"""What a resumed run makes of the metrics that are there."""

import json
import time

import jax
import pytest

from s1jax import parallel
from s1jax.config import Experiment, InputError, MeshConfig, ModelConfig
from s1jax.train import record

MODEL = ModelConfig(vocab_size=128, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)


@pytest.mark.parametrize("line", [b"{}", b"5", b"\xff\xfe", b'{"step": 1}'])
def test_damaged_metrics_are_named(tmp_path, line):
    log = record.RunLog(
        tmp_path, Experiment(model=MODEL), MODEL, parallel.make_mesh(MeshConfig(), jax.devices()[:1]), 0.0
    )
    good = json.dumps({"step": 1, "wall_seconds": 2.0, "dollars": 0.0}).encode()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good, line, good]) + b"\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is no line of a run's metrics"):
        log.begin(1, 6)
    (tmp_path / "metrics.jsonl").write_bytes(good + b"\n" + line)  # as a killed run leaves it
    with log:
        log.begin(1, 6)
    assert log.last == json.loads(good)


def test_time_that_was_lost_is_not_forgotten_by_a_process_that_takes_no_step(tmp_path):
    """150 steps, of which 50 were lost; then one that dies while it compiles, then one that goes on."""
    lines = [json.dumps({"step": n, "wall_seconds": 10.0 * n, "dollars": float(n)}) + "\n" for n in range(1, 151)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    values = dict.fromkeys(("loss", "learning_rate", "grad_norm", "supervised", "tokens", "pairs"), 1.0)
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])
    for _ in range(2):
        began = time.monotonic()
        with record.RunLog(tmp_path, Experiment(model=MODEL), MODEL, mesh, began) as log:
            log.begin(100, 200)
            assert log.last["step"] == 100
    with record.RunLog(tmp_path, Experiment(model=MODEL), MODEL, mesh, time.monotonic()) as log:
        log.begin(100, 200)
        log.start_clock()
        assert 1500 <= log.write(101, values, 8)["wall_seconds"] < 1500 + time.monotonic() - began
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == list(range(1, 102)) and kept[-1]["dollars"] == 150
