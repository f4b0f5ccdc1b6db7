"""`s1jax distil`: what it prints, its exit codes, and what kills and signals leave."""

import json
import os
import random
import signal
import time

import pytest

from tests.cli.forks import Forks
from tests.distillation.conftest import rows
from tests.distillation.stand_in import KEY, StandIn, error, ok

MONEY = ["--max_dollars=5", "--dollars_per_million=0.55,2.19"]


@pytest.fixture(scope="module")
def distil():
    with Forks("launch.distil", "aiohttp", "rich.progress", "s1jax.cli.distil", "s1jax.cli.__main__") as forks:
        yield forks


@pytest.fixture
def teacher():
    with StandIn() as found:
        yield found


@pytest.fixture
def flags(teacher, tmp_path):
    """Flags for a number of questions and a folder."""

    def found(count, out="out"):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
        return [f"--questions={path}", f"--out={tmp_path / out}", f"--endpoint={teacher.url}", "--model=big"]

    return found


def lines(path):
    return [json.loads(line) for line in path.open()]


def test_it_plans_asks_and_says_what_it_cost(distil, teacher, flags, tmp_path):
    plan = distil.run(*flags(20), "--plan", "--answers=2", *MONEY, "--max_tokens=100", "--expected_tokens=50")
    assert (plan.returncode, plan.stderr) == (0, "") and not teacher.calls and not (tmp_path / "out").exists()
    assert plan.stdout.splitlines() == [
        "20 questions x 2 answers: 40 requests",
        "prompt tokens: about 310, at most 11,480",
        "output tokens: about 2,000, at most 4,000",
        "dollars: about 0.0046, at most 0.0151",
    ]
    done = distil.run(*flags(20), "--answers=2", *MONEY, "--max_tokens=100", '--body={"top_k": 5}', "--nosend_seed")
    assert done.returncode == 0, done.stderr
    assert "40 rows to" in done.stdout and "40 done, 0 cut, 0 refused, 0 failed" in done.stdout
    assert "800 prompt and 1,600 output tokens, 0.0039 dollars" in done.stdout
    assert "distilling: 40 of 40" in done.stderr and "tokens/s, $0.0039 of 5.00" in done.stderr
    assert {key: value for key, value in teacher.bodies[0].items() if key != "messages"} == {
        "model": "big", "max_completion_tokens": 100, "top_k": 5,
    }  # fmt: skip


def test_exit_codes_say_how_it_ended(distil, teacher, flags, tmp_path):
    teacher.default = KEY
    wrong = distil.run(*flags(9))
    assert wrong.returncode == 2 and wrong.stderr.count("error:") == 1
    assert "does not accept the key; what was answered is kept, and the same command goes on" in wrong.stderr
    teacher.default = ok()
    capped = distil.run(*flags(9), "--max_dollars=0.002", "--dollars_per_million=0.55,2.19", "--max_tokens=500")
    assert capped.returncode == 3 and "max_dollars does not cover the worst case of another request" in capped.stdout
    assert distil.run(*flags(9)).returncode == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--endpoint="], "--endpoint is missing"),
        (["--max_dollars=1"], "--max_dollars has no price"),
        (["--max_dollars=1", "--dollars_per_million=0,0"], "--max_dollars with a price of 0,0 USD would never be"),
        (["--dollars_per_million=1"], "--dollars_per_million is 1; give two numbers, such as 0.55,2.19"),
        (["--body=[1]"], "--body must be a JSON object"),
        (["--template=x"], "--template is 'x'; put {question}"),
        (["--key_env=NO_SUCH_KEY"], "--key_env names NO_SUCH_KEY, which is not set"),
        (["--endpoint=example.com"], "--endpoint: base_url is 'example.com'"),
        (["--questions=/nowhere/q.jsonl"], "/nowhere/q.jsonl does not exist"),
        (["--max_in_flight=100000000"], "open files"),
    ],
)
def test_bad_input_is_one_sentence(distil, teacher, flags, tmp_path, more, says):
    done = distil.run(*flags(2), *more)
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert says in done.stderr and not teacher.calls and not (tmp_path / "out").exists()


