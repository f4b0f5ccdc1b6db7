"""On-policy steps: what the student samples is what the engine gives, what carries loss, exact resumption."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import s1jax
from s1jax.checkpoint import store
from s1jax.config import experiment as experiment_lib
from s1jax.config.experiment import (
    CheckpointConfig,
    DataConfig,
    DistilConfig,
    Experiment,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
)
from s1jax.config.model import ModelConfig
from s1jax.data import packing
from s1jax.engine import programs, seeds
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest, Sample
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import on_policy, prepare
from s1jax.training.callbacks import Callbacks
from tests import byte_tokenizer

V, BLOCK = 258, 128
MODEL = ModelConfig.dense(
    vocab_size=V, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, tied_embeddings=True,
    context_length=BLOCK,
)  # fmt: skip
ROLLOUT = RolloutConfig(max_thinking_tokens=14, max_answer_tokens=6, num_waits=1, wait="!")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Seven short questions, a random teacher; every second step is on-policy."""
    folder = tmp_path_factory.mktemp("teacher")
    byte_tokenizer.save(folder)
    params = jax.jit(decoder.init_params, static_argnums=0)(MODEL, jax.random.key(1))
    params = jax.tree.map(lambda a: 9 * a if a.ndim > 1 else a, params)
    store.save_model(folder / "ckpt", params, MODEL, Tokenizer.load(folder), chat.FORMATS["s1_plain"], {})
    rows = [{"question": f"{i}?", "thinking_trajectories": ["hm " * (i + 1)], "attempt": str(i)} for i in range(7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Experiment(
        model=MODEL,
        tokenizer=str(folder),
        chat="s1_plain",
        data=DataConfig(source=str(folder / "rows.jsonl"), block_size=BLOCK, seed=5),
        train=TrainConfig(batch_size=3, steps=6, compute_dtype="float32", remat="none", loss_chunk=64),
        distil=DistilConfig(teacher=str(folder / "ckpt"), on_policy=0.5, rollout=ROLLOUT),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0),
        checkpoint=CheckpointConfig(every=1, keep=6),
    )


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """Six steps with all checkpoints: the folder, and the lines of metrics."""
    workdir = tmp_path_factory.mktemp("run")
    s1jax.train(experiment, workdir)
    return workdir, [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(experiment, run):
    """Step 2 of the run: its weights, rows, the sampled ones and their metrics."""
    with prepare.prepare(experiment) as prepared:
        params = store.load_model(run[0] / "checkpoints" / "1").params
        _, batch, *_ = prepared.batches.iterate()
        made, metrics = prepared.on_policy.complete(1, params, batch)
        return prepared, params, batch, made, metrics


def ids_of(batch, row):
    length = np.count_nonzero(batch["segment_ids"][row])
    return [*batch["tokens"][row][:length].tolist(), int(batch["targets"][row][length - 1])]


def test_rows_are_what_the_engine_samples(experiment, sampled):
    """Another engine with the same weights, prompts and seeds gives the same ids; forced ones carry no loss."""
    prepared, params, batch, made, metrics = sampled
    model = store.Model(params, MODEL, prepared.metadata.tokenizer, prepared.metadata.chat, {})
    engine = Engine(params, config=MODEL, slots=3, cache_length=BLOCK)  # sizes whose programs are compiled
    engine.model = model
    prompts = [ids_of(batch, row)[: 1 + int(np.flatnonzero(batch["weights"][row])[0])] for row in range(3)]
    requests = [
        s1jax.Request(
            prompt_ids=prompt,
            params=s1jax.SamplingParams(**dataclasses.asdict(ROLLOUT), seed=seeds.derive(5, 2, row)),
        )
        for row, prompt in enumerate(prompts)
    ]
    outputs = engine.generate(requests[::-1])[::-1]
    lengths, ended, ends = [], [], []
    for row in range(3):
        prompt, output, own = prompts[row], outputs[row], ids_of(made, row)
        assert own == [*prompt, *output.token_ids]
        weights = made["weights"][row]
        carries = [False] * len(prompt) + [not forced for forced in output.forced]
        np.testing.assert_array_equal(weights[: len(own) - 1] > 0, carries[1:])
        assert not weights[len(own) - 1 :].any() and weights.sum() == pytest.approx(1)
        if output.answer_end == "stop":
            assert weights[len(own) - 2] > 0  # the id that ended the answer
        lengths.append(sum(not forced for forced in output.forced))
        ends.append(output.thinking_end)
        ended.append(output.answer_end == "stop" and output.thinking_end == "natural")
    assert metrics == {"sampled_ended": np.mean(ended), "sampled_tokens": np.mean(lengths)}
    assert "cut" in ends  # so that closing delimiters were forced


def test_the_id_that_ended_the_answer_carries_loss_and_forced_ones_do_not():
    """think_start, a wait and the rest of think_end are forced; its first id and the stop id are sampled."""
    ids = np.array([50, 1, 2, 60, 3, 70, 71, 4, 80], np.int32)
    forced = np.array([True, False, False, True, False, False, True, False, False])
    sample = Sample(ids, forced, 4, 2, 1, "natural", "stop", 0.0, np.zeros(9, np.float32))
    request = EncodedRequest((10, 11), s1jax.SamplingParams(), name="row 3")
    made = on_policy.answered(request, sample)
    batch = packing.arrays([[made]], 2, 16, "token")
    assert [int(i) for i in batch["targets"][batch["weights"] > 0]] == [1, 2, 3, 70, 4, 80]
    assert on_policy.prompts(packing.arrays([[made]], 2, 16, "token")) == [(10, 11, *ids[:7].tolist())]
    plain = dataclasses.replace(made, supervised=np.arange(11) >= 2)
    assert on_policy.prompts(packing.arrays([[plain]], 2, 16, "token")) == [(10, 11)] == [on_policy.prompt(plain)]


def test_new_weights_compile_nothing(sampled):
    """Steps after the first one hand over their weights only."""
    prepared, params, batch, made, _ = sampled
    before = programs.decode._cache_size(), programs.prefill._cache_size(), programs.admit._cache_size()
    other, _ = prepared.on_policy.complete(1, jax.tree.map(lambda x: -x, params), batch)
    assert not np.array_equal(other["tokens"], made["tokens"])
    again, _ = prepared.on_policy.complete(1, params, batch)
    np.testing.assert_array_equal(again["tokens"], made["tokens"])
    assert before == (programs.decode._cache_size(), programs.prefill._cache_size(), programs.admit._cache_size())


def test_the_loss_is_the_reverse_kl_on_the_sampled_ids(experiment, run, sampled):
    """That of the run's second step, against float64."""
    _, params, _, batch, metrics = sampled
    forward, logs = jax.jit(decoder.forward, static_argnums=1), []
    for weights in (params, store.load_model(experiment.distil.teacher).params):
        hidden = forward(weights, MODEL, *(batch[name] for name in ("tokens", "positions", "segment_ids")))
        logits = np.asarray(decoder.logits(weights, MODEL, hidden), np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    line = run[1][1]
    np.testing.assert_allclose(line["loss"], (batch["weights"] * kl).sum() / batch["weights"].sum(), rtol=1e-5)
    assert line["distillation"] == line["loss"] and metrics.items() <= line.items()
    assert line["supervised_tokens"] == np.count_nonzero(batch["weights"])


def test_a_resumed_run_has_the_same_weights(experiment, run, tmp_path):
    """From the checkpoint of step 3 on: bit for bit, with the same metrics."""
    shutil.copytree(run[0], tmp_path / "w")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "w" / "checkpoints" / str(step))
    steps = []
    s1jax.train(experiment, tmp_path / "w", Callbacks(on_step=steps.append))
    assert [line["step"] for line in steps] == [4, 5, 6]
    one, two = (jax.tree.leaves(store.load_model(folder).params) for folder in (run[0], tmp_path / "w"))
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(left, right)
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "grad_norm", "sampled_tokens", "sampled_ended", "cross_entropy", "distillation"):
        assert [line.get(name) for line in lines] == [line.get(name) for line in run[1]]
    assert ["sampled_tokens" in line for line in lines] == [False, True] * 3


@pytest.mark.parametrize(("share", "count"), [(1.0, 100), (0.5, 50), (0.25, 25), (0.01, 1), (0.333, 33)])
def test_on_policy_steps_are_spread_evenly(experiment, share, count):
    distil = dataclasses.replace(experiment.distil, on_policy=share)
    with prepare.prepare(dataclasses.replace(experiment, distil=distil)) as prepared:
        due = [step for step in range(100) if prepared.on_policy.is_due(step)]
    assert len(due) == count and (len(due) < 2 or max(np.diff(due)) - min(np.diff(due)) <= 1)


def test_settings_that_do_not_go_together(experiment):
    def check(message, **changes):
        with pytest.raises(UserError, match=message), prepare.prepare(dataclasses.replace(experiment, **changes)):
            pass

    data = experiment.data
    check("set data.batching=padded", data=dataclasses.replace(data, batching="packed"))
    long = dataclasses.replace(experiment.distil, rollout=RolloutConfig(max_thinking_tokens=BLOCK))
    check(r"rows.jsonl:\d: its prompt and an answer of distil.rollout can have \d+ ids", distil=long)
    special = dataclasses.replace(experiment.distil, rollout=dataclasses.replace(ROLLOUT, wait="<|im_end|>"))
    with prepare.prepare(dataclasses.replace(experiment, distil=special)):  # encoded as text
        pass
    with pytest.raises(UserError, match=r"distil\.on_policy is 0\.5, and no teacher"):
        DistilConfig(on_policy=0.5)
    with pytest.raises(UserError, match=r"distil\.rollout\.temperature is -1"):
        RolloutConfig(temperature=-1)
    changed = dataclasses.replace(
        experiment, distil=DistilConfig(teacher="x", on_policy_loss="jsd", beta=0.1, rollout=ROLLOUT)
    )
    said = " ".join(experiment_lib.unused(changed))
    assert "config.distil.on_policy_loss=jsd is not used" in said and "config.distil.beta=0.1 is not used" in said
    assert "config.distil.rollout.num_waits=1 is not used: config.distil.on_policy is 0" in said
