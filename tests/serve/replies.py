"""Random results and the pieces that a stream of them has, without an engine."""

import json
import random

from s1jax.config.sampling import SamplingParams
from s1jax.engine.pieces import Piece
from s1jax.engine.request import Output
from s1jax.serve import protocol
from s1jax.serve.protocol import ApiError, Defaults, Result
from s1jax.serve.reader import Reader
from s1jax.text.delimiters import Delimiters

DELIMITERS = Delimiters(
    think_start=(1, 2), think_end=(3,), newline=(4,), final_answer=(5, 6), end=(3, 7), stop=(7,), ends_in_newline=(4,),
    num_ids=256,
)  # fmt: skip
LETTERS = 'ab \n"\\é漢😀\u2028\x85</think>'


def texts(rng: random.Random, most: int) -> list[str]:
    """Random texts that a stream's pieces may have; some are empty."""
    return ["".join(rng.choices(LETTERS, k=rng.randrange(6))) for _ in range(rng.randrange(most))]


def result(rng: random.Random, params: SamplingParams | None = None) -> tuple[Result, list[Piece]]:
    """A random result and its pieces: one id each, the delimiters in one piece."""
    cut, stopped = rng.random() < 0.5, rng.choice(["stop", "string", "length"])
    thoughts, answers = texts(rng, 8), texts(rng, 8)
    pieces = [Piece("thinking", "", DELIMITERS.think_start, True)]
    pieces += [Piece("thinking", text, (10,), rng.random() < 0.3) for text in thoughts]
    pieces.append(Piece("answer", "", (4, 3) if cut else (3,), True))
    pieces += [Piece("answer", text, (5, 6), True) for text in (["Final Answer:"] if cut else [])]
    pieces += [Piece("answer", text, (11,), False) for text in answers]
    pieces += [Piece("answer", "", (7,), False)] if stopped == "stop" else []
    ids = [i for piece in pieces for i in piece.ids]
    forced = [piece.forced for piece in pieces for _ in piece.ids]
    logprobs = [0.0 if f else -rng.random() for f in forced]
    output = Output(
        thinking="".join(thoughts), answer="Final Answer:" * cut + "".join(answers), token_ids=tuple(ids),
        forced=tuple(forced), logprobs=tuple(logprobs), logprob=sum(logprobs), thinking_tokens=len(thoughts),
        answer_tokens=len(answers) + (stopped == "stop"), waits=0, thinking_end="cut" if cut else "natural",
        answer_end="length" if stopped == "length" else "stop", stop_reason="END" if stopped == "string" else None,
        params=params or SamplingParams(temperature=1.0, seed=rng.randrange(2**32)),
    )  # fmt: skip
    found = Result(
        output, prompt_ids=rng.randrange(1, 50), delimiters=DELIMITERS, cached_tokens=0,
        device_seconds=rng.random(), token_texts=tuple(f"t{i}" for i in ids),
    )  # fmt: skip
    return found, [*pieces, Piece("answer", "", (), False, output)]


def junk(rng: random.Random, depth: int = 0):
    """A random JSON value of any type."""
    simple = [
        None, True, False, 0, 1, -1, -2, 64, 1.5, -0.0, 1e308, 2**31, 2**63, 10**400, -(10**30), float("inf"),
        float("nan"), "", "64", "none", "high", "user", "text", "enabled", "\ud800", "\x00", "漢", "x" * 300,
    ]  # fmt: skip
    kind = rng.random()
    if depth > 2 or kind < 0.6:
        return rng.choice(simple)
    if kind < 0.8:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ["role", "content", "type", "text", "budget_tokens", "effort", "max_tokens", "enable_thinking", "é", "id"]
    return {rng.choice(keys): junk(rng, depth + 1) for _ in range(rng.randrange(4))}


def fuzz(api, defaults: Defaults, body: dict, seed: int, count: int, more: tuple = ()) -> int:
    """Reads `body` with random values in random fields; returns how many bodies were refused, each with a 4xx.

    Args:
      api: module of an API.
      defaults: of the server.
      body: a valid one.
      seed: of the values.
      count: how many bodies.
      more: names of fields beside those that the API knows.
    """
    valid = Reader(body)
    api.read(valid, defaults)
    names = [*valid.known, *more]
    rng, refused = random.Random(seed), 0
    for _ in range(count):
        changed = {**body, **{rng.choice(names): junk(rng) for _ in range(rng.randrange(1, 4))}}
        try:
            api.read(Reader(changed), defaults)
        except ApiError as found:
            refused += 1
            assert 400 <= found.status < 500 and found.message and found.body()["error"]["message"]
    return refused


def named_events(stream, result: Result, pieces: list[Piece]) -> list[dict]:
    """The events of a stream whose events have names, after a round trip over the wire."""
    written = stream.begin()
    for piece in pieces:
        written += stream.piece(0, piece)
    assert stream.done == b""
    wire = protocol.sse(written + stream.end([result])).decode()
    found = []
    for block in wire.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found
