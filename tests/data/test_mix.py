"""Mixes of sources: exact shares of an epoch, every example equally often, a function of (seed, epoch)."""

import collections
import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data import batches, mix, sources
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests import byte_tokenizer

MODEL = ModelConfig.dense(vocab_size=400, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)


@pytest.mark.parametrize(
    ("source", "names", "weights"),
    [
        ("a.jsonl", ["a.jsonl"], []),
        ("a.jsonl:0.7", ["a.jsonl:0.7"], []),  # one source: the name of a file
        ("a.jsonl,b", ["a.jsonl", "b"], []),
        ("a.jsonl:0.7, b:0.3", ["a.jsonl", "b"], ["7/10", "3/10"]),
        ("a:2,s1k:1,c d:1e0", ["a", "s1k", "c d"], ["1/2", "1/4", "1/4"]),
        ("c:x:1,b:1", ["c:x", "b"], ["1/2", "1/2"]),
    ],
)
def test_lists_of_sources(source, names, weights):
    assert mix.parse(source) == mix.Mix(tuple(names), tuple(map(Fraction, weights)))


def test_a_file_of_that_name_is_one_source(tmp_path):
    file, other = tmp_path / "a:0.5,b:0.5", tmp_path / "c:3"
    for path in (file, other):
        path.touch()
    assert mix.parse(str(file)) == mix.Mix((str(file),))
    assert mix.parse(f"{other},d") == mix.Mix((str(other), "d"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a,", "data.source a, has an empty part; write SOURCE:WEIGHT,SOURCE:WEIGHT"),
        ("a:1,a:2", "names a more than once"),
        ("a:1,b", r"gives b no weight; give each source one \(b:1\), or none"),
        ("a:1,b:0", "gives b the weight 0; give a positive number"),
        ("a:1,b:-2", "gives b the weight -2; give a positive number"),
        ("a:1,b:1e", "gives b the weight 1e; give a positive number"),
    ],
)
def test_lists_that_say_nothing_sure(source, message):
    with pytest.raises(UserError, match=message):
        mix.parse(source)


def test_a_file_by_another_name_is_the_same_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    for other in (tmp_path / "link.jsonl", f"{tmp_path}/./a.jsonl"):
        with pytest.raises(UserError, match="more than once; give it one weight"):
            mix.parse(f"{tmp_path / 'a.jsonl'}:0.5,{other}:0.5")


def test_an_epoch_uses_up_a_source_in_the_shares_of_the_weights():
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(2, 5))
        sizes = rng.integers(1, 400, count).tolist()
        raw = [Fraction(int(n)) for n in rng.integers(1, 30, count)]
        weights = [weight / sum(raw) for weight in raw]
        taken = mix.takes(sizes, weights)
        assert all(1 <= some <= size for some, size in zip(taken, sizes, strict=True))
        assert any(some == size for some, size in zip(taken, sizes, strict=True))
        whole = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        assert all(abs(some - max(1, whole * w)) <= 0.5 for some, w in zip(taken, weights, strict=True))
    assert mix.takes([7, 100], [Fraction("0.7"), Fraction("0.3")]) == [7, 3]


def test_a_number_is_divided_by_the_largest_remainders():
    assert mix.apportion(10, [5, 3, 2], [9, 9, 9]) == [5, 3, 2]
    assert mix.apportion(7, [1, 1, 1], [9, 9, 9]) == [3, 2, 2]
    assert mix.apportion(10, [8, 1, 1], [3, 9, 2]) == [3, 5, 2]
    rng = np.random.default_rng(1)
    for _ in range(200):
        shares = rng.integers(1, 50, 4).tolist()
        count = int(rng.integers(0, 300))
        found = mix.apportion(count, shares, [300] * 4)
        assert sum(found) == count
        exact = [count * share / sum(shares) for share in shares]
        assert all(abs(some - value) < 1 for some, value in zip(found, exact, strict=True))


