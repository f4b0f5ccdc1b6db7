"""Near-duplicates: what is nearly the same, what differs in numbers, and that neither order nor engine matters."""

import itertools
import json
import pathlib
import random

import numpy as np
import pytest

from s1jax.curation.minhash import MinHash
from s1jax.curation.near_duplicates import NearDuplicates
from s1jax.curation.row import Row
from s1jax.data.identity import question_id
from s1jax.errors import UserError

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared/data"
PROBLEM = (
    "A baker has 12 trays with 24 rolls each and sells half of them before noon. In the afternoon she sells 5 rolls"
    " every 10 minutes for 3 hours and gives what is left to the school at the end of the street. How many rolls does"
    " the school get?"
)


def row(question: str, answer: int = 0) -> Row:
    return Row(question_id(question) + (f"#{answer}" if answer else ""), question, "", "", "pool.jsonl:1")


def reasons(rule: NearDuplicates, *questions: str) -> list[str]:
    """The reasons of what is dropped."""
    kept, dropped = rule([row(text) for text in questions])
    assert len(kept) + len(dropped) == len(questions)
    return sorted(drop.reason for drop in dropped.values())


NEAR = ["nearly the same as another question"]
TEMPLATE = ["the same as another question but for numbers"]


@pytest.mark.parametrize(
    ("other", "keep", "one"),
    [
        (PROBLEM.upper().replace(".", " ;"), NEAR, NEAR),
        (PROBLEM.replace("before noon", "in the morning"), NEAR, NEAR),
        (f"12. {PROBLEM}", NEAR, NEAR),
        (f"Problem 3: {PROBLEM}", NEAR, NEAR),
        (PROBLEM.replace("24", "$24$").replace("12 trays", r"12~\text{trays}"), NEAR, NEAR),
        (PROBLEM.replace("24", "36"), [], TEMPLATE),
        (PROBLEM.replace("24", "2,400.5"), [], TEMPLATE),
        (PROBLEM.replace("12 trays with 24", "24 trays with 12"), [], TEMPLATE),
        (PROBLEM.replace("A baker", "A cook").replace("24", "36"), [], TEMPLATE),
        (PROBLEM[: len(PROBLEM) // 2], [], []),
    ],
)
def test_pairs(other, keep, one):
    assert reasons(NearDuplicates(), PROBLEM, other) == keep
    assert reasons(NearDuplicates(template="one"), PROBLEM, other) == one


def test_short_questions_differ_in_operators():
    assert reasons(NearDuplicates(), "What is 3 + 5?", "what is 3+5") == NEAR
    assert reasons(NearDuplicates(), "What is 3 + 5?", "What is 3 - 5?", "What is 3 + 6?", "Is 3 + 5 odd?") == []
    assert reasons(NearDuplicates(), "?", "!") == []


def test_the_smallest_id_of_a_connected_set_is_kept():
    """Each is near the next, the ends are not near each other."""
    words = [f"{a}{b}" for a in "bcdfghjkl" for b in ("a", "e", "i", "o")]
    chain = [" ".join(words[i : i + 26]) for i in range(8)]
    rows = [row(text) for text in chain]
    rule = NearDuplicates(similarity=0.85)
    assert rule([rows[0], rows[7]])[1] == {}
    kept, dropped = rule(rows)
    assert [one.id for one in kept] == [min(one.id for one in rows)]
    assert {drop.evidence for drop in dropped.values()} == {kept[0].id}


def test_all_answers_of_a_question_stay_together():
    other = PROBLEM.replace("before noon", "in the morning")
    rows = [row(PROBLEM, 1), row(PROBLEM, 2), row(other, 1), row(other, 2)]
    kept, dropped = NearDuplicates()(rows)
    smaller = min(rows[0].id, rows[2].id).partition("#")[0]
    assert {one.id for one in kept} == {f"{smaller}#1", f"{smaller}#2"}
    assert len(dropped) == 2


def questions() -> list[str]:
    """Groups of questions that are near one another, variants of templates, and unrelated ones."""
    draw = random.Random(5)
    vocabulary = ["".join(draw.choices("bdfgklmnprst", k=2)) + draw.choice("aeiou") + "x" for _ in range(300)]
    found = []
    for _ in range(40):
        base = draw.choices(vocabulary, k=30)
        for _ in range(draw.randint(1, 6)):
            words = list(base)
            for _ in range(draw.randint(0, 2)):
                words[draw.randrange(30)] = draw.choice(vocabulary)
            words[draw.randrange(30)] += f" {draw.choice((3, 3, 3, 4))}"
            found.append(" ".join(words))
    return sorted(set(found))


@pytest.mark.parametrize("template", ["keep", "one"])
def test_groups_find_what_all_pairs_would_whatever_order_and_engine(template):
    rule = NearDuplicates(template=template, similarity=0.7)
    rows = [row(text) for text in questions()]
    texts = [rule.text(one) for one in rows]
    edges = []
    for one, other in itertools.combinations(texts, 2):
        mine, theirs = (set(zip(w, w[1:], w[2:], strict=False)) for w in (one.words.split(), other.words.split()))
        similarity = len(mine & theirs) / len(mine | theirs)
        if similarity >= 0.7 and (template == "one" or one.facts == other.facts):
            edges.append((one.id, other.id))
    expected = {text.id for text in texts} - components(edges, {text.id for text in texts})
    _, dropped = rule(rows)
    assert set(dropped) == expected
    assert 10 < len(dropped) < len(rows) - 20
    draw = random.Random(1)
    for shards in (1, 2, 8):
        draw.shuffle(rows)
        assert rule(rows)[1] == dropped
        groups: dict[bytes, list] = {}
        for shard in range(shards):  # as an engine does: keys in shards, then one group after the other
            for one in rows[shard::shards]:
                text = rule.text(one)
                for key in rule.keys(text):
                    groups.setdefault(key, []).append(text)
        shuffled = draw.sample(list(groups.values()), len(groups))
        assert rule.drops(pair for group in shuffled for pair in rule.pairs(group)) == dropped


def components(edges: list[tuple[str, str]], ids: set[str]) -> set[str]:
    """The smallest id of each connected set, by relabelling until nothing changes."""
    labels = {one: one for one in ids}
    changed = True
    while changed:
        changed = False
        for one, other in edges:
            least = min(labels[one], labels[other])
            changed |= labels[one] != least or labels[other] != least
            labels[one] = labels[other] = least
    return set(labels.values())


def test_signatures_estimate_the_similarity():
    draw = random.Random(0)
    minhash = MinHash(250, 1)
    for common in (20, 60, 90):
        both = [(f"w{draw.random()}",) for _ in range(common)]
        one, other = ([*both, *((f"{side}{i}",) for i in range(100 - common))] for side in "ab")
        equal = np.mean(
            [a == b for a, b in zip(*(minhash.bands(minhash.signature(text)) for text in (one, other)), strict=True)]
        )
        assert equal == pytest.approx(common / (200 - common), abs=0.1)  # three standard errors


def test_signatures_are_the_same_everywhere():
    """Engines group rows by them on several machines."""
    assert MinHash(2, 2).signature([("a", "b"), ("c",)]).hex() == "e6b4d2aaaddc0f8dc17983c71999050f"


def test_pairs_of_gsm8k_that_were_read():
    """One near-duplicate (another name); three variants, one of them with another number in words."""
    file = DATA / "gsm8k_train.jsonl"
    if not file.exists():
        pytest.skip("needs ../shared/data/gsm8k_train.jsonl, which is not here")
    rows = [row(json.loads(line)["question"]) for line in file.read_text().splitlines()]
    by_id = {one.id: one.question for one in rows}
    _, near = NearDuplicates()(rows)
    assert {(by_id[one][:5], by_id[drop.evidence][:6]) for one, drop in near.items()} == {("Josie", "Amanda")}
    _, both = NearDuplicates(template="one")(rows)
    assert sorted(drop.reason for drop in both.values()) == NEAR + 3 * TEMPLATE
    assert sum("Oreos" in by_id[one] or "train travels" in by_id[one] for one in both) == 2


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="template='two'"):
        NearDuplicates(template="two")
    with pytest.raises(UserError, match="similarity=0"):
        NearDuplicates(similarity=0)
