"""Rows to arrays, against references written as plain loops."""

import numpy as np
import pytest

from s1jax.data import packing
from s1jax.data.packing import Example
from s1jax.errors import UserError


def example(rng: np.random.Generator, length: int, name: str = "row") -> Example:
    """`length` ids, supervised from a random place on but for the last id, as chat rows are."""
    start = int(rng.integers(1, length - 1)) if length > 2 else 1
    supervised = np.zeros(length, bool)
    supervised[start : max(length - 1, start + 1)] = True
    return Example(rng.integers(0, 1000, length).astype(np.int32), supervised, name)


def reference(rows, num_rows, block_size, weighting):
    """One place at a time."""
    batch = {name: np.zeros((num_rows, block_size), np.int32) for name in ("tokens", "targets")}
    batch |= {name: np.zeros((num_rows, block_size), np.int32) for name in ("segment_ids", "positions")}
    batch["weights"] = np.zeros((num_rows, block_size), np.float32)
    for r, sequences in enumerate(rows):
        at = 0
        for s, one in enumerate(sequences):
            total = sum(bool(flag) for flag in one.supervised[1:])
            for i in range(len(one.ids) - 1):
                batch["tokens"][r, at] = one.ids[i]
                batch["targets"][r, at] = one.ids[i + 1]
                batch["segment_ids"][r, at] = s + 1
                batch["positions"][r, at] = i
                if one.supervised[i + 1]:
                    batch["weights"][r, at] = 1 / total if weighting == "sequence" else 1
                at += 1
    return batch


@pytest.mark.parametrize("weighting", ["sequence", "token"])
@pytest.mark.parametrize("seed", range(5))
def test_arrays_equal_the_loop(weighting, seed):
    rng = np.random.default_rng(seed)
    sequences = [example(rng, int(n)) for n in rng.integers(2, 30, 12)]
    rows = [[sequences[i] for i in items] for items in packing.first_fit([s.length for s in sequences], 40)]
    got = packing.arrays(rows, len(rows) + 2, 40, weighting)
    want = reference(rows, len(rows) + 2, 40, weighting)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == (len(rows) + 2, 40)
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_arrays_by_hand():
    one = Example(np.array([5, 6, 7], np.int32), np.array([False, True, True]), "a")
    two = Example(np.array([8, 9, 10, 11], np.int32), np.array([True, False, False, True]), "b")
    got = packing.arrays([[one, two]], 1, 7, "sequence")
    assert got["tokens"].tolist() == [[5, 6, 8, 9, 10, 0, 0]]
    assert got["targets"].tolist() == [[6, 7, 9, 10, 11, 0, 0]]
    assert got["segment_ids"].tolist() == [[1, 1, 2, 2, 2, 0, 0]]
    assert got["positions"].tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    assert got["weights"].tolist() == [[0.5, 0.5, 0, 0, 1, 0, 0]]  # the first id of b is no target
    assert packing.arrays([[one, two]], 1, 7, "token")["weights"].tolist() == [[1, 1, 0, 0, 1, 0, 0]]
    assert one.length == 2 and one.num_targets == 2 and two.num_targets == 1


def test_an_unsupervised_sequence_weighs_nothing():
    one = Example(np.array([5, 6], np.int32), np.array([False, False]), "a")
    for weighting in ("sequence", "token"):
        assert not packing.arrays([[one]], 1, 4, weighting)["weights"].any()


