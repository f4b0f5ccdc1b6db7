"""The planner by parts: what groups of devices have between them, advice, and what the compiler refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from s1jax import perf
from s1jax.config.experiment import DataConfig, DistilConfig, Experiment, OptimizerConfig, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.plan import hlo, planner, targets
from s1jax.training import step as step_lib

MODEL = ModelConfig.dense(vocab_size=64, d_model=16, mlp_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a compiler ahead of time says of a device."""

    id: int
    coords: tuple[int, ...] = ()


def experiment(**train):
    data = DataConfig(block_size=32)
    return Experiment(model=MODEL, data=data, train=TrainConfig(**{"batch_size": 8, "attention": "chunked"} | train))


def test_what_gpus_have_between_them():
    """8 ports of 50 GB/s a host: a group uses as many as it has members there; NVLink within a host."""
    target = targets.parse("h100:16")
    gpus = [Device(i) for i in range(16)]
    assert target.interconnect(gpus[:8]) == target.interconnect(gpus[8:10]) == 450e9
    assert target.interconnect(gpus) == 8 * 50e9
    assert target.interconnect([gpus[0], gpus[8]]) == 50e9
    assert target.interconnect([*gpus[:2], *gpus[8:10]]) == 100e9


@pytest.mark.parametrize(
    ("name", "sides", "whole", "along_last"),
    [
        ("v5p:4x4x4", (4, 4, 4), 600e9, 200e9),  # a torus: two links an axis
        ("v5p:2x2x4", (2, 2, 4), 300e9, 100e9),  # no torus: one
        ("v6e:4x4", (4, 4), 224e9, 112e9),
        ("v6e:16x16", (16, 16), 448e9, 224e9),
        ("v6e:8x16", (8, 16), 336e9, 224e9),
    ],
)
def test_what_tpus_have_between_them(name, sides, whole, along_last):
    target = targets.parse(name)
    grid = [Device(0, (x, y, z)) for x in range(sides[0]) for y in range(sides[1]) for z in range((*sides, 1)[2])]
    assert target.interconnect(grid) == pytest.approx(whole)
    last = len(sides) - 1
    line = [device for device in grid if not any(device.coords[axis] for axis in range(last))]
    assert len(line) == sides[-1] and target.interconnect(line) == pytest.approx(along_last)


def test_peaks_and_bandwidths_are_those_of_the_makers():
    """Per chip: dense bf16 TFLOP/s, TB/s, GB, by Google Cloud's pages and NVIDIA's sheets of H100 SXM and H200."""
    figures = {name: (chip.flops / 1e12, chip.bandwidth / 1e12) for name, chip in targets.CHIPS.items()}
    assert figures["v5p"] == (459, 2.765) and figures["v6e"] == (918, 1.638) and figures["v5e"] == (197, 0.819)
    assert figures["h100"] == pytest.approx((989, 3.35), rel=1e-3) and figures["h200"] == (989, 4.8)
    for name, size in {"v5p": 95e9, "v6e": 32e9, "v5e": 16e9, "h100": 80e9, "h200": 141e9}.items():
        assert targets.CHIPS[name].memory == pytest.approx(size, rel=0.1)


def test_seconds_and_bytes_follow_from_the_program(monkeypatch):
    """Every figure of a plan against its formula, over the traffic that was read."""
    seen = []
    read = hlo.traffic
    monkeypatch.setattr(hlo, "traffic", lambda text: seen.append(read(text)) or seen[-1])
    target = targets.parse("cpu:1")
    plan = planner.plan(experiment(remat="none"), MODEL, target, rows=6)
    (traffic,) = seen
    assert (plan.rows, plan.block_size, plan.devices, plan.note) == (6, 32, 1, "")
    assert plan.seconds["compute"] == plan.executed_flops / 1e11
    assert plan.seconds["memory"] == traffic.memory / 2e10 and plan.seconds["interconnect"] == 0
    work = sum(times * max(flops / 1e11, moved / 2e10) for times, flops, moved in traffic.work)
    assert plan.seconds["step"] == pytest.approx(work + (plan.executed_flops - traffic.operations) / 1e11)
    assert plan.mfu == pytest.approx(plan.model_flops / 1e11 / plan.seconds["step"])
    params = 2 * (16 * 8 * (2 + 1 + 1 + 2) + 3 * 16 * 32) + 2 * 64 * 16 + (2 * 2 + 1) * 16
    tokens = 6 * 32
    needed = 6 * (params - 64 * 16) * tokens + 12 * 2 * 2 * 8 * 6 * 32 * 33 / 2
    assert plan.model_flops == needed
    kinds = dict(plan.memory)
    peak, limit = kinds.pop("peak"), kinds.pop("limit")
    assert limit == 16e9 and plan.fits
    assert kinds["parameters"] == 4 * params and kinds["gradients"] == kinds["weights in compute type"] == 2 * params
    assert kinds["layer inputs"] == 2 * tokens * 16 * 2 and kinds["logits of a chunk"] == tokens * 64 * 4
    assert sum(kinds.values()) == peak


