"""Converts models from Hugging Face folders and GGUF files to s1jax checkpoints, and checkpoints to both.

    python -m launch.convert --from_hf=DIR_OR_HUB_ID --to=CKPT [--chat=NAME] [--dtype=float32] [--tokenizer=DIR]
        [--revision=COMMIT]
    python -m launch.convert --from_gguf=FILE --to=CKPT [--chat=NAME] [--dtype=float32] [--tokenizer=DIR]
        [--think_start=TEXT] [--think_end=TEXT]
    python -m launch.convert --from=CKPT --to_hf=DIR [--dtype=bfloat16] [--max_shard_gb=5]
        [--push_to_hub=OWNER/NAME [--private]]
    python -m launch.convert --from=CKPT --to_hf=DIR                     (CKPT of adapters: a PEFT folder)
    python -m launch.convert --from=CKPT [--adapter=PEFT_DIR | --base=CKPT] --merge (--to=CKPT | --to_hf=DIR)
    python -m launch.convert --from=CKPT --adapter=PEFT_DIR --to=CKPT    (adapters for that checkpoint)
    python -m launch.convert --from=CKPT --to_gguf=FILE [--type=Q8_0]

Without --chat the chat format follows from the tokenizer's own chat template; one line says which it is. A Hugging Face
folder gets the format that the checkpoint was trained with as its chat template, and where transformers is installed
its tokenizer is compared with s1jax's.

With --push_to_hub the folder is uploaded to the Hugging Face hub as well, under the login of `hf auth login` or the
environment variable HF_TOKEN. The repository is made where it does not exist. Weights that it holds already under other
names are deleted in the same commit; its other files stay.

A GGUF file has the model (adapters merged), its tokenizer and its chat template, so that llama.cpp, Ollama
and LM Studio need nothing else; docs/gguf.md has the types.

The target must not exist or be empty; it appears when it is complete, under a name of its own until then.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import pathlib
import re
import time
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags

import s1jax
from s1jax.checkpoint import huggingface, huggingface_config, huggingface_tokenizer, store
from s1jax.cli import convert_adapters, terminal
from s1jax.config.model import ModelConfig
from s1jax.errors import MissingPackageError, UserError
from s1jax.io import files, hub, paths
from s1jax.text import chat as chat_lib
from s1jax.text import default_format
from s1jax.text.tokenizer import Tokenizer

FLAGS = flags.FLAGS

# As `s1jax.checkpoint.gguf.mix`, which needs the package gguf.
_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "MXFP4", "Q6_K", "Q4_K", "Q4_K_M")

flags.DEFINE_string("from_hf", "", "Hugging Face model folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct.")
flags.DEFINE_string("revision", "", "Branch, tag or commit of the hub id that --from_hf names; by default the newest.")
flags.DEFINE_string("from_gguf", "", "GGUF file.")
flags.DEFINE_string("from", "", "s1jax checkpoint or training workdir.")
flags.DEFINE_string("to", "", "Checkpoint folder to write.")
flags.DEFINE_string("to_hf", "", "Hugging Face folder to write.")
flags.DEFINE_string("to_gguf", "", "GGUF file to write.")
flags.DEFINE_enum(
    "type", "", ["", *_TYPES], "Type of the weights of the GGUF file; by default Q8_0.", case_sensitive=False
)
flags.DEFINE_string("push_to_hub", "", "Hub id OWNER/NAME that the folder of --to_hf is uploaded to.")
flags.DEFINE_bool("private", False, "Make the repository of --push_to_hub private; it may not be public already.")
flags.DEFINE_string("tokenizer", "", "Tokenizer folder or file to use instead of the source's own.")
flags.DEFINE_enum(
    "chat",
    "",
    ["", *sorted(chat_lib.FORMATS)],
    "Chat format that the checkpoint is trained and sampled with; by default that of the tokenizer's chat template.",
)
flags.DEFINE_string("think_start", "", "Text before thinking, in place of the chat format's own.")
flags.DEFINE_string("think_end", "", "Text after thinking; its first id, when sampled, ends thinking.")
flags.DEFINE_enum(
    "dtype",
    "",
    ["", "float32", "bfloat16"],
    "Type of the written weights; by default that of the source (bfloat16 stays, all else becomes float32).",
)
flags.DEFINE_float("max_shard_gb", huggingface.MAX_SHARD_BYTES / 1e9, "Largest safetensors file, in 10^9 bytes.")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES: dict[str, Any] = {"": None, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def main() -> None:
    source, target = _source_and_target()
    # An accelerator has nothing to do here, and its memory may be too small for the whole model.
    import jax

    jax.config.update("jax_platforms", "cpu")

    _return_freed_memory()
    start = time.monotonic()
    path, origin_path = str(FLAGS[target].value), str(FLAGS[source].value)
    dtype = _DTYPES[FLAGS.dtype]
    if target == "to_gguf":
        config, size = _export_gguf(origin_path, path)
        print(
            f"wrote {path}: {config.num_params / 1e6:.1f} M weights, {size / 1e6:.1f} MB in "
            f"{time.monotonic() - start:.0f} s"
        )
        return
    with files.new_folder(path, f"--{target}") as folder:
        if FLAGS.push_to_hub:  # before the work, so that a missing login is said at once
            _create_repository()
        if source != "from":
            count = _import(source, origin_path, folder, dtype).num_params
        elif target == "to":
            count = convert_adapters.to_checkpoint(origin_path, folder)
        elif target == "to_hf" and convert_adapters.writes_adapters(origin_path):
            count = convert_adapters.to_peft(origin_path, folder, dtype)
        else:
            count = _export(origin_path, folder, dtype).num_params
    shown = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
    print(f"wrote {path}: {shown} weights in {time.monotonic() - start:.0f} s")
    if FLAGS.push_to_hub:
        _push(path)


def _source_and_target() -> tuple[str, str]:
    """The flags that name what is read and what is written, after all flags have been checked."""
    source, target = _one("from_hf", "from_gguf", "from"), _one("to", "to_hf", "to_gguf")
    if source != "from" and target != "to":
        raise UserError("convert goes --from_hf or --from_gguf with --to, or --from with --to_hf or --to_gguf.")
    if FLAGS.type and target != "to_gguf":
        raise UserError("--type is of the weights of a GGUF file; it goes with --to_gguf.")
    if FLAGS.dtype and target == "to_gguf":
        raise UserError("--dtype is not for GGUF files, whose weights have the type that --type names; leave it out.")
    if source == "from" and (FLAGS.think_start or FLAGS.think_end):
        raise UserError("--think_start and --think_end are for imports; give them when the checkpoint is made.")
    if FLAGS.revision and source != "from_hf":
        raise UserError("--revision is of a model on the hub; it goes with --from_hf=OWNER/NAME.")
    if not 0 < FLAGS.max_shard_gb < math.inf:
        raise UserError(f"--max_shard_gb is {FLAGS.max_shard_gb}; it must be positive and finite.")
    if FLAGS.push_to_hub and target != "to_hf":
        raise UserError("--push_to_hub uploads a Hugging Face folder; it goes with --from and --to_hf.")
    if FLAGS.push_to_hub and not _HUB_ID.fullmatch(FLAGS.push_to_hub):
        raise UserError(f"--push_to_hub={FLAGS.push_to_hub} is not a hub id (OWNER/NAME).")
    if FLAGS.private and not FLAGS.push_to_hub:
        raise UserError("--private is of the repository that --push_to_hub names; give both or neither.")
    for flag in (source, target, "tokenizer", "adapter", "base"):
        paths.local(str(FLAGS[flag].value), f"--{flag}")
    convert_adapters.check(source, target)
    return source, target


def _import(source: str, path: str, folder: pathlib.Path, dtype: Any) -> ModelConfig:
    """Writes the checkpoint of a Hugging Face folder or a GGUF file."""
    read = _read_huggingface if source == "from_hf" else _read_gguf
    params, config, tokenizer, origin, eos = read(path, dtype)
    if tokenizer.num_ids > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.num_ids} ids but the model's vocabulary {config.vocab_size} rows; "
            "give the model's own tokenizer with --tokenizer=DIR."
        )
    name, chat, why = FLAGS.chat, chat_lib.FORMATS.get(FLAGS.chat), ""
    if chat is None:
        name, chat, why = default_format.choose(tokenizer)
    if FLAGS.think_start or FLAGS.think_end:
        chat = chat_lib.with_delimiters(tokenizer, chat, FLAGS.think_start, FLAGS.think_end)
    chat_lib.check(tokenizer, chat)
    chat = chat_lib.with_stops(chat, tokenizer, eos)
    if why:
        print(f"chat format {name}: {why}; --chat chooses another.")
    provenance = {**origin, "chat": name, "command": "launch.convert", "s1jax": s1jax.__version__}
    store.save_model(folder, params, config, tokenizer, chat, provenance)
    return config


def _create_repository() -> None:
    """Makes the repository on the hub, or finds it.

    Raises:
      UserError: without a login or a right to write there, and where it is public although --private was asked for.
    """
    name = FLAGS.push_to_hub
    try:
        public = hub.create(name, private=FLAGS.private)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UserError(
            f"--push_to_hub={name}: the repository could not be made ({_reason(error)}); log in with `hf auth login`, "
            "or choose another OWNER. Nothing was converted."
        ) from None
    if public and FLAGS.private:
        raise UserError(
            f"--push_to_hub={name} is a public repository, and --private was asked for; choose another NAME, or make it"
            " private on its settings page. Nothing was uploaded."
        )


def _push(path: str) -> None:
    name = FLAGS.push_to_hub
    try:
        url = hub.upload(pathlib.Path(path), name, "Upload a model converted by s1jax")
    except Exception as error:  # as above
        raise UserError(
            f"--push_to_hub={name}: the upload failed ({_reason(error)}). {path} is complete; `hf upload {name} {path}`"
            " uploads it."
        ) from None
    print(f"uploaded {path} to {url}")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _return_freed_memory() -> None:
    """Keeps freed buffers from adding up: one arena for all threads, blocks above 64 kB given back at once.

    Orbax decodes in many threads, each with an arena of its own; an export would keep a third of the model in them
    (benchmarks/convert_memory.py).
    """
    mmap_threshold, arena_max = -3, -8  # M_MMAP_THRESHOLD and M_ARENA_MAX of malloc.h
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)
        ctypes.CDLL(None).mallopt(arena_max, 1)


def _one(*names: str) -> str:
    """The one flag of `names` that was given."""
    given = [name for name in names if FLAGS[name].value]
    if len(given) != 1:
        raise UserError(f"give exactly one of {', '.join('--' + name for name in names)}; --help explains them.")
    return given[0]


def _read_huggingface(name: str, dtype: Any) -> tuple[Any, ModelConfig, Tokenizer, dict[str, Any], tuple[int, ...]]:
    """Weights, shape, tokenizer, provenance, and the ids that end a text by the model's own configuration."""
    folder, revision = _local_folder(name)
    huggingface.refuse_adapter(folder)
    config = huggingface_config.config_from_json(
        huggingface_config.read_json(folder / "config.json"), str(folder / "config.json")
    )
    tokenizer = Tokenizer.load(FLAGS.tokenizer or folder)
    for note in huggingface.notes(folder):
        terminal.note(note)
    params = huggingface.read_params(folder, config, dtype)
    origin = {"source": name, "format": "huggingface"} | ({"revision": revision} if revision else {})
    return params, config, tokenizer, origin, huggingface_config.read_eos(folder)


