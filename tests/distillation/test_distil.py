"""Distilling from a teacher that misbehaves: what is paid, what is kept, what ends a run."""

import collections
import json
import random
import threading

import pytest

from s1jax.data import s1k
from s1jax.data.identity import question_id
from s1jax.distillation import distil as distil_lib
from s1jax.distillation.control import Control
from s1jax.distillation.distil import distil
from s1jax.distillation.settings import DistilSettings, Price
from s1jax.errors import UserError
from s1jax.remote.client import Endpoint
from tests.distillation.conftest import rows
from tests.distillation.stand_in import (
    CONTEXT,
    CUT,
    HANG,
    KEY,
    MODEL,
    QUOTA,
    TORN,
    Step,
    answer,
    busy,
    empty,
    error,
    filtered,
    length,
    ok,
)

PRICE = Price(0.55, 2.19)


def billed(teacher):
    return PRICE.of(teacher.prompt_tokens, teacher.output_tokens)


def test_answers_become_rows_that_training_takes(ask, teacher):
    found = ask(rows(5), answers=2, temperature=0.6, top_p=0.9, system="Think.", template="{question} Use \\boxed{}.",
                body={"thinking_token_budget": 9}, price=PRICE)  # fmt: skip
    assert (found.rows, found.states, found.left, found.reason) == (10, {"done": 10}, 0, None)
    written = ask.lines("rows.jsonl")
    ids = [question_id(row["question"]) for row in rows(5)]
    assert [row["id"] for row in written] == [f"{id_}#{k}" for id_ in ids for k in range(2)]
    assert {key: written[3][key] for key in written[3] if key != "thinking_trajectories"} == {
        "id": f"{ids[1]}#1", "question": "What is 1 + 1?", "attempt": "It is 28.", "teacher": "big",
        "finish_reason": "stop", "answer_number": 1, "prompt_tokens": 20, "completion_tokens": 40,
        "reasoning_tokens": 35, "dollars": pytest.approx((20 * 0.55 + 40 * 2.19) / 1e6), "solution": "2",
    }  # fmt: skip
    loaded = s1k.load_rows(str(ask.folder / "rows.jsonl"))
    assert [row.trace for row in loaded][3] == "I think about What is 1 + 1? Use \\boxed{}. (1)" and len(loaded) == 10
    made = json.loads((ask.folder / "summary.json").read_text())
    assert made["model"] == "big" and made["settings"]["template"] == "{question} Use \\boxed{}." and made["rows"] == 10
    assert made["settings"]["price"] == {"prompt": 0.55, "output": 2.19} and made["states"] == {"done": 10}
    body = next(body for body in teacher.bodies if body["seed"] == 1)
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": "big", "max_completion_tokens": 64, "temperature": 0.6, "top_p": 0.9, "seed": 1,
        "thinking_token_budget": 9,
    }  # fmt: skip
    assert body["messages"][0] == {"role": "system", "content": "Think."}


