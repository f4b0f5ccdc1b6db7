"""Several adapters in one batch against the merged weights of each."""

import dataclasses

import jax
import numpy as np
import pytest

from s1jax.checkpoint import adapters as peft
from s1jax.checkpoint import merge as merge_lib
from s1jax.checkpoint import store
from s1jax.config.lora import LoraConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib

PARAMS = SamplingParams(max_thinking_tokens=40, max_answer_tokens=12)
QUESTIONS = ["Make 21 from 3 7 1", "Make 24 from 4 6 1"]
SETTINGS = {"wide": LoraConfig(8, 16.0), "narrow": LoraConfig(3, 4.0, targets="q_proj,down_proj", rslora=True)}


def _random(config, lora, seed):
    rng = np.random.default_rng(seed)
    shapes = adapters_lib.abstract(config, lora, "float32")
    return jax.tree.map(lambda x: rng.normal(0, 0.12, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def model():
    return store.load_model("package:countdown_base")


@pytest.fixture(scope="module")
def trees(model):
    return {name: _random(model.config, lora, i) for i, (name, lora) in enumerate(SETTINGS.items())}


@pytest.fixture(scope="module")
def merged(model, trees):
    """Adapter -> outputs of the merged weights."""
    found = {"": [output.token_ids for output in Engine(model, slots=4).generate(QUESTIONS, PARAMS)]}
    for name, lora in SETTINGS.items():
        params = merge_lib.merge(jax.tree.map(np.array, model.params), trees[name], model.config, lora)
        engine = Engine(dataclasses.replace(model, params=jax.device_put(params)), slots=4)
        found[name] = [output.token_ids for output in engine.generate(QUESTIONS, PARAMS)]
    assert len({tuple(ids) for ids in found.values()}) == 3  # the adapters change what is sampled
    return found


def _prepare_stacked(engine, params, prepare=Engine._prepare):
    engine._unstacks = False
    return prepare(engine, params)


@pytest.mark.parametrize("unstacked", [True, False])
def test_sequences_of_one_batch_have_the_tokens_of_their_merged_models(model, trees, merged, unstacked, monkeypatch):
    if not unstacked:
        monkeypatch.setattr(Engine, "_prepare", _prepare_stacked)
    engine = Engine(model, slots=4, adapters={name: (trees[name], lora) for name, lora in SETTINGS.items()})
    names = ["wide", "", "narrow", "wide", "narrow", ""]
    requests = [Request(QUESTIONS[i // 3], adapter=name) for i, name in enumerate(names)]
    outputs = engine.generate(requests, PARAMS)
    for i, (name, output) in enumerate(zip(names, outputs, strict=True)):
        assert output.token_ids == merged[name][i // 3], (name, i)


def test_equal_prompts_with_other_adapters_share_no_pages(model, trees, merged):
    engine = Engine(model, slots=2, adapters={name: (trees[name], lora) for name, lora in SETTINGS.items()})
    scheduler = engine.open(2048)
    prompt = " ".join(["Make 21 from 3 7 1"] * 12)  # several pages
    alone = {}
    for name in ("", "wide", "narrow", "wide"):
        request = engine.encoder.encode_one(Request(prompt, adapter=name), PARAMS)
        scheduler.submit(request)
        while not scheduler.is_idle:
            for event in scheduler.step():
                sample = event.sample
        if name in alone:
            assert sample.cached_tokens and sample.ids.tolist() == alone[name]
        else:
            assert sample.cached_tokens == 0
        alone[name] = sample.ids.tolist()


def test_a_peft_folder_is_an_adapter(model, trees, merged, tmp_path):
    peft.write(tmp_path, trees["narrow"], model.config, SETTINGS["narrow"], "somebody/base")
    engine = Engine(model, slots=2, adapters={"mine": tmp_path})
    (output,) = engine.generate([Request(QUESTIONS[0], adapter="mine")], PARAMS)
    assert output.token_ids == merged["narrow"][0]


def test_what_is_wrong_is_named(model, trees, tmp_path):
    engine = Engine(model, slots=2, adapters={"wide": (trees["wide"], SETTINGS["wide"])})
    with pytest.raises(UserError, match=r"row 7: the engine has no adapter 'tall'; it has wide"):
        engine.generate([Request(QUESTIONS[0], adapter="tall", name="row 7")], PARAMS)
    with pytest.raises(UserError, match=r"adapter mine: .*does not exist|adapter mine: "):
        Engine(model, adapters={"mine": tmp_path / "nothing"})
    with pytest.raises(UserError, match="adapter mine: 3 is not a path"):
        Engine(model, adapters={"mine": 3})


@pytest.mark.parametrize(
    ("change", "lora", "words"),
    [
        (lambda x: x[:1], SETTINGS["wide"], r"has shape \[1, .*\] where the model needs \[4, "),
        (lambda x: np.concatenate([x, x]), SETTINGS["wide"], r"has shape \[8, .*\] where the model needs \[4, "),
        (lambda x: x, LoraConfig(16, 16.0), r"has shape \[.*, 8\] where the model needs \[.*, 16\]"),
        (lambda x: x, LoraConfig(8, targets="q_proj"), "no adapter layers/attention/key/a with lora.targets q_proj"),
        (lambda x: x, LoraConfig(), "lora.rank is 0"),
    ],
)
def test_trees_of_another_model_or_rank_are_refused(model, trees, change, lora, words):
    with pytest.raises(UserError, match=f"adapter mine: .*{words}"):
        Engine(model, adapters={"mine": (jax.tree.map(change, trees["wide"]), lora)})
    with pytest.raises(UserError, match="adapter mine: layers/attention/key/a is missing"):
        attention = {"attention": {"query": trees["wide"]["layers"]["attention"]["query"]}}
        Engine(model, adapters={"mine": ({"layers": attention}, SETTINGS["wide"])})
