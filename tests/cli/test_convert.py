"""`python -m launch.convert` from the outside: whole ways in and out, and what it says to wrong input."""

import argparse
import dataclasses
import inspect
import json
import os
import pathlib
import subprocess
import sys

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from s1jax.checkpoint import adapters, huggingface, huggingface_config, names, store
from s1jax.cli import convert_adapters
from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.errors import UserError
from s1jax.model.adapters import abstract
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests import byte_tokenizer
from tests.checkpoint import test_gguf
from tests.model.parity_cases import CASES, weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = dataclasses.replace(CASES["qwen2"], vocab_size=300)
ENDS = [257, 0]  # <|im_end|>, and what the model's own configuration names besides
TEXT = "<|im_start|>user\nSchr\u00f6der's 12 + 34?<|im_end|>\n<|im_start|>think\n"

# Runs one conversion after the other in one process, which saves the imports; prints [null or sentence, ...].
# The folder of the second argument stands in for the hub; a model that is not in it is asked of the real one, offline.
DRIVER = """
import fnmatch, json, pathlib, shutil, sys, types
import huggingface_hub
from absl import flags
from s1jax.cli import convert
from s1jax.errors import UserError
ask_the_hub = huggingface_hub.snapshot_download
def snapshot_download(name, *, repo_type, revision, allow_patterns):
    model = pathlib.Path(sys.argv[2], name)
    if not model.is_dir():
        return ask_the_hub(name, revision=revision, allow_patterns=allow_patterns)
    commit = {None: "a" * 40, "v1": "b" * 40}[revision]
    snapshot = pathlib.Path(sys.argv[2], "models--" + name.replace("/", "--"), "snapshots", commit)
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
            shutil.copy(file, snapshot)
    return str(snapshot)
huggingface_hub.snapshot_download = snapshot_download
def create_repo(name, *, private, repo_type, exist_ok):
    if name.startswith("nobody/"):
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required, but no token was found")
    folder = pathlib.Path(sys.argv[2], "repositories", name)
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / ("private" if private else "public")).touch()
def repo_info(name, *, repo_type):
    return types.SimpleNamespace(private=pathlib.Path(sys.argv[2], "repositories", name, "private").exists())
def upload_folder(*, repo_id, folder_path, repo_type, commit_message, delete_patterns):
    if repo_id == "owner/broken":
        raise ConnectionError("reset by peer")
    target = pathlib.Path(sys.argv[2], "repositories", repo_id)
    for pattern in delete_patterns:
        for file in target.glob(pattern):
            file.unlink()
    shutil.copytree(folder_path, target, dirs_exist_ok=True)
for function in (create_repo, repo_info, upload_folder):
    setattr(huggingface_hub, function.__name__, function)
results = []
for arguments in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(["convert", *arguments])
    try:
        convert.main()
        results.append(None)
    except UserError as error:
        results.append(str(error))
print(json.dumps(results))
"""

