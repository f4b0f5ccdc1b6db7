"""GGUF export: read back by gguf-py and ourselves, and run by llama.cpp itself."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from s1jax.checkpoint import huggingface_config, names
from s1jax.checkpoint.families import table
from s1jax.checkpoint.gguf import file as file_lib
from s1jax.checkpoint.gguf import metadata, mix, read, write
from s1jax.config.layers import Experts
from s1jax.config.presets import PRESETS
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.text.chat import FORMATS
from s1jax.text.tokenizer import Tokenizer
from tests.checkpoint import llama_cpp, tiny
from tests.model.parity_cases import CASES

VOCAB = 272


def byte_tokenizer():
    """Every byte, some merges, and the tokens of ChatML."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u0120", "a"), ("a", "b"), ("1", "2")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    about = {"eos_token": "<|im_end|>"}
    return Tokenizer(
        {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": json.dumps(about).encode()}, "bytes"
    )


TOKENIZER = byte_tokenizer()
CHAT = FORMATS["s1_plain"]
SIZES = {"vocab_size": VOCAB, "max_position_embeddings": 256}
WIDE = {**SIZES, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None}
# Families with what llama.cpp's code has of them; some load only if their heads are as wide as the model.
FAMILIES = {
    "qwen2_moe": {**WIDE, "head_dim": 16, "norm_topk_prob": False},
    "qwen3_moe": {**SIZES, "mlp_only_layers": []},
    "mixtral": SIZES,
    "gpt_oss": {**SIZES, "rope_parameters": {**tiny.CONFIGS["gpt_oss"]["rope_parameters"], "truncate": True}},
    "gemma2": {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": SIZES,
    "phi3": WIDE,
    "phi3_longrope": {**WIDE, "sliding_window": None, "rope_parameters": None, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.0, 2.5, 3, 3.5, 4.0],
    }, "partial_rotary_factor": 0.75},
    "olmo2": WIDE,
    "olmo3": {**WIDE, "num_hidden_layers": 8},
    "smollm3": {**WIDE, "no_rope_layer_interval": 4},
    "mistral_full": SIZES,
    "ministral3": SIZES,
    "deepseek_v2": {**SIZES, "q_lora_rank": None, "num_hidden_layers": 27},
    "deepseek_v3": SIZES,
}  # fmt: skip


MORE = {
    **FAMILIES,
    "deepseek_v2_groups": SIZES,
    "deepseek_v2_small": {**tiny.CONFIGS["deepseek_v2"], **SIZES, "q_lora_rank": None},
    "mistral": SIZES,
    "gemma3_text_pattern": {**SIZES, "query_pre_attn_scalar": 8},
    "qwen3_moe_step": SIZES,
}


def family_config(name):
    """Of a tiny model of a family, with the changes above."""
    values = {**tiny.CONFIGS.get(name, {}), **MORE[name]}
    family = table.FAMILIES[values["model_type"]]
    given = {key: value for key, value in values.items() if value is not None or key == "q_lora_rank"}
    if MORE[name].get("sliding_window", 0) is None:
        given["sliding_window"] = None
    return huggingface_config.config_from_json({**given, "architectures": [family.architecture]})


CONFIGS = {name: dataclasses.replace(config, vocab_size=VOCAB) for name, config in CASES.items()}
CONFIGS["qwen2_yarn"] = dataclasses.replace(CONFIGS["qwen2_yarn"], d_model=96)
CONFIGS |= {name: family_config(name) for name in FAMILIES}
EXPORTED = [name for name in CONFIGS if name != "qwen3_yarn_exact"]


