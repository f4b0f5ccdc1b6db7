"""A teacher on this machine that answers, or misbehaves, as a script says, and counts what it would bill.

    with StandIn() as teacher:
        teacher.script["What is 1 + 1?"] = [busy(2), ok()]

A script is a list of steps for a question, one a request; the last one is repeated. Other questions get `default`.
`python -m tests.distillation.stand_in` serves until its standard input is closed; it prints its address at the start
and its counts at the end.
"""

import asyncio
import collections
import dataclasses
import json
import sys
import threading
import time


@dataclasses.dataclass(frozen=True)
class Step:
    """What one request gets.

    `body` is a JSON value, bytes, or a function of the request's own body; `prompt` and `output` are the tokens that
    the teacher would bill. `cut` sends only so many bytes of the response and ends the connection; `delay` in seconds.
    """

    body: object = None
    status: int = 200
    headers: tuple = ()
    delay: float = 0.0
    cut: int | None = None
    prompt: int = 0
    output: int = 0


def text_of(body):
    """The question and the seed that a request has."""
    return body["messages"][-1]["content"], body.get("seed")


def answer(
    body, *, prompt=20, output=40, finish="stop", place="reasoning_content", content=None, usage=True, **message
):
    """A completion; its text depends on nothing but question and seed."""
    question, seed = text_of(body)
    trace = f"I think about {question} ({seed})"
    content = f"It is {len(question)}." if content is None else content
    if place in ("reasoning_content", "reasoning"):
        message = {place: trace, **message}
    elif place == "tags":
        content = f"<think>\n{trace}\n</think>\n\n{content}"
    elif place == "end tag":
        content = f"{trace}\n</think>\n\n{content}"
    found = {
        "id": "chatcmpl-1",
        "model": "big-2026",
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}],
    }
    if usage:
        details = {"reasoning_tokens": max(output - 5, 0)}
        found["usage"] = {"prompt_tokens": prompt, "completion_tokens": output, "completion_tokens_details": details}
    return found


def ok(prompt=20, output=40, delay=0.0, **fields):
    """An answer; `fields` as of `answer`, and `cost` in USD."""
    cost = fields.pop("cost", None)

    def body(asked):
        found = answer(asked, prompt=prompt, output=output, **fields)
        if cost is not None:
            found["usage"]["cost"] = cost
        return found

    return Step(body, delay=delay, prompt=prompt, output=output)


def length(output):
    return ok(output=output, finish="length")


def filtered():
    return ok(output=3, finish="content_filter", content="")


def empty():
    return ok(content="")


def error(status, message="no", code=None, headers=()):
    return Step({"error": {"message": message, "code": code, "type": code}}, status, tuple(headers))


def busy(retry_after=None):
    return error(429, "slow down", "rate_limit_exceeded", [] if retry_after is None else [("retry-after", retry_after)])


QUOTA = error(429, "You exceeded your current quota", "insufficient_quota")
KEY = error(401, "Incorrect API key", "invalid_api_key")
MODEL = error(404, "The model `big` does not exist", "model_not_found")
CONTEXT = error(400, "maximum context length is 100 tokens", "context_length_exceeded")
HANG = ok(delay=3600.0)
CUT = dataclasses.replace(ok(), cut=60)  # in the middle of the headers' response
TORN = Step(b'{"choices": [{"message": {"content": "4', prompt=20, output=40)  # whole for HTTP, billed, not JSON


class StandIn:
    """The teacher, in a thread; a context manager.

    Attributes:
      script: steps by question.
      default: step of other questions.
      calls: (question, seed) of all requests, in order.
      times: when they came, by time.monotonic.
      bodies: of the requests.
      billed: tokens of prompts, of outputs, and number of answers.
      most: requests at one time.
    """

    def __init__(self, default=None, keep=True):
        self.script, self.default, self.keep = {}, default or ok(), keep
        self.calls, self.times, self.bodies = [], [], []
        self.prompt_tokens = self.output_tokens = self.answered = 0
        self.now = self.most = 0
        self._seen = collections.Counter()
        self._ready = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self):
        async def main():
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()

        asyncio.run(main())

    def step(self, body):
        """Counts a request and returns what it gets."""
        call = text_of(body)
        if self.keep:
            self.calls.append(call)
            self.times.append(time.monotonic())
            self.bodies.append(body)
        steps = self.script.get(call, self.script.get(call[0]))
        if steps is None:
            return self.default
        self._seen[call] += 1
        return steps[min(self._seen[call], len(steps)) - 1]

    def bill(self, step):
        self.answered += 1
        self.prompt_tokens += step.prompt
        self.output_tokens += step.output


class _Connection(asyncio.Protocol):
    def __init__(self, teacher):
        self._teacher, self._buffer = teacher, b""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            size = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + size:
                return
            body = json.loads(self._buffer[end + 4 : end + 4 + size])
            self._buffer = self._buffer[end + 4 + size :]
            teacher, step = self._teacher, self._teacher.step(body)
            teacher.now += 1
            teacher.most = max(teacher.most, teacher.now)
            asyncio.get_running_loop().call_later(step.delay, self._reply, step, body)

    def _reply(self, step, body):
        self._teacher.now -= 1
        if step.status == 200:  # billed whether or not somebody is still there
            self._teacher.bill(step)
        found = step.body(body) if callable(step.body) else step.body
        if body.get("stream") and step.status == 200 and isinstance(found, dict):
            return self._stream(step, found)
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        lines = [f"HTTP/1.1 {step.status} X", f"content-length: {len(content)}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in step.headers]
        whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + content
        self._write(whole, step, len(content))

    def _stream(self, step, found):
        """Sends a completion in pieces of a few characters, with the usage in the last one."""
        choice = found["choices"][0]
        deltas = [
            ({name: text[i : i + 5]}, None)
            for name, text in sorted(choice["message"].items(), reverse=True)
            for i in range(0, len(text), 5)
        ]
        events = [
            {"id": found["id"], "model": found["model"], "choices": [{"delta": delta, "finish_reason": reason}]}
            for delta, reason in (*deltas, ({}, choice["finish_reason"]))
        ]
        events.append({"id": found["id"], "choices": [], "usage": found.get("usage")})
        content = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(content)}\r\n\r\n"
        self._write(head.encode() + content, step, len(content))

    def _write(self, whole, step, size):
        if self._transport.is_closing():
            return
        self._transport.write(whole if step.cut is None else whole[: -size + step.cut])
        if step.cut is not None:
            self._transport.close()


def main():
    """Serves until standard input is closed; an argument is the seconds of an answer."""
    delay = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    with StandIn(ok(delay=delay), keep=False) as teacher:
        print(teacher.url, flush=True)
        sys.stdin.read()
        print(json.dumps([teacher.answered, teacher.prompt_tokens, teacher.output_tokens, teacher.most]), flush=True)


if __name__ == "__main__":
    main()
