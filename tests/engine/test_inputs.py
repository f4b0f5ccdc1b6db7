"""What the engine says from Python to settings, rows and controls that make no sense."""

import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from tests.engine import cases

CONFIG = ModelConfig.dense(
    vocab_size=cases.V, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, context_length=64
)
QUESTION = {"question": "Make 3 from 1 2"}
FEW = SamplingParams(max_thinking_tokens=3, max_answer_tokens=2)


@pytest.fixture(scope="module")
def engine():
    return Engine("package:countdown_base", slots=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache_dtype": "int32"}, "cache_dtype is 'int32'; it is float32, bfloat16, int8 or empty"),
        ({"cache_dtype": "int4"}, "cache_dtype is 'int4'"),
        ({"cache_dtype": "uint8"}, "cache_dtype is 'uint8'"),
        ({"cache_dtype": "foo"}, "cache_dtype is 'foo'"),
        ({"cache_dtype": jnp.int8}, "cache_dtype is "),
        ({"dtype": "int8"}, "dtype is 'int8'; it is float32, bfloat16 or empty"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"weight_dtype": "bfloat16"}, "weight_dtype is 'bfloat16'; it is int8, int4, fp8, mxfp4 or empty"),
        ({"slots": True}, "slots is True; it must be at least 1, a whole number"),
        ({"mesh": "data=2"}, "mesh is 'data=2'; give a mesh"),
        ({"config": {"vocab_size": 3}}, "config is .*; give a ModelConfig"),
        ({"slots": 2.5}, "slots is 2.5; it must be at least 1, a whole number"),
        ({"cache_length": -5}, "cache_length is -5; it must be at least 0"),
    ],
)
def test_settings_of_an_engine(settings, said):
    with pytest.raises(UserError, match=said):
        Engine(cases.random_weights(CONFIG), **{"config": CONFIG, **settings})


def test_weights_need_a_config_and_numbers_may_be_numpys():
    with pytest.raises(UserError, match="given weights without their shape; give config"):
        Engine(cases.random_weights(CONFIG))
    engine = Engine(cases.random_weights(CONFIG), config=CONFIG, slots=np.int64(3), cache_length=np.int32(8))
    assert (engine._setup.slots, engine._setup.cache_length) == (3, 8)
    controls = SamplingParams(seed=np.int64(3), temperature=np.float32(0.5), max_thinking_tokens=jnp.int32(2))
    assert controls == SamplingParams(seed=3, temperature=0.5, max_thinking_tokens=2)
    assert [type(value) for value in (controls.seed, controls.temperature)] == [int, float]


@pytest.mark.parametrize("wrong", [None, 3, ["package:countdown_base"]])
def test_what_is_neither_a_checkpoint_nor_weights(wrong):
    with pytest.raises(UserError, match=r"the engine was given .*; give the path of a checkpoint"):
        Engine(wrong)


def test_one_row_in_bfloat16_sums_as_a_batch_does():
    """More pages at once would round its weights of attention otherwise than those of the same row among others."""
    engines = [
        Engine(cases.random_weights(CONFIG), config=CONFIG, slots=slots, dtype=dtype)._setup.pages_at_once
        for dtype in ("float32", "bfloat16")
        for slots in (1, 16)
    ]
    assert engines == [4, 1, 1, 1]


