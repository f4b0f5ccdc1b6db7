"""Order as a function of (seed, step); padded and packed batches of the same sequences."""

import builtins
import itertools

import numpy as np
import pytest
import tokenizers

from s1jax.data import batches
from s1jax.data.batches import Batches
from s1jax.data.packing import Example
from s1jax.data.s1k import Row
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

BLOCK = 48


def examples(count: int, seed: int = 0) -> list[Example]:
    """Rows of 3..BLOCK+1 ids; the first id is the row's number, so that a batch tells which rows it holds."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = rng.integers(1000, 2000, int(rng.integers(3, BLOCK + 2))).astype(np.int32)
        ids[0] = i
        supervised = np.arange(len(ids)) >= rng.integers(1, len(ids))
        made.append(Example(ids, supervised, f"row {i}"))
    return made


def sequences(batch) -> dict[int, tuple]:
    """Takes a batch apart again: first id -> (tokens, targets, positions, weights) of each segment."""
    found = {}
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max(initial=0) + 1):
            at = batch["segment_ids"][row] == segment
            assert (np.diff(np.flatnonzero(at)) == 1).all()
            parts = tuple(batch[name][row][at].tolist() for name in ("tokens", "targets", "positions", "weights"))
            assert parts[0][0] not in found
            found[parts[0][0]] = parts
    return found


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_steps_of_the_paper():
    """1,000 rows, batch 16, 5 epochs: 63 steps an epoch, 315 in all, the last of an epoch with 8 rows."""
    data = Batches(examples(1000), batch_size=16, block_size=BLOCK, epochs=5)
    assert (data.steps_per_epoch, data.num_steps, data.num_rows) == (63, 315, 16)
    sizes = [len(data.names(step)) for step in range(315)]
    assert sizes == ([16] * 62 + [8]) * 5
    last = data.batch(62)
    assert (last["segment_ids"][8:] == 0).all() and (last["weights"][8:] == 0).all() and (last["tokens"][8:] == 0).all()
    for epoch in range(5):
        names = [name for step in range(63) for name in data.names(63 * epoch + step)]
        assert sorted(names) == sorted(f"row {i}" for i in range(1000))
    assert data.names(0) != data.names(63)


def test_the_digest_changes_with_any_id_mask_or_count():
    def digest(rows):
        return Batches(rows, batch_size=2, block_size=BLOCK).digest

    rows = examples(3)
    ids, mask = rows[1].ids.copy(), rows[1].supervised.copy()
    ids[-1] += 1
    mask[0] ^= True
    renamed = [Example(row.ids, row.supervised, "elsewhere") for row in rows]
    changed = [[rows[0], Example(*one, "row 1"), rows[2]] for one in ((ids, rows[1].supervised), (rows[1].ids, mask))]
    assert digest(rows) == digest(renamed)
    assert len({digest(kind) for kind in (rows, rows[:2], rows[::-1], *changed)}) == 5


@pytest.mark.parametrize("weighting", ["sequence", "token"])
@pytest.mark.parametrize("seed", range(4))
def test_packed_holds_what_padded_holds(weighting, seed):
    rows = examples(37, seed)
    make = {
        batching: Batches(
            rows, batch_size=8, block_size=BLOCK, batching=batching, weighting=weighting, seed=seed, epochs=3
        )
        for batching in ("padded", "packed")
    }
    padded, packed = make["padded"], make["packed"]
    assert padded.num_steps == packed.num_steps == 15
    assert padded.num_rows == 8 and packed.num_rows < 8
    fullest = 0
    for step in range(15):
        one, two = padded.batch(step), packed.batch(step)
        assert two["tokens"].shape == (packed.num_rows, BLOCK)
        assert sequences(one) == sequences(two)
        assert padded.names(step) == packed.names(step)
        held = [rows[i] for i in sequences(one)]
        assert sorted(row.name for row in held) == sorted(padded.names(step))
        for batch in (one, two):
            assert (batch["weights"] > 0).sum() == sum(row.num_targets for row in held)
            assert (batch["segment_ids"] > 0).sum() == sum(row.length for row in held)
            if weighting == "sequence":
                teaching = sum(rows[i].num_targets > 0 for i in sequences(batch))
                np.testing.assert_allclose(batch["weights"].sum(), teaching, rtol=1e-6)
        fullest = max(fullest, int((two["segment_ids"].max(axis=1) > 0).sum()))
    assert fullest == packed.num_rows  # as few rows as the worst step needs


def test_every_sequence_is_whole():
    rows = examples(21)
    data = Batches(rows, batch_size=5, block_size=BLOCK, batching="packed")
    for step in range(data.num_steps):
        for first, (tokens, targets, positions, weights) in sequences(data.batch(step)).items():
            want = rows[first]
            assert tokens == want.ids[:-1].tolist() and targets == want.ids[1:].tolist()
            assert positions == list(range(want.length))
            assert [w > 0 for w in weights] == want.supervised[1:].tolist()


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_step_is_a_function_of_seed_and_step(batching):
    def make(seed=3):
        return Batches(examples(23), batch_size=4, block_size=BLOCK, batching=batching, seed=seed, epochs=4)

    data = make()
    straight = list(data.iterate())
    assert len(straight) == data.num_steps == 24
    for step in (5, 0, 23, 11, 5):
        assert equal(make().batch(step), straight[step])
    for start in (0, 1, 7, 23, 24):
        resumed = list(make().iterate(start))
        assert len(resumed) == 24 - start
        assert all(equal(one, two) for one, two in zip(resumed, straight[start:], strict=True))
    assert make(4).names(0) != data.names(0)
    assert make(2**70).names(0) and make(-1).names(0)


def test_steps_of_so_many_tokens():
    """Four rows a step, whatever the number of sequences; an epoch holds every sequence once, none of them cut."""
    rows = examples(200)
    settings = dict(batch_tokens=4 * BLOCK + 7, block_size=BLOCK, batching="packed", seed=3)
    data = Batches(rows, **settings, epochs=3)
    assert (data.num_rows, data.filled_rows) == (4, 4)
    held, ends = [], []
    for step in range(data.num_steps):
        batch = data.batch(step)
        assert batch["tokens"].shape == (4, BLOCK)
        found = sequences(batch)
        assert sorted(data.names(step)) == sorted(f"row {i}" for i in found)
        for first, (tokens, targets, positions, weights) in found.items():
            want = rows[first]
            assert tokens == want.ids[:-1].tolist() and targets == want.ids[1:].tolist()
            assert positions == list(range(want.length)) and [w > 0 for w in weights] == want.supervised[1:].tolist()
        teaching = sum(rows[i].num_targets > 0 for i in found)
        np.testing.assert_allclose(batch["weights"].sum(), teaching, rtol=1e-6)
        held += found
        if len(held) % 200 == 0:
            ends.append(step + 1)
    assert len(ends) == 3 and data.steps_per_epoch == ends[0] and data.num_steps == ends[-1]
    for epoch in range(3):
        assert sorted(held[200 * epoch : 200 * epoch + 200]) == list(range(200))
    assert held[:200] != held[200:400]
    empty = np.mean([data.batch(step)["segment_ids"] == 0 for step in range(ends[0])])
    np.testing.assert_allclose(data.padding, empty)
    by_count = Batches(rows, batch_size=8, block_size=BLOCK, batching="packed", seed=3)
    assert data.padding < 0.15 < by_count.padding

    # The same steps in a longer run, one that is given steps, one that starts late, and on other devices.
    assert Batches(rows, **settings, epochs=4).num_steps > data.num_steps
    for other in (dict(epochs=4), dict(steps=2**31 - 1), dict(epochs=3, row_multiple=3)):
        again = Batches(rows, **settings, **other)
        for step in (data.num_steps - 1, 0, ends[0], ends[0] - 1, ends[1] + 1):
            assert again.names(step) == data.names(step)
            assert sequences(again.batch(step)) == sequences(data.batch(step))
    late = list(data.iterate(ends[0] - 1))
    assert all(equal(batch, data.batch(ends[0] - 1 + i)) for i, batch in enumerate(late))
    assert len(late) == data.num_steps - ends[0] + 1


def test_packed_runs_that_are_too_long_are_refused():
    """Before anything is laid out; padded ones, and those of so many tokens a step, need no layout."""
    rows, settings = examples(10), dict(block_size=BLOCK, batching="packed")
    with pytest.raises(UserError, match=r"a run of 1,000,000,000 steps packs 4,000,000,000 sequences.*batch_tokens"):
        Batches(rows, batch_size=4, steps=10**9, **settings)
    with pytest.raises(UserError, match=r"train.epochs=1,000,000,000 packs 10,000,000,000 sequences.*train.steps"):
        Batches(rows, batch_tokens=BLOCK, epochs=10**9, **settings)
    with pytest.raises(UserError, match=r"a run of 3,000,000,000 steps is too long; give at most 2,147,483,647"):
        Batches(rows, batch_size=4, block_size=BLOCK, epochs=10**9)
    assert Batches(rows, batch_tokens=BLOCK, steps=10**9, **settings).num_steps == 10**9
    assert Batches(rows, batch_size=4, block_size=BLOCK, steps=10**9).num_steps == 10**9


def test_iterate_without_grain(monkeypatch):
    data = Batches(examples(23), batch_size=4, block_size=BLOCK, epochs=2)
    with_grain = list(data.iterate(3))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "grain":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert all(equal(one, two) for one, two in zip(data.iterate(3), with_grain, strict=True))


@pytest.mark.parametrize("size", ["padded", "packed", "tokens"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_one_batch(size, processes):
    settings = dict(batch_size=8, block_size=BLOCK, batching=size, epochs=2, row_multiple=4)
    if size == "tokens":
        settings |= dict(batch_size=0, batch_tokens=3 * BLOCK, batching="packed")
    rows = examples(37)
    whole = Batches(rows, **settings)
    shares = [Batches(rows, **settings, share=p, shares=processes) for p in range(processes)]
    assert whole.num_rows % 4 == 0
    for step in range(whole.num_steps):
        parts = [share.batch(step) for share in shares]
        assert all(len(part["tokens"]) == whole.num_rows // processes for part in parts)
        assert equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, whole.batch(step))
        assert all(share.names(step) == whole.names(step) for share in shares)


def test_more_steps_than_epochs_and_fewer():
    rows = examples(10)
    long = Batches(rows, batch_size=4, block_size=BLOCK, steps=20, epochs=1)
    assert long.num_steps == 20 and long.steps_per_epoch == 3
    short = Batches(rows, batch_size=4, block_size=BLOCK, steps=2)
    assert short.num_steps == 2 and equal(short.batch(1), long.batch(1))
    with pytest.raises(IndexError):
        short.batch(2)
    with pytest.raises(IndexError):
        short.names(-1)


def test_a_batch_larger_than_the_rows():
    data = Batches(examples(3), batch_size=8, block_size=BLOCK, epochs=2, row_multiple=3)
    assert (data.num_steps, data.num_rows) == (2, 9)
    assert sorted(sequences(data.batch(1))) == [0, 1, 2]


def test_order_is_a_permutation_and_frozen():
    """The numbers are Philox's; were they to change with a NumPy version, a resumed run would mix two orders."""
    assert batches.order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert batches.order(0, 1, 8).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert batches.order(7, 0, 8).tolist() == [4, 1, 6, 3, 2, 7, 5, 0]
    for seed, epoch in itertools.product(range(3), range(3)):
        assert sorted(batches.order(seed, epoch, 100).tolist()) == list(range(100))
    assert batches.order(0, 0, 0).tolist() == []


