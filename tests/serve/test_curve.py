import json

import pytest

from s1jax.errors import UserError
from s1jax.evaluation import metrics, strategies
from s1jax.serve import curve

RUNS = ("forcing:max=0", "forcing:max=64", "none", "forcing:waits=2", "majority:4", "forcing:waits=2:wait=Hmm")


def results(weights: str, *texts: str) -> dict:
    """A results.json with runs of these strategies, as an evaluation names them."""
    runs = []
    for i, text in enumerate(texts):
        strategy = strategies.parse(text)
        run = metrics.Run(
            name=strategy.name("Wait"), label=strategy.label("Wait"), families=strategy.families("Wait"),
            parallel=strategy.parallel, problems=50, accuracy=10.0 * i, error=1.0, thinking_tokens=8.0 * i,
            answer_tokens=3.0, total_tokens=50.0, samples=1, control=None, in_range=None, cut=0.0, seconds=1.0,
        )  # fmt: skip
        runs.append(metrics.record(run))
    asked = {"checkpoint": "/secret", "wait": "Wait", "controls": {"max_thinking_tokens": 384, "temperature": 0.0}}
    return {
        "weights": weights, "model": "tiny", "task": "sums", "problems": 50, "asked": asked, "runs": runs,
        "machine": {"devices": ["/secret"]},
    }  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    """Writes evaluations into a training run's workdir: `workdir(folder, text)`; returns the checkpoint's folder."""
    step = tmp_path / "checkpoints" / "100"
    step.mkdir(parents=True)

    def write(folder, text):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "results.json").write_text(text)
        return step

    return write


def test_runs_have_their_budget_and_waits_and_nothing_of_the_machine():
    found = curve.of_results(results("w", *RUNS))
    assert [(run["name"], run["thinking_token_budget"], run["num_waits"]) for run in found["runs"]] == [
        ("cut at 0", 0, 0), ("cut at 64", 64, 0), ("no limit", 384, 0), ("Wait x2", 384, 2),
    ]  # fmt: skip
    assert [run["families"] for run in found["runs"]] == [["budgets"], ["budgets"], ["budgets", "waits"], ["waits"]]
    assert found["runs"][1]["interval"] == list(metrics.wilson(0.1, 50)) and "secret" not in json.dumps(found)


@pytest.mark.parametrize("folder", ["", "eval", "checkpoints/100", "checkpoints/100/eval"])
def test_an_evaluation_is_found_in_the_checkpoint_and_in_its_workdir(workdir, folder):
    found = curve.find(workdir(folder, json.dumps(results("w", *RUNS))), "w")
    assert found == curve.of_results(results("w", *RUNS))


def test_an_evaluation_of_other_weights_does_not_count_and_the_one_with_most_runs_does(workdir):
    folder = workdir("", json.dumps(results("other", *RUNS)))
    assert curve.find(folder, "w") is None
    workdir("few", json.dumps(results("w", "none")))
    workdir("more", json.dumps(results("w", "none", "forcing:waits=2")))
    assert len(curve.find(folder, "w")["runs"]) == 2


@pytest.mark.parametrize("text", ["{", "\xff", '{"weights": "w", "runs": [1]}'])
def test_a_damaged_one_is_an_error_that_names_it(workdir, text):
    with pytest.raises(UserError, match=r"eval/results.json is damaged; remove it"):
        curve.find(workdir("eval", text), "w")
