"""The conversions of `s1jax convert` that have to do with adapters (LoRA)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

import s1jax
from s1jax.checkpoint import adapters as peft
from s1jax.checkpoint import digests, huggingface_config, huggingface_tokenizer, store
from s1jax.cli import terminal
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder

FLAGS = flags.FLAGS
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

flags.DEFINE_string("adapter", "", "PEFT folder with adapters for the checkpoint of --from.")
flags.DEFINE_string(
    "base",
    "",
    "Checkpoint that the adapters of --from belong to, if it is not where it was; of a PEFT folder, its name.",
)
flags.DEFINE_bool("merge", False, "Add the adapters of --from or --adapter to the weights.")


def check(source: str, target: str) -> None:
    """Refuses combinations of flags that have no meaning.

    Raises:
      UserError: names the flags.
    """
    for name in ("adapter", "base", "merge"):
        if FLAGS[name].value and source != "from":
            raise UserError(f"--{name} is of adapters; it goes with --from=CKPT.")
    if FLAGS.adapter and FLAGS.base:
        raise UserError("--base is of a checkpoint of adapters; with --adapter=DIR the base is --from.")
    if FLAGS.adapter and target != "to" and not FLAGS.merge:
        raise UserError(f"--adapter={FLAGS.adapter} is a PEFT folder already; give --merge to add it to the weights.")
    if source == "from" and target == "to" and not (FLAGS.adapter or FLAGS.merge):
        raise UserError(
            "convert goes --from_hf or --from_gguf with --to, or --from with --to_hf or --to_gguf; --from with --to "
            "needs --merge or --adapter=DIR."
        )
    path = str(FLAGS["from"].value)
    info = store.load_metadata(path).adapters if source == "from" else None
    if FLAGS.adapter and info is not None:
        raise UserError(f"--from={path} has adapters already; merge these first (--merge --to=CKPT).")
    if (FLAGS.merge or FLAGS.base) and not FLAGS.adapter and info is None:
        raise UserError(
            f"--from={path} has weights and no adapters; give --adapter=DIR, or leave --merge and --base out."
        )


def load(path: str) -> store.Model:
    """The weights of a checkpoint with the adapters of the flags merged, as numpy arrays."""
    info = store.load_metadata(path).adapters
    if info is not None and info.lora.quantized:
        terminal.note(
            f"the adapters were trained for weights in {info.lora.base}; they are merged into those weights before"
            " rounding, so outputs differ a little from training."
        )
    model = store.load_model(path, host=True, base=FLAGS.base)
    if not FLAGS.adapter:
        return model
    tree, lora, name = peft.read(pathlib.Path(FLAGS.adapter), model.config)
    _check_name(name, path, model.provenance)
    params = store.merge(model.params, tree, model.config, lora)
    return dataclasses.replace(model, params=params, provenance={**model.provenance, "adapter": FLAGS.adapter})


def writes_adapters(path: str) -> bool:
    """Whether adapters are written, and no weights."""
    return not FLAGS.merge and bool(FLAGS.adapter or store.load_metadata(path).adapters is not None)


def to_checkpoint(path: str, folder: pathlib.Path) -> int:
    """Writes a checkpoint of merged weights, or of the adapters of --adapter; returns the number of weights in it."""
    if FLAGS.merge:
        model = load(path)
        provenance = {**model.provenance, "command": "launch.convert", "s1jax": s1jax.__version__}
        store.save_model(folder, model.params, model.config, model.tokenizer, model.chat, provenance)
        return model.config.num_params
    about = store.load_metadata(path)
    tree, lora, name = peft.read(pathlib.Path(FLAGS.adapter), about.config)
    _check_name(name, path, about.provenance)
    provenance = {"source": FLAGS.adapter, "base": name, "command": "launch.convert", "s1jax": s1jax.__version__}
    base = store.resolve(path)
    where = path if path.startswith("package:") else str(base)
    info = store.AdapterInfo(lora, where, digests.fingerprint(base))
    store.save_model(folder, tree, about.config, about.tokenizer, about.chat, provenance, info)
    return _count(tree)


def to_peft(path: str, folder: pathlib.Path, dtype: Any) -> int:
    """Writes the adapters of a checkpoint as a PEFT folder with a tokenizer; returns the number of their weights."""
    about = store.load_metadata(path)
    tree, info = store.load_adapters(path)
    if FLAGS.base:
        _check_base(FLAGS.base, about.config, info)
    name, loads = _name(FLAGS.base or info.base)
    peft.write(folder, tree, about.config, info.lora, name, dtype)
    if not loads:
        terminal.note(
            f"{peft.CONFIG} names the base {name}, a checkpoint of s1jax, which PEFT cannot load by itself; to name "
            "another, write the base with --to_hf and give that folder as --base."
        )
    print(huggingface_tokenizer.write(folder, about.tokenizer, about.chat))
    return _count(tree)


def _check_name(name: str, path: str, origin: Mapping[str, Any]) -> None:
    """Compares the base that a PEFT folder names with what the checkpoint was converted from.

    Raises:
      UserError: both are on the hub, under names that differ in more than the owner.
    """
    source = str(origin.get("source", "")) if origin.get("format") == "huggingface" else ""
    ids = [one for one in (name, source) if _HUB_ID.fullmatch(one) and not pathlib.Path(one).exists()]
    if len(ids) == 2 and name.split("/")[1].lower() != source.split("/")[1].lower():
        raise UserError(
            f"{FLAGS.adapter} was trained for another base, {name}, than {source}, which --from={path} was converted"
            f" from; if these are the same weights, write {source} as base_model_name_or_path of its {peft.CONFIG}."
        )
    if name and name != source:
        terminal.note(f"{FLAGS.adapter} was trained for {name}; only the shapes of the weights can be compared.")


def _check_base(base: str, config: ModelConfig, info: store.AdapterInfo) -> None:
    """Compares --base with the base of a checkpoint's adapters, if it is a folder on this machine.

    Raises:
      UserError: it is another checkpoint, or a Hugging Face folder of a model with other weights.
    """
    place = pathlib.Path(base)
    if (place / "config.json").is_file() and not (place / "s1jax.json").is_file():
        where = place / "config.json"
        found = huggingface_config.config_from_json(huggingface_config.read_json(where), str(where))
        if decoder.abstract_params(found) != decoder.abstract_params(config):
            raise UserError(
                f"--base={base} has weights of other names or shapes than the model that the adapters of --from were"
                " trained for; give that model."
            )
        return
    try:
        folder = store.resolve(base)
    except UserError:
        terminal.note(f"--base={base} is not a folder here, so it was not compared with what the adapters belong to.")
        return
    if digests.fingerprint(folder) != info.fingerprint:
        raise UserError(
            f"--base={base} is another checkpoint than the one that the adapters of --from were trained for; give that"
            " one."
        )


def _name(base: str) -> tuple[str, bool]:
    """What a base is called outside of s1jax (where it was converted from, if that is known), and whether PEFT may know
    it under that name."""
    try:
        origin = store.load_metadata(base).provenance
    except UserError:
        return base, True
    published = origin.get("format") == "huggingface" and "adapter" not in origin  # no adapter merged into it since
    return (str(origin["source"]), True) if published else (base, False)


def _count(tree: Any) -> int:
    return sum(_count(value) if isinstance(value, dict) else value.size for value in tree.values())