def test_a_killed_command_goes_on_and_pays_twice_only_for_what_was_in_flight(distil, teacher, flags, tmp_path):
    """kill -9 at random moments, with a teacher that fails now and then."""
    rng, out = random.Random(0), tmp_path / "out"
    teacher.default = ok(delay=0.02)
    for i in range(0, 60, 7):
        teacher.script[f"What is {i} + {i}?"] = [error(500), ok(delay=0.02)]
    kills = in_flight = 0
    while True:
        begun = len(teacher.calls)
        command = distil.start([*flags(60), *MONEY, "--max_in_flight=5"], {}, tmp_path / "o", tmp_path / "e")
        goal = begun + rng.randint(3, 12)
        while command.poll() is None and len(teacher.calls) < goal:
            time.sleep(0.002)
        time.sleep(rng.random() / 50)
        if kills == 6:
            assert command.wait() == 0, (tmp_path / "e").read_text()
            break
        command.kill()
        command.wait()
        kills, in_flight = kills + 1, in_flight + 5
    time.sleep(0.1)
    found = [line for line in lines(out / "answers.jsonl") if line["state"] == "done"]
    assert len(found) == 60 == len({line["key"] for line in found})
    assert teacher.answered <= 60 + in_flight
    spent = sum(line["dollars"] for line in lines(out / "answers.jsonl"))
    (said,) = [part for part in (tmp_path / "o").read_text().splitlines() if part.startswith("the folder")]
    assert f"{spent:.4f} dollars, at most" in said  # what was in flight is possible spend
    lost = int(said.split(" that never arrived")[0].split()[-1])
    assert 60 + lost >= teacher.answered
    calm = distil.run(*flags(60, "calm"))
    assert calm.returncode == 0

    def bare(row):  # byte for byte the same, where dollars are not asked for
        return {key: value for key, value in row.items() if key != "dollars"}

    assert list(map(bare, lines(out / "rows.jsonl"))) == list(map(bare, lines(tmp_path / "calm" / "rows.jsonl")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_when_what_is_in_flight_has_been_written_down(distil, teacher, flags, tmp_path, number):
    teacher.default = ok(delay=0.3)
    teacher.script["What is 0 + 0?"] = [ok()]
    command = distil.start([*flags(90), "--max_in_flight=6"], {}, tmp_path / "o", tmp_path / "e")
    while len(teacher.calls) < 7 and command.poll() is None:
        time.sleep(0.005)
    os.kill(command.pid, number)
    assert command.wait() == 128 + number, (tmp_path / "e").read_text()
    said = (tmp_path / "o").read_text()
    assert f"{90 - teacher.answered} requests are left, and the same command goes on" in said
    assert len(lines(tmp_path / "out" / "rows.jsonl")) == teacher.answered < 20 and "never arrived" not in said


def test_a_second_ctrl_c_counts_what_is_in_flight_as_possible_spend(distil, teacher, flags, tmp_path):
    teacher.default = ok(delay=30)
    teacher.script["What is 0 + 0?"] = [ok()]
    command = distil.start([*flags(90), *MONEY, "--max_in_flight=6"], {}, tmp_path / "o", tmp_path / "e")
    while len(teacher.calls) < 7 and command.poll() is None:
        time.sleep(0.005)
    for _ in range(2):
        os.kill(command.pid, signal.SIGINT)
        time.sleep(0.2)
    assert command.wait(20) == 130
    lost = len(teacher.calls) - 1
    assert f"for {lost} that never arrived" in (tmp_path / "o").read_text()
    assert "Ctrl-C again leaves them" in (tmp_path / "e").read_text()


def test_the_help_lists_the_flags_of_all_the_commands_files(distil):
    """Batches and the teacher in the process have files of their own, and flags that the help has to name."""
    done = distil.run("--help")
    for flag in ("questions", "batch", "batch_results", "checkpoint", "slots", "weight_dtype"):
        assert f"\n  --{flag}: " in done.stdout, flag
