"""The shapes of a call: what memory holds, said exactly, and programs that calls of all lengths share."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from s1jax import perf
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import programs as programs
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.errors import UserError
from tests.engine import cases

CONFIG = ModelConfig.dense(
    vocab_size=cases.V, d_model=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True,
    context_length=2048,
)  # fmt: skip
PAGE = 64 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim * 4  # bytes, in float32
DELIMITERS = cases.random_delimiters(np.random.default_rng(1))
NAMES = ("start", "prefill", "admit", "decode", "copy_page")


@pytest.fixture(scope="module")
def params():
    return cases.random_weights(CONFIG)


def requests(lengths, thinking=4):
    rng = np.random.default_rng(0)
    controls = SamplingParams(max_thinking_tokens=thinking, max_answer_tokens=2)
    prompts = [tuple(rng.integers(0, 30, n).tolist()) for n in lengths]
    return [EncodedRequest(prompt, controls, (5,), f"row {i}") for i, prompt in enumerate(prompts)]


class Accepted(Exception):
    """Of a call whose cache was found to fit: its slots and pages."""


def ask(monkeypatch, params, free, rows, **settings):
    """What becomes of a call on a device with `free` bytes: (slots, pages), or the sentence that refuses it."""

    def start(config, slots, pages, *_, **__):
        raise Accepted(slots, pages)

    monkeypatch.setattr(perf, "free_memory", lambda devices: free)
    monkeypatch.setattr(programs, "start", start)
    try:
        Engine(params, config=CONFIG, **settings).sample(rows, DELIMITERS)
    except Accepted as accepted:
        return accepted.args
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("cache_length", [0, 2048])
@pytest.mark.parametrize("free", [60, 313, 700])
def test_the_number_of_rows_that_fit_is_exact(params, monkeypatch, free, cache_length):
    rows = requests([1000, *[300, 700] * 40], thinking=200)
    settings = {"cache_length": cache_length, "cache_dtype": "float32"}
    refused = ask(monkeypatch, params, free * PAGE, rows, slots=80, **settings)
    number = int(re.search(r"(\d+) rows? of .* fit: lower the slots", refused)[1])
    assert ask(monkeypatch, params, free * PAGE, rows, slots=number, **settings)[0] == number
    assert re.search(rf"{number} rows? of", ask(monkeypatch, params, free * PAGE, rows, slots=number + 1, **settings))


def test_pages_are_rounded_up_only_where_there_is_room(params, monkeypatch):
    rows = requests([600] * 9, thinking=200)  # of 13 pages each
    assert ask(monkeypatch, params, 150 * PAGE, rows, slots=9) == (9, 128)
    assert ask(monkeypatch, params, 250 * PAGE, requests([700] * 9, thinking=200), slots=9) == (9, 192)
    assert ask(monkeypatch, params, 160 * PAGE, requests([700] * 9, thinking=200), slots=9) == (9, 135)


def test_the_logits_need_room_as_well(params, monkeypatch):
    row, logits = requests([1000]), 4 * 4 * cases.V
    least = 16 * PAGE * 12 // 32 + logits  # int8 takes 12 bytes for a head of 8, float32 32
    assert ask(monkeypatch, params, least, row, slots=1, cache_dtype="int8") == (1, 16)
    refused = ask(monkeypatch, params, least - 1, row, slots=1, cache_dtype="int8")
    assert refused.startswith("1 row at one time needs a cache of 0.1 MB, and 0.0 MB for logits, on a device")
    assert refused.endswith("0.1 MB free; not even a row of up to 1024 ids fits: lower the token limits or shorten the"
                            " prompts.")  # fmt: skip
    many = ask(monkeypatch, params, 2 * 10**8, requests([1] * 9000, thinking=500), slots=9000)
    assert "a cache of 1.3 GB, and 5.8 MB for" in many and "0.2 GB free; 1" in many


def compiled():
    return {name: getattr(programs, name)._cache_size() for name in NAMES}


def test_calls_of_all_lengths_share_a_few_programs_which_are_listed(params):
    jax.clear_caches()
    before, engine = compiled(), Engine(params, config=CONFIG, slots=8)
    for lengths in ([600, 10], [500] * 8, [600, *[10] * 7], [30] * 5, [900] * 8, [1] * 6, [70, 300, 20, 8, 500], [20]):
        dict(engine.sample(requests(lengths), DELIMITERS))
    grown = {name: size - before[name] for name, size in compiled().items()}
    listed = [name.split()[0] for name in engine.counts.programs]
    assert grown == {name: listed.count(name) for name in NAMES}
    # For 1, 2 and 8 slots, and a larger pool for 8; pieces of 64, 128 and 512 ids.
    assert (grown["start"], grown["decode"], grown["prefill"]) == (4, 4, 6)
    assert sum(name.startswith("decode 1 x") for name in engine.counts.programs) == 1, "one row has one slot"


def test_a_wait_longer_than_others_is_another_program(params):
    """And is listed as one."""
    engine = Engine(params, config=CONFIG, slots=1)
    (row,) = requests([3])
    for length in (64, 65):
        dict(engine.sample([dataclasses.replace(row, wait=(5,) * length)], DELIMITERS))
    assert sum(name.startswith("decode") for name in engine.counts.programs) == 2


def test_a_pool_is_not_taken_that_is_much_larger_than_needed(params):
    engine = Engine(params, config=CONFIG, slots=8)
    for lengths in ([1800] * 8, [900] * 8, [1] * 8):  # 256 pages, the same, and not the same
        dict(engine.sample(requests(lengths), DELIMITERS))
    decodes = [name for name in engine.counts.programs if name.startswith("decode")]
    assert [name.split(",")[0] for name in decodes] == ["decode 8 x 2048 in 256 pages", "decode 8 x 2048 in 32 pages"]


def test_prompts_are_prefilled_in_a_few_sizes(params):
    engine = Engine(params, config=CONFIG, slots=16)
    delimiters = dataclasses.replace(DELIMITERS, think_start=(1,))  # so that a prompt's own ids are what is prefilled
    dict(engine.sample(requests([1, 63, 64, 65, 127, 128, 129, 512, 513]), delimiters))
    sizes = {name: calls for name, calls in engine.counts.programs.items() if name.startswith("prefill")}
    assert {name.split(" to ")[0]: calls for name, calls in sizes.items()} == {
        "prefill 64": 3, "prefill 128": 3, "prefill 256": 1, "prefill 512": 3
    }  # fmt: skip


@pytest.mark.parametrize("limits", [[9, 9, 9, 9], [3, 40, 11, 0]])
def test_a_prompt_is_prefilled_once_whatever_its_rows_ask_for(params, limits):
    prompts = [row.prompt for row in requests([50, 70, 50, 9])]
    rows = [
        EncodedRequest(prompt, SamplingParams(max_thinking_tokens=most + length, max_answer_tokens=2), (5,))
        for most in limits
        for length, prompt in enumerate(prompts)
    ]
    engine = Engine(params, config=CONFIG, slots=4)
    samples = dict(engine.sample(rows, DELIMITERS))
    assert engine.counts.prefills == 4 and engine.counts.admissions == 16
    alone = Engine(params, config=CONFIG, slots=1)
    for i, row in enumerate(rows):
        assert dict(alone.sample([row], DELIMITERS))[0].ids.tolist() == samples[i].ids.tolist()
