"""Stop strings, and several samples of one prompt."""

import dataclasses

import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine import scheduler
from s1jax.engine.engine import Engine
from s1jax.engine.stops import Finder
from s1jax.errors import UserError

QUESTIONS = [{"question": f"Make {t} from {a} {b} {c}"} for t, a, b, c in ((21, 3, 7, 1), (5, 2, 3, 4), (24, 8, 3, 9))]
WARM = SamplingParams(max_thinking_tokens=12, max_answer_tokens=40, temperature=1.0)


@pytest.fixture(scope="module")
def engine():
    return Engine("package:countdown_base", slots=8)


def decode(ids):
    return bytes(ids).decode(errors="replace")


def naive(ids, num_forced, stops):
    """The ids one after the other; the text that was sampled, from its first character on."""
    for count in range(num_forced + 1, len(ids) + 1):
        text = decode(ids[num_forced:count]).lstrip()
        complete = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
        if complete:
            return (
                count,
                min(complete)[2],
                decode(ids[:num_forced]) + decode(ids[num_forced:count]).split(text)[0] + (text[: min(complete)[1]]),
            )
    return None


def test_what_is_found_is_what_is_complete_first():
    rng, found = np.random.default_rng(3), 0
    for _ in range(600):
        text = "".join(rng.choice(list("ab \nc\u20ac\U0001f600"), rng.integers(0, 14)))
        ids, num_forced = list(text.encode()), 0
        if rng.random() < 0.5:
            forced = list(b"\nFinal: a")
            ids, num_forced = [*forced, *ids], len(forced)
        stops = tuple({"".join(rng.choice(list("ab \n\u20ac\U0001f600"), rng.integers(1, 4))) for _ in range(3)})
        finder, want = Finder(decode, stops), naive(ids, num_forced, stops)
        assert finder(ids, num_forced) == (want[:2] if want else None), (text, stops)
        assert finder.before(ids, num_forced) == (want[2] if want else decode(ids))
        if want:
            assert finder(ids[: want[0]], num_forced) == want[:2], "what comes after it changes nothing"
            found += 1
    assert 100 < found < 500


def test_the_beginning_of_a_character_is_no_replacement_character():
    finder = Finder(decode, ("\ufffd",))
    for text in ("a\u20ac", "\U0001f600b"):
        assert all(finder(list(text.encode()[:n]), 0) is None for n in range(1, len(text.encode()) + 1))
    ids = [97, 0xE2, 98, 99]  # a byte that never becomes a character
    assert [finder(ids[:n], 0) for n in range(1, 5)] == [None, None, (3, "\ufffd"), (3, "\ufffd")]
    assert finder.before(ids[:3], 0) == "a"


def test_what_may_be_the_beginning_of_a_stop_string():
    finder = Finder(decode, ("Question:", "\n\n"))
    ends = [("the Qu", 2), ("Question", 8), ("Question:", 0), ("a\n", 1), ("a", 0), ("", 0), ("Q\n", 1), ("QQ", 1)]
    assert [finder.held_back(text) for text, _ in ends] == [held for _, held in ends]
    assert Finder(decode, ()).held_back("abc") == 0


def sampled(tokenizer, row, fewer=0):
    """The text that was sampled for an answer, without its stop id and without the last `fewer` ids."""
    ids = row["ids"][len(row["ids"]) - row["answer_tokens"] :]
    fewer += row["answer_end"] == "stop" and row["stop_reason"] is None
    return tokenizer.decode(ids[: len(ids) - fewer]).strip()


