"""Where an optional package is missing: one sentence that names the extra of s1jax."""

import ast
import importlib
import importlib.metadata
import pathlib
import re
import sys

import pytest
from absl import flags

from s1jax import errors
from s1jax.evaluation import plot
from s1jax.grading import compare
from s1jax.io import readers
from tests.test_imports import TREES

ROOT = pathlib.Path(__file__).resolve().parents[1]


def extras():
    """Extra -> names of its packages, as setup.py has them."""
    found = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("BEAM", "FEATURES", "HARNESS", "WANDB"):
            value = ast.literal_eval(node.value)
            found |= value if isinstance(value, dict) else {node.targets[0].id.lower(): value}
    return {extra: {re.split("[>=<]", requirement)[0] for requirement in some} for extra, some in found.items()}


def test_every_sentence_names_an_extra_that_brings_the_package():
    calls = [
        node
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingPackageError"
    ]
    known = extras()
    named = {(call.args[1].value, call.args[2].value) for call in calls if isinstance(call.args[1], ast.Constant)}
    assert {extra for _, extra in named} >= {"data", "plot", "gguf", "eval", "remote"}
    assert all(package in known[extra] for package, extra in named), (named, known)


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path):
    def said(call, *arguments):
        with pytest.raises(errors.MissingPackageError) as error:
            call(*arguments)
        return str(error.value)

    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert said(plot.draw, [], "") == (
        "A picture of the curve needs matplotlib, which is not installed: "
        'python -m pip install "s1jax[plot]" brings it.'
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    assert said(lambda: list(readers.read_file(tmp_path / "rows.parquet"))) == (
        f"{tmp_path}/rows.parquet is parquet and needs pyarrow, which is not installed: "
        'python -m pip install "s1jax[data]" brings it.'
    )

    def not_there(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compare.metadata, "version", not_there)
    assert 'needs math-verify, which is not installed: python -m pip install "s1jax[eval]"' in said(compare.grader)
    monkeypatch.setitem(sys.modules, "gguf", None)
    for name in ("file", "metadata", "read", "tokenizer"):
        monkeypatch.delitem(sys.modules, f"s1jax.checkpoint.gguf.{name}", raising=False)
    for name in flags.FLAGS:  # another test may have imported another command, whose flags have the same names
        monkeypatch.setattr(flags.FLAGS[name], "allow_override", True)
    convert = importlib.import_module("s1jax.cli.convert")
    for name in ("file", "metadata", "read", "tokenizer"):
        monkeypatch.delattr(f"s1jax.checkpoint.gguf.{name}", raising=False)
    assert said(convert._read_gguf, "m.gguf", None).startswith("--from_gguf=m.gguf needs gguf, which is not installed")
