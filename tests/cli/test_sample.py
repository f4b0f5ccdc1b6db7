"""`python -m launch.sample` from the outside: what it writes and shows, and what it says to wrong input."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import pytest

from s1jax.checkpoint import store
from s1jax.cli import command as command_lib
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine.engine import Engine
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTEXT = 160
ROWS = [
    {"question": "Make 21 from 3 7 1", "answer": 21, "name": "kept", "index": 7, "fingerprint": "f", "controls": "c"},
    {"question": "Make 5 from 2 3", "max_thinking_tokens": 0},
    {"prompt_ids": [5, 6, 7], "temperature": 1.0, "seed": 3, "wait": "", "num_waits": 2},
]
SEVERAL = [
    {"question": "Make 5 from 2 3", "n": 3, "stop": ["5"], "repetition_penalty": 1.5},
    *[{"question": "Make 5 from 2 3"}] * 4,
]
# Flags, and words of the one sentence they end in; {f0}, {f1}, ... are the files of WRONG_ROWS.
WRONG = [
    (["--checkpoint="], "--checkpoint is missing"),
    (["--prompts="], "exactly one of --prompts"),
    (["--prompt=Make 5"], "exactly one of --prompts"),
    (["--out="], "--out=FILE.jsonl goes with --prompts"),
    (["--out={folder}"], "is a folder"),
    (["--out=gs://bucket/x"], "--out=gs://bucket/x is a URL"),
    (["--checkpoint=hf://owner/model"], "--checkpoint=hf://owner/model is a URL"),
    (["--out={folder}/no/where.jsonl"], "is not a folder"),
    (["--out={folder}/pipe"], "it is not a regular file"),
    (["--checkpoint={folder}/none"], "none is not a folder"),
    (["--checkpoint={folder}/think"], "delimiter '<think>'"),
    (["--prompts={folder}/none.jsonl"], "none.jsonl does not exist"),
    (["--prompts={folder}/nothing"], "is a folder without files of rows"),
    (["--temperature=-1"], "temperature is -1.0"),
    (["--top_p=0"], "top_p is 0.0"),
    (["--top_p=1e-50"], "top_p is 1e-50"),
    (["--temperature=1e39"], r"temperature is 1e\+39"),
    (["--min_thinking_tokens=50"], "min_thinking_tokens 50 exceeds max_thinking_tokens 20"),
    (["--max_thinking_tokens=many"], "many"),
    (["--max_thinking=3"], "max_thinking"),
    (["--batch_size=0"], "batch_size"),
    (["--mesh=data=3"], "mesh.data=3.* does not divide the 1 devices"),
    (["--mesh=rows=1"], "--mesh has 'rows=1'; give axes out of data"),
    (["--mesh=data=--1"], "--mesh has 'data=--1'; give axes out of data"),
    (["--max_answer_tokens=500"], f"prompts.jsonl:1: a prompt of .* context length is {CONTEXT}"),
    (["--cache_length=40", "--max_thinking_tokens=30"], "prompts.jsonl:1: a prompt of .* cache length is 40"),
    (["--prompts={f0}"], "f0.jsonl holds no rows"),
    (["--prompts={f1}"], "f1.jsonl:3 is not JSON"),
    (["--prompts={f2}"], "f2.jsonl:1 must have exactly one of the fields question and prompt_ids"),
    (["--prompts={f3}"], "f3.jsonl:1: max_thinking_tokens is -4"),
    (["--prompts={f4}"], "f4.jsonl:1.*num_waits is 'two'"),
    (["--prompts={f5}"], "f5.jsonl:1: prompt_ids must be a list of whole numbers"),
    (["--prompts={f6}"], "f6.jsonl:1: prompt id 500 is outside"),
    (["--prompts={f7}"], "f7.jsonl:1 is a JSON int, not an object"),
    (["--prompts={f8}"], "f8.jsonl:1: question is ' '"),
    (["--prompts={f9}"], "f9.jsonl:1: wait is 3"),
    (["--prompts={f10}"], "f10.jsonl:1 is not JSON"),
    (["--prompts={f11}"], "f11.jsonl:2 is not valid Unicode"),
    (["--prompts={f12}"], "f12.jsonl:2: wait: the tokenizer cannot encode"),
    (["--wait=\u20ac"], "error: wait: the tokenizer cannot encode"),
    (["--prompts={f14}"], r"f14.jsonl:1 has a number that JSON does not have \(NaN, infinity\); repair it"),
    (["--n=2"], "n is 2, but with temperature 0 all samples of a prompt are the same"),
    (["--stop="], "stop has an empty string"),
    (["--prompts={f15}"], "f15.jsonl:1: max_tokens is not a setting of s1jax; write max_thinking_tokens, max_"),
    (["--prompts={f16}"], "f16.jsonl:1: system is 3; it must be a string"),
    (["--system=\u20ac"], "prompts.jsonl:1: .*cannot encode"),
    (["--out=/dev/stdout"], "--out=/dev/stdout cannot be written: it is not a regular file"),
    (["--out=/proc/x.jsonl"], "--out=/proc/x.jsonl cannot be written"),
    (["--prompts={f13}"], r"f13.jsonl:1.temperature is beyond 2\*\*1023"),
]
WRONG_ROWS = [
    "\n\n",
    '{"question": "Make 5"}\n\n{"question": ',
    '{"text": "Make 5"}',
    '{"question": "Make 5", "max_thinking_tokens": -4}',
    '{"question": "Make 5", "num_waits": "two"}',
    '{"prompt_ids": [1, 2.5]}',
    '{"prompt_ids": [500]}',
    "[1, 2]",
    '{"question": " "}',
    '{"question": "Make 5", "wait": 3}',
    '{"question": ' + "[" * 100_000,
    '{"question": "Make 5"}\n{"question": "Make 5", "name": "half a \\ud83d"}',
    '{"question": "Make 5"}\n{"question": "Make 5", "wait": "\u20ac"}',
    '{"question": "Make 5", "temperature": 1' + "0" * 400 + "}",
    '{"question": "Make 5", "mine": 1e999}',
    '{"question": "Make 5", "max_tokens": 4}',
    '{"question": "Make 5", "system": 3}',
]
# Runs the launcher once for each list of flags, in one process: importing and compiling take nearly all the time. What
# stands before the flags is done before.
EMOJI = """
import dataclasses
from s1jax.engine.engine import Engine
plain = Engine.stream_tokens
def marked(*given, **more):
    yield dataclasses.replace(next(pieces := plain(*given, **more)), text=":100: [/] ")
    yield from pieces