def test_a_stop_string_ends_the_answer_and_nothing_else(engine, monkeypatch):
    """Strings of several ids, taken from what the row answers without them."""
    limits = (12, 200)  # of which the first cuts
    plain = rows_lib.generate(
        engine, [q | {"seed": i, "max_thinking_tokens": limits[i % 2]} for q in QUESTIONS for i in range(4)], WARM
    )
    tokenizer, rows = engine.model.tokenizer, []
    for row in plain:
        text = sampled(tokenizer, row)
        middle = text[len(text) // 2 :][:3]
        kept = {name: row[name] for name in ("question", "seed", "max_thinking_tokens")}
        rows.append(kept | {"stop": [middle, "never said"]})
    outputs = rows_lib.generate(engine, rows, WARM)
    stopped = 0
    for row, output, full in zip(rows, outputs, plain, strict=True):
        count = len(output["ids"])
        assert output["ids"] == full["ids"][:count] and output["forced"] == full["forced"][:count]
        assert (output["thinking"], output["thinking_tokens"]) == (full["thinking"], full["thinking_tokens"])
        assert output["stop_reason"] == row["stop"][0] and output["answer_end"] == "stop"
        assert row["stop"][0] in sampled(tokenizer, output) and row["stop"][0] not in sampled(tokenizer, output, 1)
        assert full["answer"].startswith(output["answer"]) and len(output["answer"]) < len(full["answer"])
        assert output["answer_tokens"] == full["answer_tokens"] - (len(full["ids"]) - count)
        assert full["stop_reason"] is None and output["logprob"] >= full["logprob"]
        stopped += count < len(full["ids"])
    assert stopped == len(rows)
    assert {row["thinking_end"] for row in outputs} == {"cut", "natural"}
    for steps, slots in ((1, 1), (7, 3), (400, 8)):
        monkeypatch.setattr(scheduler, "_STOP_STEPS", steps)
        found = rows_lib.generate(Engine("package:countdown_base", slots=slots), rows, WARM)
        for a, b in zip(found, outputs, strict=True):
            assert a | {"logprob": 0} == b | {"logprob": 0} and a["logprob"] == pytest.approx(b["logprob"], abs=1e-3)


def test_stop_strings_do_not_match_in_thinking(engine):
    plain = rows_lib.generate(engine, QUESTIONS, WARM)
    stop = [row["thinking"][:3] for row in plain]
    outputs = rows_lib.generate(engine, QUESTIONS, dataclasses.replace(WARM, stop=tuple(stop)))
    for row, output in zip(plain, outputs, strict=True):
        assert output["thinking"] == row["thinking"] and output["thinking_tokens"] == row["thinking_tokens"]


def test_a_row_that_a_stop_string_ends_leaves_its_slot(engine):
    """Steps are taken for what is left of the rows; and the rows beside it are what they are alone."""
    long = SamplingParams(max_thinking_tokens=4, max_answer_tokens=400, temperature=4.0, seed=5)
    rows = [QUESTIONS[0] | {"stop": ["1", "2", "3"]}] * 20
    before = engine.counts.steps
    outputs = rows_lib.generate(engine, rows, long)
    assert all(row["stop_reason"] in ("1", "2", "3") for row in outputs if row["answer_tokens"] > 20)
    assert engine.counts.steps - before < 400
    beside = rows_lib.generate(engine, [rows[0], QUESTIONS[1] | {"seed": 3}], WARM)[1]
    assert beside["ids"] == rows_lib.generate(engine, [QUESTIONS[1] | {"seed": 3}], WARM)[0]["ids"]


def test_n_samples_share_a_prefill_and_differ(engine):
    before = engine.counts.prefills
    rows = [QUESTIONS[0] | {"n": 3}, QUESTIONS[1], QUESTIONS[2] | {"n": 2, "seed": 9}]
    hot = dataclasses.replace(WARM, temperature=3.0)
    outputs = rows_lib.generate(engine, rows, hot)
    assert engine.counts.prefills - before == 3
    assert [row["question"][:7] for row in outputs] == ["Make 21"] * 3 + ["Make 5 "] + ["Make 24"] * 2
    assert [row.get("sample_index") for row in outputs] == [0, 1, 2, None, 0, 1]
    assert len({tuple(row["ids"]) for row in outputs}) == 6
    assert len({row["controls"]["seed"] for row in outputs}) == 6 and outputs[4]["controls"]["seed"] == 9
    for output in outputs:  # each of them again, alone
        seed = {"question": output["question"], "seed": output["controls"]["seed"]}
        assert rows_lib.generate(engine, [seed], hot)[0]["ids"] == output["ids"]
    assert outputs[4]["ids"] == rows_lib.generate(engine, [QUESTIONS[2] | {"n": 2, "seed": 9}], hot)[0]["ids"]
    assert [row["ids"] for row in rows_lib.generate(engine, QUESTIONS[:1], dataclasses.replace(hot, n=3))] == [
        row["ids"] for row in outputs[:3]
    ]


def test_n_needs_a_temperature(engine):
    with pytest.raises(UserError, match="row 0: n is 2, but with temperature 0 all samples of a prompt are the same"):
        rows_lib.generate(engine, [QUESTIONS[0] | {"n": 2, "max_answer_tokens": 5}])