# Flags ({0} is the folder with everything) and words of the sentence.
WRONG = [
    ([], "give exactly one of --from_hf, --from_gguf, --from"),
    (["--from_hf={0}/hf", "--from={0}/hf", "--to={0}/new"], "give exactly one of --from_hf"),
    (["--from_hf={0}/hf"], "give exactly one of --to, --to_hf, --to_gguf"),
    (["--from_hf={0}/hf", "--to_hf={0}/new"], "or --from with --to_hf or --to_gguf"),
    (["--from={0}/ckpt", "--to={0}/new"], "or --from with --to_hf or --to_gguf"),
    (["--from_hf={0}/hf", "--to={0}/new", "--revision=v1"], "--revision is of a model on the hub; /"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--revision=v1"], "--revision is of a model on the hub; it goes with"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--type=F16"], "--type is of the weights of a GGUF file"),
    (["--from={0}/ckpt", "--to_gguf={0}/new", "--dtype=float32"], "--dtype is not for GGUF files"),
    (["--from={0}/ckpt", "--to_gguf={0}/bare.gguf"], "bare.gguf exists; remove it or choose another name"),
    (["--from={0}/ckpt", "--to_gguf={0}/none/new.gguf"], "/none does not exist; make it or choose another"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--max_shard_gb=0"], "--max_shard_gb is 0.0"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--max_shard_gb=inf"], "--max_shard_gb is inf; it must be positive and"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--max_shard_gb=nan"], "--max_shard_gb is nan"),
    (["--from_hf={0}/hf", "--to={0}/new", "--push_to_hub=a/b"], "it goes with --from and --to_hf"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--push_to_hub=tuned"], "--push_to_hub=tuned is not a hub id (OWNER/NAME)"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--private"], "--private is of the repository that --push_to_hub names"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--push_to_hub=nobody/x"], "LocalTokenNotFoundError: Token is required"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--push_to_hub=owner/open", "--private"], "open is a public repository"),
    (
        ["--from={0}/ckpt", "--to_hf={0}/kept", "--push_to_hub=owner/broken"],
        "/kept is complete; `hf upload owner/bro",
    ),
    (["--from_hf={0}/hf", "--to={0}/hf"], "exists and is not empty; remove it or choose another"),
    (["--from_hf={0}/none", "--to={0}/new"], "none is neither a folder nor a hub id"),
    (["--from_hf=owner/model", "--to={0}/new"], "could not be fetched from the hub"),
    (["--from_hf={0}/empty", "--to={0}/new"], "config.json does not exist"),
    (["--from_hf={0}/adapter", "--to={0}/new"], "adapter_config.json: a LoRA adapter, which s1jax does not apply"),
    (["--from_hf={0}/stolen", "--to={0}/new"], "chat_template.jinja is a link to"),
    (["--from_hf={0}/hf", "--to={0}/new", "--tokenizer={0}/empty"], "no tokenizer"),
    (["--from_hf={0}/small", "--to={0}/new"], "the tokenizer has 258 ids but the model's vocabulary 61 rows"),
    (["--from_hf={0}/hf", "--to={0}/new", "--chat=think"], "delimiter '<think>' is not in the tokenizer"),
    (["--from_hf={0}/hf", "--to={0}/new", "--think_end= so"], "think_end ' so' begins with white space"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--think_end=so"], "--think_end are for imports"),
    (["--from_hf={0}/cut", "--to={0}/new"], "model.safetensors is damaged"),
    (["--from_hf={0}/int8", "--to={0}/new", "--dtype=float32"], "is stored as I8; s1jax reads F32, F16, BF16"),
    (["--from_hf={0}/huge", "--to={0}/new"], "too few for the 64 layers of its configuration"),
    (["--from_hf={0}/no_heads", "--to={0}/new"], "no_heads/config.json: model.num_heads is 0; it must be positive"),
    (["--from_hf={0}/bad_eos", "--to={0}/new"], "bad_eos/tokenizer_config.json: eos_token is ['a']"),
    (["--from_gguf={0}/none.gguf", "--to={0}/new"], "none.gguf does not exist"),
    (["--from_gguf={0}/hf/config.json", "--to={0}/new"], "not a complete GGUF file"),
    (["--from_gguf={0}/bare.gguf", "--to={0}/new"], "pass --tokenizer=DIR"),
    (["--from={0}/hf", "--to_hf={0}/new"], "is a Hugging Face folder"),
    (["--from={0}/none", "--to_hf={0}/new"], "is not a folder"),
    (["--from={0}/both", "--to_hf={0}/new"], "qkv_bias with qk_norm"),
    (["--from={0}/ckpt", "--to={0}/new", "--merge"], "ckpt has weights and no adapters; give --adapter=DIR"),
    (["--from={0}/ckpt", "--to_hf={0}/new", "--adapter={0}/peft"], "is a PEFT folder already; give --merge"),
    (["--from={0}/ckpt", "--to={0}/new", "--adapter={0}/empty"], "empty has no adapter_config.json"),
    (["--from={0}/adapted", "--to={0}/new", "--adapter={0}/peft"], "adapted has adapters already; merge these first"),
    (["--from={0}/adapted", "--to={0}/new", "--merge", "--base={0}/ckpt16"], "trained for another checkpoint than"),
    (["--from_hf={0}/hf", "--to={0}/new", "--merge"], "--merge is of adapters; it goes with --from=CKPT"),
]
RIGHT = [
    ["--from_hf={0}/hf", "--to={0}/ckpt"],
    ["--from_hf={0}/hf", "--to={0}/ckpt16", "--dtype=bfloat16", "--chat=s1_plain"],
    ["--from_hf={0}/hf", "--to={0}/own", "--chat=think", "--think_start=<reasoning>", "--think_end=</reasoning>"],
    ["--from={0}/ckpt", "--to_hf={0}/back", "--max_shard_gb=0.00003"],
    ["--from={0}/ckpt16", "--to_hf={0}/back16"],
    ["--from={0}/ckpt16", "--to_hf={0}/pushed16", "--push_to_hub=owner/tuned", "--private", "--max_shard_gb=0.00003"],
    ["--from={0}/ckpt", "--to_hf={0}/pushed", "--push_to_hub=owner/tuned"],
    ["--from_gguf={0}/bare.gguf", "--to={0}/from_gguf", "--tokenizer={0}/hf"],
    ["--from_hf=owner/tiny", "--to={0}/from_hub"],
    ["--from_hf=owner/tiny", "--to={0}/from_hub_v1", "--revision=v1"],
    ["--from_hf={0}/hub/models--owner--tiny/snapshots/" + "a" * 40, "--to={0}/from_cache"],
    ["--from_gguf={0}/full.gguf", "--to={0}/from_gguf_alone", "--chat=s1_plain", "--dtype=bfloat16"],
    ["--from={0}/ckpt", "--adapter={0}/peft", "--to={0}/adapted"],
    ["--from={0}/adapted", "--to_hf={0}/peft_again"],
    ["--from={0}/adapted", "--merge", "--to={0}/merged"],
    ["--from={0}/ckpt", "--adapter={0}/peft", "--merge", "--to_hf={0}/merged_hf"],
]
LORA = LoraConfig(rank=2, alpha=4.0, targets="q_proj,down_proj")


