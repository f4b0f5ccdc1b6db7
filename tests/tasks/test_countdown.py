"""The embedded task: the checker by brute force, splits, rows, corpus, symbols and configurations."""

import importlib
import itertools
import random
import re
import zlib

import numpy as np
import pytest

from s1jax.config import presets
from s1jax.data import sources
from s1jax.errors import UserError
from s1jax.tasks.countdown import corpus, problems
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

ASSET = "s1jax/assets/countdown_tokenizer"
STATEMENT = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(ASSET)


def _holds(statement) -> bool:
    x, operation, y, value = statement
    return eval(x + operation + y) == int(value)  # four groups of STATEMENT: digits and one operation


# Checker.


def test_evaluate_equals_python_on_random_expressions():
    rng = random.Random(0)

    def expression(depth):
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randrange(100))
        left, right = expression(depth - 1), expression(depth - 1)
        text = f"{left}{rng.choice(['+', '-', '*', ' * ', ' - '])}{right}"
        return f"({text})" if rng.random() < 0.5 else text

    for _ in range(500):
        text = expression(4)
        assert problems.evaluate(text) == (eval(text), [int(n) for n in re.findall(r"\d+", text)]), text


@pytest.mark.parametrize(
    "text",
    ["", " ", "7*1*3=21", "7**1*3", "-7+28", "+7", "(7*1)*", "(7*1", "7*1)*3", "()", "7 1 3", "7/1", "７*1", "7²", "x",
     "7.0", "(" * 4000 + "7" + ")" * 4000, "1" * 4000, "7*1*3 yes", "\x00"],
)  # fmt: skip
def test_evaluate_refuses(text):
    assert problems.evaluate(text) is None


def test_solves_by_brute_force():
    """Every expression of up to three of the numbers, some repeated, both groupings."""
    numbers, target = (7, 3, 2), 17
    right = set()
    for x, y, z in itertools.product((7, 3, 2), repeat=3):
        for p, q in itertools.product("+-*", repeat=2):
            for text in (f"({x}{p}{y}){q}{z}", f"{x}{p}({y}{q}{z})", f"{x}{p}{y}{q}{z}"):
                expected = eval(text) == target and sorted((x, y, z)) == sorted(numbers)
                assert problems.solves(text, numbers, target) == expected, text
                right |= {text} if expected else set()
    assert len(right) >= 4
    assert not problems.solves("17", numbers, target)
    assert not problems.solves("7*2+3+0", numbers, target)
    assert not problems.solves("14+3", numbers, target)


def test_grade_takes_what_stands_behind_the_last_final_answer():
    row = {"numbers": [3, 7, 1], "target": 21}
    assert problems.grade("Final Answer: (7*1)*3", row)
    assert problems.grade("\nFinal Answer: (7*1)*3<|im_end|>\n", row)
    assert problems.grade("Final Answer: 7+3\nFinal Answer: ( 7 * 1 ) * 3\nmore", row)
    assert problems.grade("Answer: (7*1)*3", row)
    assert not problems.grade("(7*1)*3", row)
    assert not problems.grade("Final Answer: (7*1)*3=21", row)
    assert not problems.grade("Final Answer: (7*1)*3\nFinal Answer:", row)
    assert not problems.grade("", row)


# Problems.


def test_branches_and_solutions_equal_an_independent_search():
    for triple in problems.triples("all"):
        problem = problems.Problem(triple[::-1], 0)
        moves, values = 0, set()
        for pair in itertools.combinations(triple, 2):
            (third,) = set(triple) - set(pair)
            high, low = max(pair), min(pair)
            for first in (high + low, high - low, high * low):
                if first <= 99:
                    moves += 1
                    values |= {v for v in (first + third, abs(first - third), first * third) if v <= 99}
        assert len(problem.branches) == moves
        assert set(problems.targets(triple)) == values
        for branch in problem.branches:
            assert eval(branch.text) == branch.value and 0 <= branch.value <= 99
            for leaf in branch.leaves:
                assert eval(leaf.text) == eval(leaf.expression) == leaf.value and 0 <= leaf.value <= 99
                assert problems.solves(leaf.expression, triple, leaf.value)


def test_splits_are_disjoint_fixed_and_large_enough():
    triples = {split: set(problems.triples(split)) for split in problems.SPLITS}
    assert len(set.union(*triples.values())) == sum(map(len, triples.values())) == 455
    assert {split: len(found) for split, found in triples.items()} == {"train": 363, "dev": 43, "test": 49}
    assert all(problems.split_of(order) == "dev" for order in itertools.permutations(min(triples["dev"])))
    for split in ("dev", "test"):
        assert len(problems.problems(split)) >= 400
    with pytest.raises(UserError, match="validation"):
        problems.problems("validation")