def _local_folder(name: str) -> tuple[pathlib.Path, str]:
    """`name` itself where it is a folder, else what the hub has under it; and the commit, empty where it is unknown."""
    folder = pathlib.Path(name)
    if folder.is_dir():
        if FLAGS.revision:
            raise UserError(f"--revision is of a model on the hub; {name} is a folder here, so leave it out.")
        return folder, hub.commit(folder)
    if folder.exists() or not _HUB_ID.fullmatch(name):
        raise UserError(f"--from_hf: {name} is neither a folder nor a hub id (owner/name).")
    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja"]
        folder, commit = hub.snapshot(name, patterns, kind="model", revision=FLAGS.revision)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UserError(
            f"--from_hf: {name} is not a folder here and could not be fetched from the hub ({_reason(error)});"
            " download it where there is a network and give its folder."
        ) from None
    if not FLAGS.revision:
        terminal.note(f"{name} at its newest revision{f' {commit}' if commit else ''}; --revision chooses another.")
    return folder, commit


def _read_gguf(path: str, dtype: Any) -> tuple[Any, ModelConfig, Tokenizer, dict[str, Any], tuple[int, ...]]:
    """As above; the tokenizer of a GGUF file knows the one id that ends a text."""
    try:
        from s1jax.checkpoint.gguf import file, metadata, read
        from s1jax.checkpoint.gguf import tokenizer as rebuilt
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingPackageError(f"--from_gguf={path}", "gguf", "gguf") from None
    reader = file.open_file(path)
    config = metadata.read_config(reader, path)
    if FLAGS.tokenizer:
        tokenizer = Tokenizer.load(FLAGS.tokenizer)
    else:
        parts = zip(("tokenizer.json", "tokenizer_config.json"), rebuilt.read_tokenizer(reader, path), strict=True)
        tokenizer = Tokenizer({name: json.dumps(part, ensure_ascii=False).encode() for name, part in parts}, path)
    params = read.read_params(reader, config, path, dtype or np.float32)
    return params, config, tokenizer, {"source": path, "format": "gguf"}, ()


