"""What all tests of the harness want: the harness itself, and a folder with a model and tasks."""

import pytest

from tests.evaluation.harness import cases


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="the harness is not installed: pip install -e .[harness]")
    from s1jax.evaluation import lm_eval as harness

    return harness


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    cases.make(folder)
    return folder
