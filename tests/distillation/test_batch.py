"""Batch mode: the same keys as online, nothing asked twice, answers in any order, half the price."""

import json

import pytest

from s1jax.distillation import batch, batch_journal
from s1jax.distillation import distil as distil_lib
from s1jax.distillation.answers import Answers
from s1jax.distillation.settings import DistilSettings, Price
from s1jax.errors import UserError
from s1jax.remote.client import Endpoint
from tests.distillation.batch_stand_in import BatchStandIn
from tests.distillation.conftest import rows
from tests.distillation.stand_in import StandIn

PRICE = Price(0.25, 1.0)


@pytest.fixture
def teacher():
    with BatchStandIn() as found:
        yield found


@pytest.fixture
def ask(teacher, tmp_path):
    """Does a step of batch mode in one folder; notes are in `ask.notes`."""

    def found(mode, questions, *, results=(), most=50_000, **settings):
        settings = DistilSettings(**{"max_tokens": 64, "price": PRICE, "allow_no_thinking": True} | settings)
        return batch.run(
            mode, questions, tmp_path / "out", Endpoint(teacher.url, "big", timeout=20), settings, results=results,
            most_requests=most, on_note=found.notes.append, on_plan=found.plans.append,
        )  # fmt: skip

    found.notes, found.plans, found.folder = [], [], tmp_path / "out"
    found.lines = lambda name="answers.jsonl": [json.loads(line) for line in (tmp_path / "out" / name).open()]
    return found


def billed(teacher):
    return PRICE.of(teacher.prompt_tokens, teacher.output_tokens)


def test_up_and_down_again(ask, teacher):
    up = ask("submit", rows(5), answers=2, most=4)
    assert [known.requests for known in up.waiting] == [4, 4, 2] and up.summary.left == 10
    assert sorted(teacher.asked) == sorted((f"What is {i} + {i}?", k) for i in range(5) for k in range(2))
    index = [row for k in up.waiting for row in ask.lines(f"batches/{k.name}.index.jsonl")]
    assert ask.plans[0].requests == 10
    assert ask.plans[0].most_dollars == pytest.approx(sum(row["dollars"] for row in index))
    again = ask("submit", rows(5), answers=2, most=4)
    assert len(teacher.batches) == 3 and len(again.waiting) == 3
    early = ask("collect", rows(5), answers=2)
    assert len(early.waiting) == 3 and early.summary.rows == 0 and "batch batch_1 is validating." in ask.notes
    for id_ in ("batch_2", "batch_3", "batch_1"):
        teacher.finish(id_=id_)
    down = ask("collect", rows(5), answers=2)
    assert not down.waiting and down.summary.rows == 10 and down.summary.states == {"done": 10}
    assert down.summary.dollars == pytest.approx(billed(teacher)) and down.summary.lost == 0
    written = ask.lines("rows.jsonl")
    assert [row["question"] for row in written] == [f"What is {i} + {i}?" for i in range(5) for _ in range(2)]
    assert [row["answer_number"] for row in written] == [0, 1] * 5
    assert written[3]["thinking_trajectories"] == ["I think about What is 1 + 1? (1)"]
    ask("collect", rows(5), answers=2)
    ask("submit", rows(5), answers=2)
    assert len(teacher.batches) == 3 and len(ask.lines()) == 10


def test_keys_and_bodies_are_those_of_requests_that_are_sent_one_by_one(ask, teacher, tmp_path):
    how = {"answers": 2, "temperature": 0.5, "system": "Be brief.", "body": {"thinking_token_budget": 7}}
    ask("submit", rows(2), **how)
    teacher.finish()
    ask("collect", rows(2), **how)
    with StandIn() as online:  # the batch's address has another port, which is part of the key
        endpoint = Endpoint(online.url, "big")
        settings = DistilSettings(max_tokens=64, **how)
        distil_lib.distil(rows(2), tmp_path / "online", endpoint, settings)
        sent = sorted(online.bodies, key=json.dumps)
        assert (
            sorted((json.loads(line)["body"] for line in teacher.files["file-1"].splitlines()), key=json.dumps) == sent
        )
    settings = DistilSettings(max_tokens=64, price=PRICE, **how)
    found = distil_lib.distil(rows(2), ask.folder, Endpoint(teacher.url, "big"), settings)  # would fail to ask: 404
    assert found.rows == 4 and found.states == {"done": 4}


