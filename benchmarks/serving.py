"""The server against its goals, over the loopback address; writes benchmarks/results/PROCESSOR/serving.json.

    python -m benchmarks.serving PART ... [--peer_python PYTHON] [--minutes 30] [--scale 1]

overhead     tokens a second over HTTP against Engine.generate on the same requests.
first_token  time to the first token of an idle server.
itl          gaps between tokens at 70 % load, and while a prompt of 2,000 tokens is prefilled.
peers        goodput against `transformers serve` and llama.cpp's server; needs --peer_python, a Python with torch,
             transformers[serving] and xllamacpp.
cache        the second turn of a chat with 1,500 cached tokens.
overload     --minutes of 120 % load.
budgets      --requests random requests against the offline engine; some hundred over HTTP.
hang_ups     1,000 clients that leave at random moments.
fuzz         --requests requests that make no sense, 60 % of our own and 40 % of schemathesis.

The first six are timed: run them on a quiet machine. --scale shortens or lengthens all runs. Each part prints its goal,
its figure and whether it is met, and keeps the other parts of the record; with --scale other than 1 nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import record, servers, serving_abuse, serving_budgets, serving_models, serving_rows
from s1jax.engine.engine import Engine

_HTTP = 0.05  # of the random requests go over HTTP
_OWN = 0.6  # of the fuzzed requests are our own
_FREE = 0.1  # seconds until a slot is free


def budgets(requests: int, seed: int) -> dict[str, Any]:
    """Random requests: bounds and tokens."""
    over_http = max(round(requests * _HTTP), 2)
    engine = Engine(serving_models.SMALL, slots=8)
    found = serving_budgets.through_the_scheduler(engine, requests - over_http, seed)
    with servers.start("s1jax", serving_models.SMALL, slots=serving_rows.SLOTS, length=1024) as server:
        http = serving_budgets.over_http(server.url, engine, over_http, seed + 1)
        traceback = "Traceback" in server.output()
    problems = [*found["problems"], *http["problems"]]
    return {
        "goal": "random requests: none over a bound by one token, tokens equal the offline engine's",
        "figure": {"requests": found["requests"] + http["requests"], "problems": len(problems)},
        "met": not problems and not found["programs_after_warm_up"] and not traceback,
        "details": {"scheduler": found, "http": http},
    }


def hang_ups(clients: int, seed: int) -> dict[str, Any]:
    """Clients that leave."""
    with servers.start("s1jax", serving_models.SMALL, slots=serving_rows.SLOTS, length=1024) as server:
        found = asyncio.run(serving_abuse.hang_ups(server, clients, max(clients // 10, 2), seed))
    longest = found["idle_after_one"]["max"]
    return {
        "goal": f"clients that hang up: slot free after at most {_FREE:g} s, no page lost, nothing else harmed",
        "figure": {"clients": clients, "longest_until_free": longest},
        "met": longest <= _FREE and found["same_answer_afterwards"] and not found["traceback"],
        "details": found,
    }


def fuzz(requests: int, seed: int) -> dict[str, Any]:
    """Requests that make no sense."""
    own = round(requests * _OWN)
    with servers.start("s1jax", serving_models.SMALL, slots=serving_rows.SLOTS, length=512) as server:
        ours = serving_abuse.fuzz(server, own, seed)
        theirs = serving_abuse.by_schemathesis(server, requests - own)
    problems = [*ours["problems"], *theirs["problems"]]
    clean = all(each["alive"] and not each["traceback"] for each in (ours, theirs))
    return {
        "goal": "fuzzed requests: no 5xx but 503, no traceback, server alive",
        "figure": {"requests": ours["requests"] + theirs["requests"], "problems": len(problems)},
        "met": not problems and clean,
        "details": {"own": ours, "schemathesis": theirs},
    }


_TIMED: dict[str, Callable[[serving_rows.Bench], dict[str, Any]]] = {
    "overhead": serving_rows.overhead,
    "first_token": serving_rows.first_token,
    "itl": serving_rows.between_tokens,
    "peers": serving_rows.peers,
    "cache": serving_rows.second_turn,
}
_PARTS = (*_TIMED, "overload", "budgets", "hang_ups", "fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=_PARTS, metavar="PART", help=", ".join(_PARTS))
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="keeps the medium model for the next run")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        bench: serving_rows.Bench | None = None
        for part in args.parts:
            if part in ("budgets", "fuzz"):
                found = {"budgets": budgets, "fuzz": fuzz}[part](args.requests, args.seed)
            elif part == "hang_ups":
                found = hang_ups(args.clients, args.seed)
            else:
                bench = bench or serving_rows.Bench(folder, stack, args.scale, args.peer_python)
                found = serving_rows.overload(bench, args.minutes) if part == "overload" else _TIMED[part](bench)
            print(f"{part}\n  goal    {found['goal']}\n  figure  {json.dumps(found['figure'])}")
            print(f"  verdict {'met' if found['met'] else 'missed'}", flush=True)
            if args.scale == 1:
                record.write_part("serving", part, found)


if __name__ == "__main__":
    main()