def test_nothing_is_asked_twice_whatever_becomes_of_the_file(ask, teacher, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    ask(rows(6))
    first = ask.lines("rows.jsonl")
    shuffled = [*rows(3, first=20), *rows(6)[::-1], *rows(2, first=30)]
    path = tmp_path / "pool.parquet"
    pyarrow.write_table(__import__("pyarrow").Table.from_pylist(shuffled), path)
    assert ask(path).rows == 11
    assert len(teacher.calls) == len(set(teacher.calls)) == 11
    again = {row["id"]: row for row in ask.lines("rows.jsonl")}
    assert [row["question"] for row in ask.lines("rows.jsonl")] == [row["question"] for row in shuffled]
    assert all(again[row["id"]] == row for row in first)
    assert ask(rows(2)).rows == 2 and len(teacher.calls) == 11  # fewer rows: those of the command
    ask(rows(2), temperature=0.5)
    ask(rows(2), model="other")
    assert len(teacher.calls) == 15 and len(ask.lines()) == 15  # other sampling, another model: other requests
    assert {row["teacher"] for row in ask.lines("rows.jsonl")} == {"other"}


def test_a_question_that_is_there_twice_is_asked_once(ask, teacher):
    ask([*rows(3), {"question": " What is  1 + 1? "}, {"problem": "What is 2 + 2?"}])
    assert len(teacher.calls) == 3
    assert "2 of 5 rows repeat the question of an earlier row, and are asked once." in ask.notes


@pytest.mark.parametrize("place", ["reasoning", "reasoning_content", "tags", "end tag"])
def test_thinking_is_found_in_every_place(ask, teacher, place):
    teacher.default = ok(place=place)
    ask(rows(1))
    (row,) = ask.lines("rows.jsonl")
    assert row["thinking_trajectories"] == ["I think about What is 0 + 0? (0)"] and row["attempt"] == "It is 14."


def test_one_failing_answer_does_not_cost_the_others(ask, teacher):
    teacher.script["What is 1 + 1?", 2] = [CONTEXT]
    teacher.script["What is 2 + 2?", 0] = [filtered()]
    teacher.script["What is 2 + 2?", 1] = [error(400, "filtered", "content_filter")]
    teacher.script["What is 2 + 2?", 3] = [empty()]
    teacher.script["What is 3 + 3?", 3] = [length(64)]
    found = ask(rows(4), answers=4, price=PRICE)
    assert found.states == {"done": 11, "failed": 2, "refused": 2, "cut": 1} and found.rows == 11
    assert len(teacher.calls) == 16  # none of these is sent again
    assert found.dollars == pytest.approx(billed(teacher)) and teacher.answered == 14
    assert ask(rows(4), answers=4).states == found.states and len(teacher.calls) == 16
    assert any("2 requests have failed for good before; retry_failed" in note for note in ask.notes)
    teacher.script.clear()
    assert ask(rows(4), answers=4, retry_failed=True).states == {"done": 15, "cut": 1}


def test_an_answer_after_thinking_that_was_cut_is_cut_whatever_the_finish_reason(ask, teacher):
    def body(asked, end):
        found = answer(asked)
        found["choices"][0]["thinking"] = {"end": end, "tokens": 35}  # as `s1jax serve` sends it
        return found

    teacher.script["What is 1 + 1?"] = [Step(lambda asked: body(asked, "cut"), prompt=20, output=40)]
    teacher.default = Step(lambda asked: body(asked, "natural"), prompt=20, output=40)
    assert ask(rows(3)).states == {"done": 2, "cut": 1}
    assert not any("1 + 1" in row["question"] for row in ask.lines("rows.jsonl"))


def test_a_cut_answer_is_bought_again_for_a_larger_limit_only(ask, teacher):
    teacher.script["What is 1 + 1?"] = [length(64), length(128), ok(output=150)]
    assert ask(rows(3)).states == {"done": 2, "cut": 1}
    assert not any("1 + 1" in row["question"] for row in ask.lines("rows.jsonl"))
    ask(rows(3), max_tokens=128)
    assert (
        "1 answers were cut at their limit of tokens, and are not asked for again; retry_cut asks for 1 of them"
        in (ask.notes[-1])
    )
    ask(rows(3), retry_cut=True)
    ask(rows(3), max_tokens=32, retry_cut=True)
    assert len(teacher.calls) == 3
    assert ask(rows(3), max_tokens=128, retry_cut=True).states == {"done": 2, "cut": 1}
    ask(rows(3), max_tokens=128, retry_cut=True)
    assert len(teacher.calls) == 4
    assert ask(rows(3), max_tokens=256, retry_cut=True).rows == 3 and len(teacher.calls) == 5


def test_a_teacher_that_hides_its_thinking_ends_the_run(ask, teacher):
    teacher.default = ok(place="")
    for _ in range(2):  # the second time nothing is sent
        with pytest.raises(UserError, match=r"the first 3 replies of big hold no thinking.*allow_no_thinking"):
            ask(rows(40), max_in_flight=16)
        assert len(teacher.calls) == 3
    found = ask(rows(40), allow_no_thinking=True)
    assert found.rows == 40 and ask.lines("rows.jsonl")[0]["thinking_trajectories"] == [""]
    teacher.script["What is 50 + 50?"] = [ok()]
    assert ask(rows(3, first=50)).rows == 1
    assert "2 answers hold no thinking and are not in rows.jsonl." in ask.notes


def test_no_more_than_three_are_in_flight_before_the_first_answer(ask, teacher):
    teacher.default = error(400, "no such field")
    with pytest.raises(UserError, match=r"20 requests in a row have failed, the last one because .*no such field"):
        ask(rows(60), max_in_flight=16)
    assert teacher.most <= 3 and 20 <= len(teacher.calls) <= 22


def test_a_request_that_fails_is_tried_again_and_its_tries_are_on_disk(ask, teacher):
    teacher.script["What is 1 + 1?"] = [error(500)] * 2 + [ok()]
    teacher.script["What is 2 + 2?"] = [error(502)]
    found = ask(rows(4), max_attempts=3)
    assert found.states == {"done": 3, "failed": 1}
    tries = collections.Counter(question for question, _ in teacher.calls)
    assert (tries["What is 1 + 1?"], tries["What is 2 + 2?"]) == (3, 3)
    ask(rows(4), max_attempts=3)
    assert len(teacher.calls) == 8
    ask(rows(4), max_attempts=5)  # two tries are left of five
    assert len(teacher.calls) == 10
    assert [line["attempts"] for line in ask.lines() if line["state"] == "failed" and "502" in line["error"]] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip
    ask(rows(4), max_attempts=2, retry_failed=True)
    assert len(teacher.calls) == 12


def test_a_busy_endpoint_costs_no_try(ask, teacher):
    for i in range(6):
        teacher.script[f"What is {i} + {i}?"] = [busy()] * 4 + [ok()]
    found = ask(rows(6), max_attempts=1)
    assert found.states == {"done": 6} and len(teacher.calls) == 30
    assert {line["attempts"] for line in ask.lines()} == {1}


@pytest.mark.parametrize(("step", "says"), [(QUOTA, "no money left"), (KEY, "not accept the key"), (MODEL, "exist")])
def test_what_no_request_can_get_past_ends_the_run_within_a_round(ask, teacher, step, says):
    ask(rows(10))
    teacher.default = step
    with pytest.raises(UserError, match=f"{says}.*the same command goes on from here"):
        ask(rows(60), max_in_flight=8)
    assert len(teacher.calls) <= 18
    assert len(ask.lines("rows.jsonl")) == 10
    teacher.default = ok()
    assert ask(rows(60)).rows == 60
    assert max(collections.Counter(teacher.calls).values()) <= 2 and teacher.answered == 60


@pytest.mark.parametrize("seed", range(3))
def test_the_cap_is_never_passed_and_the_spend_is_the_teachers(ask, teacher, seed):
    rng = random.Random(seed)
    steps = lambda: rng.choice(  # noqa: E731
        [ok(output=rng.randint(1, 64)), length(64), filtered(), error(500), busy(), empty(), ok(prompt=200)]
    )
    for i in range(200):
        teacher.script[f"What is {i} + {i}?"] = [steps(), steps(), ok()]
    cap, more = 0.006, dict(price=PRICE, max_in_flight=rng.choice([1, 7, 50]))
    found = ask(rows(200), max_dollars=cap, **more)
    assert found.reason == "budget" and 0 < found.left < 200
    assert found.dollars == pytest.approx(billed(teacher)) and billed(teacher) <= cap
    assert billed(teacher) > cap - 2 * PRICE.of(300, 64)  # and not given up long before
    assert ask(rows(200), max_dollars=cap, **more).reason == "budget"
    assert billed(teacher) <= cap
    found = ask(rows(200), max_dollars=1.0, **more)
    assert found.left == 0 and found.possible_dollars == 0
    assert found.dollars == pytest.approx(billed(teacher))
    assert (found.prompt_tokens, found.completion_tokens) == (teacher.prompt_tokens, teacher.output_tokens)


def test_the_endpoints_own_cost_counts(ask, teacher):
    teacher.default = ok(cost=0.25)
    assert ask(rows(4)).dollars == 1.0
    assert ask(rows(4, first=10), price=Price(0.5, 10_000)).dollars == 2.0  # whatever the price says


def test_an_answer_above_its_worst_case_ends_a_run_with_a_cap(ask, teacher):
    teacher.default = ok(output=1000)
    with pytest.raises(UserError, match=r"cost .* more than its worst case.*limit_field"):
        ask(rows(50), price=PRICE, max_dollars=1.0)
    assert len(teacher.calls) <= 3
    assert ask(rows(50), price=PRICE).rows == 50  # without a cap it is said
    assert any("generated 1,000 tokens where 64 were allowed" in note for note in ask.notes)


def test_what_was_asked_without_a_price_counts_once_there_is_one(ask, teacher):
    teacher.script["What is 1 + 1?"] = [ok(usage=False)]
    teacher.script["What is 2 + 2?"] = [CUT, ok()]
    ask(rows(5))
    found = ask(rows(5), price=PRICE)
    worst = PRICE.of(len("What is 1 + 1?") + 16 + 256, 64)
    assert found.dollars == pytest.approx(4 * PRICE.of(20, 40) + worst)
    assert found.possible_dollars == pytest.approx(worst)
    assert ask(rows(9), price=PRICE, max_dollars=found.dollars + found.possible_dollars).left == 4


def test_a_server_that_moves_keeps_its_answers(ask, teacher):
    ask(rows(3), endpoint=Endpoint(teacher.url, "big", name="ours"))
    ask(rows(3), endpoint=Endpoint("http://127.0.0.1:1/v1", "big", name="ours"))
    assert len(teacher.calls) == 3 and {line["endpoint"] for line in ask.lines()} == {"ours"}


def test_a_gateway_that_loses_patience_is_possible_spend(ask, teacher):
    teacher.script["What is 1 + 1?"] = [error(504), ok()]
    found = ask(rows(3), price=PRICE)
    assert found.lost == 1 and found.possible_dollars == pytest.approx(PRICE.of(14 + 16 + 256, 64))


def test_an_answer_without_usage_counts_with_its_worst_case(ask, teacher):
    teacher.default = ok(usage=False)
    found = ask(rows(3), price=PRICE)
    bound = PRICE.of(len("What is 0 + 0?") + 16 + 256, 64)
    assert found.dollars == pytest.approx(3 * bound)
    assert "3 answers do not say what they are billed for, and count with their worst case." in ask.notes
    assert ask(rows(3, first=5)).dollars == found.dollars  # without a price it is unknown
    assert ask.lines()[-1]["dollars"] is None


@pytest.mark.parametrize("place", ["reasoning", "tags"])
def test_a_streamed_answer_is_the_same_answer(ask, teacher, place):
    teacher.script["What is 1 + 1?"] = [CUT, ok(place=place)]
    teacher.default = ok(place=place)
    streamed = ask(rows(4), price=PRICE, endpoint=Endpoint(teacher.url, "big", stream=True))
    assert streamed.lost == 1 and teacher.bodies[0]["stream_options"] == {"include_usage": True}
    written = ask.lines("rows.jsonl")
    (ask.folder / "answers.jsonl").unlink()
    whole = ask(rows(4), price=PRICE)  # the key of a request does not depend on how the answer comes
    assert ask.lines("rows.jsonl") == written and whole.rows == 4 and whole.completion_tokens == 160


def test_the_endpoints_own_fields_are_part_of_what_is_asked(ask, teacher):
    for body in ({}, {"top_k": 5}, {"top_k": 5}):
        ask(rows(2), endpoint=Endpoint(teacher.url, "big", body=body))
    assert [body.get("top_k") for body in teacher.bodies] == [None, None, 5, 5]


@pytest.mark.parametrize("step", [CUT, TORN, HANG])
def test_an_answer_that_never_arrives_is_possible_spend(ask, teacher, step):
    teacher.script["What is 1 + 1?"] = [step, ok()]
    found = ask(rows(3), price=PRICE, timeout=0.5)
    worst = PRICE.of(len("What is 1 + 1?") + 16 + 256, 64)
    assert found.states == {"done": 3} and found.lost == 1 and found.possible_dollars == pytest.approx(worst)
    line = next(line for line in ask.lines() if "1 + 1" in line["reasoning"])
    assert (line["attempts"], line["lost"]) == (2, 1)
    assert ask(rows(3), price=PRICE).possible_dollars == pytest.approx(worst)
    teacher.default = ok()
    cap = found.dollars + worst * 2.5  # room for one more, with the lost one counted
    assert ask(rows(9), price=PRICE, max_dollars=cap, max_in_flight=1).left > 0
    assert billed(teacher) <= cap


def test_an_endpoint_that_is_away_ends_the_run_after_a_while(ask):
    with pytest.raises(UserError, match=r"nothing was answered for .*cannot be reached"):
        ask(rows(9), endpoint=Endpoint("http://127.0.0.1:1/v1", "big"), patience=0.05)
    assert not ask.lines() if (ask.folder / "answers.jsonl").exists() else True


def test_a_pause_that_is_too_long_ends_the_run(ask, teacher):
    teacher.default = busy(7200)
    with pytest.raises(UserError, match="wants a pause of 7200 s"):
        ask(rows(9))
    assert len(teacher.calls) <= 3


def test_a_stopped_run_waits_or_counts_what_is_in_flight(ask, teacher):
    ask(rows(1))
    teacher.default, control = ok(delay=0.2), Control()
    threading.Timer(0.1, control.stop).start()
    found = ask(rows(50), control=control, max_in_flight=4, price=PRICE)
    assert found.reason == "user" and found.lost == 0 and found.rows == teacher.answered <= 9
    teacher.default, control = ok(delay=0.6), Control()
    threading.Timer(0.2, control.stop, (0.0,)).start()
    before = len(teacher.calls)
    found = ask(rows(50), control=control, max_in_flight=4, price=PRICE)
    assert found.reason == "user" and found.lost == len(teacher.calls) - before == 4
    assert found.possible_dollars == pytest.approx(4 * PRICE.of(len("What is 10 + 10?") + 16 + 256, 64), rel=0.01)
    teacher.default = ok()
    assert ask(rows(50)).rows == 50


def test_a_torn_line_is_paid_again_and_nothing_else(ask, teacher):
    ask(rows(6), max_in_flight=1)
    path = ask.folder / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert ask(rows(6), price=PRICE).rows == 6 and len(teacher.calls) == 7
    assert ask(rows(6)).lost == 1
    lines = path.read_bytes().split(b"\n")
    for damage in (
        b'{"fin',
        b'{"x": 1}',
        lines[2].replace(b'"done"', b'"won"'),
        lines[2].replace(b'"usage": {', b'"usage": 1, "u": {'),
    ):
        path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(UserError, match=r"answers.jsonl: line 3 is damaged; repair it, or remove this one line"):
            ask(rows(6))
        with pytest.raises(UserError, match=r"answers.jsonl: line 3 is damaged"):
            distil_lib.plan(rows(6), ask.folder, Endpoint(teacher.url, "big"))
    path.write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    calls = len(teacher.calls)
    assert ask(rows(6)).rows == 6 and len(teacher.calls) == calls + 1
    path.write_bytes(b"my notes\n")
    with pytest.raises(UserError, match=r"answers.jsonl is not the output of a run"):
        ask(rows(6))
    assert path.read_bytes() == b"my notes\n"


def test_a_full_disk_ends_the_run_and_loses_nothing_written(ask, teacher, monkeypatch):
    from s1jax.io.journal import Journal

    append, left = Journal.append, [30]

    def limited(self, row):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device", str(self._path))
        return append(self, row)

    monkeypatch.setattr(Journal, "append", limited)
    with pytest.raises(OSError, match="No space left"):
        ask(rows(40), price=PRICE, max_in_flight=3)
    monkeypatch.undo()
    kept = len(ask.lines())
    sent = len(ask.lines("sent.jsonl"))
    assert kept + sent == 30
    found = ask(rows(40), price=PRICE)
    assert found.rows == 40 and found.lost == sent - kept
    assert len(teacher.calls) <= 40 + 3


def test_a_folder_has_one_writer(ask, teacher, tmp_path):
    teacher.default = ok(delay=0.5)
    control = Control()
    worker = threading.Thread(target=ask, args=(rows(3),), kwargs={"control": control})
    worker.start()
    while not teacher.calls:
        pass
    with pytest.raises(UserError, match=r"another process writes .*answers.jsonl"):
        ask(rows(3))
    worker.join()
    assert len(teacher.calls) == 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_dollars": 1.0}, "max_dollars has no price"),
        ({"max_dollars": 1.0, "price": Price(0, 0)}, "price of 0,0 USD would never be reached"),
        ({"max_dollars": 1.0, "price": Price(0.5, 0)}, "never be reached"),
        ({"max_dollars": 0.0, "price": PRICE}, "max_dollars is 0.0"),
        ({"answers": 0}, "answers is 0"),
        ({"answers": 2, "temperature": 0.0}, "answers is 2 at temperature 0"),
        ({"template": "question"}, "put {question} where"),
        ({"body": {"n": 4}}, "body has n.*use answers"),
        ({"body": {"temperature": 1}, "temperature": 0.5}, "give one of them"),
        ({"body": {"x": float("nan")}}, "JSON has not"),
    ],
)
def test_bad_settings_are_one_sentence(fields, says):
    with pytest.raises(UserError, match=says):
        DistilSettings(**fields)