def test_what_is_in_a_batch_is_not_asked_online(ask, teacher):
    ask("submit", rows(3))
    notes: list[str] = []
    endpoint, settings = Endpoint(teacher.url, "big"), DistilSettings(max_tokens=64, price=PRICE)
    plan = distil_lib.plan(rows(3), ask.folder, endpoint, settings, on_note=notes.append)
    found = distil_lib.distil(rows(3), ask.folder, endpoint, settings, on_note=notes.append)
    assert plan.requests == 0 and found.left == 3 and found.possible_dollars == pytest.approx(plan.possible) != 0
    assert notes[0].startswith("3 requests are in 1 batch whose answers are not collected")


def test_states_of_answers(ask, teacher):
    teacher.script = {
        "What is 0 + 0?": "expire", "What is 1 + 1?": {"finish": "length", "output": 64}, "What is 2 + 2?": 400,
        "What is 3 + 3?": 429, "What is 4 + 4?": {"finish": "content_filter", "content": "", "output": 3},
        "What is 5 + 5?": {"usage": False}, "What is 6 + 6?": 500,
    }  # fmt: skip
    ask("submit", rows(8))
    teacher.finish("expired")
    found = ask("collect", rows(8))
    assert found.summary.states == {"cut": 1, "failed": 2, "refused": 1, "done": 2} and found.summary.left == 2
    lines = {line["id"]: line for line in ask.lines()}
    assert len(lines) == 6 and sum(line["final"] for line in lines.values()) == 1  # the one that is too long
    worst = next(line["dollars"] for line in ask.lines("batches/" + ask_name(ask) + ".index.jsonl"))
    known = PRICE.of(20, 40) + PRICE.of(20, 64) + PRICE.of(20, 3)
    assert found.summary.dollars == pytest.approx(known + worst) and found.summary.possible_dollars == 0
    (said,) = [note for note in ask.notes if note.startswith("batch batch_1 is expired")]
    for words in (
        "2 done",
        "1 to be asked again (batch_expired)",
        "1 to be asked again (rate_limit_exceeded)",
        "2 failed",
    ):
        assert words in said
    teacher.script = {}
    ask("submit", rows(8))  # those without an answer, and the one of which another try may succeed
    assert sorted(q for q, _ in teacher.asked[8:]) == ["What is 0 + 0?", "What is 3 + 3?", "What is 6 + 6?"]
    teacher.finish()
    assert ask("collect", rows(8)).summary.states == {"cut": 1, "failed": 1, "refused": 1, "done": 5}


def ask_name(ask):
    return next(path.name.partition(".")[0] for path in (ask.folder / "batches").glob("*.index.jsonl"))


@pytest.mark.parametrize("route", ["POST /files", "POST /batches"])
def test_a_step_whose_response_is_lost_is_not_paid_twice(ask, teacher, route):
    for _ in range(3):  # older batches of somebody else, more than a page of the list
        teacher.files["file-0"] = b""
        teacher.batches[f"old_{len(teacher.batches)}"] = {
            "id": f"old_{len(teacher.batches)}",
            "input_file_id": "file-0",
        }
    teacher.drop.add(route)
    with pytest.raises(UserError, match=r"ended the connection.*what was done is kept, and the same command goes on"):
        ask("submit", rows(3))
    found = ask("submit", rows(3))
    assert len(teacher.batches) == 4 and len(teacher.asked) == 3 and [k.step for k in found.waiting] == ["created"]
    teacher.finish()
    down = ask("collect", rows(3))
    assert down.summary.rows == 3 and down.summary.dollars == pytest.approx(billed(teacher))
    assert down.summary.possible_dollars == pytest.approx(0)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(6))
def test_a_step_that_is_killed_anywhere_is_not_paid_twice(ask, teacher, monkeypatch, number, after):
    """Before or after one of the journal's lines: those of two batches, of four steps each."""
    step, count = batch_journal.BatchJournal.step, []

    def killed(journal, *arguments, **fields):
        count.append(1)
        if len(count) - 1 == number and not after:
            raise KeyboardInterrupt
        step(journal, *arguments, **fields)
        if len(count) - 1 == number:
            raise KeyboardInterrupt
        return journal.known[arguments[0]]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(batch_journal.BatchJournal, "step", killed)
        ask("submit", rows(4), most=2)
    ask("submit", rows(4), most=2)
    for id_ in list(teacher.batches):
        teacher.finish(id_=id_)
    found = ask("collect", rows(4), most=2)
    assert len(teacher.asked) == len(set(teacher.asked)) == 4 and found.summary.rows == 4
    assert found.summary.dollars == pytest.approx(billed(teacher))
    assert found.summary.possible_dollars == pytest.approx(0) and found.summary.lost == 0


