"""`python -m launch.evaluate` from the outside: what it writes, and what it says to wrong input."""

import collections
import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from s1jax.checkpoint import store
from s1jax.cli import table
from s1jax.config.model import ModelConfig
from s1jax.evaluation import metrics
from s1jax.grading import compare, extract
from s1jax.model import decoder
from s1jax.tasks.countdown import four
from s1jax.tasks.countdown import problems as problems_lib
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUMS = [
    {"question": "Make 21 from 3 7 1", "answer": "three sevens\n#### 21"},
    {"question": "Make 5 from 2 3 1", "solution": "so \\boxed{5}"},
    {"question": "Make 6 from 2 3 1", "answer": 6},
]
REGRADED = [SUMS[0] | {"answer": 22}, *SUMS[1:]]
OTHERS = [SUMS[0] | {"question": "Make 20 from 3 7 1"}, *SUMS[1:]]
# Flags, and words of the one sentence they end in; {checkpoint} is there, and {rows0}, {rows1}, ... are WRONG_ROWS.
WRONG = [
    (["--checkpoint=", "--budgets=0"], "--checkpoint is missing"),
    (["--budgets=0", "--out="], "--out is missing"),
    ([], "--budgets, --waits and --strategies are all empty"),
    (["--strategies=token"], "strategy 'token': 'token' names no bound"),
    (["--strategies=step:4,forcing:max=500"], "--strategies has 500, more than --max_thinking_tokens 384"),
    (["--strategies=forcing:min=500"], "--strategies has 500, more than --max_thinking_tokens 384"),
    (["--strategies=reject:max=500:temperature=1"], "--strategies has 500, more than"),
    (["--strategies=majority:4"], '"majority of 4", whose samples are all alike at --temperature=0'),
    (["--strategies=none+handoff:q=0.3"], "hands off, but --remote is missing; name an endpoint such as"),
    (["--strategies=none+handoff:q=2", "--remote=forcing:waits=1"], "names no share of 0 to 1"),
    (["--strategies=none", "--remote=forcing:waits=1"], "--remote is for strategies with handoff"),
    (["--strategies=none+handoff:q=0", "--remote=none"], '"no limit" hands off to itself; give another remote'),
    (
        ["--strategies=none+handoff:q=0", "--remote=forcing:waits=1", "--remote_model=m"],
        "drop the flags of an endpoint",
    ),
    (["--strategies=none+handoff:q=0", "--remote=https://x/v1"], "--remote_model is missing; name the model"),
    (
        ["--strategies=none+handoff:q=0", "--remote=https://x/v1", "--remote_model=m", "--remote_key_env=NO_SUCH_KEY"],
        "--remote_key_env names NO_SUCH_KEY, which is not set",
    ),
    (
        ["--strategies=none+handoff:q=0", "--remote=https://x/v1", "--remote_model=m", "--remote_body=[]"],
        "--remote_body must be a JSON object",
    ),
    (
        ["--strategies=none+handoff:q=0", "--remote=forcing:waits=1", "--remote_price=1"],
        "--remote_price is 1; give two",
    ),
    (
        ["--strategies=none+handoff:q=0", "--remote=forcing:waits=1", "--local_price=-1,1"],
        "--local_price: a price is -1",
    ),
    (
        ["--strategies=none+handoff:q=0", "--remote=forcing:waits=1", "--handoff_fit=none.json"],
        "--handoff_fit: none.json cannot be read",
    ),
    (["--strategies=step:4,step:4:tokens=3"], '"step 4" in 2 ways that look alike'),
    (["--strategies=token:8"], '"token 8" needs a checkpoint trained with config.data.control=token, and'),
    (["--strategies=none,class:long+majority:3:temperature=1"], "config.data.control=class"),
    (["--strategies=step:4", "--checkpoint={token}"], "was trained with token; train one, or ask it all the same with"),
    (["--strategies=token:9", "--checkpoint={token}"], '"token 9": this chat format can ask for powers of two only'),
    (["--strategies=token:8", "--allow_untrained", "--checkpoint=package:countdown_base"], "cannot write the instr"),
    (["--budgets=0,-3"], '--budgets has "-3"'),
    (["--waits=none"], '--waits has "none"'),
    (["--budgets=" + "9" * 5000], '9"; give numbers of 0 to 2147483647 or "none", separated'),
    (["--budgets=0", "--dollars_per_hour=nan"], "--dollars_per_hour is nan; give a price"),
    (["--budgets=0", "--dollars_per_hour=inf"], "--dollars_per_hour is inf; give a price"),
    (["--budgets=0", "--task="], "--task names no task"),
    (["--budgets=0", "--mesh=fdsp=2"], "--mesh has 'fdsp=2'"),
    (["--budgets=0", "--num_problems=2", "--out={mine}"], "samples.jsonl is damaged or missing"),
    (["--strategies=forcing:min=9+reject:max=8:temperature=1"], "rejects all that has its minimum"),
    (["--strategies=none,majority:2:temperature=1e39"], '"majority of 2 at 1e+39", problem 0 of countdown (test)'),
    (["--budgets=0,500"], "--budgets has 500, more than --max_thinking_tokens 384"),
    (["--checkpoint=x", "--budgets=0"], "x is not a folder"),
    (["--budgets=0", "--hard", "--task=gsm8k:{rows0}"], "--hard is for --task=countdown, not for gsm8k"),
    (["--budgets=0", "--num_problems=5000"], "5000 were asked for"),
    (["--budgets=0", "--temperature=-1"], "temperature is -1.0"),
    (["--budgets=0", "--buget=3"], "buget"),
    (["--budgets=0", "--task=nothing.jsonl"], "nothing.jsonl does not exist"),
    (["--waits=1", "--num_problems=3", "--max_thinking_tokens=600"], "context length is 512"),
    (
        ["--budgets=0,none", "--num_problems=3", "--max_thinking_tokens=600"],
        '"no limit", problem 0 of countdown (test)',
    ),
    (["--budgets=0", "--task={rows0}"], "no rows"),
    (["--budgets=0", "--task={rows1}"], "rows1.jsonl:2 is not JSON"),
    (["--budgets=0", "--task={rows2}"], "rows2.jsonl:3: no answer"),
    (["--budgets=0", "--task={rows3}"], "rows3.jsonl:1: no text `question`"),
    (["--budgets=0", "--task={rows4}"], "rows4.jsonl:1: `answer` has several lines"),
    (
        ["--waits=1", "--task={rows5}", "--max_thinking_tokens=40", "--max_answer_tokens=12"],
        '"Wait x1", {rows5}:2: the tokenizer cannot encode',
    ),
]
WRONG_ROWS = [
    "",
    '{"question": "Make 5", "answer": 5}\n{"question": ',
    '{"question": "Make 5", "answer": 5}\n\n{"question": "Make 5"}',
    '{"questions": "Make 5", "answer": 5}',
    '{"question": "Make 5", "answer": "so\\nit is"}',
    '{"question": "Make 5", "answer": 5}\n{"question": "Make \u20ac 5", "answer": 5}',
]
STRATEGIES = {
    "none": "no limit", "token:8": "token 8", "token:8+forcing": "token 8, cut at 8", "step:2": "step 2",
    "class:short": "class short", "forcing:min=20:wait=check": "at least 20",
    "forcing:waits=1:wait=none": "masked end x1", "majority:3:temperature=1": "majority of 3 at 1",
    "reject:max=9:samples=2:temperature=1": "rejected above 9, 2 tries at 1",
}  # fmt: skip
# Runs the launcher once for each list of flags, in one process: importing and compiling take nearly all the time. A
# number before the flags is that of the samples after which it is killed; files behind them are written before.
DRIVER = """
import contextlib, io, json, os, pathlib, sys
from unittest import mock
from absl.testing import flagsaver
from s1jax.cli import command, evaluate
from s1jax.io.journal import Journal
os._exit = sys.exit
outcomes = []
append = Journal.append
for stop, flags, files in json.loads(sys.argv.pop()):
    for path, text in (files or {}).items():
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text)
    out, err = io.StringIO(), io.StringIO()
    written = []

    def stopping(self, row):
        if len(written) == stop:
            raise SystemExit(9)
        written.append(row)
        append(self, row)

    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with mock.patch.object(Journal, "append", stopping), flagsaver.flagsaver(), redirected[0], redirected[1]:
        sys.argv[1:] = flags
        try:
            command.run(evaluate.main)
        except SystemExit as end:
            told = {"out": out.getvalue(), "err": err.getvalue(), "written": len(written)}
            outcomes.append({"code": end.code or 0, **told})
print(json.dumps(outcomes))
"""

