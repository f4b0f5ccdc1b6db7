"""Decoding with rows, heads and experts split over 8 fake devices gives what one device gives, id for id.

The second model has latent attention, whose one key head all devices have; the third has experts in MXFP4.
S1JAX_ALL_MESHES=1 tries ten meshes, among them four and eight shares of the heads, which two key heads do not have.
"""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_meshes_give_the_ids_of_one_device():
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "tests/engine/fake_devices.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == (10 if os.environ.get("S1JAX_ALL_MESHES") else 3)
    for case in found:
        assert case["same"] == [True] * 24 and case["off"] < 1e-3, case
