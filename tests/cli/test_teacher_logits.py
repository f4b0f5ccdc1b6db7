"""`launch.teacher_logits` from the outside: targets on a mesh of 8 devices, one sentence for wrong input."""

import pytest

from s1jax.data.teacher_logits import Folder
from tests.cli import forks

BASE = "--config=configs/countdown_s1.py"


@pytest.fixture(scope="module")
def server():
    with forks.Forks("launch.teacher_logits", "s1jax.cli.teacher_logits", "s1jax.training.teacher_targets") as server:
        yield server


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing"),
        ([BASE, "--out=x"], "--teacher is missing; name a checkpoint"),
        ([BASE, "--teacher=package:countdown_base"], "--out is missing; name a folder"),
        ([BASE, "--teacher=package:countdown_base", "--out=x", "--keep=all"], "--keep"),
    ],
)
def test_wrong_input_is_one_sentence(server, flags, message):
    done = server.run(*flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_mesh_scores_the_rows_of_a_config(server, tmp_path):
    flags = [BASE, "--teacher=package:countdown_base", f"--out={tmp_path / 't'}", "--size=4", "--batch_rows=4"]
    flags += ["--config.data.num_rows=3", "--config.mesh.fsdp=2", "--config.mesh.sequence=2", "--config.mesh.tensor=2"]
    out, err = tmp_path / "out", tmp_path / "err"
    assert server.start(flags, {"JAX_NUM_CPU_DEVICES": "8"}, out, err).wait() == 0, err.read_text()
    assert "has the targets of 3 rows, 3 of them new" in out.read_text()
    folder = Folder(tmp_path / "t")
    assert len(folder) == 3 and folder.settings.source == "package:countdown_base"
