"""Budget forcing against the one-row reference, id for id; the model is a table of logits for each row and step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import budget as budget_lib
from s1jax.engine import logits as logits_lib
from s1jax.engine.sequence import Sample
from s1jax.errors import UserError
from s1jax.text.delimiters import Delimiters
from tests.engine import cases, reference
from tests.engine.cases import V

STEPS = 64  # more than any row of the cases can take

D = Delimiters(
    think_start=(1, 2), think_end=(1, 3), newline=(4,), final_answer=(4, 5, 6), end=(1, 9, 10), stop=(9,),
    ends_in_newline=(4, 11), num_ids=36, illegal=(31,),
)  # fmt: skip
WAIT = (7, 8)


@jax.jit
def _run(table, budgets, rules, sampling, last, count):
    """Takes STEPS steps with logits from `table` [B, STEPS + some, V]; emitted, forced and logprob are [STEPS, B]."""

    def body(state, _):
        logits = jnp.take_along_axis(table, state.count[:, None, None], axis=1)[:, 0]
        sampled = logits_lib.pick(logits, budget_lib.allowed(state.fresh, rules), sampling, state.count)
        again = budget_lib.lacks_wait(state, sampled, budgets, rules)
        other = logits_lib.pick(logits, budget_lib.allowed(state.fresh | again, rules), sampling, state.count)
        sampled = jnp.where(again, other, sampled)
        logprob = logits_lib.log_probability(logits, sampled)
        state, emitted, forced = budget_lib.step(state, sampled, again, budgets, rules)
        return state, (emitted, forced, logprob)

    state = budget_lib.init(rules, budgets, last, count, jnp.ones(last.shape, bool))
    return jax.lax.scan(body, state, length=STEPS)


def run(table, controls, delimiters, waits, prompt_last=0):
    """Runs a batch and returns one Sample per row and what was emitted after the rows' ends."""
    rules = budget_lib.Rules.of(delimiters, V, waits)
    batch, start = len(controls), list(delimiters.think_start)
    last = np.full(batch, (start or [prompt_last])[-1], np.int32)
    count = np.full(batch, len(start), np.int32)
    state, out = _run(table, budget_lib.Budgets.of(controls), rules, logits_lib.Sampling.of(controls), last, count)
    state, (emitted, forced, logprob) = jax.device_get((state, out))
    assert (state.phase == budget_lib.FINISHED).all()
    samples, rest = [], []
    for b in range(batch):
        n = int(state.count[b]) - len(start)
        samples.append(
            Sample(
                ids=np.array([*start, *emitted[:n, b]]),
                forced=np.array([True] * len(start) + list(forced[:n, b])),
                thinking_tokens=int(state.thinking[b]),
                answer_tokens=int(state.answer[b]),
                waits=int(state.waits[b]),
                thinking_end="cut" if state.cut[b] else "natural",
                answer_end="stop" if state.stopped[b] else "length",
                logprob=float(logprob[:n, b][~forced[:n, b]].sum()),
                logprobs=np.zeros(len(start) + n, np.float32),
            )
        )
        rest.append((emitted[n:, b], forced[n:, b]))
    return samples, rest


@pytest.mark.parametrize("seed", range(6))
def test_random_rows_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    batch = 128
    delimiters = cases.random_delimiters(rng)
    controls = [cases.random_controls(rng) for _ in range(batch)]
    waits = [cases.random_wait(rng) for _ in range(batch)]
    table = (rng.standard_normal((batch, STEPS + 4, V)) * 2).astype(np.float32)
    table[:, :, list(delimiters.end)] += rng.uniform(0, 3, (batch, 1, 1)).astype(np.float32)
    # Without think_start, the prompt's last id decides about the newline of a row that may not think.
    last = int(delimiters.ends_in_newline[0] if seed % 2 else rng.integers(30))
    samples, rest = run(table, controls, delimiters, waits, last)
    for b in range(batch):
        want = reference.run(lambda ids, b=b: table[b, len(ids) - 1], [last], controls[b], delimiters, waits[b])
        cases.check(samples[b], want, (seed, b, controls[b], waits[b], delimiters))
        after, after_forced = rest[b]
        assert (after == delimiters.pad).all() and not after_forced.any()
        check_promises(samples[b], controls[b], delimiters)