def test_problems_are_in_a_fixed_order_by_seed():
    first, second = problems.problems("test", 0), problems.problems("test", 1)
    assert first == problems.problems("test", 0) != second
    key = lambda p: (*sorted(p.numbers), p.target)  # noqa: E731
    assert sorted(map(key, first)) == sorted(map(key, second)) and len(set(map(key, first))) == len(first)
    # The set that documentation reports on must be the same on every machine and version.
    assert [p.question for p in first[:3]] == ["Make 53 from 7 10 9", "Make 19 from 11 1 7", "Make 68 from 14 6 9"]
    assert zlib.crc32("\n".join(p.question for p in first).encode()) == 2700293145
    assert all(p.solving for p in first)
    assert [p.hard for p in first] == [len(p.solving) == 1 for p in first]


def test_prompt_rows():
    rows = problems.prompt_rows("test", 10)
    assert len(rows) == 10 and rows == problems.prompt_rows("test")[:10]
    row = rows[0]
    assert row["question"] == f"Make {row['target']} from {' '.join(map(str, row['numbers']))}"
    assert all(row["hard"] for row in problems.prompt_rows("test", hard=True))
    with pytest.raises(UserError, match="541 such problems; 5000"):
        problems.prompt_rows("test", 5000)


# Rows for fine-tuning.


def test_sft_examples():
    examples = problems.sft_examples(1000, seed=0)
    assert len({e.question for e in examples}) == len(examples) == 1000
    assert examples == problems.sft_examples(1000, seed=0) != problems.sft_examples(1000, seed=1)
    assert 0.35 < np.mean([e.solved for e in examples]) < 0.5
    seen = set()
    for example in examples:
        target, *numbers = map(int, re.findall(r"\d+", example.question))
        assert problems.split_of(tuple(numbers)) == "train"
        assert problems.grade(example.answer, {"numbers": numbers, "target": target}) == example.solved
        lines = example.trace.split("\n")
        assert all(line.startswith("Wait ") for line in lines[1:])
        kinds = [line.removeprefix("Wait ").split()[0] for line in lines]
        tries, checks = kinds.count("try"), kinds.count("check")
        assert kinds == ["try"] * tries + ["check"] * checks and tries <= 3 and checks <= 3 * example.solved
        seen.add((tries, checks))
        assert all(map(_holds, STATEMENT.findall(example.trace)))
        assert ("yes so" in example.trace) == example.solved
    assert len(seen) >= 10  # every number of tries, most numbers of checks
    with pytest.raises(UserError, match="training problems"):
        problems.sft_examples(5000)


def test_a_search_goes_round_and_gives_up_with_the_closest_leaf():
    problem = problems.Problem((3, 7, 1), 21)
    trace, answer = problems.search_text(problem, 7, 9, 1)
    assert trace == (
        "try 7-1=6: 6+3=9 no 6-3=3 no 6*3=18 no\n"
        "Wait try 7*1=7: 7+3=10 no 7-3=4 no 7*3=21 yes so (7*1)*3\n"
        "Wait check 7*1=7: 7*3=21 yes so (7*1)*3"
    )
    assert answer == "(7*1)*3"
    assert problems.search_text(problem, 7, 1, 1)[1] == "(7-1)*3"
    unsolvable, _ = problems.search_text(problems.Problem((3, 7, 1), 50), 8, 3, 0)
    assert re.findall(r"try (\S+):", unsolvable) == ["7*1=7", "3+7=10", "7-3=4"]


# The corpus.


@pytest.fixture(scope="module")
def searches(tokenizer):
    """Searches of some batches as (text, text of the ids that carry loss)."""
    found = []
    for step in range(12):
        batch = corpus.corpus_batch(step, rows=8, block_size=384)
        for row in range(8):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == segment
                ids = [*batch["tokens"][row][here][:1], *batch["targets"][row][here]]
                counts = [False, *(batch["weights"][row][here] > 0)]
                found.append((tokenizer.decode(ids), ids, counts))
    return found


def test_batches_are_pure_and_full():
    batch = corpus.corpus_batch(5, rows=3, block_size=256, seed=1)
    again = corpus.corpus_batch(5, rows=3, block_size=256, seed=1)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    for other in ((6, 1), (5, 2)):
        changed = corpus.corpus_batch(other[0], rows=3, block_size=256, seed=other[1])
        assert not np.array_equal(batch["tokens"], changed["tokens"])
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        name: ((3, 256), "float32" if name == "weights" else "int32")
        for name in ("tokens", "targets", "segment_ids", "positions", "weights")
    }
    assert (batch["segment_ids"] > 0).mean() > 0.99
    same = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    assert np.array_equal(batch["tokens"][:, 1:][same], batch["targets"][:, :-1][same])
    assert np.array_equal(batch["positions"][:, 1:], np.where(same, batch["positions"][:, :-1] + 1, 0))


def test_corpus_has_no_held_out_triple_and_no_chat(searches):
    questions = [text.split("\n")[0] for text, *_ in searches if text.startswith("Make")]
    assert len(questions) > 100
    for question in questions:
        _, *numbers = map(int, re.findall(r"\d+", question))
        assert problems.split_of(tuple(numbers)) == "train"
    text = "".join(text for text, *_ in searches)
    for symbol in ("<|im_start|>", "<|im_end|>", "user", "think", "assistant"):
        assert symbol not in text


