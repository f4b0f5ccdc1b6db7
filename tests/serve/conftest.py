"""One small model and one server for all tests of a process."""

import pytest

from s1jax.checkpoint import store
from s1jax.engine.engine import Engine
from tests.serve import running


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """An engine that the test servers share; its outputs are what they are compared with."""
    return Engine(running.save_model(tmp_path_factory.mktemp("serve") / "model"), slots=4)


@pytest.fixture(scope="session")
def about(engine):
    """Metadata of the engine's model."""
    model = engine.model
    return store.Metadata(model.config, model.tokenizer, model.chat, {})


@pytest.fixture(scope="session")
def server(engine, about):
    """A server that takes requests."""
    with running.serve(lambda: engine, about) as found:
        yield found
