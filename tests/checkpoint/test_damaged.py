"""Checkpoints of strangers, whose digests agree with what was changed: every failure is one sentence."""

import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import pytest

import s1jax
from s1jax.checkpoint import digests, store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import encoding
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.evaluation import strategies
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

MODEL = ModelConfig.dense(
    vocab_size=128, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, tied_embeddings=True
)
TOKENIZER = pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer"
CASES = 40
VALUES = [
    None, True, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", "<|im_end|>", "\ud800",
    "a" * 5000, [], [1], ["a"], [None], {}, {"a": 1}, [[[]]], "float32", "<f4", "int32", "{0.__class__}",
]  # fmt: skip
# Files in which a change is most likely to be read.
OFTEN = ("s1jax.json", "_METADATA", "_sharding", ".zarray", "process_0", "tokenizer_config.json")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A model as conversion writes it, and a step of a run: Orbax's files differ."""
    folder = tmp_path_factory.mktemp("damaged")
    params = jax.jit(lambda key: decoder.init_params(MODEL, key))(jax.random.key(0))
    provenance = {"experiment": {"data": {"control": ""}}, "step": 3}
    about = store.Metadata(MODEL, Tokenizer.load(TOKENIZER), chat.FORMATS["s1_plain"], provenance)
    store.save_model(folder / "model", params, MODEL, about.tokenizer, about.chat, provenance)
    with store.Checkpointer(folder, 1, about) as checkpointer:
        checkpointer.save(1, params, {"step": jnp.int32(0)}, {})
    return folder / "model", folder / "checkpoints" / "1"


def places(tree, prefix=()):
    """Every path in nested objects and lists, itself excluded."""
    for key in tree if isinstance(tree, dict) else range(len(tree) if isinstance(tree, list) else 0):
        yield (*prefix, key)
        yield from places(tree[key], (*prefix, key))


def mutated(text, draw):
    """JSON with a value replaced, removed, renamed or doubled."""
    tree = json.loads(text)
    found = list(places(tree))
    if not found or draw.random() < 0.03:
        return json.dumps(draw.choice(VALUES))
    *path, last = draw.choice(found)
    node = tree
    for key in path:
        node = node[key]
    how = draw.random()
    if how < 0.25:
        del node[last]
    elif how < 0.35 and isinstance(node, dict):
        node[draw.choice(["x", "", f"{last}s"])] = node.pop(last)
    elif how < 0.45 and isinstance(node, list):
        node.append(node[last])
    else:
        node[last] = draw.choice(VALUES)
    return json.dumps(tree)


def damage(folder, draw):
    """Changes a file or folder of a checkpoint and writes the digests again."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "optimizer" not in file.parts)
    files.remove(folder / "digests.json")
    file = draw.choice([file for file in files if draw.random() < 0.3 or file.name in OFTEN])
    content, how = file.read_bytes(), draw.random()
    if how < 0.6 and content[:1] == b"{":
        file.write_text(mutated(content.decode(), draw))
    elif how < 0.7:
        file.unlink()
    elif how < 0.75:
        file.unlink()
        file.mkdir()
    elif how < 0.8:
        shutil.rmtree(draw.choice([item for item in sorted(folder.rglob("*")) if item.is_dir()]))
    elif how < 0.85:
        file.write_bytes(b"[" * 100_000)
    elif how < 0.9:
        file.write_bytes(draw.randbytes(len(content)))
    else:
        file.write_bytes(content[: draw.randrange(len(content) + 1)])
    digests.write(folder)


def use(folder):
    """What samplers and evaluations do with a checkpoint before anything is computed."""
    strategies.trained_for(store.load_metadata(folder).provenance)
    model = store.load_model(folder, host=True)
    store.load_model(folder)
    encode = encoding.Encoder(model)
    encode.delimiters  # noqa: B018
    encode.encode_one(Request("Make 21 from 3 7 1"), SamplingParams(max_thinking_tokens=4), "row")


def test_checkpoints_that_were_changed_with_their_digests_end_in_a_sentence(originals, tmp_path):
    refused = 0
    for case in range(CASES):
        folder = tmp_path / str(case)
        shutil.copytree(originals[case % 3 == 0], folder)
        damage(folder, random.Random(case))
        try:
            use(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 700, (case, str(error))
        except Exception as error:
            raise AssertionError(f"case {case} ends in {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert refused > CASES / 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"s1jax\.json does not describe a checkpoint \(.*No such file"),
        ("", r"does not describe a checkpoint \(Expecting value"),
        ("[1]", r"does not describe a checkpoint \(it holds list instead of an object"),
        ("[" * 100_000, r"does not describe a checkpoint \(maximum recursion"),
        ('{"format": 1, "model": []}', r"does not describe a checkpoint \(model is missing or no object"),
        ('{"format": 1, "model": {}, "chat": 5}', r"does not describe a checkpoint \(chat is missing or no object"),
        ('{"format": 1, "model": {}, "chat": {}}', r"does not describe a checkpoint \(provenance is missing or no o"),
        ('{"format": [7]}', r"has format \[7\]; this version"),
    ],
)
def test_descriptions_that_are_none(originals, tmp_path, content, sentence):
    folder = pathlib.Path(shutil.copytree(originals[0], tmp_path / "c"))
    (folder / "s1jax.json").unlink()
    if content is not None:
        (folder / "s1jax.json").write_text(content)
    digests.write(folder)
    with pytest.raises(UserError, match=sentence):
        store.load_metadata(folder)


def test_weights_that_are_whole_numbers_are_refused(originals, tmp_path):
    folder = pathlib.Path(shutil.copytree(originals[0], tmp_path / "c"))
    file = folder / "params" / "state" / "embed.embedding" / ".zarray"
    file.write_text(file.read_text().replace('"<f4"', '"<i4"'))
    digests.write(folder)
    with pytest.raises(UserError, match="embed/embedding has type int32; weights are floating-point numbers"):
        store.load_model(folder)
