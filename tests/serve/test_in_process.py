"""A teacher in the process against the same engine behind HTTP: the same tokens, counts and refusals."""

import asyncio
import json

import pytest

from s1jax.distillation.control import Control
from s1jax.distillation.distil import distil
from s1jax.distillation.settings import DistilSettings, Price
from s1jax.errors import UserError
from s1jax.remote.client import Endpoint, RemoteError
from s1jax.serve.in_process import EngineTeacher

QUESTIONS = [{"question": f"What is {i} plus 30?", "system": "Be brief." if i else ""} for i in range(2)]


@pytest.fixture
def own(engine):
    return EngineTeacher(lambda: engine, "tiny", "engine:abc")


def answers(folder):
    lines = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    return sorted(lines, key=lambda line: (line["id"], line["answer"]))


def test_the_server_and_the_engine_in_the_process_give_the_same_answers(server, own, tmp_path):
    settings = DistilSettings(
        answers=2, max_tokens=40, seed=3, temperature=0.8, top_p=0.9, price=Price(0.5, 2.0),
        body={"thinking_token_budget": 9, "num_waits": 1, "wait": "W"},
    )  # fmt: skip
    teachers = {"http": Endpoint(f"{server.url}/v1", "tiny"), "own": own}
    sums = {name: distil(QUESTIONS, tmp_path / name, teacher, settings) for name, teacher in teachers.items()}
    http, same = (answers(tmp_path / name) for name in teachers)
    assert len(http) == 4
    for one, two in zip(http, same, strict=True):
        for field in ("id", "answer", "state", "content", "reasoning", "finish_reason", "dollars", "replied"):
            assert one[field] == two[field], field
        counts = ("prompt_tokens", "completion_tokens", "reasoning_tokens")
        assert [one["usage"][name] for name in counts] == [two["usage"][name] for name in counts]
        assert 0 < two["usage"]["reasoning_tokens"] <= 9 and two["usage"]["completion_tokens"] <= 40
        assert two["endpoint"] == "engine:abc" and one["key"] != two["key"]
    for field in ("prompt_tokens", "completion_tokens", "dollars", "states", "rows"):
        assert getattr(sums["http"], field) == getattr(sums["own"], field)
    assert sums["own"].completion_tokens == sum(line["usage"]["completion_tokens"] for line in same)
    assert len({line["reasoning"] + line["content"] for line in same}) == 4


def test_nothing_is_sampled_twice(engine, own, tmp_path):
    settings = DistilSettings(max_tokens=30)
    distil(QUESTIONS, tmp_path, own, settings)

    def never():
        raise AssertionError("the engine is loaded, although every answer is there")

    assert distil(QUESTIONS, tmp_path, EngineTeacher(never, "tiny", "engine:abc"), settings).left == 0
    assert len(answers(tmp_path)) == 2
    other = EngineTeacher(lambda: engine, "tiny", "engine:of other weights")
    distil(QUESTIONS, tmp_path, other, settings)
    assert len(answers(tmp_path)) == 4


def test_a_checkpoint_is_a_teacher_by_its_path(engine, tmp_path):
    settings = DistilSettings(max_tokens=30)
    folder = engine.model.source
    distil(QUESTIONS, tmp_path, EngineTeacher.of(folder, slots=2, cache_length=512), settings)
    for line in answers(tmp_path):
        assert line["endpoint"] == f"engine:{engine.model.fingerprint}" and line["model"] == "model"
    assert EngineTeacher.of(folder, weight_dtype="int8").address.endswith(",weight_dtype=int8")
    with pytest.raises(UserError):
        EngineTeacher.of(str(tmp_path / "none"))


def test_refusals_are_those_of_the_server(own):
    async def ask(messages, **fields):
        with pytest.raises(RemoteError) as caught:
            await own.chat(messages, **fields)
        return caught.value

    async def all_():
        user = [{"role": "user", "content": "q"}]
        found = [
            await ask(user, more={"thinking_token_budgt": 3}),
            await ask(user, more={"provider": {"only": ["x"]}}),
            await ask(user, more={"temperature": -1}),
            await ask([{"role": "user", "content": "long " * 3000}], max_tokens=100),
            await ask([{"role": "user", "content": " "}], max_tokens=100),
        ]
        await own.close()
        return found

    typo, ignored, cold, long, empty = asyncio.run(all_())
    assert {error.kind for error in (typo, ignored, cold, long, empty)} == {"request"}
    assert (
        "thinking_token_budget" in str(typo) and "provider" in str(ignored) and "would have no effect" in str(ignored)
    )
    assert "temperature" in str(cold) and long.code == "context_length_exceeded"
    assert "prompt is empty" in str(empty)


def test_an_engine_that_cannot_be_loaded_is_one_sentence(tmp_path):
    def broken():
        raise UserError("the weights are damaged; copy them again.")

    with pytest.raises(UserError, match="the weights are damaged; copy them again"):
        distil(QUESTIONS, tmp_path, EngineTeacher(broken, "tiny", "engine:abc"))
    assert not (tmp_path / "answers.jsonl").exists() or not answers(tmp_path)


def test_a_run_that_is_stopped_leaves_its_requests(engine, tmp_path):
    control, made = Control(), []

    def make():
        made.append(True)
        control.stop(0.0)  # while both requests wait for the engine
        return engine

    teacher = EngineTeacher(make, "tiny", "engine:abc")
    found = distil(QUESTIONS, tmp_path, teacher, DistilSettings(max_tokens=1500), control=control)
    assert (found.reason, found.left, found.dollars) == ("user", 2, 0) and made
    assert not (tmp_path / "answers.jsonl").exists()
