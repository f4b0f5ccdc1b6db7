"""The shipped configurations: which there are, and that the tables in their headers follow from shapes and FLOPs."""

import importlib
import json
import pathlib

import pytest

from benchmarks import plan_headers
from s1jax import meters, presets
from s1jax.plan import targets

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
SIZES = ("qwen2p5_0p5b", "qwen2p5_1p5b", "qwen2p5_3b", "qwen2p5_7b", "qwen2p5_14b", "qwen2p5_32b")
PUBLISHED = [*(f"s1_{size}" for size in SIZES), "s1_qwen3_8b", "s1_qwen3_14b", "s1_qwen3_32b"]
PUBLISHED += ["s1_r1distill_qwen_7b", "s1p1_qwen2p5_32b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_tables_of_plans(name):
    """Every machine has a row or a sentence; memory is below the limit, and 20 % of the peak gives the minutes."""
    header = (CONFIGS / f"{name}.py").read_text()
    settings = importlib.import_module(f"configs.{name}").get_config().to_dict()
    preset = pathlib.Path(settings["init_from"]).name
    rows = [row for row in map(plan_headers._ROW.match, header.splitlines()) if row]
    planned = {row["target"].partition(":")[0] for row in rows} | {row["target"] for row in rows}
    assert {"h100:8", "h100:16", "v5p", "v6e"} <= planned
    assert ("h100:1" in planned) != ("One H100 does not hold it" in header)
    for row in rows:
        peak, _, limit, model, executed, minutes = row["figures"].split()
        target, own = targets.parse(row["target"]), dict(s.split("=") for s in row["settings"].split())
        assert float(peak) <= target.chip.memory / 1e9 and round(target.chip.memory / 1e9) == int(limit)
        block = 32768 if "block_size=32768" in header else settings["data"]["block_size"]
        batch = int(own.get("train.batch_size", settings["train"]["batch_size"]))
        flops = meters.train_flops(presets.PRESETS[preset], batch * block, batch * block * (block + 1) // 2)
        assert float(model) == pytest.approx(flops / target.devices / 1e12, abs=0.5)
        assert float(model) < float(executed.strip("()")) < 1.5 * float(model)
        steps = -(-1000 // batch) * settings["train"]["epochs"]
        seconds = steps * flops / target.devices / (0.2 * target.chip.flops)
        assert float(minutes) == pytest.approx(seconds / 60, abs=0.1)


# Rows of README's table of peaks, and the records of their last four columns.
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
def test_the_readme_has_the_peaks_that_are_recorded(row):
    root = CONFIGS.parent
    plans = json.loads((root / "benchmarks" / "results" / "plans.json").read_text())["plans"]
    (line,) = [line for line in (root / "README.md").read_text().splitlines() if line.startswith(f"| {row}")]
    cells = [cell.strip().partition(" GB")[0] for cell in line.strip("|").split("|")[-4:]]
    assert cells == [f"{plans[name]['memory']['peak'] / 1e9:.1f}" if name else "" for name in PEAKS[row]]
