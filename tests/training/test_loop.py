"""The loop: what it writes, resumption at the exact step, and runs that go wrong."""

import dataclasses
import errno
import itertools
import json
import os
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import s1jax
from s1jax import perf
from s1jax.checkpoint import digests, store
from s1jax.config import schema
from s1jax.config.experiment import (
    CheckpointConfig,
    CostConfig,
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from s1jax.training import loop
from s1jax.training import workdir as workdir_lib
from s1jax.training.callbacks import Callbacks
from s1jax.training.prepare import Prepared

MODEL = ModelConfig.dense(
    vocab_size=128, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, tied_embeddings=True
)
pytestmark = pytest.mark.usefixtures("compile_once")
STEPS = 6
EXPERIMENT = Experiment(
    model=MODEL,
    data=DataConfig(block_size=8),
    train=TrainConfig(batch_size=2, steps=STEPS, compute_dtype="float32", remat="none", loss_chunk=8),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    checkpoint=CheckpointConfig(every=2, keep=2),
    cost=CostConfig(per_device_hour=3600.0),
)


class Rows:
    """Batches that are a function of the step; the one of step `bad` has a loss that is infinite.

    Of the 16 places of a batch 14 hold tokens, and 9 of these are supervised.
    """

    num_steps = STEPS
    digest = ""

    def __init__(self, bad: int | None = None):
        self.bad = bad

    def batch(self, step):
        ids = np.random.default_rng(step).integers(128, size=(2, 2, 8)).astype(np.int32)
        tokens = np.arange(16).reshape(2, 8) < 14
        weights = (tokens & (np.arange(16).reshape(2, 8) >= 5)).astype(np.float32)
        if step == self.bad:
            weights[1, 3] = np.inf
        return {
            "tokens": ids[0],
            "targets": ids[1],
            "positions": np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8)),
            "segment_ids": tokens.astype(np.int32),
            "weights": weights,
        }

    def names(self, step):
        return [f"rows.jsonl:{2 * step + 1}", f"rows.jsonl:{2 * step + 2}"]

    def iterate(self, start=0):
        return map(self.batch, range(start, self.num_steps))


@pytest.fixture(scope="module")
def metadata():
    tokenizer = Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")
    return store.Metadata(MODEL, tokenizer, chat.FORMATS["s1_plain"], {"experiment": "test"})