def test_a_lost_creation_is_also_found_by_collect(ask, teacher):
    teacher.drop.add("POST /batches")
    with pytest.raises(UserError):
        ask("submit", rows(2))
    teacher.finish()
    assert ask("collect", rows(2)).summary.rows == 2


def test_refusals_are_one_sentence_and_cost_nothing(ask, teacher):
    teacher.refuse["POST /batches"] = (
        429,
        {"message": "You exceeded your current quota", "code": "insufficient_quota"},
    )
    with pytest.raises(UserError, match="no money left; what was done is kept"):
        ask("submit", rows(2))
    with pytest.raises(UserError, match="answered 404: no files here"):
        teacher.refuse["POST /files"] = (404, {"message": "no files here"})
        ask("submit", rows(4))  # the first file is there, and its batch is created first
    assert len(teacher.batches) == 1
    found = ask("submit", rows(4))
    assert len(teacher.batches) == 2 and len(teacher.asked) == len(set(teacher.asked)) == 4
    assert found.summary.possible_dollars >= 0 and teacher.uploads == 2


def test_a_batch_that_fails_validation_gives_its_requests_back(ask, teacher):
    ask("submit", rows(2))
    teacher.finish("failed", errors=[("token_limit_exceeded", "Enqueued token limit reached for big.")])
    found = ask("collect", rows(2))
    assert not found.waiting and found.summary.possible_dollars == 0 and found.summary.left == 2
    said = "batch batch_1 is failed (Enqueued token limit reached for big.): no results; 2 requests have no answer and"
    assert any(note.startswith(said) for note in ask.notes)
    ask("submit", rows(2))
    assert len(teacher.asked) == 4


def test_the_money_covers_the_worst_case(ask, teacher):
    ask("write", rows(1))
    index = ask.lines("batches/" + ask_name(ask) + ".index.jsonl")
    ask("cancel", rows(1))
    cap = 3.5 * index[0]["dollars"]
    found = ask("submit", rows(9), max_dollars=cap)
    assert found.summary.reason == "budget" and len(teacher.asked) == 3
    assert ask("submit", rows(9), max_dollars=cap).summary.reason == "budget" and len(teacher.asked) == 3
    teacher.finish()
    ask("collect", rows(9), max_dollars=cap)
    ask("submit", rows(9), max_dollars=cap)
    assert len(teacher.asked) > 3 and billed(teacher) <= cap


def test_files_that_the_user_carries(ask, teacher, tmp_path):
    ask("write", rows(4))
    (requests,) = (ask.folder / "batches").glob("*[0-9a-f].jsonl")
    assert f"4 requests are in {requests}; upload it, and read its results." in ask.notes
    assert not teacher.batches and len(ask("write", rows(4)).waiting) == 1  # not written twice
    assert len(list((ask.folder / "batches").iterdir())) == 2
    teacher.files["mine"] = requests.read_bytes()
    teacher._create({"input_file_id": "mine", "endpoint": "/v1/chat/completions", "completion_window": "24h"})
    teacher.finish()
    whole = teacher.files["file-o-batch_1"].splitlines(keepends=True)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(b"".join(whole[:3]) + b'\n{"custom_id": "of another run", "response": null}\n')
    second.write_bytes(b"".join(whole[2:]))
    half = ask("read", rows(4), results=[first])
    assert half.summary.rows == 3 and len(half.waiting) == 1
    assert any("3 done, 1 of no request here" in note for note in ask.notes)
    assert any("1 of 4 requests of" in note and "have no result yet" in note for note in ask.notes)
    done = ask("read", rows(4), results=[second])
    assert done.summary.rows == 4 and not done.waiting and done.summary.dollars == pytest.approx(billed(teacher))
    first.write_bytes(whole[0] + b"[1]\n")
    with pytest.raises(UserError, match=r"first\.jsonl:2 is not a JSON object; fetch the results again"):
        ask("read", rows(4), results=[first])