def weights(config, seed=0):
    """Random float32 weights in our tree; norms, biases and sinks are perturbed, too."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        keys = [entry.key for entry in path]
        noise = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        if keys[-1] == "scale":
            return 0.3 * noise + (not config.norm_offset)
        if keys[-1] in ("bias", "logits", "selection_bias"):
            return 0.3 * noise
        wide = "embedding" in keys or "router" in keys
        return (0.5 if wide else 1.2 * config.d_model**-0.5) * noise

    return jax.tree_util.tree_map_with_path(fill, names.allocate(config, np.float32))


def export(path, config, params, file_type="F32"):
    return write.write_model(path, params, config, TOKENIZER, CHAT, file_type=file_type, name="tiny")


def greedy(params, config, prompt, count=24):
    """Our greedy ids and the probabilities of the first one."""
    length = len(prompt) + count

    @jax.jit
    def logits(params, row):
        place = jnp.arange(length)[None]
        hidden = decoder.forward(params, config, row, place, jnp.ones_like(row), dtype=jnp.float32)
        return decoder.logits(params, config, hidden)

    ids, params, first = list(prompt), jax.tree.map(jnp.asarray, params), None
    for _ in range(count):
        row = np.zeros((1, length), np.int32)
        row[0, : len(ids)] = ids
        found = np.asarray(logits(params, row))[0, len(ids) - 1]
        first = np.asarray(jax.nn.softmax(found)) if first is None else first
        ids.append(int(found.argmax()))
    return ids[len(prompt) :], first


@pytest.mark.parametrize("name", EXPORTED)
def test_a_file_gives_the_model_back(tmp_path, name):
    config = CONFIGS[name]
    params = weights(config)
    export(tmp_path / "m.gguf", config, params)
    file = file_lib.open_file(tmp_path / "m.gguf")
    read_again = metadata.read_config(file, "m.gguf")
    assert read_again.family == {"mistral": "llama"}.get(config.family, config.family)
    assert dataclasses.replace(read_again, family=config.family) == config
    found = names.views(config, read.read_params(file, config, "m.gguf"), "gguf")
    for tensor, view in names.views(config, params, "gguf").items():
        np.testing.assert_array_equal(found[tensor], view, err_msg=tensor)


@pytest.mark.parametrize("name", EXPORTED)
def test_llama_cpp_gives_our_ids(tmp_path, name):
    llama_cpp.folder()
    config = CONFIGS[name]
    params = weights(config)
    export(tmp_path / "m.gguf", config, params)
    prompt = np.random.default_rng(3).integers(256, size=70)
    ids, probabilities = llama_cpp.run(tmp_path / "m.gguf", prompt)
    ours, first = greedy(params, config, prompt)
    assert ids == ours
    assert max(abs(p - first[i]) for i, p in probabilities.items()) < 2e-3


def _experts(config, **changes):
    """The model with other settings of its experts."""
    groups = [
        dataclasses.replace(
            group,
            pattern=tuple(
                dataclasses.replace(layer, mlp=dataclasses.replace(layer.mlp, **changes))
                if isinstance(layer.mlp, Experts)
                else layer
                for layer in group.pattern
            ),
        )
        for group in config.groups
    ]
    return dataclasses.replace(config, groups=tuple(groups))


REFUSED = {
    "wide qwen2": (
        CASES["qwen2_yarn"],
        "qwen2 does not hold this model: .*6 heads of 16 dimensions are not as wide as the model, 48",
    ),
    "yarn": (CASES["qwen3_yarn_exact"], "computes with rope_scaling.truncate True, and this model has False; it would"),
    "no family": (dataclasses.replace(CASES["llama"], family=""), "model.family is '', which llama.cpp does not know"),
    "qwen3 moe": (_experts(CONFIGS["qwen3_moe"], normalize=False), "qwen3moe computes with normalize True, and this"),
    "qwen2 moe": (_experts(CONFIGS["qwen2_moe"], normalize=True), "qwen2moe computes with normalize False, and this"),
    "groups by maximum": (
        family_config("deepseek_v2_groups"),
        "deepseek2 computes with groups 1, and this model has 4",
    ),
    "window": (
        family_config("mistral"),
        "window is 32 and the context 256, and llama.cpp computes no window for llama; make the",
    ),
    "pattern": (family_config("gemma3_text_pattern"), "gemma3 computes with rope 'local', and this model has 'global'"),
    "dense layers": (
        family_config("qwen3_moe_step"),
        "qwen3moe computes with layers of kind Experts, and this .* Dense",
    ),
    "lite": (
        family_config("deepseek_v2_small"),
        "do not come from latent vectors in a model of 3 layers, and llama.cpp",
    ),
}


@pytest.mark.parametrize(("config", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, config, sentence):
    with pytest.raises(UserError, match=sentence):
        export(tmp_path / "m.gguf", config, weights(config))
    assert not list(tmp_path.iterdir())


def _wide(name, layers, heads, head_dim, hidden, **changes):
    """The model with more layers, and widths that blocks divide."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    (group,) = config.groups
    (layer,) = group.pattern
    attention = dataclasses.replace(layer.attention, num_heads=heads, num_kv_heads=2, head_dim=head_dim)
    layer = dataclasses.replace(layer, attention=attention, mlp=dataclasses.replace(layer.mlp, hidden=hidden))
    return dataclasses.replace(config, groups=(dataclasses.replace(group, repeat=layers, pattern=(layer,)),))


