"""Hugging Face model folders: safetensors, single or sharded, read and written without torch.

Reading fills arrays that are allocated once, tensor by tensor, so the peak of host memory is the target plus one
tensor; writing copies out one tensor at a time. Names and layouts come from `s1jax.checkpoint.names`, config.json from
`s1jax.checkpoint.huggingface_config`. File format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors

from s1jax.checkpoint import huggingface_config
from s1jax.checkpoint import names as names_lib
from s1jax.checkpoint.families.table import WRAPPERS
from s1jax.checkpoint.quantized import method as method_lib
from s1jax.checkpoint.quantized.held import RESTORED, Held, held
from s1jax.config.model import ModelConfig
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError
from s1jax.io import files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000

_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Rotary frequencies in files of older Llamas, which follow from config.json.
_COMPUTED = ".rotary_emb.inv_freq"


def find_tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> the safetensors file that holds it, from the single file or, where there is none, the index.

    That order is transformers' own. Left out are tensors that follow from the configuration; `notes` names what else is
    in the folder.

    Raises:
      UserError: no weights, an adapter beside them, an index that names a missing file or one outside of the folder,
        or a file whose tensors are not those of the index (a tensor in two files included).
    """
    refuse_adapter(folder)
    weight_map: Any
    if (folder / SINGLE).is_file():
        files.check_own(folder / SINGLE)
        weight_map = dict.fromkeys(_keys(folder / SINGLE), SINGLE)
    elif (folder / INDEX).exists():
        weight_map = huggingface_config.read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{folder / INDEX} has no weight_map; get the file again.")
        for name, file in weight_map.items():
            key = f"weight_map.{plain(name)}"
            if not isinstance(file, str):
                raise huggingface_config.wrong_type(folder / INDEX, key, file, "the name of a file")
            path = pathlib.PurePath(file)
            if path.is_absolute() or ".." in path.parts:
                raise huggingface_config.wrong_type(folder / INDEX, key, file, "the name of a file in this folder")
    else:
        named = sorted(folder.glob("*.safetensors"))
        if len(named) == 1:  # gptq_model-4bit-128g.safetensors, for example
            raise UserError(f"{folder} has weights under another name than {SINGLE}; rename {plain(named[0].name)}.")
        hint = "only PyTorch .bin files" if list(folder.glob("*.bin")) else f"neither {SINGLE} nor {INDEX}"
        raise UserError(f"{folder} has {hint}; s1jax reads safetensors, so save the model in that format.")
    for file in sorted(set(weight_map.values())):
        path = folder / file
        if not os.path.isfile(path):  # false for whatever no file can be called, too
            raise UserError(f"{folder / INDEX} names the shard {shown(file)}, which does not exist; get it again.")
        files.check_own(path, folder)
        promised, stored = {name for name, at in weight_map.items() if at == file}, set(_keys(path))
        if promised != stored:
            odd = sorted(promised ^ stored)[0]
            problem = "lacks it" if odd in promised else "holds it as well"
            odd = plain(odd)
            raise UserError(f"{folder / INDEX}: tensor {odd} is not listed where it is, {plain(file)} {problem}.")
    return {name: folder / file for name, file in weight_map.items() if not name.endswith(_COMPUTED)}