@pytest.fixture(scope="module")
def run(metadata):
    def run(
        workdir, batches=None, make_params=None, experiment=EXPERIMENT, start_time=None, profile=range(0),
        validation=None, **told,
    ):  # fmt: skip
        mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
        make_params = make_params or jax.jit(lambda: decoder.init_params(MODEL, jax.random.key(0)))
        prepared = Prepared(experiment, mesh, metadata, batches or Rows(), make_params, validation)
        with workdir_lib.claim(workdir, experiment):
            return loop.run(prepared, workdir, Callbacks(**told), start_time=start_time, profile=profile)

    return run


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """Workdir, summary and what the callbacks got of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("loop") / "whole"
    told: list = []
    summary = run(workdir, on_step=lambda record: told.append(record["step"]), on_phase=told.append)
    return workdir, summary, told


def test_one_line_a_step(whole):
    workdir, _, told = whole
    lines = records(workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [word for word in told if isinstance(word, int)] == list(range(1, STEPS + 1))
    assert any("compiling" in word for word in told if isinstance(word, str))
    for line in lines:
        assert (line["tokens"], line["supervised_tokens"], line["padding"]) == (14, 9, 1 - 14 / 16)
        assert line["seconds"] > 0 and line["mfu"] is None and np.isfinite(line["grad_norm"])
        assert line["peak_memory_bytes"] is None  # a CPU does not tell
        np.testing.assert_allclose(line["tokens_per_second"], 14 / line["seconds"])
        np.testing.assert_allclose(line["supervised_tokens_per_second"], 9 / line["seconds"])
    assert lines[0]["learning_rate"] == 0 and lines[1]["learning_rate"] == pytest.approx(1e-2)


def test_mfu_counts_the_pairs_of_the_whole_batch(run, tmp_path, monkeypatch):
    monkeypatch.setattr("s1jax.perf.PEAK_FLOPS", (("cpu", 1e12),))
    run(tmp_path / "w", should_stop=lambda step: True)
    (line,) = records(tmp_path / "w")
    assert line["mfu"] * line["seconds"] * 1e12 == pytest.approx(perf.train_flops(MODEL, 14, 36 + 21))


def test_wall_clock_and_dollars(whole):
    """At a dollar a device and second. The wall-clock has what lies between steps and before the first as well."""
    lines = records(whole[0])
    assert all(line["dollars"] == pytest.approx(line["wall_seconds"]) for line in lines)
    for before, line in itertools.pairwise(lines):
        assert line["wall_seconds"] - before["wall_seconds"] >= line["seconds"] - 1e-6
    # The pace is that of all steps so far; checkpoints make it slower than the steps alone.
    for line in lines:
        alone = sum(other["seconds"] for other in lines[: line["step"]]) / line["step"]
        assert line["dollars_to_go"] >= alone * (STEPS - line["step"]) - 1e-6
        assert line["dollars_to_go"] <= line["wall_seconds"] / line["step"] * (STEPS - line["step"])
    assert lines[0]["dollars_to_go"] > lines[-1]["dollars_to_go"] == 0


def _events(folder):
    """What TensorBoard reads: records of a length and its checksum (12 bytes), an Event, and its checksum (4)."""
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            end = place + 12 + int.from_bytes(data[place : place + 8], "little")
            yield event_pb2.Event.FromString(data[place + 12 : end])
            place = end + 4


def test_tensorboard_has_the_same_numbers(whole):
    events = [event for event in _events(whole[0] / "tensorboard") if event.summary.value]
    assert [event.step for event in events] == list(range(1, STEPS + 1))
    for event, line in zip(events, records(whole[0]), strict=True):
        found = {value.tag.removeprefix("train/"): value.simple_value for value in event.summary.value}
        assert found.keys() == {name for name, value in line.items() if value is not None} - {"step"}
        np.testing.assert_allclose(list(found.values()), [line[name] for name in found], rtol=1e-6)


def test_summary(whole):
    workdir, summary, _ = whole
    lines = records(workdir)
    assert summary["steps"] == STEPS and not summary["stopped"]
    assert (summary["tokens"], summary["supervised_tokens"], summary["padding"]) == (14 * STEPS, 9 * STEPS, 1 / 8)
    assert (summary["first_loss"], summary["last_loss"]) == (lines[0]["loss"], lines[-1]["loss"])
    seconds = sorted(line["seconds"] for line in lines)
    assert summary["seconds"] == pytest.approx(sum(seconds))
    # Linear between the sorted times: the median of six lies in the middle of two, p90 at 4.5 and p99 at 4.95 of 0..5.
    expected = [(seconds[2] + seconds[3]) / 2, (seconds[4] + seconds[5]) / 2, 0.05 * seconds[4] + 0.95 * seconds[5]]
    np.testing.assert_allclose(list(summary["step_seconds"].values()), expected)
    assert list(summary["step_seconds"]) == ["p50", "p90", "p99"]
    assert summary["wall_seconds"] >= lines[-1]["wall_seconds"] and summary["dollars"] >= lines[-1]["dollars"]
    assert summary["goodput"] == pytest.approx(summary["seconds"] / summary["wall_seconds"])
    assert 0 < summary["goodput"] < 1 and summary["dollars_to_go"] == 0


def test_checkpoints_are_kept_and_self_contained(whole):
    workdir = whole[0]
    assert store.finished_steps(workdir) == [4, 6]
    provenance = store.load_metadata(workdir).provenance
    assert provenance["step"] == 6 and provenance["loss"] == records(workdir)[-1]["loss"]
    assert schema.from_dict(Experiment, json.loads((workdir / "config.json").read_text())) == EXPERIMENT


def never():
    raise AssertionError("a run that is resumed does not start from new weights")


def test_resumes_at_the_exact_step(run, whole, tmp_path):
    """Stopped after step 3, and killed later: lines of steps whose state is lost, the last of them cut off."""
    steps: list[int] = []
    summary = run(tmp_path / "w", on_step=lambda r: steps.append(r["step"]), should_stop=lambda _: len(steps) >= 2)
    assert summary["stopped"] and summary["steps"] == 3 and store.finished_steps(tmp_path / "w") == [2, 3]
    assert summary["dollars_to_go"] > 0
    with (tmp_path / "w" / "metrics.jsonl").open("a") as file:
        lost = {"step": 4, "loss": -1.0, "wall_seconds": 1e6, "dollars": 2e6}
        file.write(json.dumps(records(tmp_path / "w")[-1] | lost) + '\n{"step": 5, "lo')
    summary = run(tmp_path / "w", make_params=never, start_time=time.monotonic() - 1e5)
    assert summary["steps"] == STEPS and not summary["stopped"]
    # The time of the steps that were lost and of this process's start counts, and their price.
    assert 1.1e6 < records(tmp_path / "w")[3]["wall_seconds"] < summary["wall_seconds"] < 1.1e6 + 1e3
    assert 2.1e6 < records(tmp_path / "w")[3]["dollars"] < summary["dollars"] < 2.1e6 + 1e3
    assert summary["goodput"] == pytest.approx(summary["seconds"] / summary["wall_seconds"])
    assert [line["step"] for line in records(tmp_path / "w")] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in records(tmp_path / "w")] == [line["loss"] for line in records(whole[0])]
    ours, theirs = (store.load_model(workdir).params for workdir in (tmp_path / "w", whole[0]))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_run_is_left_as_it_is(run, whole):
    before = (whole[0] / "metrics.jsonl").read_bytes()
    summary = run(whole[0], make_params=never)
    assert summary["steps"] == STEPS and summary["tokens"] == 14 * STEPS
    assert (whole[0] / "metrics.jsonl").read_bytes() == before


class MoreRows(Rows):
    num_steps = STEPS + 3


def longer(optimizer=EXPERIMENT.optimizer, steps=STEPS + 3):
    train = dataclasses.replace(EXPERIMENT.train, steps=steps)
    return dataclasses.replace(EXPERIMENT, train=train, optimizer=optimizer)


def test_a_finished_run_is_prolonged_and_says_where_its_schedule_ends(run, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "w")
    said: list[str] = []
    told = {"make_params": never, "experiment": longer(), "on_note": said.append}
    stopped = run(tmp_path / "w", MoreRows(), should_stop=lambda step: step == 8, **told)
    assert stopped["stopped"] and stopped["steps"] == 8
    rates = [line["learning_rate"] for line in records(tmp_path / "w")]
    # The old schedule up to the last step, then that of 9 steps; both by hand: a step of warm-up, a cosine to 0.
    expected = [0, *(0.5e-2 * (1 + np.cos(np.pi * step / 5)) for step in range(5))]
    expected += [0.5e-2 * (1 + np.cos(np.pi * step / 8)) for step in (5, 6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)
    assert said == [
        "the run is prolonged: the cosine schedule now ends at step 9 (was 6), and the learning rate goes from "
        f"{rates[5]:.3g} in step 6 to {rates[6]:.3g} in step 7."
    ]
    assert run(tmp_path / "w", MoreRows(), **told)["steps"] == 9 and len(said) == 1
    assert [line["step"] for line in records(tmp_path / "w")] == list(range(1, 10))
    assert [line["loss"] for line in records(tmp_path / "w")][:STEPS] == [line["loss"] for line in records(whole[0])]
    shutil.copytree(whole[0], tmp_path / "at_once")
    run(tmp_path / "at_once", MoreRows(), **told)
    ours, theirs = (store.load_model(tmp_path / name).params for name in ("w", "at_once"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["train"]["steps"] == STEPS + 3
    with pytest.raises(UserError, match=r"holds another run: train\.steps is 9 there and 6 here"):
        run(tmp_path / "w")


def test_a_prolonged_run_with_a_constant_rate_is_one_of_that_length(run, tmp_path):
    constant = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)
    run(tmp_path / "w", experiment=longer(constant, STEPS))
    run(tmp_path / "w", MoreRows(), experiment=longer(constant))
    run(tmp_path / "whole", MoreRows(), experiment=longer(constant))
    for name in ("loss", "grad_norm", "learning_rate"):
        ours, theirs = ([line[name] for line in records(tmp_path / w)] for w in ("w", "whole"))
        assert ours == theirs
    ours, theirs = (store.load_model(tmp_path / name).params for name in ("w", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_run_is_not_shortened(run, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "w")
    before = (tmp_path / "w" / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"train\.steps is 6 there and 5 here"):
        claim(tmp_path / "w", longer(steps=5))

    class Fewer(Rows):
        num_steps = 4

    train = dataclasses.replace(EXPERIMENT.train, steps=0, epochs=2)  # of two steps each
    with pytest.raises(UserError, match=r"takes 6 steps and cannot be shortened to 4; give the train\.epochs and"):
        run(tmp_path / "w", Fewer(), experiment=dataclasses.replace(EXPERIMENT, train=train))
    assert (tmp_path / "w" / "config.json").read_bytes() == before
    with pytest.raises(UserError, match=r"optimizer\.learning_rate is 0\.01 there and 0\.5 here"):
        claim(tmp_path / "w", longer(OptimizerConfig(learning_rate=0.5)))


def test_lines_that_metrics_lack_are_said_and_the_run_goes_on(run, tmp_path):
    run(tmp_path / "w", should_stop=lambda step: step == 4)
    file = tmp_path / "w" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]))
    said: list[str] = []
    assert run(tmp_path / "w", make_params=never, on_note=said.append)["steps"] == STEPS
    assert len(said) == 1 and "no line of 2 of the 4 steps that the checkpoint has, from step 3 on" in said[0]
    assert [line["step"] for line in records(tmp_path / "w")] == [1, 2, 5, 6]


def test_metrics_are_on_the_disk_before_a_checkpoint_counts(run, tmp_path, monkeypatch):
    order: list[str] = []
    fsync, write = os.fsync, digests.write

    def synced(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/metrics.jsonl"):
            order.append("metrics")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(digests, "write", lambda folder: order.append("digests") or write(folder))
    run(tmp_path / "w", should_stop=lambda step: step == 2)
    assert order == ["metrics", "digests"]


def traced_steps(workdir):
    """Step numbers of all train steps in all traces of a run, by trace."""
    files = sorted((workdir / "profile").rglob("*.xplane.pb"))
    return [
        sorted(
            dict(event.stats)["step_num"]
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        )
        for file in files
    ]


def test_a_trace_has_the_steps_that_were_asked_for_and_no_other(run, whole, tmp_path):
    told: list[int] = []
    callbacks = {"on_step": lambda record: told.append(record["step"])}
    run(tmp_path / "w", profile=range(3, 6), should_stop=lambda step: len(told) >= 3, **callbacks)
    assert store.finished_steps(tmp_path / "w")[-1] == 4, "stopped while it was tracing"
    assert traced_steps(tmp_path / "w") == [[3, 4]]
    time.sleep(1.1)  # a trace's folder is named by the second
    run(tmp_path / "w", profile=range(3, 6), **callbacks)
    assert traced_steps(tmp_path / "w") == [[3, 4], [5]], "what is left of them after a resumption"
    run(tmp_path / "w", profile=range(3, 6), **callbacks)
    assert len(traced_steps(tmp_path / "w")) == 2 and told == list(range(1, STEPS + 1))
    assert [line["loss"] for line in records(tmp_path / "w")] == [line["loss"] for line in records(whole[0])]
    assert not (whole[0] / "profile").exists()


def test_a_trace_of_steps_that_the_run_does_not_have(run, tmp_path):
    with pytest.raises(UserError, match="step 7 cannot be profiled: the run has 6"):
        run(tmp_path / "w", profile=range(7, 9))
    run(tmp_path / "w", profile=range(6, 100))
    assert traced_steps(tmp_path / "w") == [[6]]


def test_a_loss_that_is_not_finite_names_step_and_rows_and_keeps_the_checkpoint(run, tmp_path):
    message = (
        r"step 4: loss (inf|nan) .* not finite on the rows rows.jsonl:7, rows.jsonl:8; the checkpoint of step 2 is"
    )
    with pytest.raises(UserError, match=message):
        run(tmp_path / "w", Rows(bad=3))
    assert store.finished_steps(tmp_path / "w") == [2]
    assert [line["step"] for line in records(tmp_path / "w")] == [1, 2, 3]
    assert run(tmp_path / "w", Rows(), make_params=never)["steps"] == STEPS, "goes on when the rows were mended"


def test_a_damaged_newest_checkpoint_says_where_to_go_on_from(run, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "w")
    newest = tmp_path / "w" / "checkpoints" / "6"
    (newest / "s1jax.json").write_text("")
    with pytest.raises(UserError, match=rf"s1jax.json has 0 bytes .*; remove {newest} to go on from step 4\.$"):
        run(tmp_path / "w")
    shutil.rmtree(newest)
    assert run(tmp_path / "w", make_params=never)["steps"] == STEPS
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "4")
    (newest / "s1jax.json").write_text("")
    with pytest.raises(UserError, match=r"use another one or copy it again\.$"):
        run(tmp_path / "w")


def test_a_full_disk_is_one_sentence(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("s1jax.checkpoint.digests.write", full)
    with pytest.raises(UserError, match=r"no space left on the device while writing .*/checkpoints/2; free some"):
        run(tmp_path / "w")


def claim(workdir, experiment, rows=""):
    with workdir_lib.claim(workdir, experiment, rows):
        return
