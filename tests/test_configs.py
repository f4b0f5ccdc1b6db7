"""The shipped configurations: which there are, and that the tables in their headers follow from shapes and FLOPs."""

import importlib
import json
import pathlib

import pytest

from benchmarks import plan_headers
from s1jax import perf
from s1jax.config import presets
from s1jax.data import layout
from s1jax.model import adapters
from s1jax.plan import targets

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
SIZES = ("qwen2p5_0p5b", "qwen2p5_1p5b", "qwen2p5_3b", "qwen2p5_7b", "qwen2p5_14b", "qwen2p5_32b")
PUBLISHED = [*(f"s1_{size}" for size in SIZES), "s1_qwen3_8b", "s1_qwen3_14b", "s1_qwen3_32b"]
PUBLISHED += ["s1_r1distill_qwen_7b", "s1p1_qwen2p5_32b"]
# Mixtures of experts, and the machines that they are planned for.
OF_EXPERTS = {"s1_qwen3_30b_a3b": {"h100:16", "v5p:2x2x4"}, "s1_gpt_oss_20b": {"h100:8"}}


def test_conditional_control_differs_from_the_quickstart_in_three_settings():
    plain, conditional = (
        importlib.import_module(f"configs.{name}").get_config().to_dict()
        for name in ("countdown_s1", "countdown_conditional")
    )
    plain["chat"] = "countdown"
    plain["data"] |= {"control": "token", "block_size": 224}
    assert conditional == plain


