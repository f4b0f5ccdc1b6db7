"""Rows that several processes share: 2 real ones, of which one is lost, then 1, then 2; and an evaluation."""

import collections
import json
import pathlib
import socket
import threading
import time

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from s1jax.checkpoint import store
from s1jax.cli import processes
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from s1jax.evaluation import evaluate as evaluate_lib
from s1jax.io.journals import Share
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.cli import forks

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = [{"question": f"Make {i} from 2 3"} for i in range(12)]
ROWS[5] |= {"n": 2}
PARAMS = SamplingParams(max_thinking_tokens=12, max_answer_tokens=4, temperature=1.0)
# Writes down every row that a process samples, and kills it when it would write another one. Lost processes are noticed
# after 5 s instead of 40.
DRIVER = """
import os, signal, sys
from s1jax.cli import command, processes, sample
from s1jax.io.journals import Journals
processes._SILENCE = 5
log, most = sys.argv.pop(), int(sys.argv.pop())
append, written = Journals.append, []
def noting(self, row):
    if len(written) == most:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(row)
    append(self, row)
    with open(log, "a") as file:
        file.write(f"{row['index']} {row['output'].get('sample_index', 0)}\\n")
Journals.append = noting
command.run(sample.main)
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A random model with Countdown's tokenizer."""
    config = ModelConfig.dense(
        vocab_size=160, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=160,
    )  # fmt: skip
    params = decoder.init_params(config, jax.random.key(0))
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    folder = tmp_path_factory.mktemp("shared") / "model"
    store.save_model(folder, params, config, tokenizer, chat.FORMATS["s1_plain"], {})
    return Engine(folder, slots=4, cache_length=64)


def plain(row):
    """A sample without what two runs of the same program may differ in: times, and rounding."""
    rounded = {"logprob": round(row["logprob"], 3), "confidence": None}
    return {k: v for k, v in row.items() if k not in ("seconds", "fingerprint")} | rounded