def test_time_of_collectives_is_that_of_their_groups():
    between = [(32e9, (0, 8)), (8e9, tuple(range(8))), (4e9, ())]
    traffic = hlo.Traffic({}, {}, 0, between, 0.0, [])
    gpus = np.array([Device(i) for i in range(16)])
    seconds = planner.interconnect(traffic, gpus, targets.parse("h100:16"))
    assert seconds == pytest.approx(32e9 / 2 / 50e9 + 8e9 * 7 / 8 / 450e9 + 4e9 * 15 / 16 / 400e9)


def test_advice_is_what_is_left_to_do():
    """Followed one by one until nothing but other machines is left."""
    whole = {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    first = planner.remedies(experiment(attention="xla", remat="none"), whole, 16)
    assert [advice.partition(":")[0] for advice in first[:-1]] == [
        "--config.train.attention=auto",
        "--config.train.remat=full",
        "--config.train.accumulation=2",
        "--config.train.mlp_parts=4",
        "--config.optimizer.moment_dtype=bfloat16",
        "--config.train.param_dtype=bfloat16",
        "--config.train.batch_size=8, accumulation=1",
    ]
    assert first[-1] == "a shorter data.block_size (now 32), mesh.sequence=2, mesh.tensor=2, or more devices"
    done = experiment(remat="full", mlp_parts=4, param_dtype="bfloat16", accumulation=16)
    narrow = dataclasses.replace(done, optimizer=OptimizerConfig(moment_dtype="bfloat16"))
    assert planner.remedies(narrow, whole, 8)[0] == "--config.optimizer.moment_dtype=int8: half the moments"
    done = dataclasses.replace(done, optimizer=OptimizerConfig(moment_dtype="int8"))
    one = dict.fromkeys(whole, 1)
    assert planner.remedies(done, one, 16) == [
        "--config.train.batch_size=1, accumulation=1: no sums of gradients, but another recipe",
        "a shorter data.block_size (now 32), or more devices",
    ]


def test_a_compiler_that_finds_no_room(monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\nMore.")

    monkeypatch.setattr(step_lib, "compile_for", refuse)
    with pytest.raises(
        planner.DoesNotFitError, match=r"fit \(RES[^\n]*hbm\.\)\. --config\.train\.accum[^\n]*devices\.$"
    ):
        planner.plan(experiment(remat="full"), MODEL, targets.parse("cpu:1"))


def test_a_packed_batch_is_told_of():
    packed = dataclasses.replace(experiment(), data=DataConfig(block_size=32, batching="packed"))
    assert (
        "give --num_tokens, or launch.train's rows as --rows_per_step"
        in planner.plan(packed, MODEL, targets.parse("cpu:1")).note
    )
    assert planner.plan(packed, MODEL, targets.parse("cpu:1"), rows=5).note == ""


def test_a_teacher_is_counted():
    """Its shard in the compute type; a forward pass of FLOPs, a third of a training step's; no second optimizer."""
    teacher = dataclasses.replace(MODEL, vocab_size=72, d_model=32)  # 8 columns without an id are cut
    plain = experiment(remat="none", compute_dtype="float32")
    taught = dataclasses.replace(plain, distil=DistilConfig(teacher="named by its shape"))
    target = targets.parse("cpu:1")
    alone = planner.plan(plain, MODEL, target, rows=6)
    both = planner.plan(taught, MODEL, target, rows=6, teacher=teacher)
    cut = dataclasses.replace(teacher, vocab_size=64)
    assert both.memory["teacher"] == 4 * cut.num_params and "teacher" not in alone.memory
    assert both.memory["moments"] == alone.memory["moments"]
    assert both.memory["logits of a chunk"] == 2 * alone.memory["logits of a chunk"]
    forward = perf.train_flops(teacher, 6 * 32, 6 * 32 * 33 // 2) / 3
    assert both.model_flops == pytest.approx(alone.model_flops + forward)
    # Chunked attention computes the pairs after the query, too; the head is as wide as the student's.
    more = 2 * 6 * 32 * (cut.num_params - 64 * 32) + 4 * 2 * 16 * 6 * 32 * 32
    assert both.executed_flops - alone.executed_flops == pytest.approx(more, rel=0.02)


def test_stored_targets_are_counted(tmp_path):
    """Their arrays are arguments of the step, and no decoder beside the student's computes anything."""
    plain = experiment(remat="none", compute_dtype="float32")
    stored = dataclasses.replace(plain, distil=DistilConfig(targets=str(tmp_path / "later")))
    target = targets.parse("cpu:1")
    alone, planned = (planner.plan(each, MODEL, target, rows=6) for each in (plain, stored))
    assert planned.note.endswith("it is planned with the 64 most probable ids.")
    assert planned.memory["stored targets"] == 6 * 32 * (2 * 64 + 1) * 4
    assert planned.memory["peak"] > alone.memory["peak"] + planned.memory["stored targets"]
    assert planned.model_flops == alone.model_flops and "teacher" not in planned.memory