def refuse_adapter(folder: pathlib.Path) -> None:
    """Raises UserError where a folder holds a LoRA adapter, beside weights or alone.

    transformers adds it to the weights where peft is installed, and leaves it out elsewhere.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if os.path.lexists(folder / name):
            raise UserError(
                f"{folder / name}: a LoRA adapter, which s1jax does not apply. Merge it into the weights first (peft's "
                "merge_and_unload, then save_pretrained), or move it away to have the model without it."
            )


def notes(folder: pathlib.Path) -> list[str]:
    """One sentence for each thing in a folder that could be taken for the model's and is not read."""
    located = find_tensors(folder)
    read = {path.relative_to(folder).as_posix() for path in located.values()}
    found = []
    method = _method(folder)
    if method is not None:
        found.append(f"{folder} holds quantised weights ({method.about}); they become floats.")
    path = folder / "config.json"
    layers = huggingface_config.read_json(path).get("num_hidden_layers") if path.exists() else None
    predicting = _predicting_layers(folder, layers) if type(layers) is int else ()
    if any(name.startswith(predicting) for name in located):
        found.append(f"{folder} has layers for predicting several tokens at once, which are not read.")
    if _is_wrapper(folder) and not all(map(_of_text, located)):
        found.append(f"{folder} has weights for images, which are not read; the model is that of its texts.")
    if SINGLE in read and (folder / INDEX).exists():
        found.append(f"{folder / INDEX} is not read, as by transformers: {SINGLE} is there, too.")
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
    others = [item for item in sorted(folder.iterdir()) if item.suffix in kinds and item.name not in read]
    others += [item for item in (folder / "original",) if item.is_dir()]  # Meta's own files
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        found.append(
            f"{folder} has other weights that are not read: {', '.join(plain(i.name) for i in others[:3])}{more}."
        )
    return found


def _keys(path: pathlib.Path) -> list[str]:
    with open_file(path) as file:
        return list(file.keys())


def open_file(path: pathlib.Path) -> Any:
    """Opens a safetensors file.

    Raises:
      UserError: it is damaged or cannot be read.
    """
    try:
        # pread rather than mmap: pages of a mapped shard would stay in this process's memory next to the target.
        return safetensors.safe_open(path, framework="np", backend="pread")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({shown(str(error), 200)}); get the file again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again.") from None


def read_params(folder: pathlib.Path, config: ModelConfig, dtype: npt.DTypeLike | None = None) -> names_lib.Params:
    """Reads a folder's weights into our tree.

    A tied model may store `lm_head.weight` as well (Qwen3 0.6B does): it must then equal the embedding bit for bit,
    because the file would otherwise not be the model that its config.json describes.

    Args:
      folder: with safetensors files.
      config: of the model.
      dtype: of the result; None takes bfloat16 where all tensors that are not quantised are stored in it, float32
        otherwise.

    Returns:
      numpy arrays, layers stacked, every one filled.

    Raises:
      UserError: names missing, extra, misshaped or non-float tensors.
    """
    tensors = _tensors(folder, config)
    few = config.num_layers > len(tensors)  # which is refused below
    exact = set() if few else names_lib.exact(config, "huggingface")
    stored = _stored_dtype(tensor for name, tensor in tensors.items() if name not in exact)
    found = {name: (tensor.shape, tensor.file) for name, tensor in tensors.items()}
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tied_embeddings:
        found.pop(head, None)
    names_lib.check(config, "huggingface", found, str(folder))
    params = names_lib.allocate(config, dtype or stored)
    targets = names_lib.views(config, params, "huggingface")
    for name in sorted(targets, key=lambda name: tensors[name].file):
        names_lib.copy(targets[name], tensors[name].read())
    if config.tied_embeddings and head in tensors:
        one, other = (tensors[name].read() for name in (embedding, head))
        if one.dtype != other.dtype or not np.array_equal(_bits(one), _bits(other)):
            raise UserError(
                f"{tensors[head].file}: {head} differs from {embedding} although config.json ties them; "
                "set tie_word_embeddings to false."
            )
    return params


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8)


def _tensors(folder: pathlib.Path, config: ModelConfig) -> dict[str, Held]:
    """Name -> tensor of a folder; quantised ones become floats when they are read."""
    located = find_tensors(folder)
    handles = {path: open_file(path) for path in sorted(set(located.values()))}
    predicting = _predicting_layers(folder, config.num_layers)
    wraps = _is_wrapper(folder)
    tensors = {
        ours: held(handles[path], name, str(path))
        for name, path in located.items()
        if not name.startswith(predicting) and (ours := (_of_text(name) if wraps else name))
    }
    few = config.num_layers > len(located)  # which is refused later; the names of so many layers may not fit
    wanted = [] if few else names_lib.shapes(config, "huggingface")
    return method_lib.restore(_method(folder), tensors, wanted)


