"""One seed for a whole call: rows get different noise, and each of them can be reproduced alone."""

import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine import seeds
from s1jax.engine.engine import Engine
from s1jax.errors import UserError

QUESTION = {"question": "Make 21 from 3 7 1"}
SMALL = {"max_thinking_tokens": 8, "max_answer_tokens": 3}
FEW = SamplingParams(**SMALL, temperature=1.0)
# Random ids are as probable as others where the model does not know how to go on.
WARM = SamplingParams(max_thinking_tokens=1, max_answer_tokens=1, temperature=5.0)


@pytest.fixture(scope="module")
def engine():
    return Engine("package:countdown_base", slots=64)


def ids(outputs):
    return [row["ids"] for row in outputs]


def test_equal_prompts_get_different_noise(engine):
    """With one noise for all rows, each of these numbers is 1."""
    first = [tuple(row) for row in ids(rows_lib.generate(engine, [QUESTION] * 256, WARM))]
    assert len(set(first)) > 90
    assert len({tuple(row) for row in ids(rows_lib.generate(engine, [QUESTION] * 4, FEW))}) == 4
    assert len({tuple(row) for row in ids(rows_lib.generate(engine, [QUESTION] * 4, SamplingParams(**SMALL)))}) == 1


def test_a_seed_of_its_own_reproduces_a_row_alone_at_any_place_and_batch_size(engine):
    own = QUESTION | {"seed": 7}
    want = ids(rows_lib.generate(engine, [own], FEW))[0]
    among = ids(rows_lib.generate(engine, [QUESTION] * 5 + [own] + [QUESTION] * 30, FEW))
    assert among[5] == want and want not in among[:5]
    assert ids(rows_lib.generate(Engine("package:countdown_base", slots=1), [QUESTION, own], FEW))[1] == want
    assert ids(rows_lib.generate(engine, [own, own], FEW)) == [want, want]


def test_the_seed_that_an_output_names_gives_it_again(engine):
    for output in rows_lib.generate(engine, [QUESTION] * 6, FEW)[::5]:
        again = rows_lib.generate(engine, [QUESTION | {"seed": output["controls"]["seed"]}], FEW)[0]
        assert (again["ids"], again["logprob"]) == (output["ids"], pytest.approx(output["logprob"], abs=1e-3))


def test_rows_of_a_continued_file_keep_their_noise(engine):
    whole = ids(rows_lib.generate(engine, [QUESTION] * 6, FEW))
    assert ids(rows_lib.generate(engine, [QUESTION] * 2, FEW, indices=[5, 2])) == [whole[5], whole[2]]
    for wrong in ([1], [1, -2], [1, 2.0], "12", 3):
        with pytest.raises(UserError, match="indices "):
            rows_lib.generate(engine, [QUESTION] * 2, FEW, indices=wrong)


def test_seeds_are_fixed_for_ever_and_hardly_ever_equal():
    """Those of neighbouring seeds neither, as those of sums would be."""
    assert [seeds.derive(3), seeds.derive(3, 1), seeds.derive(3, 0, 1)] == [3, 457190280, 3578933982]
    many = {seeds.derive(seed, index, j) for seed in range(4) for index in range(100) for j in range(4)}
    assert len(many) == 1600 and max(many) < 2**32
    assert seeds.derive(2**32 - 1, 2**40, 5) == int(np.random.SeedSequence([2**32 - 1, 2**40, 5]).generate_state(1)[0])
