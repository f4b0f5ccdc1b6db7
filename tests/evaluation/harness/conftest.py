"""What all tests of the harness need: the harness itself, a folder with a model and tasks, its command line."""

import functools
import sys
import types

import pytest

from s1jax.cli import command
from s1jax.cli import lm_eval as launcher
from tests.evaluation.harness import cases


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="the harness is not installed: pip install -e .[harness]")
    from s1jax.evaluation import lm_eval as harness

    return harness


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    cases.make(folder)
    return folder


@pytest.fixture
def call_launcher(harness, monkeypatch, capsys):
    """Runs the command line in this process, without the harness's own tasks; gives exit code and output."""
    import lm_eval.__main__
    from lm_eval.tasks import TaskManager

    # Its log would keep the standard error of this test.
    monkeypatch.setattr(lm_eval.__main__, "setup_logging", lambda: None)
    own = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", own)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
        code = command.guarded(launcher.main)
        said = capsys.readouterr()
        return types.SimpleNamespace(returncode=code or 0, stdout=said.out, stderr=said.err)

    return call