def test_order_is_uniform():
    """Every example stands at every place equally often: 4,000 orders of 4, 1,000 +- 27 (one s.d.) each."""
    orders = np.array([batches.order(seed, epoch, 4) for seed in range(40) for epoch in range(100)])
    for place in range(4):
        assert (abs(np.bincount(orders[:, place], minlength=4) - 1000) < 140).all()


def test_bad_settings():
    with pytest.raises(UserError, match="no rows to train on"):
        Batches([], batch_size=4, block_size=BLOCK)
    with pytest.raises(UserError, match=r"6 rows of a batch do not divide among 4 processes"):
        Batches(examples(6), batch_size=6, block_size=BLOCK, shares=4)


def test_encode_rows():
    spec = tokenizers.Tokenizer(tokenizers.models.BPE({chr(c): c for c in range(128)}, []))
    spec.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer({"tokenizer.json": spec.to_str().encode()})
    rows = [Row("q", "t", "a", "f.jsonl:1"), Row("longer q", "t\nt", "Answer: a", "f.jsonl:2")]
    found = batches.encode_rows(tokenizer, chat.FORMATS["s1_plain"], rows)
    assert [one.name for one in found] == ["f.jsonl:1", "f.jsonl:2"]
    for one, row in zip(found, rows, strict=True):
        ids, supervised = chat.encode_row(tokenizer, chat.FORMATS["s1_plain"], row.question, row.trace, row.answer)
        np.testing.assert_array_equal(one.ids, ids)
        np.testing.assert_array_equal(one.supervised, supervised)
        assert one.num_targets == supervised.sum()
    with pytest.raises(UserError, match="delimiter '<think>' is not in the tokenizer"):
        batches.encode_rows(tokenizer, chat.FORMATS["think"], rows)
