"""Rows on meshes of 8 fake devices and on one, some with adapters; run by tests/engine/test_mesh.py in its own process.

Prints one JSON object per mesh.
"""

import dataclasses
import functools
import json
import os

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from s1jax.config.experiment import MeshConfig  # noqa: E402
from s1jax.config.layers import MLA, Dense, Experts, Layer  # noqa: E402
from s1jax.config.lora import LoraConfig  # noqa: E402
from s1jax.config.model import Group, ModelConfig  # noqa: E402
from s1jax.engine.engine import Engine  # noqa: E402
from s1jax.engine.sequence import EncodedRequest  # noqa: E402
from s1jax.model import adapters, decoder  # noqa: E402
from s1jax.parallel import mesh as mesh_lib  # noqa: E402
from s1jax.parallel import sharding  # noqa: E402
from tests.engine import cases  # noqa: E402

DENSE = ModelConfig.dense(
    vocab_size=cases.V, d_model=16, mlp_dim=24, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=4, qkv_bias=True,
    context_length=96,
)  # fmt: skip
LAYER = DENSE.groups[0].pattern[0]
RULED = dataclasses.replace(LAYER.attention, window=6, softcap=2.0, sinks=True)
MODEL = dataclasses.replace(DENSE, groups=(Group(1, (LAYER, Layer(RULED, Experts(8, 2, 12, normalize=True)))),))
_MLA = MLA(num_heads=8, q_rank=12, kv_rank=12, nope_dim=6, rope_dim=4, value_dim=5)
_EXPERTS = Experts(8, 2, 12, "sigmoid", True, groups=4, top_groups=2, selection_bias=True, shared_hidden=12)
DEEPSEEK = ModelConfig(
    cases.V, 16, (Group(1, (Layer(_MLA, Dense(24)),)), Group(1, (Layer(_MLA, _EXPERTS),))), context_length=96
)
# (data, fsdp, sequence, tensor), types of the cache and of the weights. Over four devices two key heads do not divide.
_WIDE = Experts(8, 2, 32, scores="topk_softmax", router_bias=True, expert_bias=True, activation="clamped")
GPT_OSS = dataclasses.replace(DENSE, d_model=32, groups=(Group(1, (Layer(RULED, _WIDE),)),))
MESHES = [(MODEL, (2, 2, 1, 2), "", ""), (DEEPSEEK, (2, 1, 1, 4), "", ""), (GPT_OSS, (1, 2, 1, 4), "", "mxfp4")]
if os.environ.get("S1JAX_ALL_MESHES"):
    MESHES += [(MODEL, (2, 1, 1, 4), "int8", ""), (MODEL, (1, 1, 1, 8), "", "int8"), (MODEL, (4, 2, 1, 1), "int8", "")]
    MESHES += [(GPT_OSS, (1, 1, 1, 8), "", "mxfp4"), (GPT_OSS, (2, 2, 1, 2), "", "fp8")]
    MESHES += [(MODEL, (1, 2, 2, 2), "", "int8"), (DEEPSEEK, (1, 2, 1, 4), "int8", "int8")]


LORAS = {"one": LoraConfig(2, 4.0), "two": LoraConfig(3, 6.0, "q_proj,down_proj,kv_b_proj")}


def _adapter(config, lora):
    rng, shapes = np.random.default_rng(lora.rank), adapters.abstract(config, lora, "float32")
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes), lora


def main() -> None:
    rng = np.random.default_rng(0)
    delimiters = cases.random_delimiters(rng)
    prompts = [tuple(rng.integers(0, 30, rng.integers(1, 30)).tolist()) for _ in range(12)]
    # Every prompt twice: devices that share no page share its prefill.
    twice = [prompt for prompt in prompts for _ in range(2)]
    requests = [
        EncodedRequest(
            prompt, cases.random_controls(rng), cases.random_wait(rng), adapter=("", "one", "two")[i // 2 % 3]
        )
        for i, prompt in enumerate(twice)
    ]
    for model, shape, cache_dtype, weight_dtype in MESHES:
        params = jax.jit(lambda key, model=model: decoder.init_params(model, key))(jax.random.key(0))
        params = jax.tree.map(lambda a: np.asarray(a * 14 if a.ndim > 2 else a), params)
        if model is MODEL:
            params["layers_0_1"]["attention"]["sinks"]["logits"] = np.linspace(-2, 2, 8, dtype=np.float32)[None]
        make = functools.partial(
            Engine,
            config=model,
            cache_length=96,
            cache_dtype=cache_dtype,
            weight_dtype=weight_dtype,
            adapters={name: _adapter(model, lora) for name, lora in LORAS.items()},
        )
        one = make(jax.device_put(params), slots=8)
        mesh = mesh_lib.make_mesh(MeshConfig(*shape))
        placed = jax.device_put(params, sharding.param_shardings(model, mesh))
        many = make(placed, slots=7, mesh=mesh)
        wanted, found = (dict(engine.sample(requests, delimiters)) for engine in (one, many))
        same = [list(found[i].ids) == list(wanted[i].ids) for i in range(len(requests))]
        off = max(abs(found[i].logprob - wanted[i].logprob) for i in range(len(requests)))
        print(json.dumps({"mesh": shape, "same": same, "off": off}))


if __name__ == "__main__":
    main()