def check_promises(sample, controls, d):
    """What holds by construction, whatever the model does."""
    assert sample.thinking_tokens <= controls.max_thinking_tokens
    assert 1 <= sample.answer_tokens <= controls.max_answer_tokens
    assert len(sample.ids) == len(sample.forced) and (sample.forced[: len(d.think_start)]).all()
    sampled = sample.ids[~sample.forced]
    assert not set(sampled) & {*d.illegal, *range(d.num_ids, V)}
    thinking = slice(len(d.think_start), len(d.think_start) + sample.thinking_tokens)
    assert not set(sample.ids[thinking][~sample.forced[thinking]]) & {*d.end, *d.stop}
    answer_at = len(sample.ids) - sample.answer_tokens
    closing = d.think_end + (d.final_answer if sample.thinking_end == "cut" else ())
    assert tuple(sample.ids[answer_at - len(closing) : answer_at]) == closing
    assert not sample.forced[answer_at:].any()
    assert not set(sample.ids[answer_at:-1]) & set(d.stop)
    if sample.thinking_end == "natural":
        assert sample.thinking_tokens >= controls.min_thinking_tokens and sample.waits >= controls.num_waits


def script(*ids, batch=1):
    """Logits [batch, STEPS + 4, V] under which greedy rows want these ids at their steps after think_start, then 20s.

    The second choice is id 21, the third 22.
    """
    table = np.zeros((batch, STEPS + 4, V), np.float32)
    table[:, :, 22], table[:, :, 21], table[:, :, 20] = 1, 2, 3
    for step, i in enumerate(ids):
        table[:, len(D.think_start) + step, i] = 9
    return table


def one(table, wait=WAIT, delimiters=D, **controls):
    controls = SamplingParams(**{"max_thinking_tokens": 10, "max_answer_tokens": 2, **controls})
    (sample,), _ = run(table, [controls], delimiters, [wait])
    return sample


def test_thinking_ends_by_itself():
    sample = one(script(12, 13, 10, 0, 15, 9))
    assert list(sample.ids) == [1, 2, 12, 13, 1, 3, 15, 9]
    assert list(sample.forced) == [True, True, False, False, True, True, False, False]
    assert (sample.thinking_tokens, sample.answer_tokens) == (2, 2)
    assert (sample.thinking_end, sample.answer_end, sample.waits) == ("natural", "stop", 0)


def test_thinking_is_cut_on_a_line_of_its_own():
    sample = one(script(12, 13, 14), max_thinking_tokens=3)
    assert list(sample.ids) == [1, 2, 12, 13, 14, 4, 1, 3, 4, 5, 6, 20, 20]
    assert (sample.thinking_tokens, sample.thinking_end, sample.answer_end) == (3, "cut", "length")
    sample = one(script(12, 13, 11), max_thinking_tokens=3)
    assert list(sample.ids) == [1, 2, 12, 13, 11, 1, 3, 4, 5, 6, 20, 20], "the last id ends in a newline"
    bare, controls = dataclasses.replace(D, think_start=()), SamplingParams(max_thinking_tokens=0, max_answer_tokens=2)
    for last, newline in ((11, []), (12, [4])):
        (sample,), _ = run(script(), [controls], bare, [WAIT], last)
        assert list(sample.ids) == [*newline, 1, 3, 4, 5, 6, 20, 20], "that of the prompt decides"


def test_end_id_at_the_last_thinking_token_comes_too_late():
    """The budget is full once its last id is emitted; what the model would have sampled next is not asked."""
    sample = one(script(12, 13, 10), max_thinking_tokens=2)
    assert (sample.thinking_tokens, sample.thinking_end) == (2, "cut")


def test_no_thinking_at_all():
    sample = one(script(*[9] * 20), max_thinking_tokens=0, max_answer_tokens=1)
    assert list(sample.ids) == [1, 2, 4, 1, 3, 4, 5, 6, 20], "the first id sampled after think_start is no stop id"
    assert (sample.thinking_tokens, sample.waits, sample.thinking_end) == (0, 0, "cut")


def test_newline_depends_on_think_start_where_nothing_is_thought():
    on_new_line = dataclasses.replace(D, think_start=(1, 11))
    sample = one(script(), delimiters=on_new_line, max_thinking_tokens=0)
    assert list(sample.ids[:5]) == [1, 11, 1, 3, 4]


@pytest.mark.parametrize("end", [1, 9, 10])
def test_wait_replaces_every_kind_of_end(end):
    sample = one(script(12, end, 0, 9, 13, 10), num_waits=1)
    # Step 3 wants the stop id 9 right after the wait: it gets the best of the others.
    assert list(sample.ids[:7]) == [1, 2, 12, 7, 8, 20, 13]
    assert (sample.thinking_tokens, sample.waits, sample.thinking_end) == (5, 1, "natural")
    assert list(sample.forced[2:7]) == [False, True, True, False, False]