def test_corpus_says_what_is_true_and_slips_carry_no_loss(searches, tokenizer):
    slips = checks = chains = 0
    for text, ids, counts in searches:
        if not text.startswith("Make"):
            continue
        target = int(text.split()[1])
        lines = text.split("\n")[1:]
        wrong = [s for s in STATEMENT.findall(text) if not _holds(s)]
        slips += len(wrong)
        assert all(value == str(target) for *_, value in wrong)
        # Silent: the question, the value of each slip, and in long chains of checks the "Wait" before each.
        start = len(tokenizer.encode(text.split("\n")[0]))
        silent = [i for i in range(start, len(ids)) if not counts[i]]
        assert not any(counts[:start])
        words = [tokenizer.decode([ids[i]]) for i in silent if tokenizer.decode([ids[i]]) != "Wait"]
        assert words == [str(target)] * len(wrong)
        chains += len(silent) - len(words) >= 3
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if any(not _holds(s) for s in STATEMENT.findall(line)):
                assert after.startswith("Wait check") and after.endswith(" no")
        for line in lines:
            checks += "check" in line
            if "yes so" in line and all(map(_holds, STATEMENT.findall(line))):
                assert eval(line.split("yes so ")[1]) == target
            if line.startswith("Final"):
                assert eval(line.removeprefix("Final Answer: ").removesuffix("<|endoftext|>")) == target
    assert slips > 5 and checks > 50 and chains > 3
    assert max(text.count("check") for text, *_ in searches) >= 12


def test_facts_hold(searches):
    facts = [text for text, *_ in searches if not text.startswith("Make")]
    statements = [s for text in facts for s in STATEMENT.findall(text.rpartition("\n")[0])]
    assert len(statements) > 100 and all(map(_holds, statements))


# Symbols and configurations.


def test_packaged_tokenizer_has_the_table_of_symbols(tokenizer):
    assert len(problems.SYMBOLS) == len(set(problems.SYMBOLS)) == tokenizer.num_ids == 126
    assert [tokenizer.id_of(symbol) for symbol in problems.SYMBOLS] == list(range(126))
    assert tokenizer.encode("\nFinal Answer:") == [tokenizer.id_of(s) for s in ("\n", "Final", "Answer", ":")]
    assert tokenizer.encode("Wait") == problems.encode("Wait") and len(tokenizer.encode("Wait")) == 1
    for text in ("Make 100 from 3 7 1", "hello"):
        with pytest.raises(UserError):
            tokenizer.encode(text)
        with pytest.raises(UserError, match="no symbol"):
            problems.encode(text)


def test_text_comes_back_as_it_was(tokenizer):
    fmt = chat.FORMATS["s1_plain"]
    for example in problems.sft_examples(100):
        ids = chat.encode_row(tokenizer, fmt, example.question, example.trace, example.answer)[0].tolist()
        text = tokenizer.decode(ids)
        assert text == (
            f"<|im_start|>user\n{example.question}<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\n{example.trace}\n"
            f"<|im_start|>answer\n{example.answer}<|im_end|>\n"
        )
        assert tokenizer.encode(text) == problems.encode(text) == ids
    rng = random.Random(0)
    for _ in range(50):  # symbols in any order come back as ids, if not as the same spacing
        ids = [rng.randrange(126) for _ in range(40)]
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_base_format_writes_what_the_corpus_holds(searches, tokenizer):
    fmt = chat.FORMATS["countdown_base"]
    for text, ids, _ in searches:
        if "Final" not in text:
            continue
        question, _, rest = text.partition("\n")
        trace, _, answer = rest.partition("\nFinal ")
        answer = answer.removesuffix("<|endoftext|>")
        assert chat.encode_row(tokenizer, fmt, question, trace, answer)[0].tolist() == list(ids)
        assert chat.encode_prompt(tokenizer, fmt, question) == tokenizer.encode(question)
    delimiters = chat.delimiters(tokenizer, fmt)
    symbols = [problems.SYMBOLS[i] for i in (*delimiters.newline, *delimiters.think_end, *delimiters.final_answer)]
    assert symbols == ["\n", "Final", "Answer", ":"]


def _experiment(name, **data):
    settings = importlib.import_module(f"configs.{name}").get_config().to_dict()
    settings["data"] |= data
    return presets.experiment(settings)


def test_configurations(tokenizer):
    base, tune = _experiment("countdown_base"), _experiment("countdown_s1")
    assert base.model is not None and base.model.num_params == 804_736 and base.model.vocab_size == tokenizer.num_ids
    for seed in range(3):
        tune = _experiment("countdown_s1", seed=seed)
        made = sources.make(tune, tokenizer, chat.FORMATS[tune.chat], 1)
        batches, notes = made.batches, made.notes
        assert batches.num_steps == 315 and batches.num_rows == 9
        (note,) = notes
        assert "train.batch_size); " in note and "% of its places are padding. For less, set train.batch_size=0" in note
    optimizer = tune.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.b1, optimizer.b2) == ("adamw", 4e-4, 0.9, 0.95)
    assert (optimizer.weight_decay, optimizer.warmup_fraction, optimizer.schedule) == (1e-4, 0.05, "cosine")
    assert (tune.data.weighting, tune.train.batch_size, tune.train.epochs) == ("sequence", 16, 5)