@pytest.mark.parametrize("seed", range(20))
def test_first_fit(seed):
    rng = np.random.default_rng(seed)
    block = int(rng.integers(5, 60))
    lengths = rng.integers(1, block + 1, int(rng.integers(0, 40))).tolist()
    bins = packing.first_fit(lengths, block)
    assert sorted(i for items in bins for i in items) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in items) <= block for items in bins)
    assert all(items == sorted(items) for items in bins)
    lower = -(-sum(lengths) // block)
    assert lower <= len(bins)
    assert packing.first_fit(lengths, block) == bins
    # Two bins that are half empty would have become one, so at most one is.
    assert sum(2 * sum(lengths[i] for i in items) <= block for items in bins) <= 1


def test_first_fit_by_hand():
    assert packing.first_fit([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 2, 3, 5]]
    assert packing.first_fit([], 10) == []
    with pytest.raises(ValueError, match="does not fit"):
        packing.first_fit([11], 10)


def _fill_reference(lengths, block, bins, waiting):
    """`fill` by the rule as its text has it: one item at a time over a list of those that are left."""
    left, steps = list(range(len(lengths))), []
    while left:
        step, passed = [[] for _ in range(bins)], 0
        for item in list(left):
            free = [b for b in range(bins) if sum(lengths[i] for i in step[b]) + lengths[item] <= block]
            if free:
                step[free[0]].append(item)
                left.remove(item)
            else:
                passed += 1
            if passed == waiting:
                break
        steps.append([sorted(items) for items in step if items])
    return steps


@pytest.mark.parametrize("seed", range(20))
def test_fill(seed):
    rng = np.random.default_rng(seed)
    block, bins = int(rng.integers(5, 60)), int(rng.integers(1, 6))
    lengths = rng.integers(1, block + 1, int(rng.integers(0, 300))).tolist()
    steps = packing.fill(lengths, block, bins)
    assert steps == _fill_reference(lengths, block, bins, packing._WAITING)
    assert sorted(i for step in steps for items in step for i in items) == list(range(len(lengths)))
    assert all(len(step) <= bins and sum(lengths[i] for i in items) <= block for step in steps for items in step)


def test_fill_by_hand():
    assert packing.fill([4, 8, 3, 4, 2, 1], 10, 1) == [[[0, 2, 4, 5]], [[1]], [[3]]]
    assert packing.fill([4, 8, 3, 4, 2, 1], 10, 2) == [[[0, 2, 4, 5], [1]], [[3]]]
    assert packing.fill([], 10, 2) == []
    assert len(packing.fill([10] * 100, 10, 1)) == 100
    with pytest.raises(ValueError, match="does not fit"):
        packing.fill([11], 10, 1)


def _rows() -> list[Example]:
    rng = np.random.default_rng(0)
    return [example(rng, n, f"f.jsonl:{i + 1}") for i, n in enumerate([5, 12, 6, 30, 11])]


def test_too_long_error_names_the_row_and_the_remedy():
    with pytest.raises(UserError, match=r"f\.jsonl:2 has 12 ids.*block_size \+ 1 = 11 .*2 of 5.*at least 29"):
        packing.fit([*_rows()[:4], _rows()[0]], 10, "error")
    fitted = packing.fit(_rows(), 29, "error")  # 30 ids are 29 places
    assert len(fitted.examples) == 5 and not fitted.dropped and not fitted.truncated


def test_too_long_drop_counts():
    fitted = packing.fit(_rows(), 10, "drop")
    assert [e.name for e in fitted.examples] == ["f.jsonl:1", "f.jsonl:3", "f.jsonl:5"]
    assert fitted.dropped == ["f.jsonl:2", "f.jsonl:4"] and fitted.truncated == []


def test_too_long_truncate_keeps_what_still_teaches():
    rows = _rows()
    late = np.zeros(30, bool)
    late[20:] = True
    rows[3] = Example(rows[3].ids, late, rows[3].name)  # nothing supervised before the cut
    early = np.ones(12, bool)
    rows[1] = Example(rows[1].ids, early, rows[1].name)
    fitted = packing.fit(rows, 10, "truncate")
    assert [e.name for e in fitted.examples] == ["f.jsonl:1", "f.jsonl:2", "f.jsonl:3", "f.jsonl:5"]
    assert fitted.truncated == ["f.jsonl:2"] and fitted.dropped == ["f.jsonl:4"]
    cut = fitted.examples[1]
    np.testing.assert_array_equal(cut.ids, rows[1].ids[:11])
    assert cut.length == 10 and len(cut.supervised) == 11


def test_no_row_left():
    with pytest.raises(UserError, match=r"no row is left of 5: 5 are longer"):
        packing.fit(_rows(), 2, "drop")
    with pytest.raises(UserError, match=r"no row is left of 0"):
        packing.fit([], 2, "error")