def test_a_checkpoint_has_a_config_of_its_own():
    with pytest.raises(UserError, match="config goes with weights, not with a checkpoint"):
        Engine("package:countdown_base", config=CONFIG)


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"max_thinking_tokens": 2.5}, "max_thinking_tokens is 2.5; it must be of type int"),
        ({"max_thinking_tokens": "5"}, "max_thinking_tokens is '5'; it must be of type int"),
        ({"top_k": None}, "top_k is None; it must be of type int"),
        ({"seed": 1.5}, "seed is 1.5; it must be of type int"),
        ({"wait": 3}, "wait is 3; it must be a string"),
        ({"wait": ["Wait"]}, r"wait is \['Wait'\]; it must be a string"),
        ({"num_waits": True}, "num_waits is True; it must be of type int"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be of type float"),
        ({"temperature": -1}, "temperature is -1.0; it must lie in"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"min_p": -0.5}, "min_p is -0.5; it must lie in"),
    ],
)
def test_controls(controls, said):
    with pytest.raises(UserError, match=said):
        SamplingParams(**controls)
    assert isinstance(SamplingParams(temperature=1).temperature, float)


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        (["Make 3 from 1 2"], {}, "row 0 is 'Make 3 from 1 2'; a row reads"),
        (QUESTION, {}, "rows is .*; give a list of rows"),
        (None, {}, "rows is None; give a list of rows"),
        (
            [QUESTION],
            {"params": {"max_thinking_tokens": 3}},
            r"params is \{'max.*; give SamplingParams, as in SamplingParams\(",
        ),
        ([QUESTION], {"names": []}, "names has 0 entries for 1 rows; give one for every row"),
        ([QUESTION | {"wait": ["Wait"]}], {}, r"row 0: wait is \['Wait'\]; it must be a string"),
        ([QUESTION], {"names": 3}, "names is 3; give a list of strings, one for every row"),
        ([QUESTION], {"names": "a"}, "names is 'a'; give a list of strings"),
        ([QUESTION], {"names": [3]}, "names has 3; give a list of strings"),
        ([QUESTION], {"indices": [True]}, "indices has True; give a list of whole numbers"),
        ([QUESTION], {"progress": 3}, "progress is 3; give a function"),
        ([{"prompt_ids": np.array([1.5])}], {}, "row 0: prompt_ids must be a list of whole numbers"),
        ([{"prompt_ids": np.array(1)}], {}, "row 0: prompt_ids must be a list"),
        ([{"prompt_ids": [True]}], {}, "row 0: prompt_ids must be a list"),
        (
            [QUESTION, QUESTION | {"temprature": 3}],
            {},
            "row 1: temprature is not a sampling parameter; write temperature if",
        ),
        (
            [QUESTION | {"max_thinking_token": 1}],
            {},
            "max_thinking_token is not a sampling parameter; write max_thinking_tokens if",
        ),
        ([QUESTION | {"Top-P": 1}], {}, "Top-P is not a sampling parameter; write top_p if"),
    ],
)
def test_rows(engine, rows, more, said):
    with pytest.raises(UserError, match=said):
        rows_lib.generate(engine, rows, **{"params": FEW, **more})


def test_rows_may_come_one_by_one_and_ids_from_numpy(engine):
    ids = rows_lib.generate(engine, [{"prompt_ids": [1, 2, 3]}], FEW)[0]["ids"]
    given = ({"prompt_ids": each} for each in (np.array([1, 2, 3]), [np.int64(1), np.int32(2), 3], (1, 2, 3)))
    assert [row["ids"] for row in rows_lib.generate(engine, given, FEW)] == [ids] * 3


def test_fields_that_are_no_settings_are_handed_through(engine):
    """Those of an output above all, which may be asked again."""
    row = QUESTION | {"seeded": "x", "top": 1, "level": 3, 7: "a number", "speed": 12, "reasoning": "a column"}
    assert rows_lib.generate(engine, [row], FEW)[0].items() >= row.items()
    again = rows_lib.generate(engine, rows_lib.generate(engine, [row], FEW), FEW)[0]
    assert {"input_waits", "input_thinking_tokens", "input_answer_tokens"} < again.keys()
    thrice = rows_lib.generate(engine, [again], FEW)[0]
    assert thrice["input_input_ids"] == again["ids"] and thrice["input_ids"] == again["input_ids"]
    both = rows_lib.generate(engine, [QUESTION | {"ids": 1, "input_ids": 2}], FEW)[0]
    assert (both["input_input_ids"], both["input_ids"]) == (1, 2)
