"""`python -m launch.distil --batch=...` from the outside: exit codes, prices, and flags that do not go together."""

import json

import pytest

from tests.cli import forks
from tests.distillation.batch_stand_in import BatchStandIn


@pytest.fixture(scope="module")
def server():
    """Forks the command."""
    with forks.Forks("launch.distil", "s1jax.cli.distil", "s1jax.remote.batches", "aiohttp") as made:
        yield made


def test_submit_and_collect(server, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"What is {i} + {i}?"}) + "\n" for i in range(3)))
    with BatchStandIn() as teacher:
        flags = (f"--questions={questions}", f"--out={tmp_path}/out", f"--endpoint={teacher.url}", "--model=big")
        price = "--dollars_per_million=0.5,2"
        blind = server.run(*flags, price, "--batch=submit")
        assert blind.returncode == 2 and "no reply of big with thinking is known" in blind.stderr
        up = server.run(*flags, price, "--batch=submit", "--allow_no_thinking")
        assert up.returncode == 0, up.stderr
        assert "3 questions: 3 requests" in up.stdout and "dollars, are in 1 batch that has not ended" in up.stdout
        early = server.run(*flags, price, "--batch=collect")
        assert early.returncode == 4 and "note: batch batch_1 is validating." in early.stdout
        assert "never arrived" not in early.stdout and early.stdout.count("are in 1 batch") == 1
        teacher.finish()
        down = server.run(*flags, price, "--batch=collect")
        assert down.returncode == 0 and "3 rows to" in down.stdout, down.stderr
        assert f" {(60 * 0.25 + 120 * 1) / 1e6:.4f} dollars" in down.stdout  # half of the price
        dear = server.run(*flags, price, "--batch=submit", "--max_dollars=0.0001", "--seed=9", "--allow_no_thinking")
        assert dear.returncode == 3 and "max_dollars does not cover" in dear.stdout
        for more, message in [
            (["--batch=read"], "--batch=read and --batch_results=FILE,... belong together"),
            (["--batch_results=a.jsonl"], "--batch=read and --batch_results=FILE,... belong together"),
            (["--batch=read", "--batch_results=none.jsonl"], "none.jsonl cannot be read"),
            (["--batch=submit", "--checkpoint=package:countdown_base", "--endpoint="], "--batch is for an --endpoint"),
        ]:
            done = server.run(*flags, *more)
            assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
