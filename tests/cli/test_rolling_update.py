"""Two servers behind a client that takes turns: one is stopped under load, and no request is lost."""

import concurrent.futures
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.serve import running

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a load balancer tries again elsewhere: nothing of the answer has come yet.
AGAIN = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)


class Server:
    """A process that serves; `said` is its last line."""

    def __init__(self, model, log):
        self.log = log
        command = [
            *(sys.executable, "-m", "launch.serve", f"--checkpoint={model}", "--port=0", "--slots=4"),
            *(f"--request_log={log}", "--served_model_name=mine", "--drain_seconds=300"),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def ready(self):
        self.url = self.until(r"serving mine on (http://127\.0\.0\.1:\d+)\n")[1]

    def until(self, pattern):
        """Reads what it says up to a line."""
        while line := self.process.stderr.readline():
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it has ended without {pattern}")

    def requests(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class RoundRobin:
    """Sends requests to servers in turn; one that cannot answer now is passed over."""

    def __init__(self, urls):
        self._turns, self.refusals = itertools.cycle(urls), []

    def ask(self, number):
        """Returns the text of an answer; half of them are streams."""
        body = {
            "messages": [{"role": "user", "content": f"question {number}"}], "temperature": 1.0, "seed": number,
            "max_thinking_tokens": 20, "max_tokens": 60, "stream": number % 2 == 1,
        }  # fmt: skip
        for _ in range(2000):
            url = next(self._turns)
            try:
                with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as response:
                    if response.status_code == 503:
                        assert int(response.headers["retry-after"]) > 0
                        self.refusals.append(503)
                        time.sleep(0.01)
                        continue
                    assert response.status_code == 200, response.read()
                    return self._text(response, body["stream"])  # an error from here on is a lost request
            except AGAIN as error:
                assert not getattr(error, "begun", False)
                self.refusals.append(type(error).__name__)
        raise AssertionError("no server has answered")

    @staticmethod
    def _text(response, streamed):
        try:
            if not streamed:
                response.read()
                message = response.json()["choices"][0]["message"]
                return (message.get("reasoning") or "") + (message["content"] or "")
            *pieces, last = [line for line in response.iter_lines() if line.startswith("data: ")]
        except AGAIN as error:
            error.begun = True
            raise
        assert last == "data: [DONE]"
        deltas = [choice["delta"] for piece in pieces for choice in json.loads(piece[6:])["choices"]]
        return "".join(delta.get(name) or "" for name in ("reasoning", "content") for delta in deltas)


@pytest.fixture
def servers(tmp_path):
    model = running.save_model(tmp_path / "model")
    made = [Server(model, tmp_path / f"log{i}.jsonl") for i in range(2)]
    try:
        for server in made:
            server.ready()
        yield made
    finally:
        for server in made:
            server.process.kill()
            server.process.wait()
            server.process.stderr.close()


def test_a_server_that_is_stopped_under_load_loses_no_request(servers):
    leaving, staying = servers
    client = RoundRobin([leaving.url, staying.url])
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(client.ask, number) for number in range(40)]
        while not leaving.requests():
            time.sleep(0.01)
        # So long that it is under way at the signal.
        body = {
            "messages": [{"role": "user", "content": "q"}], "stream": True, "temperature": 0, "wait": "",
            "min_thinking_tokens": 900, "max_thinking_tokens": 900,
        }  # fmt: skip
        with httpx.stream("POST", f"{leaving.url}/v1/chat/completions", json=body, timeout=300) as response:
            assert response.status_code == 200, response.read()
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            leaving.process.send_signal(signal.SIGTERM)
            *_, last = lines
        assert last == "data: [DONE]"
        assert leaving.until(r"^stopped(.*)\n")[1] == ""  # none was cut off
        assert leaving.process.wait(300) == 0
        answers += [pool.submit(client.ask, number) for number in range(40, 44)]  # while the address answers nothing
        found = [answer.result() for answer in answers]
    assert all(found) and "ConnectError" in client.refusals
    assert {entry["status"] for entry in leaving.requests()} <= {200, 503}
    served = [sum(entry["status"] == 200 for entry in server.requests()) for server in servers]
    assert sum(served) == 44 + 1 and min(served) > 1
    # Which server answers makes no difference.
    again = RoundRobin([staying.url])
    assert [again.ask(number) for number in (0, 1, 2, 3)] == found[:4]
