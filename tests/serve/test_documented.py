"""The examples of docs/serving.md run, and its tables are those of the code."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest

from s1jax.serve import budgets, metrics, prices, protocol, settings
from s1jax.serve.protocol import Defaults

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "serving.md").read_text()
URL = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", PAGE)


def test_the_python_of_the_page_runs(server, capsys):
    """Block after block, against the test server, whose model has Qwen3's chat format."""
    openai, names = pytest.importorskip("openai"), {}
    for block in blocks("python"):
        code = re.sub(r'model="\w+"', 'model="tiny"', block).replace(URL, server.url)
        for _ in range(20):
            try:
                exec(compile(code, "serving.md", "exec"), names)
                break
            except openai.NotFoundError:  # the reply was complete before it could be stopped
                assert "reasoning_end" in code
        else:
            pytest.fail("no reply was stopped")
    printed = capsys.readouterr().out
    assert names["longer"].choices[0].message.reasoning.startswith(names["short"].choices[0].message.reasoning)
    assert names["longer"].usage.completion_tokens_details.reasoning_tokens > 8
    assert "'reasoning_end'" in printed and names["text"]
    names["client"].close()


def test_the_curl_of_the_page_runs(server):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (command,) = [block for block in blocks("bash") if block.startswith("curl")]
    done = subprocess.run(
        ["bash", "-c", command.replace(URL, server.url)], capture_output=True, text=True, timeout=60, check=True
    )
    reply = json.loads(done.stdout)
    assert reply["choices"][0]["thinking"]["tokens"] <= 64 and reply["choices"][0]["message"]["reasoning"]


def test_the_price_list_of_the_page_is_one(tmp_path):
    (text,) = blocks("json")
    file = tmp_path / "prices.json"
    file.write_text(text)
    assert prices.read(file).models["countdown_base"].output == 2.0


def test_every_name_of_a_budget_is_on_the_page():
    named = set(re.findall(r"`([\w.]+)`", PAGE))
    assert {*budgets.MAXIMUM, *budgets.GROUPS} <= named
    assert {"reasoning.effort", "reasoning.exclude", "reasoning.enabled", "thinking.type", "thinking.display"} <= named
    for word, tokens in protocol.EFFORTS.items():
        assert f"`{word}` {tokens}" in PAGE
    assert f"Default: {Defaults('', 1).params.max_thinking_tokens}." in PAGE


def test_what_the_page_calls_refused_and_ignored_is(server):
    part = PAGE.partition("## What is ignored")[2].partition("\n## ")[0]
    ignored, refused = part.split("- **Refused by name**")
    refused = refused.partition("- **Near misses**")[0]
    fields = re.compile(r"`([a-z_]+)`")
    assert set(fields.findall(ignored)) <= set(settings.IGNORED)
    assert set(fields.findall(refused)) <= set(settings.REFUSED) and len(fields.findall(refused)) > 7


def test_the_metrics_of_the_page_exist(server):
    part = PAGE.partition("## Metrics and log")[2].partition("\n## ")[0].partition("`--request_log")[0]
    found = {family.name for family in metrics.Metrics(server.worker).registry.collect()}
    for name in re.findall(r"`([a-z_]+)`", part):
        assert name == "finished_reason" or name == "reason" or f"s1jax:{name.removesuffix('_total')}" in found, name
