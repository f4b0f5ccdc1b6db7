"""`python -m launch.distil --checkpoint=...`: a teacher in the process, from the outside."""

import json

import pytest

from tests.cli import forks
from tests.serve import running

ROWS = [{"question": f"What is {i} plus 30?"} for i in range(2)]
BODY = '--body={"thinking_token_budget": 12}'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return f"--checkpoint={running.save_model(tmp_path_factory.mktemp('teacher') / 'tiny')}"


@pytest.fixture(scope="module")
def server():
    """Forks the command."""
    with forks.Forks("launch.distil", "s1jax.cli.distil", "s1jax.serve.in_process") as made:
        yield made


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return f"--questions={path}"


def test_answers_of_a_checkpoint(server, checkpoint, questions, tmp_path):
    flags = (questions, f"--out={tmp_path}/out", checkpoint, "--max_tokens=60", "--slots=2", "--cache_length=256", BODY)
    plan = server.run(*flags, "--plan")
    assert plan.returncode == 0 and "2 questions: 2 requests" in plan.stdout and not plan.stderr
    assert not (tmp_path / "out").exists()
    done = server.run(*flags)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").open()]
    assert [line["model"] for line in lines] == ["tiny"] * 2
    assert all(line["endpoint"].startswith("engine:") and 0 < line["usage"]["reasoning_tokens"] <= 12 for line in lines)
    again = server.run(*flags)
    assert again.returncode == 0 and "2 are in the folder already" in again.stdout and "loading" not in again.stderr


def test_bad_flags_are_one_sentence(server, checkpoint, questions, tmp_path):
    for flags, message in [
        ([], "--endpoint is missing; give the URL, or --checkpoint."),
        ([checkpoint, "--endpoint=http://127.0.0.1:1/v1"], "--checkpoint and --endpoint are two teachers; give one of"),
        (["--checkpoint=package:none"], "package:none"),
        ([checkpoint, "--mesh=rows=2"], "--mesh has 'rows=2'"),
    ]:
        done = server.run(questions, f"--out={tmp_path}/out", *flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr
    wrong = '--body={"thinking_token_budgt": 3}'
    done = server.run(questions, f"--out={tmp_path}/out", checkpoint, wrong, "--slots=2", "--cache_length=256")
    assert done.returncode == 0 and "2 failed" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").open()]
    assert all("thinking_token_budget" in line["error"] and line["final"] for line in lines)
