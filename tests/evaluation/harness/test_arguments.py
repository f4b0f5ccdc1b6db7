"""What s1jax models say to wrong arguments of lm-evaluation-harness, and how the harness gets to know of them."""

import ast
import importlib.metadata
import sys

import pytest

from s1jax.cli import command
from s1jax.cli import lm_eval as launcher
from s1jax.errors import UserError
from tests.evaluation.harness.cases import CONTEXT, ROOT, run_launcher


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"checkpoint": ""}, "--model_args has no checkpoint"),
        ({"checkpoint": "no/where"}, "no/where is not a folder"),
        ({"pretrained": "x"}, "--model_args has pretrained, which s1jax has not; it has checkpoint, dtype"),
        ({"max_thinking_tokens": "many"}, "max_thinking_tokens is 'many'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"dtype": "float16"}, "dtype 'float16'; choose float32 or bfloat16"),
        ({"cache_dtype": "int4"}, "cache_dtype 'int4'; choose float32 or bfloat16 or int8"),
        ({"weight_dtype": "float32"}, "weight_dtype 'float32'; choose int8 or int4 or fp8 or mxfp4"),
        ({"wait": 3}, "wait 3; it must be a string"),
        ({"bos_token": "<s>"}, "token '<s>' is not in the tokenizer"),
        ({"cache_length": -1}, "cache_length -1"),
        ({"cache_length": True}, "cache_length True; it must be a number"),
        ({"batch_size": "0"}, "--batch_size is '0'"),
        ({"batch_size": "many"}, "--batch_size is 'many'"),
        ({"max_batch_size": 3}, "--max_batch_size is not supported"),
    ],
)
def test_wrong_arguments_are_named(harness, folder, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        harness.HarnessModel(**{"checkpoint": f"{folder}/model", **arguments})


def test_arguments_come_as_the_harness_writes_them(harness, folder):
    text = f"checkpoint={folder}/model,max_thinking_tokens=5,temperature=1,wait="
    model = harness.HarnessModel.create_from_arg_string(text, {"batch_size": "auto", "device": "cuda:0"})
    assert (model.batch_size, model.controls.max_thinking_tokens, model.controls.temperature) == (16, 5, 1.0)
    assert model.max_length == CONTEXT and model.controls.wait == ""


def test_releases_that_scan_entry_points_find_the_model(harness):
    setup = ast.parse((ROOT / "setup.py").read_text())
    (points,) = [k.value for k in ast.walk(setup) if isinstance(k, ast.keyword) and k.arg == "entry_points"]
    group, groups = "lm_eval.models", ast.literal_eval(points)
    (point,) = groups[group]
    name, _, value = point.partition(" = ")
    assert importlib.metadata.EntryPoint(name, value, group).load() is harness.HarnessModel
    assert name == "s1jax"


def test_the_harnesss_own_models_stay_in_its_list(harness):
    from lm_eval.api.registry import get_model, model_registry

    assert get_model("s1jax") is harness.HarnessModel and "hf" in model_registry


def test_the_launcher_ends_in_one_sentence(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert command.guarded(launcher.main) == command.BAD_INPUT
    assert capsys.readouterr().err == (
        'error: This command needs lm_eval, which is not installed: python -m pip install "s1jax[harness]" brings it.\n'
    )


def test_wrong_arguments_of_the_command_line_are_one_sentence(harness, folder):
    arguments = ["--model", "s1jax", "--model_args", f"checkpoint={folder}/model,cache_length=True", "--tasks"]
    done = run_launcher(*arguments, "answers", "--include_path", f"{folder}/tasks", home=folder / "home")
    assert done.returncode == command.BAD_INPUT and "Traceback" not in done.stderr
    assert done.stderr.endswith("error: --model_args has cache_length True; it must be a number, not negative.\n")


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["--tasks", "nosuch"], "ValueError: Tasks not found: nosuch"),
        (["--tasks", "answers", "--limit", "0"], "ValueError: task.build_requests() did not find any docs!"),
    ],
)
def test_errors_of_the_harness_itself_are_one_sentence(call_launcher, folder, tasks, sentence):
    arguments = ["--model", "s1jax", "--model_args", f"checkpoint={folder}/model", "--include_path", f"{folder}/tasks"]
    done = call_launcher(*arguments, *tasks)
    assert done.returncode == command.BAD_INPUT and "Traceback" not in done.stderr
    assert done.stderr.endswith(f"error: lm-evaluation-harness: {sentence}\n")


def test_errors_with_a_frame_of_ours_keep_their_traceback(harness, monkeypatch):
    import lm_eval.__main__

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: harness._cut(None, ["x"]))
    with pytest.raises(AttributeError):
        launcher.main()