Engine.stream_tokens = marked"""
DRIVER = """
import contextlib, io, json, os, pathlib, sys
from absl.testing import flagsaver
from s1jax.cli import command, sample
os._exit = sys.exit
outcomes = []
for before, flags in json.loads(sys.argv.pop()):
    exec(before)
    out, err = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv[1:] = flags
        try:
            command.run(sample.main)
        except SystemExit as end:
            outcomes.append({"code": end.code or 0, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with Countdown's tokenizer, the prompts, and the files of WRONG_ROWS."""
    folder = tmp_path_factory.mktemp("sample")
    config = ModelConfig.dense(
        vocab_size=160, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=CONTEXT,
    )  # fmt: skip
    params = decoder.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda a: a * 8 if a.ndim > 2 else a, params)
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    store.save_model(folder / "model", params, config, tokenizer, chat.FORMATS["s1_plain"], {})
    store.save_model(folder / "think", params, config, tokenizer, chat.FORMATS["think"], {})
    (folder / "prompts.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, ROWS)))  # as some editors begin files
    os.mkfifo(folder / "pipe")
    (folder / "nothing").mkdir()
    (folder / "empty.jsonl").touch()
    for i, text in enumerate(WRONG_ROWS):
        (folder / f"f{i}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    """Outcomes of: the file, it again reversed and one by one, one prompt, the file once more, all of WRONG, a file of
    several samples a row, the file with a journal that is an output, with a link for an output, with one that lacks a
    row, and with an empty one."""
    names = {"folder": str(folder), **{f"f{i}": str(folder / f"f{i}.jsonl") for i in range(len(WRONG_ROWS))}}
    base = [f"--checkpoint={folder}/model", "--max_thinking_tokens=20", "--max_answer_tokens=6"]
    file = [*base, f"--prompts={folder}/prompts.jsonl", f"--out={folder}/out.jsonl"]
    (folder / "reversed.jsonl").write_text("\n".join(map(json.dumps, ROWS[::-1])))
    runs = [
        file,
        [*base, f"--prompts={folder}/reversed.jsonl", f"--out={folder}/reversed_out.jsonl", "--batch_size=1"],
        [*base, "--prompt=Make 5 from 2 3 1", "--num_waits=1"],
        file,
    ]
    runs += [[*file, f"--out={folder}/none.jsonl", *(flag.format(**names) for flag in flags)] for flags, _ in WRONG]
    several = [json.dumps(row) for row in SEVERAL]
    (folder / "several.jsonl").write_text("\n".join(several))
    runs += [[*base, f"--prompts={folder}/several.jsonl", f"--out={folder}/several_out.jsonl", "--temperature=1"]]
    runs += [[*file, f"--out={folder}/{name}.jsonl"] for name in ("copied", "link", "short", "empty")]
    shorten = f"""
folder = pathlib.Path({str(folder)!r})
(folder / "short.jsonl").write_text("".join((folder / "out.jsonl").read_text().splitlines(True)[:2]))"""
    copy = f"""
folder = pathlib.Path({str(folder)!r})
(folder / "copied.jsonl.partial").write_bytes((folder / "out.jsonl").read_bytes())"""
    link = """
(folder / "copied.jsonl.partial").unlink()
(folder / "link.jsonl").symlink_to("target.jsonl")"""
    before = ["", "", EMOJI, "Engine.stream_tokens = plain", *[""] * len(WRONG), "", copy, link, shorten, ""]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(list(zip(before, runs, strict=True)))],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_complete_line_per_prompt_in_order(folder, outcomes):
    assert outcomes[0]["code"] == 0, outcomes[0]["err"]
    assert "3 rows to" in outcomes[0]["out"] and "sampling: 3 of 3" in outcomes[0]["err"]
    rows = lines(folder / "out.jsonl")
    assert [row.get("question") for row in rows] == [row.get("question") for row in ROWS]
    fmt, tokenizer = chat.FORMATS["s1_plain"], Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    start = tokenizer.encode(fmt.think_start)
    for row in rows:
        assert row["ids"][: len(start)] == start and len(row["forced"]) == len(row["ids"])
        assert row["thinking_end"] in ("natural", "cut") and row["answer_end"] in ("stop", "length")
        assert row["logprob"] < 0 and isinstance(row["waits"], int)
        assert row["thinking_tokens"] <= row["controls"]["max_thinking_tokens"]
        thinking = row["ids"][len(start) : len(start) + row["thinking_tokens"]]
        assert row["thinking"] == tokenizer.decode(thinking).strip()
        assert not row["answer"].startswith(fmt.think_end) and fmt.turn_end not in row["answer"]
        if row["thinking_end"] == "cut":
            assert row["answer"].startswith("Final Answer:")
    assert rows[0]["name"] == "kept" and rows[0]["index"] == 7
    assert [rows[0][f"input_{name}"] for name in ("answer", "fingerprint", "controls")] == [21, "f", "c"]
    assert rows[1]["thinking_tokens"] == 0 and rows[1]["thinking"] == ""
    assert rows[2]["controls"]["wait"] == "" and rows[2]["controls"]["seed"] == 3


def test_samples_of_one_prompt_stand_together_and_equal_lines_differ(folder, outcomes):
    assert outcomes[-5]["code"] == 0, outcomes[-5]["err"]
    assert "7 rows to" in outcomes[-5]["out"] and "sampling: 7 of 7" in outcomes[-5]["err"]
    rows = lines(folder / "several_out.jsonl")
    assert [row.get("sample_index") for row in rows] == [0, 1, 2, None, None, None, None]
    assert len({tuple(row["ids"]) for row in rows}) == len({row["controls"]["seed"] for row in rows}) == 7
    assert all(row["controls"]["stop"] == ["5"] and row["n"] == 3 for row in rows[:3])


def test_the_progress_says_how_fast_it_is_and_how_much_of_it_is_thinking(outcomes):
    assert re.search(r"tok/s, \d+ % thinking", outcomes[0]["err"]), outcomes[0]["err"]


def test_what_takes_long_is_said_before_it_begins_and_not_on_stdout(outcomes):
    for outcome in (outcomes[0], outcomes[2]):
        said = [line for line in outcome["err"].splitlines() if line.endswith(" ...")]
        assert len(said) == 2 and said[0].startswith("loading ") and said[1] == "compiling ..."
        assert "loading" not in outcome["out"] and "compiling ..." not in outcome["out"]
    assert " ..." not in outcomes[3]["err"], "nothing is loaded where nothing is left to sample"


def test_rows_do_not_depend_on_order_and_batch(folder, outcomes):
    assert outcomes[1]["code"] == 0, outcomes[1]["err"]
    for a, b in zip(lines(folder / "out.jsonl"), lines(folder / "reversed_out.jsonl")[::-1], strict=True):
        assert abs(a.pop("logprob") - b.pop("logprob")) < 1e-3
        assert a.pop("fingerprint") != b.pop("fingerprint")
        assert a == b


def test_one_prompt_is_streamed_with_thinking_and_answer_told_apart(outcomes):
    assert outcomes[2]["code"] == 0, outcomes[2]["err"]
    shown = outcomes[2]["out"]
    assert shown.startswith("thinking ─") and "\nanswer ─" in shown
    assert "\n:100: [/] " in shown  # as it was written, no picture
    assert "thinking tokens (" in outcomes[2]["err"]


@pytest.mark.parametrize("index", range(len(WRONG)), ids=lambda i: WRONG[i][1][:40])
def test_wrong_input_ends_in_one_sentence(outcomes, index):
    outcome = outcomes[4 + index]
    assert outcome["code"] == 2
    last = outcome["err"].strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(WRONG[index][1], last), outcome["err"]
    assert "Traceback" not in outcome["err"]


def test_nothing_is_lost_and_nothing_half_written(folder, outcomes):
    """The failures above that got as far were given the same --out, and one that of another run."""
    assert len(lines(folder / "out.jsonl")) == 3
    assert not list(folder.glob(".*")) and not list(folder.glob("*.partial")) and not list(folder.glob("none*"))


def test_a_finished_run_is_not_made_again(folder, outcomes):
    assert outcomes[3]["code"] == 0 and "has all 3 rows already" in outcomes[3]["out"]


def test_an_output_that_lacks_rows_is_not_taken_for_a_finished_one(folder, outcomes):
    assert outcomes[-2]["code"] == 2 and "short.jsonl holds 2 of 3 rows; remove it" in outcomes[-2]["err"]
    assert len(lines(folder / "short.jsonl")) == 2
    assert outcomes[-1]["code"] == 0 and lines(folder / "empty.jsonl") == lines(folder / "out.jsonl")


def test_an_output_in_the_place_of_a_journal_is_foreign(outcomes):
    assert outcomes[-4]["code"] == 2 and "copied.jsonl.partial belongs to another run" in outcomes[-4]["err"]


def test_a_link_stays_one(folder, outcomes):
    assert outcomes[-3]["code"] == 0 and (folder / "link.jsonl").is_symlink()
    assert lines(folder / "target.jsonl") == lines(folder / "out.jsonl")


def test_after_ctrl_c_nothing_runs_any_more():
    """Compilations that are under way crashed the end of the interpreter."""
    code = """
import atexit
from s1jax.cli import command
atexit.register(print, "never")
def main():
    print("so far", end="")
    raise KeyboardInterrupt
command.run(main)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "so far")
    assert done.stderr == "interrupted; run the same command again\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; run the same command again\n"),
        (OSError(errno.EDQUOT, "quota", "a/b"), 2, "error: the disk quota is used up while writing a/b; free some"),
        (MemoryError(), 2, "error: the memory of this machine is not enough; "),
        (RuntimeError("Unable to initialize backend 'tpu':\n none"), 2, "error: jax found no device: Unable to init"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(capsys, error, code, said):
    def main():
        raise error

    assert command_lib.guarded(main) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_a_killed_run_goes_on_where_it_stopped(folder, outcomes, tmp_path):
    """kill -9 after the first of 40 rows is on disk; and a line cut in the middle, as a full disk leaves it.

    The rows are sampled: a row's noise depends on its place in the file, not on its place among the missing ones.
    """
    rows = [{"question": f"Make {i} from 2 3 {i}", "index": i + 1} for i in range(40)]  # an index of the user's own
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    command = [
        sys.executable, "-m", "launch.sample", f"--checkpoint={folder}/model", f"--prompts={tmp_path}/prompts.jsonl",
        f"--out={out}", "--max_thinking_tokens=20", "--max_answer_tokens=6", "--batch_size=1",
        "--temperature=1",
    ]  # fmt: skip
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as first:
        while first.poll() is None and (not partial.exists() or b"\n" not in partial.read_bytes()):
            time.sleep(0.01)
        first.kill()
    assert not out.exists()
    before = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(before) + b'{"fingerprint": "')
    kept = [json.loads(line)["index"] for line in before if line.endswith(b"\n")]
    assert 0 < len(kept) < 40
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"ids of {40 - len(kept)} rows" in done.stdout and not partial.exists()
    assert [(row["question"], row["index"]) for row in lines(out)] == [tuple(row.values()) for row in rows]
    controls = SamplingParams(max_thinking_tokens=20, max_answer_tokens=6, temperature=1.0)
    uninterrupted = rows_lib.generate(Engine(folder / "model"), rows, controls)
    assert [row["ids"] for row in lines(out)] == [row["ids"] for row in uninterrupted]
    partial.write_bytes(before[0])  # as if it had been killed before it removed that
    last = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0 and "has all 40 rows already" in last.stdout and not partial.exists()
    other = subprocess.run([*command, "--seed=1"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert other.returncode == 2 and "out.jsonl belongs to another run" in other.stderr