def test_every_example_is_used_equally_often():
    sizes, taken, epochs = (5, 40, 17), (5, 12, 9), 50
    orders = [mix.order(3, epoch, sizes, taken) for epoch in range(epochs)]
    bounds = np.cumsum((0, *sizes))
    for found in orders:
        per_source = [int(((found >= low) & (found < high)).sum()) for low, high in itertools.pairwise(bounds)]
        assert per_source == list(taken)
    used = collections.Counter(np.concatenate(orders).tolist())
    for low, high, some, size in zip(bounds[:-1], bounds[1:], taken, sizes, strict=True):
        counts = {used[i] for i in range(low, high)}
        assert counts <= {epochs * some // size, -(-epochs * some // size)}
    assert len({tuple(found) for found in orders}) == epochs
    np.testing.assert_array_equal(mix.order(3, 17, sizes, taken), orders[17])
    assert not np.array_equal(mix.order(4, 17, sizes, taken), orders[17])
    # The sources are spread over the epoch: the front half of it has every source in about its share.
    front = np.mean([(found[:13] < 5).mean() for found in orders])
    assert abs(front - 5 / 26) < 0.05
    np.testing.assert_array_equal(mix.ranks(9, 4, 0, 100), batches.order(9, 4, 100))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer.save(folder)
    return Tokenizer.load(folder)


def write(file, count, turns=1):
    def row(i):
        asked = [{"role": "user", "content": f"{file.stem} {i}"}, {"role": "assistant", "content": "<think>t</think>a"}]
        return json.dumps({"messages": asked * turns})

    file.write_text("\n".join(row(i) for i in range(count)))
    return str(file)


def make(tokenizer, source, batch_size=4, batch_tokens=0, **data):
    data = DataConfig(source=source, **{"block_size": 200, **data})
    train = TrainConfig(batch_size=batch_size, batch_tokens=batch_tokens, epochs=3)
    return sources.make(Experiment(model=MODEL, data=data, train=train), tokenizer, chat.FORMATS["s1_plain"], 1)


def names(made, steps):
    return [name for step in steps for name in made.names(step)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_run_with_a_mix(tokenizer, tmp_path, packed):
    a, b = write(tmp_path / "a.jsonl", 9), write(tmp_path / "b.jsonl", 20)
    how = {"batch_size": 0, "batch_tokens": 600, "batching": "packed"} if packed else {}
    made = make(tokenizer, f"{a}:0.75,{b}:0.25", **how)
    assert made.notes[2] == f"an epoch has 12 examples: 9 of the 9 of {a} (75.0 %), 3 of the 20 of {b} (25.0 %)."
    run = made.batches
    per_epoch = run.steps_per_epoch
    epochs = [names(run, range(e * per_epoch, (e + 1) * per_epoch)) for e in range(3)] if not packed else []
    for found in epochs:
        assert len(set(found)) == 12 and sum(name.startswith(a) for name in found) == 9
    everything = collections.Counter(names(run, range(run.num_steps)))
    assert sum(everything.values()) == 36
    assert {everything[f"{a}:{i}"] for i in range(1, 10)} == {3}
    assert sum(name.startswith(b) for name in everything) == 9  # another three in every epoch
    again = make(tokenizer, f"{a}:0.75,{b}:0.25", **how).batches
    assert again.digest == run.digest
    last = range(run.num_steps - 2, run.num_steps)
    for batch, same in zip(run.iterate(last[0]), map(again.batch, last), strict=True):
        np.testing.assert_array_equal(batch["tokens"], same["tokens"])
    assert len({run.digest, *(make(tokenizer, s).batches.digest for s in (f"{a}:1,{b}:1", f"{a},{b}"))}) == 3
    places = run.num_rows * run.block_size * per_epoch
    if not packed:
        filled = sum((run.batch(step)["segment_ids"] > 0).sum() for step in range(per_epoch))
        assert run.padding == pytest.approx(1 - filled / places) and run.sequences_per_step == 12 / per_epoch


def test_sources_without_weights_are_joined(tokenizer, tmp_path):
    a, b = write(tmp_path / "a.jsonl", 9), write(tmp_path / "b.jsonl", 20)
    made = make(tokenizer, f"{a},{b}")
    assert made.notes[2] == f"an epoch has 29 examples: 9 of the 9 of {a} (31.0 %), 20 of the 20 of {b} (69.0 %)."
    found = names(made.batches, range(made.batches.steps_per_epoch))
    assert len(set(found)) == len(found) == 29
    one = tmp_path / "one.jsonl"
    one.write_text((tmp_path / "a.jsonl").read_text() + "\n" + (tmp_path / "b.jsonl").read_text())
    assert make(tokenizer, str(one)).batches.digest == made.batches.digest


def test_validation_has_the_shares_of_the_mix(tokenizer, tmp_path):
    a, b = write(tmp_path / "a.jsonl", 20), write(tmp_path / "b.jsonl", 100, turns=2)
    source = f"{a}:0.4,{b}:0.6"
    made = make(tokenizer, source, validation="10", loss_on="all")
    assert f"10 of 120 rows are held out for validation (data.validation 10): 4 of {a}, 6 of {b}." in made.notes
    held = names(made.validation, range(made.validation.steps_per_epoch))
    assert sum(name.startswith(a) for name in held) == 4 and sum(name.startswith(b) for name in held) == 12
    trained = names(made.batches, range(made.batches.num_steps))
    assert not {name.split(" ")[0] for name in held} & {name.split(" ")[0] for name in trained}
    weights = sum(batch["weights"].sum() for batch in made.validation.iterate())
    np.testing.assert_allclose(weights, 16, rtol=1e-5)
    share = make(tokenizer, source, validation="0.1")  # of the 50 rows of an epoch
    assert f"5 of 120 rows are held out for validation (data.validation 0.1): 2 of {a}, 3 of {b}." in share.notes
    for wanted in ("119", "400"):
        with pytest.raises(UserError, match=rf"data\.validation is {wanted}, but data\.source .* has 120 rows"):
            make(tokenizer, source, validation=wanted)


def test_a_split_of_each_folder(tokenizer, tmp_path):
    for name, count in (("one", 2), ("two", 3)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", 5)
        write(tmp_path / name / "validation.jsonl", count)
    made = make(tokenizer, f"{tmp_path}/one:1,{tmp_path}/two:1", validation="validation")
    assert len(names(made.validation, range(made.validation.steps_per_epoch))) == 5


def test_mixes_that_cannot_be(tokenizer, tmp_path):
    a, b = write(tmp_path / "a.jsonl", 3), write(tmp_path / "b.jsonl", 3, turns=9)
    with pytest.raises(UserError, match="mixes countdown_corpus, which has no rows; leave it out"):
        make(tokenizer, f"{a}:1,countdown_corpus:1")
    with pytest.raises(UserError, match=r"no row is left of .*b\.jsonl; give more rows, or a larger block"):
        make(tokenizer, f"{a}:1,{b}:1", too_long="drop", block_size=150)
    with pytest.raises(UserError, match=r"data\.source nowhere\.jsonl does not exist"):
        make(tokenizer, f"{a}:1,nowhere.jsonl:1")