def test_wait_that_does_not_fit_cuts():
    # Thinking would be 2 + 2 of at most 3.
    sample = one(script(12, 13, 10), num_waits=1, max_thinking_tokens=3)
    assert list(sample.ids[:9]) == [1, 2, 12, 13, 4, 1, 3, 4, 5]
    assert (sample.thinking_tokens, sample.waits, sample.thinking_end) == (2, 0, "cut")
    # After a newline no other is forced.
    sample = one(script(12, 11, 10), num_waits=1, max_thinking_tokens=3)
    assert list(sample.ids[:8]) == [1, 2, 12, 11, 1, 3, 4, 5]


def test_wait_that_just_fits_fills_the_budget():
    sample = one(script(12, 13, 10), num_waits=1, max_thinking_tokens=4)
    assert list(sample.ids[:9]) == [1, 2, 12, 13, 7, 8, 4, 1, 3]
    assert (sample.thinking_tokens, sample.waits, sample.thinking_end) == (4, 1, "cut")
    sample = one(script(12, 13, 10), wait=(7, 11), num_waits=1, max_thinking_tokens=4)
    assert list(sample.ids[:8]) == [1, 2, 12, 13, 7, 11, 1, 3], "the wait itself may end in a newline"


def test_minimum_asks_for_waits_without_using_them_up():
    # Ends at steps 1, 4, 7, 10: thinking 1 -> 3, 4 -> 6 for the minimum of 5, then one of the row's own waits.
    wants = script(12, 10, 0, 13, 10, 0, 14, 10, 0, 15, 10)
    sample = one(wants, num_waits=1, min_thinking_tokens=5, max_thinking_tokens=30)
    assert list(sample.ids[2:14]) == [12, 7, 8, 13, 7, 8, 14, 7, 8, 15, 1, 3]
    assert (sample.thinking_tokens, sample.waits, sample.thinking_end) == (10, 3, "natural")


def test_empty_wait_masks_the_end_ids():
    table = script(12, 10, 13, 9, 14, 10)
    table[:, len(D.think_start) + 1, 9] = 8  # the second best is an end id as well
    sample = one(table, wait=(), num_waits=2)
    assert list(sample.ids[:9]) == [1, 2, 12, 20, 13, 20, 14, 1, 3]
    assert (sample.thinking_tokens, sample.waits, sample.thinking_end) == (5, 2, "natural")
    assert not sample.forced[2:7].any()
    assert sample.logprob < -6  # by the raw logits: the masked ids keep their probability


def test_stop_id_in_the_answer_counts_and_is_kept():
    sample = one(script(12, 10, 0, 9), max_answer_tokens=1)
    assert list(sample.ids) == [1, 2, 12, 1, 3, 9]
    assert (sample.answer_tokens, sample.answer_end) == (1, "stop"), "the stop id wins over the length"
    sample = one(script(12, 10, 0, 10, 1), max_answer_tokens=3)
    assert list(sample.ids[-3:]) == [10, 1, 20], "in the answer, an end id that is no stop id is an id like others"


def test_rows_that_fill_the_batch_emit_padding():
    rules = budget_lib.Rules.of(D, V, [()] * 2)
    budgets = budget_lib.Budgets.of([SamplingParams(), SamplingParams()])
    zeros = np.zeros(2, np.int32)
    state = budget_lib.init(rules, budgets, zeros, zeros, np.array([True, False]))
    sampled, no = jnp.array([20, 20]), jnp.zeros(2, bool)
    state, emitted, forced = budget_lib.step(state, sampled, no, budgets, rules)
    assert list(emitted) == [20, D.pad] and not forced.any()
    assert list(state.count) == [1, 0] and list(state.phase) == [budget_lib.THINKING, budget_lib.FINISHED]


def test_table_grows_only_for_long_sequences():
    rules = budget_lib.Rules.of(D, V, [(7,), (7,) * 64])
    assert rules.forced.shape == (2, 4, 64)
    rules = budget_lib.Rules.of(D, V, [(7,), (7,) * 65])
    assert rules.forced.shape == (2, 4, 128) and rules.forced_length[:, budget_lib.WAIT].tolist() == [1, 65]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"think_end": ()}, "think_end"),
        ({"final_answer": (4, V)}, f"delimiter id {V}"),
        ({"end": tuple(range(36))}, "none is left"),
    ],
)
def test_delimiters_that_cannot_work_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        budget_lib.Rules.of(dataclasses.replace(D, **change), V, [()])


def test_one_program_for_all_controls_and_waits():
    before = _run._cache_size()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        run(
            script(batch=3),
            [cases.random_controls(rng) for _ in range(3)],
            D,
            [cases.random_wait(rng) for _ in range(3)],
        )
    assert _run._cache_size() <= before + 1