FROM_HUB = {"from_hub": "a" * 40, "from_hub_v1": "b" * 40, "from_cache": "a" * 40, "ckpt": None}


def _hf_folder(folder, config):
    folder.mkdir()
    huggingface.write_model(folder, weights(config), config)
    byte_tokenizer.save(folder)


def _adapters():
    rng = np.random.default_rng(0)
    shapes = abstract(CONFIG, LORA, np.float32)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder in which all of RIGHT and WRONG were run, and the sentences of WRONG."""
    folder = tmp_path_factory.mktemp("convert")
    _hf_folder(folder / "hf", CONFIG)
    (folder / "hf" / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    _hf_folder(folder / "small", CASES["qwen2"])
    _hf_folder(folder / "cut", CONFIG)
    (folder / "cut" / "model.safetensors").write_bytes((folder / "hf" / "model.safetensors").read_bytes()[:-50])
    (folder / "empty").mkdir()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    _hf_folder(folder / "stolen", CONFIG)
    (folder / "secret").write_text("a password")
    (folder / "stolen" / "chat_template.jinja").symlink_to(folder / "secret")
    (folder / "hub" / "owner").mkdir(parents=True)
    (folder / "hub" / "repositories" / "owner" / "open").mkdir(parents=True)
    _hf_folder(folder / "hub" / "owner" / "tiny", CONFIG)
    (folder / "hub" / "owner" / "tiny" / "pytorch_model.bin").write_text("the weights once more")
    _hf_folder(folder / "int8", CONFIG)
    tensors = safetensors.numpy.load_file(folder / "int8" / "model.safetensors")
    safetensors.numpy.save_file(
        {name: tensor.astype(np.int8) for name, tensor in tensors.items()}, folder / "int8" / "model.safetensors"
    )
    _hf_folder(folder / "huge", CONFIG)
    (folder / "huge" / "config.json").write_text(json.dumps(huggingface_config.config_to_json(PRESETS["qwen2p5_32b"])))
    _hf_folder(folder / "no_heads", CONFIG)
    values = huggingface_config.read_json(folder / "no_heads" / "config.json") | {"num_attention_heads": 0}
    (folder / "no_heads" / "config.json").write_text(json.dumps(values))
    _hf_folder(folder / "bad_eos", CONFIG)
    (folder / "bad_eos" / "tokenizer_config.json").write_text('{"eos_token": ["a"]}')
    llama = dataclasses.replace(CASES["llama"], vocab_size=300)
    test_gguf._write(folder / "bare.gguf", llama, weights(llama), "llama", metadata={"tokenizer.ggml.model": "llama"})
    metadata = test_gguf._small("smollm")
    for key in ("tokens", "token_type"):  # <think> becomes <|im_start|>, so that a chat format fits
        values = metadata[f"tokenizer.ggml.{key}"]
        metadata[f"tokenizer.ggml.{key}"] = [
            "<|im_start|>" if value == "<think>" else 3 if value == 4 else value for value in values
        ]
    test_gguf._write(folder / "full.gguf", llama, weights(llama), "llama", metadata=metadata)
    (folder / "peft").mkdir()
    adapters.write(folder / "peft", _adapters(), CONFIG, LORA, "owner/base")
    both = ModelConfig.dense(**{**CONFIG.flat(), "qk_norm": True})
    store.save_model(folder / "both", weights(both), both, Tokenizer.load(folder / "hf"), chat.FORMATS["s1"], {})
    runs = [[part.format(folder) for part in arguments] for arguments in [*RIGHT, *(flags for flags, _ in WRONG)]]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(runs), str(folder / "hub")],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sentences = json.loads(done.stdout.splitlines()[-1])
    assert sentences[: len(RIGHT)] == [None] * len(RIGHT)
    return folder, sentences[len(RIGHT) :]


def _equal(left, right):
    expected = names.views(right[1], right[0], "huggingface")
    for name, view in names.views(left[1], left[0], "huggingface").items():
        np.testing.assert_array_equal(view, expected[name], err_msg=name)


def test_checkpoint_from_hugging_face_holds_everything(converted):
    folder, _ = converted
    model = store.load_model(folder / "ckpt")
    stop = (*chat.FORMATS["s1_plain"].stop, "!")  # the model's own
    assert model.config == CONFIG and model.chat == dataclasses.replace(chat.FORMATS["s1_plain"], stop=stop)
    assert model.provenance["chat"] == "s1_plain"  # without --chat: ChatML's tokens are there, a template is not
    assert set(ENDS) <= set(chat.delimiters(model.tokenizer, model.chat).stop)
    assert model.tokenizer.encode(TEXT) == Tokenizer.load(folder / "hf").encode(TEXT)
    assert model.provenance["source"] == str(folder / "hf") and model.provenance["format"] == "huggingface"
    _equal((model.params, CONFIG), (weights(CONFIG), CONFIG))


def test_a_model_of_the_hub_is_fetched_without_what_is_not_read(converted):
    folder, _ = converted
    model = store.load_model(folder / "from_hub")
    _equal((model.params, CONFIG), (weights(CONFIG), CONFIG))
    assert model.provenance["source"] == "owner/tiny" and model.tokenizer.encode(TEXT)
    fetched = {path.name for path in (folder / "hub/models--owner--tiny/snapshots" / ("a" * 40)).iterdir()}
    assert fetched == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def test_the_commit_of_a_model_of_the_hub_is_recorded(converted):
    folder, _ = converted
    commits = {name: store.load_metadata(folder / name).provenance.get("revision") for name in FROM_HUB}
    assert commits == FROM_HUB


def test_type_and_chat_format_are_as_asked(converted):
    folder, _ = converted
    model = store.load_model(folder / "ckpt16")
    assert model.params["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    assert dataclasses.replace(model.chat, stop=()) == dataclasses.replace(chat.FORMATS["s1_plain"], stop=())
    with_exact = weights(CONFIG)["layers"]["mlp"]["up"]["kernel"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(model.params["layers"]["mlp"]["up"]["kernel"]), with_exact)


def test_delimiters_are_as_asked_and_need_no_ids_of_their_own(converted):
    own = store.load_metadata(converted[0] / "own")
    assert (own.chat.think_start, own.chat.think_end) == ("<reasoning>", "</reasoning>")
    encoded = chat.delimiters(own.tokenizer, own.chat)
    assert own.tokenizer.decode(list(encoded.think_end)) == "</reasoning>" and len(encoded.think_end) > 1
    assert encoded.think_end[0] in encoded.end


def test_back_to_hugging_face(converted):
    folder, _ = converted
    assert huggingface_config.config_from_json(huggingface_config.read_json(folder / "back" / "config.json")) == CONFIG
    assert len(list((folder / "back").glob("*.safetensors"))) > 2
    _equal((huggingface.read_params(folder / "back", CONFIG), CONFIG), (weights(CONFIG), CONFIG))
    ids = Tokenizer.load(folder / "back")
    assert set(huggingface_config.read_eos(folder / "back")) == {ids.id_of("<|im_end|>"), ids.id_of("!")} == set(ENDS)
    assert huggingface.read_params(folder / "back16", CONFIG)["final_norm"]["scale"].dtype == ml_dtypes.bfloat16


def test_adapters_come_in_go_out_and_are_merged(converted):
    folder, _ = converted
    info = store.load_metadata(folder / "adapted").adapters
    assert (info.lora, info.base) == (LORA, str(folder / "ckpt"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        ours, theirs = ((folder / one / name).read_bytes() for one in ("peft_again", "peft"))
        assert ours == theirs.replace(b"owner/base", str(folder / "hf").encode())
    assert (folder / "peft_again" / "tokenizer.json").exists()
    tree, wanted = _adapters()["layers"]["mlp"]["down"], weights(CONFIG)
    kernel = wanted["layers"]["mlp"]["down"]["kernel"]
    expected = kernel + 2.0 * np.einsum("lfr,lrd->lfd", tree["a"], tree["b"])
    merged = huggingface.read_params(folder / "merged_hf", CONFIG)
    _equal((store.load_model(folder / "merged").params, CONFIG), (merged, CONFIG))
    np.testing.assert_allclose(merged["layers"]["mlp"]["down"]["kernel"], expected, rtol=0, atol=1e-5)
    assert not (folder / "merged_hf" / "adapter_config.json").exists()
    np.testing.assert_array_equal(merged["layers"]["mlp"]["up"]["kernel"], wanted["layers"]["mlp"]["up"]["kernel"])


def test_a_peft_folder_names_the_weights_that_its_adapters_belong_to(converted, monkeypatch):
    """Weights with a merged adapter are others than those they were converted from."""
    folder, _ = converted
    about = store.load_metadata(folder / "ckpt")
    assert convert_adapters._name(str(folder / "ckpt")) == (str(folder / "hf"), True)
    assert convert_adapters._name("owner/base") == ("owner/base", True)
    for origin in ({**about.provenance, "adapter": "peft"}, {"format": "gguf", "source": "m.gguf"}):
        changed = dataclasses.replace(about, provenance=origin)
        monkeypatch.setattr(store, "load_metadata", lambda path, changed=changed: changed)
        assert convert_adapters._name("runs/base") == ("runs/base", False)


def test_the_base_of_a_peft_folder_is_checked(converted, monkeypatch):
    folder, _ = converted
    info = store.load_metadata(folder / "adapted").adapters
    convert_adapters._check_base(str(folder / "hf"), CONFIG, info)
    convert_adapters._check_base(str(folder / "ckpt"), CONFIG, info)
    with pytest.raises(UserError, match=r"--base=.*hf has weights of other names or shapes than the model"):
        convert_adapters._check_base(str(folder / "hf"), dataclasses.replace(CONFIG, vocab_size=999), info)
    with pytest.raises(UserError, match=r"--base=.*ckpt16 is another checkpoint than the one that the adapters"):
        convert_adapters._check_base(str(folder / "ckpt16"), CONFIG, info)
    monkeypatch.setattr(convert_adapters, "FLAGS", argparse.Namespace(adapter="peft"))
    origin = {"format": "huggingface", "source": "Qwen/Qwen2.5-7B-Instruct"}
    notes = []
    monkeypatch.setattr(convert_adapters.terminal, "note", notes.append)
    for name in ("", "Qwen/Qwen2.5-7B-Instruct", "unsloth/qwen2.5-7b-instruct", "/data/mine"):
        convert_adapters._check_name(name, "runs/base", origin)
    assert len(notes) == 2 and all("only the shapes" in note for note in notes)
    with pytest.raises(UserError, match=r"another base, Qwen/Qwen2.5-7B, than .*-Instruct, .* base_model_name_or_path"):
        convert_adapters._check_name("Qwen/Qwen2.5-7B", "runs/base", origin)


def test_a_folder_is_pushed_to_the_hub(converted):
    """The second time as one file, beside which the shards of the first would be read by nobody or instead of it."""
    folder, _ = converted
    repository = folder / "hub" / "repositories" / "owner" / "tuned"
    names = {file.name for file in (folder / "pushed").iterdir()}
    assert {file.name for file in repository.iterdir()} == names | {"private"}
    assert len(list((folder / "pushed16").glob("*.safetensors"))) > 2
    for name in names:
        assert (repository / name).read_bytes() == (folder / "pushed" / name).read_bytes()
    _equal((huggingface.read_params(folder / "kept", CONFIG), CONFIG), (weights(CONFIG), CONFIG))


def test_the_hub_s_client_takes_what_it_is_given():
    for name, arguments, settings in (
        ("create_repo", ["a/b"], {"private": True, "repo_type": "model", "exist_ok": True}),
        ("repo_info", ["a/b"], {"repo_type": "model"}),
        ("upload_folder", [], dict.fromkeys(("repo_id", "folder_path", "repo_type", "commit_message"), "x")),
        ("upload_folder", [], {"repo_id": "a/b", "folder_path": "x", "delete_patterns": ["*"]}),
    ):
        inspect.signature(getattr(huggingface_hub, name)).bind(*arguments, **settings)


def test_transformers_loads_the_export_with_its_tokenizer(converted):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.model.parity_cases import tokens, transformers_logits, transformers_model

    folder, _ = converted
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "back", dtype=torch.float32).eval()
    ids = tokens(CONFIG, (1, 20))
    expected = transformers_logits(transformers_model(CONFIG, weights(CONFIG)), ids)
    np.testing.assert_array_equal(transformers_logits(model, ids), expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "back")
    assert tokenizer(TEXT)["input_ids"] == Tokenizer.load(folder / "ckpt" / "tokenizer").encode(TEXT)
    assert tokenizer.eos_token == "<|im_end|>"
    trained = store.load_metadata(folder / "ckpt")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12 + 34?"}], add_generation_prompt=True, return_dict=False
    )
    assert prompt == [
        *chat.encode_prompt(trained.tokenizer, trained.chat, "12 + 34?"),
        *chat.delimiters(trained.tokenizer, trained.chat).think_start,
    ]
    assert model.generation_config.eos_token_id == ENDS[::-1] and model.generation_config.pad_token_id == ENDS[0]
    assert not model.generation_config.do_sample


def test_gguf_with_a_tokenizer_beside_it_and_alone(converted):
    folder, _ = converted
    config = dataclasses.replace(CASES["llama"], vocab_size=300)
    model = store.load_model(folder / "from_gguf")
    assert model.config == config and model.tokenizer.num_ids == 258
    _equal((model.params, config), (weights(config), config))
    alone = store.load_model(folder / "from_gguf_alone")
    assert alone.params["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    assert alone.tokenizer.id_of("<|im_end|>") == 0 and alone.tokenizer.eos_id == 0


@pytest.mark.parametrize("number", range(len(WRONG)), ids=lambda number: WRONG[number][1][:40])
def test_wrong_input_gets_one_sentence(converted, number):
    _, sentences = converted
    sentence = sentences[number]
    assert sentence is not None and WRONG[number][1] in sentence
    assert "\n" not in sentence and sentence.endswith(".")


def test_nothing_is_left_of_a_failure(converted):
    folder, _ = converted
    assert not (folder / "new").exists()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_command_exits_with_the_sentence_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "launch.convert", f"--from_gguf={tmp_path}/no.gguf", f"--to={tmp_path}/new"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
