"""`s1jax convert` of quantised checkpoints: from the folder to weights, and what it says to damaged ones."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from s1jax.checkpoint import huggingface, names, store
from tests import byte_tokenizer
from tests.checkpoint import quantized_folders as folders
from tests.cli.test_convert import DRIVER

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ("pack4-asymmetric", "int8", "float8-block", "nvfp4", "gptq-act-order", "awq", "fp8", "nf4-nested")
Q0 = "model.layers.1.self_attn.q_proj"

# A kind, what is done to its folder, and words of the sentence.
WRONG = {
    "no_scales": ("awq", lambda t, c: t.pop(f"{Q0}.scales"), f"tensor {Q0}.scales is missing, without which"),
    "no_config": ("gptq4", lambda t, c: c.pop("quantization_config"), "is stored as I32; s1jax reads F32, F16, BF16"),
    "unknown": ("fp8", lambda t, c: c["quantization_config"].update(quant_method="modelopt"), "'modelopt' is unknown"),
    "group": ("gptq4", lambda t, c: c["quantization_config"].update(group_size=16), "ask for [4, 32]"),
    "width": ("pack4", lambda t, c: _widen(t, f"{Q0}.weight_packed"), "has shape [32, 16] where"),
    "other_model": ("int8", lambda t, c: c.update(intermediate_size=48), "has shape [32, 64] where the configuration"),
    "half": ("nf4", lambda t, c: t.pop(f"{Q0}.weight.absmax"), f"tensor {Q0}.weight.absmax is missing"),
    "both": ("fp8", lambda t, c: c["quantization_config"].update(modules_to_not_convert=["q_proj"]), "names model."),
    "extra": ("awq", lambda t, c: t.update({f"{Q0}.odd": t[f"{Q0}.scales"]}), f"has the unexpected tensor {Q0}.odd"),
}


def _widen(tensors, name):
    kind, (rows, columns), data = tensors[name]
    tensors[name] = (kind, (rows, 2 * columns), data * 2)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder, the weights of `KINDS`, the sentences of `WRONG` and all that was printed."""
    folder = tmp_path_factory.mktemp("quantised")
    expected = {}
    for kind in KINDS:
        expected[kind] = folders.write_folder(folder / kind, kind)
        byte_tokenizer.save(folder / kind)
    for name, (kind, damage, _) in WRONG.items():
        folders.write_folder(folder / name, kind)
        byte_tokenizer.save(folder / name)
        tensors = folders.read_safetensors(folder / name / huggingface.SINGLE)
        config = json.loads((folder / name / "config.json").read_text())
        damage(tensors, config)
        folders.write_safetensors(folder / name / huggingface.SINGLE, tensors)
        (folder / name / "config.json").write_text(json.dumps(config))
    runs = [[f"--from_hf={folder / name}", f"--to={folder / 'out' / name}"] for name in (*KINDS, *WRONG)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(runs), str(folder)],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results[: len(KINDS)] == [None] * len(KINDS)
    return folder, expected, dict(zip(WRONG, results[len(KINDS) :], strict=True)), done.stdout + done.stderr


def test_weights_are_those_that_the_codes_stand_for(converted):
    folder, expected, _, printed = converted
    for kind in KINDS:
        found = store.load_model(folder / "out" / kind)
        assert found.config == folders.CONFIG
        theirs = names.views(folders.CONFIG, expected[kind], "huggingface")
        for key, view in names.views(folders.CONFIG, found.params, "huggingface").items():
            np.testing.assert_allclose(view, theirs[key], rtol=2**-8)
        assert f"{folder / kind} holds quantised weights (" in printed.replace("\n", " ")


def test_damaged_ones_end_in_a_sentence_and_leave_nothing(converted):
    folder, _, sentences, _ = converted
    for name, (_, _, words) in WRONG.items():
        assert words in sentences[name], (name, sentences[name])
        assert sentences[name].endswith(".") and str(folder / name) in sentences[name]
        assert not (folder / "out" / name).exists()