def start(server, folder, most):
    """Starts a process for each of `most`, the rows after which it is killed."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    controls = [f"--{name}={getattr(PARAMS, name)}" for name in ("max_thinking_tokens", "max_answer_tokens")]
    flags = [
        *(f"--checkpoint={folder}/model", f"--prompts={folder}/rows.jsonl", f"--out={folder}/out.jsonl"),
        *("--temperature=1", "--batch_size=2", "--cache_length=64", *controls),
    ]
    several = [f"--coordinator={address}", f"--num_processes={len(most)}"] if len(most) > 1 else []
    running = []
    for process, rows in enumerate(most):
        own = [*several, f"--process_id={process}"] if several else []
        files = [folder.parent / f"{name}{process}" for name in ("out", "err")]
        running.append((server.start([*flags, *own, str(rows), str(folder / "log")], {}, *files), *files))
    return running


@pytest.fixture(scope="module")
def story(engine, tmp_path_factory):
    folder = pathlib.Path(engine.model.source).parent
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    driver = tmp_path_factory.mktemp("driver") / "driver.py"
    driver.write_text(DRIVER)
    imports = ("s1jax.cli.sample", "s1jax.engine.engine", "s1jax.engine.rows", "jax.experimental.multihost_utils")
    env = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    seen = []
    with forks.Forks(str(driver), *imports, env=env) as server:
        for most in ((99, 2), (2,), (99, 99)):
            running = start(server, folder, most)
            seen.append([(fork.wait(600), out.read_text(), err.read_text()) for fork, out, err in running])
    return folder, seen


def test_a_lost_process_ends_the_others(story):
    (first, second), (alone,), _ = story[1]
    assert second[0] == alone[0] == -9, (second, alone)
    assert first[0] == processes.LOST == 75, first
    assert "run the same command again in all processes" in first[2].splitlines()[-1]
    assert 5 < processes._SILENCE < 60  # seconds


def test_two_processes_then_one_then_two_give_what_one_gives(story, engine):
    folder, (*_, last) = story
    assert [code for code, *_ in last] == [0, 0], last
    found = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    alone = json.loads(json.dumps(rows_lib.generate(engine, ROWS, PARAMS)))
    assert list(map(plain, found)) == list(map(plain, alone))
    assert sorted(file.name for file in folder.iterdir()) == ["compiled", "log", "model", "out.jsonl", "rows.jsonl"]


def test_no_row_is_sampled_twice(story):
    """Except the samples of a row that lacked one of them; those are not written again."""
    written = collections.Counter((story[0] / "log").read_text().splitlines())
    assert set(written.values()) == {1} and len(written) == len(ROWS) + 1


def test_only_the_first_process_speaks(story):
    first, second = story[1][2]
    assert "13 rows to " in first[1] and "sampling (process 0 of 2): 0 of 6" in first[2]
    assert "\n".join(line for line in second[1].splitlines() if not line.startswith("[Gloo]")) == second[2] == ""


def test_one_question_is_answered_in_one_process():
    several = ["--coordinator=localhost:1", "--num_processes=2", "--process_id=1"]
    with flagsaver.flagsaver():
        flags.FLAGS(["sample", *several])
        with pytest.raises(UserError, match=r"--prompt runs in one process; leave out --coordinator"):
            processes.refuse("--prompt")


@pytest.mark.parametrize(
    ("tasks", "gpus", "found"), [("1(x2)", "8", range(8)), ("1", "1", range(1)), ("8(x2)", "8", None), ("1", "", None)]
)
def test_one_process_a_node_has_all_its_gpus(monkeypatch, tasks, gpus, found):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus)
    assert processes._devices() == ({} if found is None else {"local_device_ids": list(found)})


class OneAtATime:
    """The engine for two threads, which stand for two processes."""

    def __init__(self, engine):
        self.model, self.describe, self.check = engine.model, engine.describe, engine.check
        self._engine, self._lock = engine, threading.Lock()
        self.sampled = collections.Counter()

    def stream(self, prompts, params=None, /, **more):
        with self._lock:
            found = list(self._engine.stream(prompts, params, **more))
        self.sampled[threading.current_thread().name] += len(found)
        return iter(found)


def test_an_evaluation_by_two_processes_has_the_samples_and_figures_of_one(engine, tmp_path):
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps({"question": f"{i}+1", "answer": i}) for i in range(5)))
    more = {"params": PARAMS}
    given = str(tmp_path / "sums.jsonl"), ["none", "forcing:max=4", "reject:max=4:samples=2", "majority:2"]
    alone = evaluate_lib.evaluate(engine, *given, tmp_path / "alone", **more)
    both, results = OneAtATime(engine), []
    first = threading.Thread(
        name="first",
        target=lambda: results.append(
            evaluate_lib.evaluate(both, *given, tmp_path / "both", share=Share(0, 2), **more)
        ),
    )
    first.start()
    while not (tmp_path / "both" / "samples.journal").exists():
        assert first.is_alive()
        time.sleep(0.01)
    evaluate_lib.assist(both, *given, tmp_path / "both", Share(1, 2), **more)
    first.join()

    def samples(folder):
        return [plain(json.loads(line)) for line in (folder / "samples.jsonl").read_text().splitlines()]

    assert samples(tmp_path / "both") == samples(tmp_path / "alone")
    assert [(run.name, run.accuracy, run.thinking_tokens) for run in results[0].runs] == [
        (run.name, run.accuracy, run.thinking_tokens) for run in alone.runs
    ]
    assert sum(both.sampled.values()) == len(samples(tmp_path / "alone"))
    assert both.sampled["first"] > both.sampled["MainThread"] > 0  # 3 problems and 2
    assert json.loads((tmp_path / "both/results.json").read_text())["machine"]["processes"] == 2
    assert not list((tmp_path / "both").glob("samples.journal*"))
