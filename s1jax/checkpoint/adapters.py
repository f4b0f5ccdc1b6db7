"""PEFT's adapter folders, read and written without torch.

    adapter_config.json         rank, scale, targets, name of the base model
    adapter_model.safetensors   base_model.model.NAME.lora_A.weight [R, inputs] and .lora_B.weight [outputs, R]

NAME is that of the projection in the base model's Hugging Face files; each expert has its own, as vLLM reads them. PEFT
on transformers 5 has other tensors for experts, which are read, too (`s1jax.checkpoint.stacked_adapters`). Written for
peft 0.21 (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from s1jax.checkpoint import huggingface, stacked_adapters
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
    "target_modules", "target_parameters", "exclude_modules", "lora_dropout",
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
    if part := names_lib.without_peft_form(config, lora):
        raise UserError(
            f"the adapter of {part[0]} has no PEFT form: in the files of {config.family or 'the model'} the projection"
            f" is a part of {part[1]}; write merged weights instead (launch.convert --merge)."
        )
    tensors: dict[str, Any] = {}
    for name, ((a,), b) in names_lib.adapter_views(config, adapters, lora).items():
        tensors.update((_PREFIX + name + part, array) for part, array in zip(_PARTS, (a, b), strict=True))
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
    settings = _settings(about, folder / CONFIG)
    file = huggingface.open_file(folder / WEIGHTS)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    stacked = stacked_adapters.find(shapes, config, _PREFIX)
    of_experts = {name for one in stacked for name in one.names}
    modules = {_name_of(name) for name in shapes if name not in of_experts} | {one.module for one in stacked}
    lora = settings.of_all(modules, _targets(set(shapes) - of_experts, stacked, config, folder / WEIGHTS))
    from s1jax.model import adapters as adapters_lib  # whose room imports jax

    tree: dict[str, Any] = {}
    for path, leaf in _leaves(adapters_lib.abstract(config, lora, np.float32)):
        adapters_lib.put(tree, path, np.zeros(leaf.shape, np.float32))
    views = names_lib.adapter_views(config, tree, lora)
    wanted: dict[str, tuple[int, ...]] = {}
    for module, (a_views, b_view) in views.items():
        if stacked and not any(_PREFIX + module + part in shapes for part in _PARTS) and _is_of_mlp(module):
            continue  # an adapter of the experts alone: it stays zero
        rank, _ = settings.of(module)
        wanted[_PREFIX + module + _PARTS[0]] = rank, a_views[0].shape[1]
        wanted[_PREFIX + module + _PARTS[1]] = b_view.shape[0], rank
    for one in stacked:
        rank = one.experts * settings.of(one.module)[0]
        wanted[one.names[0]], wanted[one.names[1]] = (rank, shapes[one.names[0]][1]), (shapes[one.names[1]][0], rank)
    base = str(about.get("base_model_name_or_path") or "")
    _compare(shapes, wanted, folder / WEIGHTS, base)

    def tensor(name: str, factor: float = 1.0) -> np.ndarray:
        return np.asarray(file.get_tensor(name).astype(np.float32) * np.float32(factor))

    for one in stacked:
        factor = settings.of(one.module)[1] / lora.scale
        stacked_adapters.fill(tree, one, tensor(one.names[0]), tensor(one.names[1], factor))
    for module, (a_views, b_view) in views.items():
        names = [_PREFIX + module + part for part in _PARTS]
        if names[0] not in wanted:
            continue
        rank, scale = settings.of(module)
        fill = lora.rank - rank
        for a_view in a_views:
            names_lib.copy(a_view, np.pad(tensor(names[0]), ((0, fill), (0, 0))))
        names_lib.copy(b_view, np.pad(tensor(names[1], scale / lora.scale), ((0, 0), (0, fill))))
    return tree, lora, base


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Ranks and scales of an adapter_config.json.

    Attributes:
      rank: of projections that no pattern names.
      alpha: likewise.
      rslora: the scale is alpha / sqrt(rank).
      ranks: pattern of a projection's name -> its rank.
      alphas: pattern -> its alpha.
    """

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scale of a projection; the first pattern that matches the end of its name counts, as in PEFT."""

        def first(patterns: Mapping[str, Any], default: Any) -> Any:
            return next((value for key, value in patterns.items() if re.match(_whole(key), module)), default)

        rank, alpha = first(self.ranks, self.rank), first(self.alphas, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def of_all(self, modules: Iterable[str], targets: str) -> LoraConfig:
        """Settings of a tree with all of these projections: the largest rank, the scale of one without a pattern."""
        rank, alpha = max((self.of(module)[0] for module in modules), default=self.rank), self.alpha
        if rank != self.rank:
            alpha *= math.sqrt(rank / self.rank) if self.rslora else rank / self.rank
        return LoraConfig(rank=rank, alpha=alpha, rslora=self.rslora, targets=targets)


def _settings(about: Mapping[str, Any], where: pathlib.Path) -> _Settings:
    for key, allowed in _FIXED.items():
        if about.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"{where}: {key} is {shown(about[key])}; s1jax reads adapters that have {allowed[0]!r} there."
            )
    rank = _number(about.get("r"), where, "r", int)
    alpha = _number(about.get("lora_alpha"), where, "lora_alpha", (int, float))
    rslora = about.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise wrong_type(where, "use_rslora", rslora, "true or false")
    patterns: list[dict[str, Any]] = []
    for key, kind in (("rank_pattern", int), ("alpha_pattern", (int, float))):
        given = about.get(key) or {}
        if not isinstance(given, dict):
            raise wrong_type(where, key, given, "a table of names")
        for pattern, value in given.items():
            _number(value, where, f"{key}[{pattern!r}]", kind)
            try:
                re.compile(_whole(pattern))
            except re.error:
                raise wrong_type(where, key, pattern, "a table of regular expressions") from None
        patterns.append(given)
    known = {*_FIXED, *_HARMLESS, "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
    for key in sorted(set(about) - known):
        if about[key]:
            raise UserError(
                f"{where}: {plain(key)} is {shown(about[key])}, which s1jax does not compute; merge the adapter with"
                " peft's merge_and_unload and convert the merged model."
            )
    return _Settings(rank, float(alpha), rslora, *patterns)


def _whole(pattern: str) -> str:
    """The regular expression that PEFT matches with a projection's name."""
    return rf"(.*\.)?({pattern})$"


