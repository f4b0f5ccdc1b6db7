"""A training run that saves and removes checkpoints while launchers read its workdir: one step, named, and no other."""

import json

import pytest

from tests.cli import forks

# Whenever somebody looks up the newest step, the run saves the next one and removes those before it that nobody holds.
DRIVER = """
import errno, fcntl, importlib, pathlib, sys
import jax
from s1jax.cli import command, processes
from s1jax.checkpoint import locate, store
from s1jax.config import ModelConfig
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

processes._join = lambda: None  # jax looks for other processes before it computes, and here it has
workdir, locks, moves, *flags = sys.argv[1:]
workdir, locks, left = pathlib.Path(workdir), int(locks), int(moves)
if not locks:
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    fcntl.flock = unsupported
config = ModelConfig.dense(
    vocab_size=128, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    tied_embeddings=True, context_length=256,
)
params = decoder.init_params(config, jax.random.key(0))
tokenizer = Tokenizer.load("s1jax/assets/countdown_tokenizer")

def save(step):
    provenance = {"step": step}
    folder = locate.step_folder(workdir, step)
    store.save_model(folder, params, config, tokenizer, chat.FORMATS["countdown"], provenance)

save(1)
resolve = locate.resolve
def moving(path):
    global left
    folder = resolve(path)
    if left and pathlib.Path(path) == workdir:
        left -= 1
        newest = locate.step_of(folder)
        save(newest + 1)
        if locks:
            return folder
        locate.remove(folder)
    return folder
locate.resolve = store.resolve = moving
share = locate._lock
def locked(path):
    found = share(path)
    for step in locate.finished_steps(workdir)[:-1]:
        locate.remove(locate.step_folder(workdir, step))
    return found
locate._lock = locked
load = store.load_params
def loading(folder, *args, **kwargs):
    print("LOADED", folder.parent.name, file=sys.stderr)
    return load(folder, *args, **kwargs)
store.load_params = loading
which = flags.pop(0)
sys.argv[1:] = flags
command.run(importlib.import_module(f"s1jax.cli.{which}").main)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    driver = tmp_path_factory.mktemp("driver") / "driver.py"
    driver.write_text(DRIVER)
    imports = ("s1jax.engine.engine", "s1jax.engine.rows", "s1jax.evaluation.evaluate", "s1jax.evaluation.plot")
    with forks.Forks(str(driver), *imports) as server:
        yield server.run


@pytest.mark.parametrize(("which", "locks"), [("sample", 0), ("evaluate", 1), ("evaluate", 0)])
def test_one_step_is_read_and_named(run, tmp_path, which, locks):
    moves = 3
    workdir, out = tmp_path / "w", tmp_path / "out"
    (tmp_path / "prompts.jsonl").write_text('{"question": "Make 21 from 3 7 1"}\n')
    flags = [f"--checkpoint={workdir}", "--max_thinking_tokens=4", "--max_answer_tokens=4", f"--out={out}"]
    own = {"sample": [f"--prompts={tmp_path}/prompts.jsonl"], "evaluate": ["--budgets=4", "--num_problems=1"]}
    process = run(workdir, locks, moves, which, *flags, *own[which])
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    (loaded,) = {line.split()[1] for line in process.stderr.splitlines() if line.startswith("LOADED")}
    named = [line for line in process.stderr.splitlines() if line.startswith("note: --checkpoint=")]
    assert named[-1] == f"note: --checkpoint={workdir} is read at its newest step {loaded}"
    # Held, the first one stays; without locks the run takes each away until it has come to its end.
    assert int(loaded) == (1 if locks else 1 + moves)
    if which == "evaluate":
        results = json.loads((out / "results.json").read_text())
        assert results["step"] == results["checkpoint"]["step"] == int(loaded)
