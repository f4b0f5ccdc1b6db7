"""lm-evaluation-harness against the server: the same answers and choices as in one process."""

import numpy as np
import pytest

from s1jax.checkpoint import store
from s1jax.engine.engine import Engine
from tests.serve import running

SETTINGS = {"apply_chat_template": True, "gen_kwargs": "max_gen_toks=48,max_thinking_tokens=5"}


@pytest.fixture(scope="module")
def server(harness, folder):
    pytest.importorskip("uvicorn", reason="the server is not installed: pip install -e .[serve]")
    engine = Engine(f"{folder}/model", slots=4)
    model = engine.model
    about = store.Metadata(model.config, model.tokenizer, model.chat, {})
    with running.serve(lambda: engine, about) as found:
        yield found


@pytest.fixture(scope="module")
def evaluate(harness, folder):
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)

    def evaluate(model, task, **settings):
        found = lm_eval.simple_evaluate(model, tasks=[task], task_manager=tasks, bootstrap_iters=0, **settings)
        return [[each[0] for each in sample["resps"]] for sample in found["samples"][task]]

    return evaluate


@pytest.fixture(scope="module")
def local(harness, folder):
    return harness.HarnessModel(f"{folder}/model", batch_size=4)


def test_chat_completions_give_the_answers_of_one_process(server, evaluate, local):
    from lm_eval.models.openai_completions import LocalChatCompletion

    remote = LocalChatCompletion(base_url=f"{server.url}/v1/chat/completions", model="tiny", num_concurrent=2)
    ours, wanted = ([text for (text,) in evaluate(model, "answers", **SETTINGS)] for model in (remote, local))
    # An answer of the engine has no white space at its ends; the harness cuts its text at the stop string afterwards.
    assert ours == [answer.strip() for answer in wanted] and len(set(ours)) > 1


def test_completions_choose_as_one_process(server, evaluate, local):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    remote = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model="tiny", tokenizer_backend="remote", tokenized_requests=True
    )
    ours, wanted = (np.array(evaluate(model, "choices"), float) for model in (remote, local))
    np.testing.assert_allclose(ours[..., 0], wanted[..., 0], atol=1e-3)
    assert (ours[..., 1] == wanted[..., 1]).all()