def _method(folder: pathlib.Path) -> method_lib.Method | None:
    """How the weights of a folder are quantised."""
    path = folder / "config.json"
    return method_lib.read_method(huggingface_config.read_json(path), str(path)) if path.exists() else None


def _is_wrapper(folder: pathlib.Path) -> bool:
    """Whether a folder holds a model of texts and images."""
    path = folder / "config.json"
    return path.exists() and huggingface_config.read_json(path).get("model_type") in [*WRAPPERS]


def _of_text(name: str) -> str:
    """The name of a tensor in a model of texts alone; "" for one that is for images."""
    if name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.")):
        return ""
    return name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)


def _predicting_layers(folder: pathlib.Path, num_layers: int) -> tuple[str, ...]:
    """How names of tensors start that belong to layers for predicting several tokens, which follow the model's own.

    They are for training and for drafts (DeepSeek-V3's layer 61); transformers leaves them out, too.
    """
    path = folder / "config.json"
    count = huggingface_config.read_json(path).get("num_nextn_predict_layers") if path.exists() else 0
    return tuple(f"model.layers.{num_layers + i}." for i in range(count if type(count) is int and count < 100 else 0))


def _stored_dtype(tensors: Iterable[Held]) -> npt.DTypeLike:
    """bfloat16 if all tensors that are not quantised are stored in it, else float32.

    Raises:
      UserError: names a tensor that is not a float.
    """
    kinds = set()
    for tensor in tensors:
        if tensor.kind not in (RESTORED, *_DTYPES):
            raise UserError(
                f"{tensor.file}: tensor {plain(tensor.name)} is stored as {tensor.kind}; s1jax reads "
                f"{', '.join(_DTYPES)} and what quantization_config describes, so get the unquantised model."
            )
        kinds.add(tensor.kind)
    return ml_dtypes.bfloat16 if kinds - {RESTORED} == {"BF16"} else np.float32


def write_model(
    folder: pathlib.Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    dtype: npt.DTypeLike | None = None,
    eos: Sequence[int] = (),
    pad: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json, generation_config.json and safetensors that transformers loads; no tokenizer.

    Args:
      folder: exists and is empty.
      params: our tree; host arrays are read in place, one tensor is copied at a time.
      config: of the model.
      dtype: of the stored weights; None keeps that of `params`.
      eos: ids that end a text.
      pad: id that fills up rows; not written where it is None.
      max_shard_bytes: larger models are split into files of at most this size (a larger tensor has its own).
    """
    sources = names_lib.views(config, params, "huggingface")
    dtype = np.dtype(dtype or sources["model.embed_tokens.weight"].dtype)
    exact = names_lib.exact(config, "huggingface")
    shards: list[list[str]] = [[]]
    size = 0
    for name, view in sources.items():
        num_bytes = view.size * (4 if name in exact else dtype.itemsize)
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {name: sources[name] for name in shard}, dtype, exact)
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        total = sum(view.size * (4 if name in exact else dtype.itemsize) for name, view in sources.items())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", huggingface_config.config_to_json(config, eos, dtype))
    generation = {"eos_token_id": huggingface_config.one_or_list(eos), "do_sample": False}
    generation |= {} if pad is None else {"pad_token_id": pad}
    _write_json(folder / "generation_config.json", generation)


def write_file(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], dtype: np.dtype, exact: Collection[str] = ()
) -> None:
    """Writes one safetensors file tensor by tensor; the library's writer wants all of them contiguous at once.

    Args:
      path: of the file.
      tensors: by name.
      dtype: that they are stored in.
      exact: names of those that are stored in float32 instead.
    """
    kinds = {np.dtype(known): name for name, known in _DTYPES.items()}
    dtypes = {name: np.dtype(np.float32) if name in exact else dtype for name in tensors}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.size * dtypes[name].itemsize
        header[name] = {"dtype": kinds[dtypes[name]], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    with files.named(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            contiguous = np.empty(tensor.shape, dtypes[name])
            names_lib.copy(contiguous, tensor)
            file.write(contiguous.view(np.uint8).data)  # tofile does not say that the disk is full


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
