"""What a resumed run makes of the metrics that are there."""

import json

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