def _export(path: str, folder: pathlib.Path, dtype: Any) -> ModelConfig:
    model = convert_adapters.load(path)
    delimiters = chat_lib.delimiters(model.tokenizer, model.chat)
    huggingface.write_model(
        folder, model.params, model.config, dtype=dtype, eos=delimiters.stop, pad=delimiters.pad,
        max_shard_bytes=int(FLAGS.max_shard_gb * 1e9),
    )  # fmt: skip
    print(huggingface_tokenizer.write(folder, model.tokenizer, model.chat))
    return model.config


def _export_gguf(path: str, target: str) -> tuple[ModelConfig, int]:
    """Writes the GGUF file of a checkpoint; returns the shape of the model and the file's size in bytes."""
    try:
        from s1jax.checkpoint.gguf import write
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingPackageError(f"--to_gguf={target}", "gguf", "gguf") from None
    final = pathlib.Path(target)
    if final.exists() or final.is_symlink():
        raise UserError(f"--to_gguf: {target} exists; remove it or choose another name.")
    if not final.absolute().parent.is_dir():
        raise UserError(f"--to_gguf: the folder {final.absolute().parent} does not exist; make it or choose another.")
    model = convert_adapters.load(path)
    counts = write.write_model(
        final, model.params, model.config, model.tokenizer, model.chat, file_type=FLAGS.type or "Q8_0",
        name=final.stem,
    )  # fmt: skip
    print("tensors: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return model.config, final.stat().st_size
