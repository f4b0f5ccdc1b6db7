"""What asking a teacher costs the client, and what kills cost.

    python -m benchmarks.distil [--parts=throughput,transports,kills] [--questions=20000] [--kills=100]

throughput  `s1jax.distil` with 1,000 requests in flight against a server on this machine that takes a second an answer:
            requests a second, processor time of a request, memory; and the time until a full folder is known again.
transports  the same requests by aiohttp and by httpx alone, without s1jax: why the client sends by aiohttp.
kills       kill -9 of `python -m launch.distil` at random moments, --kills times; then the same command ends. Compares
            the folder with what the server has counted, and its rows with those of an undisturbed run.

The record is benchmarks/results/PROCESSOR/distil.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from benchmarks import record
from s1jax.distillation import distil as distil_lib
from s1jax.distillation.control import Progress
from s1jax.distillation.settings import DistilSettings, Price
from s1jax.remote.client import Endpoint

_IN_FLIGHT = 1000
_PRICE = Price(0.55, 2.19)
_PARTS = ("throughput", "transports", "kills")
_TOKENS = (20, 40)  # of a prompt and of an answer of the server


@contextlib.contextmanager
def _server(seconds: float) -> Iterator[tuple[str, list[int]]]:
    """A teacher in its own process: its address; afterwards answers, prompt and output tokens, most at a time."""
    command = [sys.executable, "-m", "tests.distillation.stand_in", str(seconds)]
    counts: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), counts
        counts += json.loads(process.communicate()[0])


def _rows(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {i} + {i}? {'Explain. ' * 40}", "solution": str(2 * i)} for i in range(count)]


def _throughput(count: int) -> dict[str, Any]:
    seen: list[Progress] = []
    settings = DistilSettings(max_tokens=64, max_in_flight=_IN_FLIGHT, price=_PRICE, max_dollars=1000.0)
    with tempfile.TemporaryDirectory() as folder:
        with _server(1.0) as (url, counts):
            begun, cpu = time.perf_counter(), time.process_time()
            endpoint = Endpoint(url, "big")
            summary = distil_lib.distil(_rows(count), folder, endpoint, settings, on_progress=seen.append)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        assert (summary.rows, counts[0]) == (count, count)
        begun = time.perf_counter()
        plan = distil_lib.plan(_rows(count), folder, endpoint, settings)
        assert plan.kept == count
        return {
            "questions": count,
            "in_flight_at_the_server": counts[3],
            "requests_per_second": count / seen[-1].seconds,
            "requests_per_second_with_reading_and_writing": count / seconds,
            "client_cpu_microseconds_per_request": 1e6 * cpu / count,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seconds_to_find_that_all_is_there": time.perf_counter() - begun,
        }


async def _drive(count: int, send: Callable[[], Awaitable[bytes]]) -> dict[str, float]:
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            json.loads(await send())

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(_IN_FLIGHT)))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {"requests_per_second": count / seconds, "client_cpu_microseconds_per_request": 1e6 * cpu / count}


def _transports(count: int) -> dict[str, Any]:
    import aiohttp
    import httpx

    message = {"role": "user", "content": _rows(1)[0]["question"]}
    body = json.dumps({"model": "big", "messages": [message], "seed": 0}).encode()
    headers = {"content-type": "application/json"}

    async def by_aiohttp(url: str) -> dict[str, float]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def send() -> bytes:
                async with session.post(url, data=body, headers=headers) as response:
                    return await response.read()

            return await _drive(count, send)

    async def by_httpx(url: str) -> dict[str, float]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:

            async def send() -> bytes:
                return (await client.post(url, content=body, headers=headers)).content

            return await _drive(count, send)

    found = {}
    for name, run in (("aiohttp", by_aiohttp), ("httpx", by_httpx)):
        with _server(1.0) as (url, _):
            found[name] = asyncio.run(run(f"{url}/chat/completions"))
    versions = {name: importlib.metadata.version(name) for name in found}
    return {"requests": count, "in_flight": _IN_FLIGHT, "versions_of_both": versions, **found}


def _kills(wanted: int) -> dict[str, Any]:
    """Kills the command `wanted` times. There are enough questions that it does not end before."""
    rng, in_flight, seconds = random.Random(0), 20, 0.05
    count = wanted * 150
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        questions = root / "questions.jsonl"
        questions.write_text("".join(json.dumps(row) + "\n" for row in _rows(count)))
        with _server(seconds) as (url, counts):
            command = [
                sys.executable, "-m", "launch.distil", f"--questions={questions}", f"--out={root / 'out'}",
                f"--endpoint={url}", "--model=big", "--max_tokens=64", f"--max_in_flight={in_flight}",
                "--max_dollars=1000", f"--dollars_per_million={_PRICE.prompt},{_PRICE.output}",
            ]  # fmt: skip
            kills = 0
            while kills < wanted:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0.3, 1.3))
                    raise SystemExit(f"the command ended by itself ({process.returncode}) after {kills} kills")
                process.kill()
                process.wait()
                kills += 1
            last = subprocess.run(command, capture_output=True, text=True)
            if last.returncode:
                raise SystemExit(last.stderr)
            time.sleep(2 * seconds)
        found = _compare(root / "out", count, counts, kills * in_flight)
        with _server(0.0) as (calm, _):
            subprocess.run(
                [word.replace(url, calm).replace(str(root / "out"), str(root / "calm")) for word in command],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        same = (root / "out" / "rows.jsonl").read_bytes() == (root / "calm" / "rows.jsonl").read_bytes()
        return {"kills": kills, "questions": count, **found, "rows_as_of_an_undisturbed_run": same}


def _compare(out: pathlib.Path, count: int, counts: list[int], most_lost: int) -> dict[str, Any]:
    """What the folder says against what the server counted."""
    answers = [json.loads(line) for line in (out / "answers.jsonl").open()]
    sent = [json.loads(line)["send"] for line in (out / "sent.jsonl").open()]
    lost = len(set(sent) - {line["send"] for line in answers})
    prompts, outputs = (sum(line["usage"][f"{kind}_tokens"] for line in answers) for kind in ("prompt", "completion"))
    paid = counts[0] - len(answers)  # answers that the server generated for nobody
    return {
        "rows": len({line["key"] for line in answers}),
        "answers_lost_that_were_on_disk": count - len({line["key"] for line in answers}),
        "answered_by_the_server": counts[0],
        "answers_in_the_folder": len(answers),
        "counted_as_possible_spend": lost,
        "paid_twice": paid,
        "paid_twice_at_most": most_lost,
        "every_lost_answer_is_counted": paid <= lost <= most_lost,
        "spend_is_the_servers_to_the_token": [prompts + paid * _TOKENS[0], outputs + paid * _TOKENS[1]] == counts[1:3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(_PARTS), help="what to measure")
    parser.add_argument("--questions", type=int, default=20_000, help="of throughput; a quarter of them for transports")
    parser.add_argument("--kills", type=int, default=100)
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * _IN_FLIGHT), hard))
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: _throughput(arguments.questions),
        "transports": lambda: _transports(arguments.questions // 4),
        "kills": lambda: _kills(arguments.kills),
    }
    for part in arguments.parts:
        found = runs[part]()
        print(part, json.dumps(found, indent=1))
        record.write_part("distil", part, found)


if __name__ == "__main__":
    main()