def _number(value: Any, where: pathlib.Path, key: str, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
        raise wrong_type(where, key, value, "a positive number")
    return value


def _targets(
    names: Iterable[str], stacked: Sequence[stacked_adapters.Stacked], config: ModelConfig, where: pathlib.Path
) -> str:
    """`LoraConfig.targets` of the tensors of a file."""
    rows: dict[str, set[str]] = {}  # last part of a Hugging Face name -> projections of ours
    for stack_path, name in names_lib.projections(config).items():
        rows.setdefault(name.removesuffix(".weight").rsplit(".", 1)[-1], set()).add(stack_path.split("/")[-2])
    found = {projection for one in stacked for projection in one.projections}
    for name in names:
        module = _name_of(name).rsplit(".", 1)[-1]
        if not name.startswith(_PREFIX) or not name.endswith(_PARTS) or module not in rows:
            raise UserError(
                f"{where}: s1jax has no place for the tensor {plain(name)}; it reads adapters (lora_A, lora_B) of the"
                " layers' projections, and no embeddings, heads or whole modules."
            )
        found |= rows[module]
    targets = [target for target, ours in TARGETS.items() if set(ours) & found]
    return ",".join(targets) if found else ALL


def _is_of_mlp(module: str) -> bool:
    """Whether a projection is of a layer's MLP or its experts."""
    return ".self_attn." not in module


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
