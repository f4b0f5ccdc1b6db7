"""A model and tasks for lm-evaluation-harness, and its command line, as tests want them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np

from s1jax.checkpoint import huggingface, huggingface_tokenizer, store
from s1jax.config.model import ModelConfig
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.launch.stand_ins import ROOT

CONTEXT = 96
FORMAT = chat.FORMATS["s1_plain"]
ROWS = [
    {"question": f"Make {t} from {a} {b} {c}", "target": str(t), "choices": ["check", "so Final Answer:", f"({a}+{b})"]}
    for t, a, b, c in ((21, 3, 7, 1), (5, 2, 3, 4), (10, 4, 6, 1), (12, 3, 4, 9))
]
SETTINGS = {"until": ["8", "1"], "max_gen_toks": 12, "do_sample": False}
_PROMPT = {"doc_to_text": "{{question}}", "doc_to_target": "{{target}}", "fewshot_split": "test"}
TASKS = {
    "answers": _PROMPT | {"output_type": "generate_until", "generation_kwargs": SETTINGS, "metric_list": "exact_match"},
    "repeats": _PROMPT
    | {
        "output_type": "generate_until",
        "generation_kwargs": {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0},
        "repeats": 3,
        "metric_list": "exact_match",
    },
    "choices": _PROMPT
    | {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": 1, "metric_list": "acc"},
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": "word_perplexity",
    },
}


def make(folder):
    """Writes a random model with Countdown's tokenizer, also as transformers wants it, and tasks with their rows."""
    config = ModelConfig.dense(
        vocab_size=126, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, qkv_bias=True,
        tied_embeddings=True, context_length=CONTEXT,
    )  # fmt: skip
    params = decoder.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    store.save_model(folder / "model", params, config, tokenizer, FORMAT, {"made": "for a test"})
    exported = folder / "exported"
    exported.mkdir()
    huggingface.write_model(exported, jax.tree.map(np.asarray, params), config, eos=[tokenizer.id_of("<|im_end|>")])
    huggingface_tokenizer.write(exported, tokenizer, FORMAT)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        text = {"task": name, **source, **task, "metric_list": [{"metric": task["metric_list"]}]}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(text))  # JSON is YAML


# Listing the harness's own tasks takes it 15 s of processor time; these tests bring their own.
_LAUNCHER = """
import functools, runpy
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
runpy.run_module("launch.lm_eval", run_name="__main__", alter_sys=True)
"""


def run_launcher(*arguments, home):
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-c", _LAUNCHER, *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
