"""The checks themselves with tiny shapes: each runs on this CPU, and notices what is wrong."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest

from s1jax.check import kernels, peers, report, sizes, speed, tokens
from s1jax.check.report import NotHereError

TINY = dataclasses.replace(sizes.tiny(), length=32, heads=2, kv_heads=1, batches=(2,))


def run(checks):
    return {line.name: line for line in report.run_all(checks, {})}


def test_all_kernels_are_those_of_the_reference():
    checks = kernels.checks(TINY, "cpu")
    kinds = {check.name.split(",")[0] for check in checks}
    assert kinds == {"flash", "cudnn", "splash", "chunked", "pages", "paged", "weights"}
    # Parts of a row compile slowly, and tests/model has them for each kernel; here one kernel has them.
    elsewhere = ("splash, split", "chunked, split", "paged", "splash, window, softcap, sinks")
    lines = run([check for check in checks if check.name not in elsewhere])
    assert {line.note for line in lines.values() if line.status != "pass"} == {
        "it runs on NVIDIA GPUs, and has no interpreter"
    }, lines
    figures = [figure for line in lines.values() for figure in line.figures.values()]
    assert all(0 <= figure.value < 5 and figure.unit == "%" for figure in figures)
    assert set(lines["flash, split"].figures) == {"forward", "backward"}


@pytest.mark.parametrize(("wrong", "words"), [(1.1, "the limit is 0.01 %"), (float("nan"), "the limit is 0.01 %")])
def test_a_kernel_that_is_wrong_fails(wrong, words):
    reference = functools.cache(functools.partial(kernels._reference, TINY))
    broken = lambda q, k, v, ids: wrong * q  # noqa: E731
    outcome = kernels._compare(broken, TINY, "packed", "", reference)
    assert not outcome.passed and words in outcome.note


@pytest.mark.parametrize(
    ("platform", "not_here"),
    [("gpu", {"splash"}), ("tpu", {"flash", "cudnn", "paged"})],
)
def test_a_kernel_of_another_device_is_not_run(platform, not_here):
    found = set()
    for check in kernels.checks(dataclasses.replace(TINY, length=-1), platform):
        try:
            check.run()
        except NotHereError:
            found.add(check.name.split(",")[0])
        except Exception:  # rows of such a length cannot be made, so nothing is computed here
            continue
    assert found == not_here


def test_speed_and_tokens_have_figures():
    lines = run([*speed.Speed(TINY).checks(), *tokens.checks(TINY)])
    assert {line.status for line in lines.values()} == {"pass"}, lines
    units = {f"{name}: {figure}": value.unit for name, line in lines.items() for figure, value in line.figures.items()}
    assert units == {
        "memory bandwidth: bandwidth": "GB/s", "matrix products: peak": "TFLOP/s",
        "tiny, 2 x 64 packed: speed": "tokens/s", "tiny, 2 x 64 packed: step": "s",
        "tiny, batch 2: speed": "tokens/s", "tiny, batch 2: step": "ms", "tiny, batch 2: of roofline": "%",
        "greedy, against the CPU: equal tokens": "%", "greedy, against the CPU: equal sequences": "%",
    }  # fmt: skip


def test_an_error_that_is_no_number_is_infinite():
    ones = jnp.ones(3)
    assert kernels.error_of(ones * jnp.nan, ones) == float("inf") and kernels.error_of(ones, 2 * ones) == 0.5


def test_transformers_beside_it_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda package: None if package == "torch" else package)
    lines = run(peers.checks(TINY))
    assert {(line.status, line.note) for line in lines.values()} == {("not run", "torch is not installed")}
    assert set(lines) == {"tiny, batch 2", "tiny, 2 x 64"}


def test_sizes_of_accelerators_are_those_of_the_models():
    real = sizes.real()
    model = real.models["Qwen2.5-1.5B"]
    assert (real.heads, real.kv_heads, real.head_dim) == (model.num_heads, model.num_kv_heads, model.head_dim)
    assert [rows * length for length, rows in real.train] == [32768, 32768]