@pytest.mark.parametrize("name", [*PUBLISHED, *OF_EXPERTS])
def test_tables_of_plans(name):
    """Every machine has a row or a sentence; memory is below the limit, and 20 % of the peak gives the minutes."""
    header = (CONFIGS / f"{name}.py").read_text()
    settings = importlib.import_module(f"configs.{name}").get_config().to_dict()
    preset = pathlib.Path(settings["init_from"]).name
    rows = [row for row in map(plan_headers._ROW.match, header.splitlines()) if row]
    planned = {row["target"].partition(":")[0] for row in rows} | {row["target"] for row in rows}
    if name in OF_EXPERTS:
        assert {row["target"] for row in rows} == OF_EXPERTS[name]
    else:
        assert {"h100:8", "h100:16", "v5p", "v6e"} <= planned
        assert ("h100:1" in planned) != ("One H100 does not hold it" in header)
    for row in rows:
        peak, _, limit, model, executed, minutes = row["figures"].split()
        target, own = targets.parse(row["target"]), dict(s.split("=") for s in row["settings"].split())
        assert float(peak) <= target.chip.memory / 1e9 and round(target.chip.memory / 1e9) == int(limit)
        data, train = dict(settings["data"]), dict(settings["train"])
        for setting, value in own.items():
            group, _, field = setting.partition(".")
            {"data": data, "train": train}.get(group, {})[field] = type(settings[group][field])(value)
        block = data["block_size"]
        batch = train["batch_size"] or train["batch_tokens"] // block
        shape = presets.PRESETS[preset]
        flops = perf.train_flops(shape, batch * block, perf.pairs_by_window([block] * batch, shape))
        assert float(model) == pytest.approx(flops / target.devices / 1e12, abs=0.5)
        most = 1.25 if name in OF_EXPERTS else 1.5
        assert float(model) < float(executed.strip("()")) < most * float(model)
        steps = -(-1000 // batch) * train["epochs"]
        if data["batching"] == "packed":
            planned_run = settings | {"init_from": "", "model": preset, "data": data, "train": train}
            steps = layout.layout(presets.experiment(planned_run)).steps
        seconds = steps * flops / target.devices / (0.2 * target.chip.flops)
        assert float(minutes) == pytest.approx(seconds / 60, abs=0.1)


@pytest.mark.parametrize(("size", "most", "times"), [("7b", 24, 1.18), ("32b", 60, 1.37)])
def test_one_gpu_holds_qlora(size, most, times):
    """The figures in the header follow from the model and its adapters; a part of a layer is computed twice."""
    name = f"s1_qwen2p5_{size}_qlora"
    settings = presets.experiment(importlib.import_module(f"configs.{name}").get_config().to_dict())
    (row,) = [row for row in map(plan_headers._ROW.match, (CONFIGS / f"{name}.py").read_text().splitlines()) if row]
    peak, _, _, needed, executed, _ = row["figures"].split()
    assert float(peak) <= most
    model = presets.PRESETS[f"qwen2p5_{size}"]
    block = int(dict(setting.split("=") for setting in row["settings"].split())["data.block_size"])
    pairs = block * (block + 1) // 2
    flops = perf.train_flops(model, block, pairs, None, adapters.num_params(model, settings.lora))
    assert float(needed) == pytest.approx(flops / 1e12, abs=0.5)
    assert float(executed.strip("()")) <= times * flops / 1e12


def test_the_page_on_planning_has_the_minutes_of_the_papers_run():
    """Of 16 H100 at 20, 40 and 60 % of their peak, with every place of a batch counted, and with its tokens alone."""
    settings = importlib.import_module("configs.s1_qwen2p5_32b").get_config().to_dict()
    run = layout.layout(presets.experiment(settings))
    model, block = presets.PRESETS["qwen2p5_32b"], settings["data"]["block_size"]
    places = run.rows * block
    text = " ".join((CONFIGS.parent / "docs" / "planning.md").read_text().split())
    _, sentence = text.split("The paper's run, planned ")
    assert f"five times in {run.steps} steps" in sentence
    assert f"({100 * (1 - run.tokens / places):.0f} % are padding" in sentence

    def minutes(tokens, pairs, share):
        flops = perf.train_flops(model, tokens, pairs)
        return run.steps * flops / (16 * targets.parse("h100:16").chip.flops * share) / 60

    counted = [minutes(places, run.rows * block * (block + 1) / 2, share) for share in (0.2, 0.4, 0.6)]
    assert "takes {:.1f} minutes at 20 % MFU, {:.1f} at 40 % and {:.1f} at 60 %".format(*counted) in sentence
    dollars = [perf.dollars(60 * m, 16, 2.86) for m in counted]
    assert "is {:.2f}, {:.2f} and {:.2f} USD".format(*dollars) in sentence
    alone = [minutes(run.tokens, run.pairs, share) for share in (0.2, 0.4, 0.6)]
    assert "takes {:.1f}, {:.1f} and {:.1f} minutes".format(*alone) in sentence


# Rows of the table of peaks in docs/planning.md, and the records of their last four columns.
PEAKS = {
    "v5p 2x2x4, Qwen2.5-7B, 8,192": ("v5p_8k", "", "", "v5p_8k_sequence_4"),
    "v5p 2x2x4, Qwen2.5-7B, 32,768": ("v5p_32k", "v5p_32k_parts", "v5p_32k_sequence", "v5p_32k_sequence_4"),
    "v6e 4x4, Qwen2.5-7B, 32,768": ("v6e_32k", "v6e_32k_parts", "v6e_32k_sequence", ""),
    "v5p 4x4x4, Qwen2.5-32B, 32,768": ("v5p_32b_32k", "v5p_32b_32k_parts", "v5p_32b_32k_sequence", ""),
    "16 H100, Qwen2.5-32B, 32,768": ("h100_32b_32k", "h100_32b_32k_parts", "h100_32b_32k_sequence", ""),
    "1 H100, Qwen2.5-3B, 32,768": ("h100_3b_32k", "", "", ""),
    "1 H100, Qwen2.5-7B, 32,768": ("h100_7b_32k", "", "", ""),
}


@pytest.mark.parametrize("row", PEAKS)
def test_the_page_on_planning_has_the_peaks_that_are_recorded(row):
    root = CONFIGS.parent
    plans = json.loads((root / "benchmarks" / "results" / "plans.json").read_text())["plans"]
    page = root / "docs" / "planning.md"
    (line,) = [line for line in page.read_text().splitlines() if line.startswith(f"| {row}")]
    cells = [cell.strip().partition(" GB")[0] for cell in line.strip("|").split("|")[-4:]]
    assert cells == [f"{plans[name]['memory']['peak'] / 1e9:.1f}" if name else "" for name in PEAKS[row]]


# Rows of the table of operations in docs/planning.md, and the records of their plans.
OPERATIONS = {
    "16 H100, Qwen3-30B-A3B": "s1_qwen3_30b_a3b h100:16",
    "v5p 2x2x4, Qwen3-30B-A3B": "s1_qwen3_30b_a3b v5p:2x2x4",
    "8 H100, gpt-oss-20b": "s1_gpt_oss_20b h100:8",
    "1 H100, QLoRA of Qwen2.5-7B": "s1_qwen2p5_7b_qlora h100:1",
    "1 H100, QLoRA of Qwen2.5-32B": "s1_qwen2p5_32b_qlora h100:1",
}


@pytest.mark.parametrize("row", OPERATIONS)
def test_the_page_on_planning_has_the_operations_that_are_recorded(row):
    """Peak and executed FLOPs; causes add up to what is above the model's. The config's header has the same."""
    root, name = CONFIGS.parent, OPERATIONS[row]
    plan = json.loads((root / "benchmarks" / "results" / "plans.json").read_text())["plans"][name]
    (line,) = [line for line in (root / "docs" / "planning.md").read_text().splitlines() if line.startswith(f"| {row}")]
    _, peak, times, *causes = [cell.strip() for cell in line.strip("|").split("|")]
    assert peak.startswith(f"{plan['memory']['peak'] / 1e9:.1f} GB")
    assert times == f"{plan['executed_flops'] / plan['model_flops']:.2f}"
    above = 100 * (plan["executed_flops"] / plan["model_flops"] - 1)
    assert sum(float(cause or 0) for cause in causes) == pytest.approx(above, abs=0.3)
    config, target = name.split()
    headers = map(plan_headers._ROW.match, (CONFIGS / f"{config}.py").read_text().splitlines())
    (header,) = [found for found in headers if found and found["target"] == target]
    assert plan_headers.line(header, plan) == header.string