def test_a_batch_of_another_teacher(ask, teacher, tmp_path):
    """The same folder with another model and another address: a batch stays the one that it was."""
    ask("submit", rows(2))
    teacher.finish()
    settings = DistilSettings(max_tokens=64, price=PRICE, allow_no_thinking=True)

    def collect(endpoint):
        return batch.run("collect", rows(2), ask.folder, endpoint, settings, on_note=ask.notes.append)

    elsewhere = collect(Endpoint("http://127.0.0.1:9/v1", "big"))
    assert len(elsewhere.waiting) == 1 and any(f"is of {teacher.url}; give that endpoint" in note for note in ask.notes)
    found = collect(Endpoint(teacher.url, "other"))
    assert not found.waiting and found.summary.rows == 0 and found.summary.left == 2  # the other model has no answers
    assert {line["model"] for line in ask.lines()} == {"big"}
    assert ask("collect", rows(2)).summary.rows == 2


@pytest.mark.parametrize("number", range(3))
def test_a_collection_that_is_killed_goes_on(ask, teacher, monkeypatch, number):
    ask("submit", rows(3))
    teacher.finish()
    append, count = Answers.append, []

    def killed(answers, answer):
        append(answers, answer)
        count.append(1)
        if len(count) > number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Answers, "append", killed)
        ask("collect", rows(3))
    found = ask("collect", rows(3))
    assert found.summary.rows == 3 and len(ask.lines()) == 3
    assert found.summary.dollars == pytest.approx(billed(teacher)) and found.summary.possible_dollars == 0


def test_results_of_vllm_run_batch(ask, tmp_path):
    """A refusal is in `error`, as an object or a text, beside a response without a body."""
    ask("write", rows(3))
    keys = [row["key"] for row in ask.lines("batches/" + ask_name(ask) + ".index.jsonl")]
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "tool_calls": []}
    choices = [{"message": message, "finish_reason": "stop"}]
    body = {
        "id": "c", "object": "chat.completion", "model": "big", "choices": choices,
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": None},
    }  # fmt: skip
    response = {"status_code": 400, "request_id": "vllm-batch-1", "body": None}
    lines = [
        {
            "id": "vllm-1",
            "custom_id": keys[0],
            "response": {**response, "status_code": 200, "body": body},
            "error": None,
        },
        {"id": "vllm-2", "custom_id": keys[1], "response": response, "error": "maximum context length is 9"},
        {
            "id": "vllm-3",
            "custom_id": keys[2],
            "response": response,
            "error": {"error": {"message": "too long", "code": 400}},
        },
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = ask("read", rows(3), results=[results])
    assert found.summary.states == {"done": 1, "failed": 2} and found.summary.rows == 1 and not found.waiting
    errors = [line["error"] for line in ask.lines() if line["error"]]
    assert "maximum context length is 9" in errors[0] and "too long" in errors[1]


def test_cancelling(ask, teacher):
    ask("submit", rows(3))
    teacher.script = {"What is 0 + 0?": "expire"}
    ask("cancel", rows(3))
    assert teacher.batches["batch_1"]["status"] == "cancelling"
    assert "batch batch_1 is cancelling; collect what was answered." in ask.notes
    teacher.finish("cancelled")
    found = ask("collect", rows(3))
    assert found.summary.rows == 2 and found.summary.left == 1 and not found.waiting
    ask("write", rows(3))
    ask("cancel", rows(3))
    assert not batch_journal.pending(ask.folder) and ask("collect", rows(3)).summary.possible_dollars == 0


def test_a_teacher_whose_thinking_nobody_has_seen(ask, teacher):
    with pytest.raises(UserError, match=r"no reply of big with thinking is known.*num_questions=3"):
        ask("submit", rows(3), allow_no_thinking=False)
    assert not teacher.files


def test_the_openai_client_reads_what_the_stand_in_says(ask, teacher):
    types = pytest.importorskip("openai.types")
    ask("submit", rows(1))
    teacher.finish("expired")
    found = types.Batch.model_validate(teacher.batches["batch_1"], strict=True)
    assert found.status == "expired" and found.metadata["s1jax"].startswith("00000-")