# Ends the launcher at its eighth sample, which it writes in half.
KILL = """
import os, sys
from s1jax.cli import command as cli, evaluate
from s1jax.io.journal import Journal
append, written = Journal.append, []
def killed(self, row):
    written.append(row)
    append(self, row)
    if len(written) == 8:
        os.truncate(self._path, self._path.stat().st_size - 50)
        os._exit(9)
Journal.append = killed
cli.run(evaluate.main)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A random model with Countdown's tokenizer is evaluated on both kinds of task and with everything in WRONG."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = ModelConfig.dense(
        vocab_size=128, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=512,
    )  # fmt: skip
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    params = decoder.init_params(config, jax.random.key(0))
    fmt, token = chat.FORMATS["countdown"], {"experiment": {"data": {"control": "token"}}}
    store.save_model(folder / "model", params, config, tokenizer, fmt, {"made by": "a test"})
    store.save_model(folder / "token", params, config, tokenizer, fmt, token)
    texts = ["\n".join(map(json.dumps, rows)) + "\n\n" for rows in (SUMS, REGRADED, OTHERS)]
    (folder / "sums.jsonl").write_text(texts[0])
    names = {"checkpoint": folder / "model", "token": folder / "token"}
    names["mine"] = folder / "mine"
    names["mine"].mkdir()
    (names["mine"] / "samples.jsonl").write_text('{"run": "of somebody else"}\n')
    for i, text in enumerate(WRONG_ROWS):
        names[f"rows{i}"] = folder / f"rows{i}.jsonl"
        names[f"rows{i}"].write_text(text)

    small = [f"--checkpoint={folder}/model", "--max_thinking_tokens=40", "--max_answer_tokens=12", "--batch_size=2"]
    numbers = [*small, f"--out={folder}/deep/countdown", "--budgets=0,8,none", "--waits=0,2", "--num_problems=5"]
    strategies = [
        f"--checkpoint={folder}/token", *small[1:], "--num_problems=4", f"--strategies={','.join(STRATEGIES)}",
        "--allow_untrained", "--task=countdown_four", "--dollars_per_hour=36",
    ]  # fmt: skip
    every = [
        [*numbers, "--temperature=1", "--seed=3"],
        [*numbers, "--temperature=1", "--seed=4"],
        [*small, f"--out={folder}/sums", "--budgets=4", "--num_problems=2", f"--task={folder}/sums.jsonl"],
        [*strategies, f"--out={folder}/strategies"],
        [*strategies, f"--out={folder}/stopped"],
        [*strategies, f"--out={folder}/stopped", "--seed=5"],
        [*strategies, f"--out={folder}/stopped"],
    ]
    question = [*small, "--budgets=4", "--num_problems=2", f"--task={folder}/sums.jsonl"]
    again, half = [*question, f"--out={folder}/sums"], [*question, f"--out={folder}/half"]
    killed = [*small, f"--out={folder}/killed", *numbers[-3:], "--temperature=1", "--seed=3"]
    every += [[*again, "--batch_size=1", "--dollars_per_hour=36"], again, half, half, half]
    stops = [None, None, None, None, 14, *[None] * 4, 1]
    edits = [None] * 7 + [{str(folder / "sums.jsonl"): text} for text in (*texts[1:], texts[0], texts[2], texts[0])]
    edits[11][str(folder / "half" / "scaling.png" / "in the way")] = ""
    every.append(killed)
    for i, (flags, _) in enumerate(WRONG):
        defaults = [f"--checkpoint={folder}/model", f"--out={folder}/wrong{i}"]
        every.append([flag.format(**names) for flag in [*defaults, *flags]])
    first = subprocess.run([sys.executable, "-c", KILL, *killed], cwd=ROOT, capture_output=True, text=True, timeout=300)
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(list(itertools.zip_longest(stops, every, edits)))],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    countdown_run, other_seed, sums, strategies_run, stopped, changed, resumed, *rest = json.loads(process.stdout)
    again, others, *half, revived = rest[:6]
    return types.SimpleNamespace(
        countdown=countdown_run, other_seed=other_seed, sums=sums, wrong=rest[6:], folder=folder,
        again=again, others=others, half=half, killed=first.returncode, revived=revived,
        strategies=strategies_run, stopped=stopped, changed=changed, resumed=resumed,
        countdown_out=folder / "deep" / "countdown", sums_out=folder / "sums",
    )  # fmt: skip


def samples_in(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_countdown_writes_a_table_a_plot_and_all_samples(runs):
    out, outcome = runs.countdown_out, runs.countdown
    assert outcome["code"] == 0, outcome["err"]
    assert sorted(file.name for file in out.iterdir()) == [
        "results.json",
        "samples.jsonl",
        "scaling.png",
        "scaling.svg",
    ]
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    for words in ("cut at 0", "cut at 8", "no limit", "Wait x2", "Control", "Scaling", "Performance"):
        assert words in outcome["out"]
    assert "run 2 of 4: cut at 8" in outcome["err"]

    results = json.loads((out / "results.json").read_text())
    assert results["problems"] == 5 and results["checkpoint"] == {"made by": "a test"}
    assert {"jax", "python"} <= set(results["versions"]) and results["machine"]["cpus"] > 0
    assert results["asked"]["controls"]["temperature"] == 1 and results["asked"]["controls"]["seed"] == 3
    assert [run["name"] for run in results["runs"]] == ["cut at 0", "cut at 8", "no limit", "Wait x2"]
    families = [(run["budgets"], run["waits"]) for run in results["runs"]]
    assert families == [(True, False), (True, False), (True, True), (False, True)]


def test_the_table_is_what_the_samples_say(runs):
    results = json.loads((runs.countdown_out / "results.json").read_text())
    samples = collections.defaultdict(list)
    for row in samples_in(runs.countdown_out):
        samples[row["run"]].append(row)
    limits = {"cut at 0": 0, "cut at 8": 8, "no limit": 40, "Wait x2": 40}
    for run in results["runs"]:
        rows = samples[run["name"]]
        assert [row["problem"] for row in rows] == list(range(5)) and run["control"] == 100
        assert [row["controls"]["seed"] for row in rows] == list(range(3, 8))
        assert all(row["controls"]["max_thinking_tokens"] == limits[run["name"]] for row in rows)
        assert all(row["thinking_tokens"] <= limits[run["name"]] for row in rows)
        assert all(row["correct"] == problems_lib.grade(row["answer"], row) for row in rows)
        assert run["thinking_tokens"] == pytest.approx(sum(row["thinking_tokens"] for row in rows) / 5)
        assert run["answer_tokens"] == pytest.approx(sum(row["answer_tokens"] for row in rows) / 5)
        assert (run["accuracy"], run["error"]) == metrics.accuracy([row["correct"] for row in rows])
        assert run["cut"] == 20 * sum(row["thinking_end"] == "cut" for row in rows)
    assert all(row["controls"]["num_waits"] == 2 for row in samples["Wait x2"])
    questions = [row["question"] for row in problems_lib.prompt_rows("test", 5)]
    assert [row["question"] for row in samples["no limit"]] == questions


def test_strategies_side_by_side(runs):
    assert runs.strategies["code"] == 0, runs.strategies["err"]
    out = runs.folder / "strategies"
    assert sorted(file.name for file in out.iterdir()) == [
        "results.json",
        "samples.jsonl",
        "scaling.png",
        "scaling.svg",
    ]
    results = json.loads((out / "results.json").read_text())
    by_name = collections.defaultdict(list)
    for row in samples_in(out):
        by_name[row["run"]].append(row)
    table = {run["name"]: run for run in results["runs"]}
    assert list(table) == list(by_name) == list(STRATEGIES.values())
    tokens = {name: [row["thinking_tokens"] for row in rows] for name, rows in by_name.items()}
    problems = four.prompt_rows("test", 4)
    for name, rows in by_name.items():
        every = [row["thinking_tokens"] + row["answer_tokens"] for row in rows]
        assert table[name]["total_tokens"] == pytest.approx(sum(every) / 4)
        assert table[name]["samples"] == len(rows) / 4
        for row in rows:
            problem = problems[row["problem"]]
            assert row["controls"]["seed"] == row["problem"] + 4 * row["attempt"]
            assert row["question"].startswith(problem["question"]) and row["numbers"] == problem["numbers"]
            assert row["correct"] == problems_lib.grade(row["answer"], problem)
        right = {row["problem"] for row in rows if row["chosen"] and row["correct"]}
        assert (table[name]["accuracy"], table[name]["error"]) == metrics.accuracy([i in right for i in range(4)])
        assert table[name]["dollars_per_problem"] == pytest.approx(table[name]["seconds"] * 0.01 / 4, abs=1e-4)
    instructed = {
        name: {row["question"].split("\n", 1)[1] for row in rows}
        for name, rows in by_name.items()
        if "\n" in rows[0]["question"]
    }
    assert instructed == {
        "token 8": {"think 3"}, "token 8, cut at 8": {"think 3"}, "step 2": {"try 2"}, "class short": {"think no Wait"}
    }  # fmt: skip
    assert table["token 8"]["control"] == 25 * sum(count <= 8 for count in tokens["token 8"])
    assert table["token 8, cut at 8"]["control"] == 100 and max(tokens["token 8, cut at 8"]) <= 8
    assert table["at least 20"]["control"] == 100 and min(tokens["at least 20"]) >= 20
    assert (
        by_name["at least 20"][0]["controls"]["wait"] == "check"
        and by_name["masked end x1"][0]["controls"]["wait"] == ""
    )
    plain = tokens["no limit"]
    shorter = sum(a < b for a, b in zip(tokens["class short"], plain, strict=True))
    assert table["class short"]["control"] == 25 * shorter
    votes = by_name["majority of 3 at 1"]
    assert [(row["problem"], row["attempt"]) for row in votes] == [(i, j) for i in range(4) for j in range(3)]
    assert [sum(row["chosen"] for row in votes if row["problem"] == i) for i in range(4)] == [1] * 4
    assert table["majority of 3 at 1"]["thinking_tokens"] == sum(tokens["majority of 3 at 1"]) / 4
    for i in range(4):
        tries = [row for row in by_name["rejected above 9, 2 tries at 1"] if row["problem"] == i]
        fits = [row["thinking_tokens"] <= 9 for row in tries]
        assert fits in ([True], [False, True], [False, False]) and [row["chosen"] for row in tries] == fits
        assert max(row["thinking_tokens"] for row in tries) <= 10
    assert {"token-conditional", "token-conditional + forcing", "majority", "rejection"} <= set(results["metrics"])
    assert results["metrics"]["majority"]["performance"] == table["majority of 3 at 1"]["accuracy"]


def test_a_killed_evaluation_goes_on(runs):
    """The same command finishes it with the same samples; what was sampled before is not sampled again."""
    assert runs.stopped["code"] == 9 and runs.stopped["written"] == 14
    assert runs.changed["code"] == 2 and "samples.journal" in runs.changed["err"]
    assert runs.resumed["code"] == 0, runs.resumed["err"]
    assert runs.resumed["written"] == runs.strategies["written"] - 14
    whole, resumed = (
        [{key: value for key, value in row.items() if key != "seconds"} for row in samples_in(runs.folder / name)]
        for name in ("strategies", "stopped")
    )
    assert whole == resumed


def test_an_evaluation_goes_on_after_a_hard_kill_within_a_line(runs):
    """Nothing is closed and nothing flushed, and the eighth sample is on the disk in half."""
    assert runs.killed == 9
    assert runs.revived["code"] == 0, runs.revived["err"]
    assert runs.revived["written"] == runs.countdown["written"] - 7
    out = runs.folder / "killed"
    whole, resumed = (
        [{key: value for key, value in row.items() if key != "seconds"} for row in samples_in(folder)]
        for folder in (runs.countdown_out, out)
    )
    assert whole == resumed and not (out / "samples.journal").exists()


def test_a_folder_with_other_results_is_left_alone(runs):
    assert runs.other_seed["code"] == 2 and "belongs to another evaluation" in runs.other_seed["err"]
    assert json.loads((runs.countdown_out / "results.json").read_text())["asked"]["controls"]["seed"] == 3


def test_a_finished_evaluation_is_graded_again_and_not_sampled(runs):
    """References and the price may have changed; questions may not."""
    assert runs.sums["written"] == 2 and runs.again["code"] == 0, runs.again["err"]
    assert runs.again["written"] == 0 and "cut at 4" in runs.again["out"]
    results = json.loads((runs.sums_out / "results.json").read_text())
    assert results["dollars_per_hour"] == 36 and results["batch_size"] == 2
    assert results["runs"][0]["dollars_per_problem"] > 0
    assert runs.others["code"] == 2 and "results.json belongs to another evaluation" in runs.others["err"]
    assert runs.others["written"] == 0


def test_a_killed_evaluation_does_not_go_on_with_other_questions(runs):
    stopped, refused, resumed = runs.half
    assert stopped["code"] == 9 and stopped["written"] == 1
    assert refused["code"] == 2 and "samples.journal belongs to another run" in refused["err"]
    assert resumed["written"] == 1
    # The plot could not be written, and nothing is lost by that.
    assert resumed["code"] == 2 and "scaling.png: is a directory" in resumed["err"]
    out = runs.folder / "half"
    assert {file.name for file in out.iterdir()} == {"results.json", "samples.jsonl", "scaling.png"}
    assert len(samples_in(out)) == json.loads((out / "results.json").read_text())["problems"] == 2


def test_a_file_of_questions_is_graded_as_mathematics(runs):
    assert runs.sums["code"] == 0, runs.sums["err"]
    samples = samples_in(runs.sums_out)
    assert [row["reference"] for row in samples] == ["22", "5"]  # of the second time
    assert [row["correct"] for row in samples] == [
        compare.equal(extract.extract(row["answer"]), row["reference"]) for row in samples
    ]
    results = json.loads((runs.sums_out / "results.json").read_text())
    assert results["metrics"]["all"]["scaling"] is None and "2 problems" in runs.sums["out"]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_input_ends_in_one_sentence_that_names_it(runs, number):
    outcome, words = runs.wrong[number], WRONG[number][1].replace("{rows5}", f"{runs.folder}/rows5.jsonl")
    sentence = outcome["err"].splitlines()[-1]
    assert outcome["written"] == 0 and outcome["code"] == 2 and sentence.startswith("error: ") and words in sentence
    assert "Traceback" not in outcome["err"] and not (runs.folder / f"wrong{number}" / "results.json").exists()


def test_the_table_shows_names_as_they_are(capsys):
    """Neither `[/b]` nor `:100:`, which a wait string may hold, is an instruction to Rich."""
    run = metrics.Run(
        name="[/b] :100: x1", label="", families=("waits",), parallel=False, problems=1, accuracy=0, error=0,
        thinking_tokens=0, answer_tokens=0, total_tokens=0, samples=1, control=None, in_range=None, cut=0, seconds=0,
    )  # fmt: skip
    table.show([run], {"all": metrics.metrics([run])}, "[red] on countdown")
    shown = capsys.readouterr().out
    assert "[/b] :100: x1" in shown and "[red] on countdown" in shown


def test_the_table_has_no_empty_columns(capsys):
    run = metrics.Run(
        name="no limit", label="", families=("waits",), parallel=False, problems=1, accuracy=0, error=0,
        thinking_tokens=0, answer_tokens=0, total_tokens=0, samples=1, control=None, in_range=None, cut=0, seconds=0,
    )  # fmt: skip
    table.show([run], {"all": metrics.metrics([run])}, "a model on a task")
    shown = capsys.readouterr().out
    assert not any(word in shown for word in ("USD", "Control", "Scaling")) and " - " not in shown
    asked = dataclasses.replace(run, control=50.0, in_range=True, dollars=0.01)
    table.show([run, asked], {"all": metrics.metrics([run, asked])}, "a model on a task")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("USD", "Control", "% of runs", "tokens", "Performance")) and " - " in shown


def test_the_command_line_itself():
    command = [sys.executable, "-m", "launch.evaluate", "--checkpoint=x"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 2 and outcome.stderr.startswith("error: ") and outcome.stderr.count("\n") == 1
