"""Asks a teacher questions and writes its answers as training rows.

    python -m launch.distil --questions=FILE --out=FOLDER --endpoint=https://HOST/v1 --model=NAME [--key_env=VARIABLE]
        [--answers=K] [--max_tokens=N] [--temperature=T] [--top_p=P] [--seed=N] [--body=JSON] [--system=TEXT]
        [--template='{question} Put the final answer into \\boxed{}.'] [--max_in_flight=N] [--requests_per_minute=N]
        [--tokens_per_minute=N] [--max_dollars=D --dollars_per_million=IN,OUT] [--expected_tokens=N] [--plan]

--questions is a file or folder of rows (JSONL, JSON, CSV, parquet, Arrow) or OWNER/NAME of the Hugging Face hub. A row
has a column question, problem or prompt, or one turn in messages. --endpoint is any server with OpenAI's chat API.
--checkpoint=CKPT in place of --endpoint samples in this process ([--slots=B] and the other flags of `s1jax serve`).

FOLDER/answers.jsonl has a line for every request that was paid for or has failed, as they come in. FOLDER/rows.jsonl is
written at the end: the answers that ended by themselves, in s1K's form, with the other columns of their questions.
`s1jax train --config.data.source=FOLDER/rows.jsonl` takes it.

Before the first request a plan is printed: tokens and dollars, at most and as expected; --plan ends there. The folder
never costs more than --max_dollars: the worst case of a request is reserved before it is sent.

Stop it anywhere: the same command goes on and pays for nothing twice but what was in flight. After Ctrl-C nothing more
is sent, and answers on their way are waited for; after a second one, and --grace seconds after SIGTERM, they count as
possible spend.

--batch=submit asks by OpenAI's Batch API, and --batch=collect fetches what is answered; --batch=write writes the files
for you to upload, and --batch=read --batch_results=FILE,... reads their results; --batch=cancel gives requests back.
The requests have the same keys, so a folder may be filled in both ways ([--batch_discount=0.5] [--batch_requests=N]).

Exit codes: 0: every request is done, cut, refused or failed. 2: bad input, or the endpoint does not take requests (key,
money, model, hidden thinking). 3: --max_dollars is reached. 4: batches have not ended; collect later. 130, 143: stopped
by Ctrl-C, by SIGTERM. After 2, 3, 4, 130 and 143 the same command goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import resource
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Literal

from absl import flags

from s1jax.cli import batch_mode, own_teacher, progress, terminal
from s1jax.distillation import distil as distil_lib
from s1jax.distillation.control import Control, Progress
from s1jax.distillation.distil import Summary
from s1jax.distillation.plan import Plan
from s1jax.distillation.settings import DistilSettings, Price
from s1jax.distillation.teacher import Teacher
from s1jax.errors import UserError
from s1jax.io import paths
from s1jax.remote.client import Endpoint

BUDGET = 3  # exit code
_SPARE_FILES = 64  # beside a connection for every request in flight

_QUESTIONS = flags.DEFINE_string("questions", "", "File or folder of questions, or OWNER/NAME of the Hugging Face hub.")
_OUT = flags.DEFINE_string("out", "", "Folder for answers.jsonl and rows.jsonl.")
_ENDPOINT = flags.DEFINE_string("endpoint", "", "Base URL of the teacher, such as https://api.example.com/v1.")
_MODEL = flags.DEFINE_string("model", "", "The teacher, in the endpoint's words.")
_KEY = flags.DEFINE_string("key_env", "", "Environment variable that holds the endpoint's key; empty: no key.")
_NAME = flags.DEFINE_string(
    "endpoint_name", "", "Stands for --endpoint in answers.jsonl: a server may move; empty: URL."
)
_ANSWERS = flags.DEFINE_integer("answers", 1, "Answers to each question.", 1)
_TOKENS = flags.DEFINE_integer("max_tokens", 32_768, "Most tokens of an answer, thinking included.", 1)
_LIMIT = flags.DEFINE_enum(
    "limit_field", "max_completion_tokens", ["max_completion_tokens", "max_tokens"],
    "Name of the field with --max_tokens; some servers know only the old name.",
)  # fmt: skip
_TEMPERATURE = flags.DEFINE_float("temperature", None, "By default what the teacher takes.", 0.0)
_TOP_P = flags.DEFINE_float("top_p", None, "By default what the teacher takes.", 0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of a question's first answer; its K-th has this + K.")
_SEND_SEED = flags.DEFINE_bool("send_seed", True, "--nosend_seed for endpoints that refuse the field.")
_BODY = flags.DEFINE_string("body", "", 'More fields as JSON, such as {"thinking_token_budget": 8000}.')
_SYSTEM = flags.DEFINE_string("system", "", "System prompt of questions that have none.")
_TEMPLATE = flags.DEFINE_string("template", "{question}", "The user's message, with {question} in it.")
_IN_FLIGHT = flags.DEFINE_integer("max_in_flight", 32, "Requests at one time.", 1)
_REQUESTS = flags.DEFINE_float("requests_per_minute", 0.0, "Requests that are sent in a minute; 0: no such limit.", 0.0)
_RATE = flags.DEFINE_float("tokens_per_minute", 0.0, "Tokens of prompts and answers; 0: no such limit.", 0.0)
_DOLLARS = flags.DEFINE_float("max_dollars", None, "The folder never costs more, earlier runs included.")
_PRICE = flags.DEFINE_list("dollars_per_million", [], "USD per million prompt and output tokens, such as 0.55,2.19.")
_OVERHEAD = flags.DEFINE_integer("prompt_overhead", 256, "Most tokens that the teacher adds to a prompt.", 0)
_EXPECTED = flags.DEFINE_float("expected_tokens", 0.0, "Mean tokens of an answer, for the plan; 0: of those so far.", 0)
_ATTEMPTS = flags.DEFINE_integer("max_attempts", 5, "Tries of a request; waiting for a busy endpoint is not one.", 1)
_RETRY_CUT = flags.DEFINE_bool("retry_cut", False, "Ask again for answers that were cut at a smaller --max_tokens.")
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Ask again for requests that failed for good or were refused.")
_NO_THINKING = flags.DEFINE_bool("allow_no_thinking", False, "Go on with a teacher whose replies hold no thinking.")
_NUM = flags.DEFINE_integer("num_questions", 0, "Questions from the front, as for a pilot; 0: all.", 0)
_PAUSE = flags.DEFINE_float("longest_pause", 3600.0, "Seconds; a longer pause that the endpoint wants ends the run.", 0)
_PATIENCE = flags.DEFINE_float(
    "patience", 600.0, "Seconds without any answer from a busy endpoint that end the run.", 0
)
_STREAM = flags.DEFINE_bool("stream", False, "Get answers in pieces, where a proxy ends connections that are quiet.")
_TIMEOUT = flags.DEFINE_float("timeout", 1800.0, "Seconds that an answer may take.", 0.001)
_GRACE = flags.DEFINE_float("grace", 25.0, "Seconds that answers on their way have after SIGTERM.", 0.0)
_PLAN = flags.DEFINE_bool("plan", False, "Print what it will take, and end.")


def main() -> int:
    own = own_teacher.CHECKPOINT.value
    needed = [(_QUESTIONS, "file or dataset"), (_OUT, "folder")]
    needed += [] if own else [(_ENDPOINT, "URL, or --checkpoint"), (_MODEL, "name")]
    for flag, what in needed:
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; give the {what}.")
    if own and _ENDPOINT.value:
        raise UserError("--checkpoint and --endpoint are two teachers; give one of them.")
    out = paths.local(_OUT.value, "--out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is not a folder; give the path of one.")
    batch_mode.check(own)
    settings = batch_mode.priced(_settings())
    teacher = own_teacher.make(_MODEL.value) if own else _endpoint()
    if _PLAN.value:
        _show(distil_lib.plan(_QUESTIONS.value, out, teacher, settings, on_note=terminal.note))
        return 0
    if batch_mode.MODE.value:
        assert isinstance(teacher, Endpoint)
        return batch_mode.run(_QUESTIONS.value, out, teacher, settings, _show, _say, BUDGET)
    if not own:
        _raise_file_limit()
    return _distil(out, teacher, settings)


def _distil(out: pathlib.Path, teacher: Endpoint | Teacher, settings: DistilSettings) -> int:
    control, signals = Control(), list[int]()
    with _Shown(settings) as shown, _signals(control, signals, shown):
        summary = distil_lib.distil(
            _QUESTIONS.value, out, teacher, settings,
            on_note=shown.note, on_plan=shown.plan, on_progress=shown.progress, control=control,
        )  # fmt: skip
    _say(summary, out)
    if signals:
        return 128 + signals[0]
    return BUDGET if summary.reason == "budget" else 0


def _settings() -> DistilSettings:
    try:
        body = json.loads(_BODY.value) if _BODY.value else {}
    except ValueError as error:
        raise UserError(f"--body is not JSON ({error}); correct it.") from None
    if not isinstance(body, Mapping):
        raise UserError('--body must be a JSON object, such as {"thinking_token_budget": 8000}.')
    given: dict[str, Any] = {
        flag.name: flag.value
        for flag in (
            _ANSWERS, _TOKENS, _TEMPERATURE, _TOP_P, _SYSTEM, _TEMPLATE, _IN_FLIGHT, _REQUESTS, _RATE, _DOLLARS,
            _OVERHEAD, _EXPECTED, _ATTEMPTS, _RETRY_CUT, _RETRY_FAILED, _NO_THINKING, _NUM, _PAUSE, _PATIENCE,
        )
    }  # fmt: skip
    try:
        return DistilSettings(seed=_SEED.value if _SEND_SEED.value else None, body=body, price=_price(), **given)
    except UserError as error:
        raise UserError(f"--{error}") from None  # the sentence begins with the name of a setting


def _price() -> Price | None:
    if not _PRICE.value:
        return None
    try:
        prompt, output = (float(text) for text in _PRICE.value)
    except ValueError:
        given = ",".join(_PRICE.value)
        raise UserError(f"dollars_per_million is {given}; give two numbers, such as 0.55,2.19.") from None
    try:
        return Price(prompt, output)
    except UserError as error:
        raise UserError(f"dollars_per_million: {error}") from None


def _endpoint() -> Endpoint:
    key = ""
    if _KEY.value:
        key = os.environ.get(_KEY.value, "").strip()
        if not key:
            raise UserError(f"--key_env names {_KEY.value}, which is not set; export it, or drop the flag.")
    limit: Literal["max_completion_tokens", "max_tokens"] = _LIMIT.value  # type: ignore[assignment]
    try:
        return Endpoint(
            _ENDPOINT.value,
            _MODEL.value,
            key,
            timeout=_TIMEOUT.value,
            name=_NAME.value,
            limit_field=limit,
            stream=_STREAM.value,
        )
    except UserError as error:
        raise UserError(f"--endpoint: {error}") from None


def _raise_file_limit() -> None:
    """Lets the process open a connection for every request in flight."""
    need = _IN_FLIGHT.value + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        raise UserError(f"--max_in_flight={_IN_FLIGHT.value} needs {need} open files; this process may open {hard}.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


class _Shown:
    """Plan, notes and progress on the terminal."""

    def __init__(self, settings: DistilSettings):
        self._settings, self._bar = settings, contextlib.ExitStack()
        self._drawn: progress.Bar | None = None

    def plan(self, plan: Plan) -> None:
        """Prints the plan and draws the bar."""
        _show(plan)
        self._drawn = self._bar.enter_context(progress.Bar("distilling", plan.requests + plan.kept))
        self._drawn.update(plan.kept)

    def note(self, sentence: str) -> None:
        """Prints a note."""
        if self._drawn is None:
            terminal.note(sentence)
        else:
            self._drawn.say(f"note: {sentence}")

    def progress(self, now: Progress) -> None:
        """Moves the bar."""
        assert self._drawn is not None  # the plan comes first
        rate = f"{now.tokens / now.seconds:,.0f} tokens/s, " if now.seconds > 0 else ""
        cap = "" if self._settings.max_dollars is None else f" of {self._settings.max_dollars:,.2f}"
        money = f"${now.dollars:,.4f}{cap}, " if now.dollars or cap else ""
        self._drawn.update(now.done, f"{rate}{money}{now.in_flight} in flight")

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)


@contextlib.contextmanager
def _signals(control: Control, seen: list[int], shown: _Shown) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM stop the run; puts their numbers into `seen`."""

    def handle(number: int, _: FrameType | None) -> None:
        seen.append(number)
        if number == signal.SIGTERM:
            control.stop(_GRACE.value, "stopped by SIGTERM")
        elif seen.count(number) == 1:
            shown.note("nothing more is sent; answers on their way are waited for. Ctrl-C again leaves them.")
            control.stop(math.inf, "stopped by Ctrl-C")
        else:
            control.stop(0.0, "stopped by Ctrl-C")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(plan: Plan) -> None:
    for line in plan.lines():
        print(terminal.safe(line), flush=True)


def _say(summary: Summary, out: pathlib.Path) -> None:
    states = ", ".join(f"{summary.states[state]:,} {state}" for state in ("done", "cut", "refused", "failed"))
    lost = f", at most {summary.possible_dollars:.4f} for {summary.lost:,} that never arrived" if summary.lost else ""
    print(f"{summary.rows:,} rows to {out / 'rows.jsonl'}; requests: {states}")
    print(
        f"the folder: {summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} output tokens,"
        f" {summary.dollars:.4f} dollars{lost}"
    )
    if summary.stopped:
        print(f"{summary.stopped}; {summary.left:,} requests are left, and the same command goes on from here")
