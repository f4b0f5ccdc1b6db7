"""`python -m launch.serve` from the outside: what it says to wrong input, and how it starts and stops."""

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tests.cli import forks
from tests.serve import running

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Flags, and words of the one sentence they end in.
WRONG = [
    (["--checkpoint={folder}/none"], "none is not a folder"),
    (["--port={port}"], "--port={port} of 127.0.0.1 is in use; give another one"),
    (["--host=no.such.host.invalid"], "--host=no.such.host.invalid is not an address"),
    (["--api_key_file={folder}/open"], "open can be read by other users; chmod 600"),
    (["--api_key_file={folder}/empty"], "empty has no key; write one a line"),
    (["--api_key_file={folder}/none"], "none: no such file"),
    (["--api_key_file={folder}/model"], "model is not a file; write one key a line"),
    (["--api_key_file={folder}/bytes"], "bytes is not a text file in UTF-8"),
    (["--served_model_name=a\nb"], "must have 1 to 200 printable characters"),
    (["--request_log={folder}/no/log"], "no such file or directory"),
    (["--prices={folder}/none"], "none cannot be read"),
    (["--handoff={folder}/none.json"], "none.json cannot be read"),
    (["--handoff={folder}/handoff.json"], "names the key NO_SUCH_KEY, which is not set; export it"),
    (["--mesh=rows=1"], "--mesh has 'rows=1'"),
    (["--slots=0"], "slots"),
    (["--thinking=1"], "thinking"),
]
DRIVER = """
import contextlib, io, json, os, sys
from absl.testing import flagsaver
from s1jax.cli import command, serve
os._exit = sys.exit
outcomes = []
for flags in json.loads(sys.argv.pop()):
    err = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(err):
        sys.argv[1:] = flags
        try:
            command.run(serve.main)
        except SystemExit as end:
            outcomes.append({"code": end.code or 0, "err": err.getvalue()})
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    running.save_model(folder / "model")
    (folder / "prices.json").write_text('{"mine": {"input": 1, "output": 4}}')
    for name, mode, text in (
        ("open", 0o644, "k"),
        ("empty", 0o600, "\n# none\n"),
        ("keys", 0o600, "# mine\nk1\n\nk2\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    (folder / "bytes").write_bytes(b"\xff\xfe")
    (folder / "bytes").chmod(0o600)
    handoff = {
        "base_url": "https://x.example/v1", "model": "big", "price": {"input": 1, "output": 1}, "max_tokens": 9,
        "caps": {"request": 1, "day": 1}, "audit": "audit", "logprob_below": 0, "key_env": "NO_SUCH_KEY",
    }  # fmt: skip
    (folder / "handoff.json").write_text(json.dumps(handoff))
    return folder


def test_wrong_input_ends_in_one_sentence_before_anything_is_loaded(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"folder": folder, "port": taken.getsockname()[1]}
        flags = [
            [f"--checkpoint={folder}/model", "--port=0", *(f.format(**names) for f in given)] for given, _ in WRONG
        ]
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(flags)], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    for (_, said), outcome in zip(WRONG, json.loads(done.stdout), strict=True):
        assert outcome["code"] == 2 and said.format(**names) in outcome["err"], outcome
        assert outcome["err"].startswith("error: ") and outcome["err"].count("\n") == 1, outcome


def test_it_serves_until_a_signal(folder):
    """B14: the first SIGTERM lets a stream end, and the code is 0."""
    log = folder / "log.jsonl"
    command = [
        *(sys.executable, "-m", "launch.serve", f"--checkpoint={folder}/model", "--port=0", "--slots=2"),
        *(f"--api_key_file={folder}/keys", f"--request_log={log}", "--served_model_name=mine"),
        *(f"--prices={folder}/prices.json", "--dollars_per_hour=2"),
    ]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = []
            while not (found := re.search(r"serving mine on (http://127\.0\.0\.1:\d+)\n", said[-1] if said else "")):
                said.append(process.stderr.readline())
                assert said[-1], said
            with httpx.Client(base_url=found[1], headers={"authorization": "Bearer k2"}, timeout=60) as client:
                body = {
                    "messages": [{"role": "user", "content": "q"}], "stream": True, "temperature": 0, "wait": "",
                    "min_thinking_tokens": 1500, "max_thinking_tokens": 1500, "stream_options": {"include_usage": True},
                }  # fmt: skip
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    lines = (line for line in response.iter_lines() if line)
                    next(lines)
                    process.send_signal(signal.SIGTERM)
                    *_, counts, last = lines
                usage = json.loads(counts[6:])["usage"]
                list_cost = (usage["prompt_tokens"] * 1 + usage["completion_tokens"] * 4) / 1e6
                assert last == "data: [DONE]" and usage["cost"] == pytest.approx(list_cost)
                assert usage["cost_details"]["device_cost"] > 0
            assert process.wait(60) == 0
            assert "stopped\n" in process.stderr.read()
        finally:
            process.kill()
    (entry,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert entry["status"] == 200 and entry["thinking_tokens"] == 1500 and entry["key"] == 1


def test_a_second_signal_ends_it_at_once(folder):
    """B14, and B18: an address that others reach, without a key, is warned of."""
    err = folder / "err"
    with forks.Forks("launch.serve", "s1jax.cli.serve", "uvicorn", "starlette.applications") as server:
        arguments = [f"--checkpoint={folder}/model", "--host=0.0.0.0", "--port=0", "--slots=2", "--drain_seconds=600"]
        process = server.start(arguments, {}, folder / "out", err)
        try:
            while not (found := re.search(r"serving model on http://0\.0\.0\.0:(\d+)\n", err.read_text())):
                assert process.poll() is None, err.read_text()
                time.sleep(0.05)
            assert "warning: 0.0.0.0 is reached from other machines and needs no key; give --api_key_file." in (
                err.read_text()
            )
            body = {
                "messages": [{"role": "user", "content": "q"}], "stream": True, "temperature": 0, "wait": "",
                "min_thinking_tokens": 1500, "max_thinking_tokens": 1500,
            }  # fmt: skip
            url = f"http://127.0.0.1:{found[1]}/v1/chat/completions"
            with httpx.stream("POST", url, json=body, timeout=60) as response:
                assert response.status_code == 200
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                while "a second signal stops at once" not in err.read_text():
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 128 + signal.SIGTERM
                with pytest.raises(httpx.TransportError):
                    list(lines)
        finally:
            process.kill()