MIXES = {
    "wide": _wide("llama", 17, 8, 32, 256, d_model=256),
    "narrow and tied": _wide("qwen2_tied_mha", 9, 6, 16, 160, d_model=96),
    "eight experts": _experts(_wide("mixtral", 9, 8, 32, 96, d_model=256), num_experts=8),
    "experts": _wide("qwen3_moe", 9, 4, 24, 96, d_model=256),
    "fused": _wide("phi3", 9, 4, 64, 512, d_model=256),
    "seventy billion": _wide("llama", 80, 4, 16, 32, d_model=256),
}


# Published models that llama.cpp computes otherwise than transformers, and what differs.
OTHERWISE = {
    "gpt_oss_20b": "truncate True",
    "gpt_oss_120b": "truncate True",
    "deepseek_v2": "groups 1",
    "phi3_mini_4k": "window 0",
    "mistral_7b_v0p1": "no window",
}


@pytest.mark.parametrize("name", PRESETS)
def test_published_models(name):
    """Keys and names of tensors are those of the model, or the export says what is not."""
    if name not in OTHERWISE:
        values = metadata.written(PRESETS[name])
        assert values[f"{values['general.architecture']}.block_count"] == PRESETS[name].num_layers
        return
    with pytest.raises(UserError, match=OTHERWISE[name]):
        metadata.written(PRESETS[name])


@pytest.mark.parametrize("file_type", mix.TYPES)
@pytest.mark.parametrize("name", ["wide", "eight experts", "fused"])
def test_llama_cpp_reads_every_type(tmp_path, name, file_type):
    """Its probabilities are near ours with the same weights; it rounds activations beside quantised ones."""
    llama_cpp.folder()
    config = MIXES[name]
    path = tmp_path / "m.gguf"
    export(path, config, weights(config), file_type)
    params = read.read_params(file_lib.open_file(path), config, "m.gguf")
    prompt = np.random.default_rng(3).integers(256, size=20)
    _, probabilities = llama_cpp.run(path, prompt, 1)
    _, first = greedy(params, config, prompt, 1)
    assert max(abs(p - first[i]) for i, p in probabilities.items()) < (2e-3 if file_type == "F32" else 0.05)


@pytest.mark.parametrize(
    ("file_type", "sentence"),
    [("Q4_0", "tensor token_embd.weight has rows of 48 weights, which blocks of 32 do not divide; Q4_0 cannot")],
)
def test_widths_that_no_block_divides(tmp_path, file_type, sentence):
    with pytest.raises(UserError, match=sentence):
        export(tmp_path / "m.gguf", CONFIGS["llama"], weights(CONFIGS["llama"]), file_type)
    assert not list(tmp_path.iterdir())


def test_weights_that_a_type_cannot_hold(tmp_path):
    params = weights(CONFIGS["llama"])
    params["layers"]["attention"]["out"]["kernel"][1, 0, 0, 0] = 1e6
    with pytest.raises(UserError, match=r"tensor blk.1.attn_output.weight cannot be written as F16: a weight of 1e"):
        export(tmp_path / "m.gguf", CONFIGS["llama"], params, "F16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_type", ["F32", "F16"])
def test_weights_that_are_no_numbers(tmp_path, file_type):
    params = weights(CONFIGS["llama"])
    params["layers"]["attention"]["out"]["kernel"][1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"blk.1.attn_output.weight cannot be written: .* take an earlier checkpoint"):
        export(tmp_path / "m.gguf", CONFIGS["llama"], params, file_type)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q4_K", "Q6_K", "Q8_0", "Q4_0", "Q5_0"])
@pytest.mark.parametrize("name", MIXES)
def test_llama_quantize_chooses_the_same_types(tmp_path, name, file_type):
    """And makes the same bytes."""
    llama_cpp.folder()
    config = MIXES[name]
    params = weights(config)
    export(tmp_path / "float.gguf", config, params)
    export(tmp_path / "ours.gguf", config, params, file_type)
    llama_cpp.quantize_file(tmp_path / "float.gguf", tmp_path / "theirs.gguf", int(mix.TYPES[file_type][1]))
    ours, theirs = (file_lib.open_file(tmp_path / f"{whose}.gguf") for whose in ("ours", "theirs"))
    found = {tensor.name: tensor for tensor in ours.tensors}
    assert {tensor.name: tensor.kind for tensor in theirs.tensors} == {
        name: tensor.kind for name, tensor in found.items()
    }
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(found[tensor.name].data, tensor.data, err_msg=tensor.name)
    assert found.keys() == {tensor.name for tensor in theirs.tensors}
    for key in ("general.file_type", "general.quantization_version"):
        assert ours.metadata[key] == theirs.metadata[key]