def test_the_plan_is_exact_about_the_most_and_close_about_the_rest(ask, teacher):
    rng = random.Random(0)
    for i in range(300):
        teacher.script[f"What is {i} + {i}?"] = [ok(output=rng.randint(10, 64))]
    ask(rows(50), price=PRICE)
    settings = DistilSettings(max_tokens=64, price=PRICE)
    plan = distil_lib.plan(rows(300), ask.folder, Endpoint(teacher.url, "big"), settings)
    assert (plan.questions, plan.requests, plan.kept, plan.samples) == (300, 250, 50, 50)
    before, spent = teacher.output_tokens, billed(teacher)
    assert len(teacher.calls) == 50  # nothing was sent
    ask(rows(300), price=PRICE)
    assert plan.output_tokens == pytest.approx(teacher.output_tokens - before, abs=3 * plan.error)
    assert plan.dollars == pytest.approx(billed(teacher) - spent, rel=0.1) and plan.prompt_tokens == 250 * 20
    assert plan.most_output_tokens == 250 * 64 and plan.dollars < plan.most_dollars
    bounds = [len(row["question"]) + 16 + 256 for row in rows(250, first=50)]
    assert plan.most_dollars == pytest.approx(sum(PRICE.of(bound, 64) for bound in bounds))
    assert not (ask.folder.parent / "other").exists()
    fresh = distil_lib.plan(rows(300), ask.folder.parent / "other", Endpoint(teacher.url, "big"), settings)
    assert fresh.output_tokens is None and not (ask.folder.parent / "other").exists()


