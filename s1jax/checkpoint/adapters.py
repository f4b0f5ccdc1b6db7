"""PEFT's adapter folders, read and written without torch.

    adapter_config.json         rank, scale, targets, name of the base model
    adapter_model.safetensors   base_model.model.NAME.lora_A.weight [R, inputs] and .lora_B.weight [outputs, R]

NAME is that of the projection in the base model's Hugging Face files; each expert has its own, as vLLM reads them.
Written for peft 0.21 (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from s1jax.checkpoint import huggingface
from s1jax.checkpoint import names as names_lib
from s1jax.checkpoint.families.fields import wrong_type
from s1jax.checkpoint.huggingface_config import read_json
from s1jax.config.lora import ALL, TARGETS, LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")
# Fields of adapter_config.json that change what an adapter computes -> what they have to be.
_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "fan_in_fan_out": (False,), "use_dora": (False,), "bias": ("none",), "lora_bias": (False,),
    # Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the weights of the base before training.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}  # fmt: skip
# Fields that change nothing once an adapter is trained, or that its tensors say.
_HARMLESS = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout",
    "megatron_core", "eva_config", "qalora_group_size",
    "ensure_weight_tying", "runtime_config",
})  # fmt: skip


def write(
    folder: pathlib.Path,
    adapters: Mapping[str, Any],
    config: ModelConfig,
    lora: LoraConfig,
    base: str,
    dtype: npt.DTypeLike | None = None,
) -> None:
    """Writes both files.

    Args:
      folder: exists.
      adapters: tree of `s1jax.model.adapters`, of numpy arrays.
      config: of the model.
      lora: of the adapters.
      base: what the base model is called, a hub id or a folder.
      dtype: of the written tensors; None: float32.

    Raises:
      UserError: an adapter has no PEFT form.
    """
    tensors: dict[str, Any] = {}
    for name, pair in names_lib.adapter_views(config, adapters, lora).items():
        tensors.update((_PREFIX + name + part, array) for part, array in zip(_PARTS, pair, strict=True))
    alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": alpha,
        "use_rslora": lora.rslora,
        "target_modules": sorted({_name_of(tensor).rsplit(".", 1)[-1] for tensor in tensors}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
    }
    huggingface.write_file(folder / WEIGHTS, tensors, np.dtype(dtype or np.float32))
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read(folder: pathlib.Path, config: ModelConfig) -> tuple[dict[str, Any], LoraConfig, str]:
    """Reads a folder of adapters for a model.

    Returns:
      the tree of `s1jax.model.adapters` in float32, its settings, and what the base model is called.

    Raises:
      UserError: names a file that is missing or damaged, a field that s1jax does not compute, or a tensor that the
        model has no place for.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give the folder that PEFT's save_pretrained wrote.")
    about = read_json(folder / CONFIG)
    rank, alpha, rslora = _settings(about, folder / CONFIG)
    file = huggingface.open_file(folder / WEIGHTS)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    lora = LoraConfig(rank=rank, alpha=alpha, rslora=rslora, targets=_targets(shapes, config, folder / WEIGHTS))
    from s1jax.model import adapters as adapters_lib  # whose room imports jax

    tree: dict[str, Any] = {}
    for path, leaf in _leaves(adapters_lib.abstract(config, lora, np.float32)):
        adapters_lib.put(tree, path, np.empty(leaf.shape, np.float32))
    wanted = {
        _PREFIX + name + part: array
        for name, pair in names_lib.adapter_views(config, tree, lora).items()
        for part, array in zip(_PARTS, pair, strict=True)
    }
    base = str(about.get("base_model_name_or_path") or "")
    _compare(shapes, {name: array.shape for name, array in wanted.items()}, folder / WEIGHTS, base)
    for name, array in wanted.items():
        names_lib.copy(array, file.get_tensor(name).astype(np.float32))
    return tree, lora, base


def _settings(about: Mapping[str, Any], where: pathlib.Path) -> tuple[int, float, bool]:
    """Rank, alpha and rslora of an adapter_config.json."""
    for key, allowed in _FIXED.items():
        if about.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"{where}: {key} is {shown(about[key])}; s1jax reads adapters that have {allowed[0]!r} there."
            )
    rank, alpha, rslora = about.get("r"), about.get("lora_alpha"), about.get("use_rslora", False)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise wrong_type(where, "r", rank, "a positive number")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or alpha <= 0:
        raise wrong_type(where, "lora_alpha", alpha, "a positive number")
    if not isinstance(rslora, bool):
        raise wrong_type(where, "use_rslora", rslora, "true or false")
    known = {*_FIXED, *_HARMLESS, "r", "lora_alpha", "use_rslora"}
    for key in sorted(set(about) - known):
        if about[key]:
            raise UserError(
                f"{where}: {plain(key)} is {shown(about[key])}, which s1jax does not compute; merge the adapter with"
                " peft's merge_and_unload and convert the merged model."
            )
    return rank, float(alpha), rslora


def _targets(names: Mapping[str, Any], config: ModelConfig, where: pathlib.Path) -> str:
    """`LoraConfig.targets` of the tensors of a file."""
    rows = {}  # last part of a Hugging Face name -> projection of ours
    for stack_path, name in names_lib.projections(config).items():
        rows[name.removesuffix(".weight").rsplit(".", 1)[-1]] = stack_path.split("/")[-2]
    found = set()
    for name in names:
        module = _name_of(name).rsplit(".", 1)[-1]
        if not name.startswith(_PREFIX) or not name.endswith(_PARTS) or module not in rows:
            raise UserError(
                f"{where}: s1jax has no place for the tensor {plain(name)}; it reads adapters (lora_A, lora_B) of the"
                " layers' projections, and no embeddings, heads or whole modules."
            )
        found.add(rows[module])
    targets = [target for target, ours in TARGETS.items() if set(ours) & found]
    return ",".join(targets) if found else ALL


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], where: pathlib.Path, base: str) -> None:
    of_base = f" (it names {shown(base)})" if base else ""
    for name in sorted(set(found) ^ set(wanted)):
        verb = "lacks" if name in wanted else "has"
        raise UserError(f"{where} {verb} {plain(name)}, so it belongs to another base{of_base} than this model.")
    for name, shape in found.items():
        if tuple(shape) != tuple(wanted[name]):
            raise UserError(
                f"{where}: {plain(name)} has shape {list(shape)} where the model needs {list(wanted[name])}; the"
                f" adapter belongs to another base{of_base}."
            )


def _name_of(tensor: str) -> str:
    """Name of the projection of a tensor."""
    for part in _PARTS:
        tensor = tensor.removesuffix(part)
    return tensor.removeprefix(_PREFIX)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Path and value of every array of nested dicts."""
    found = []
    for name, value in tree.items():
        found += _leaves(value, (*path, name)) if isinstance(value, Mapping) else [((*path, name), value)]
    return found
