"""The examples and notebooks run, in this process, on the model that ships in the package."""

import importlib.util
import json
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


def _module(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sampling_under_a_budget():
    tokens = _module("sample_under_a_budget").main()
    assert tokens["cut at 8 tokens"] == 8 < tokens["no limit"] < tokens["Wait x2"] <= 256


def test_training_on_own_rows(tmp_path, capsys):
    losses = _module("train_on_your_own_rows").main(str(tmp_path))
    assert len(losses) == 2 and "32 rows with messages" in capsys.readouterr().out


def test_a_curve_on_own_problems(tmp_path):
    accuracies = _module("curve_on_your_own_problems").main(folder=str(tmp_path))
    assert list(accuracies) == ["cut at 8", "no limit", "Wait x1"] and accuracies["cut at 8"] < accuracies["no limit"]
    assert (tmp_path / "curve" / "results.json").exists()


def test_an_own_chat_format():
    texts = _module("your_own_chat_format").main()
    assert "\nthink\ntry 3*7=21: 21*1=21 yes\nanswer\n" in texts["example"]
    assert texts["sample"].startswith("think") and "\nanswer\n" in texts["sample"]


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.ipynb")))
def test_notebooks(name, tmp_path, monkeypatch):
    """Their code cells in order, as Jupyter would run them; they are stored without outputs."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    space = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), space)
    assert "engine" in space


def test_every_example_has_a_test():
    tested = pathlib.Path(__file__).read_text()
    assert all(f'"{file.stem}"' in tested for file in EXAMPLES.glob("*.py"))
    assert len(list(EXAMPLES.glob("*.ipynb"))) == 2