def test_an_error_of_the_callers_own_function_ends_the_run(teacher, tmp_path):
    def fail(progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        distil(rows(5), tmp_path / "out", Endpoint(teacher.url, "big"), on_progress=fail)


def test_it_runs_inside_an_event_loop(ask, teacher):
    import asyncio

    async def main():
        return ask(rows(3))

    assert asyncio.run(main()).rows == 3


def test_columns_of_the_questions_do_not_take_the_teachers_place(ask, teacher):
    given = {
        "question": "What is 7 + 7?", "id": 7, "attempt": "13", "thinking_trajectories": ["no"], "correct": False,
        "deepseek_thinking_trajectory": "old", "solution": "14", "input_id": "own", "nan": float("nan"),
    }  # fmt: skip
    ask([given])
    (row,) = ask.lines("rows.jsonl")
    (loaded,) = s1k.load_rows(str(ask.folder / "rows.jsonl"))
    assert loaded.trace == "I think about What is 7 + 7? (0)" and loaded.answer == "It is 14."
    assert (row["input_attempt"], row["input_input_id"], row["input_id"]) == ("13", 7, "own")
    assert row["input_correct"] is False and row["solution"] == "14" and row["nan"] is None


@pytest.mark.parametrize("answers", [1, 2])
def test_the_id_of_a_curated_question_is_its_rows_own(ask, answers):
    """`s1jax curate` writes the hash of the question; only another id is kept as input_id."""
    curated = {"id": question_id("What is 7 + 7?"), "question": "What is 7 + 7?"}
    ask([curated, {"id": 7, "question": "What is 8 + 8?"}], answers=answers)
    found = [(row["id"].partition("#")[0] == curated["id"], row.get("input_id")) for row in ask.lines("rows.jsonl")]
    assert found == [(True, None)] * answers + [(False, 7)] * answers


def test_distil_is_a_public_call():
    import s1jax

    assert s1jax.distil is distil and s1jax.DistilSettings is DistilSettings and s1jax.Price is Price
    assert json.dumps(DistilSettings().sampling(3)) == '{"seed": 3}'
