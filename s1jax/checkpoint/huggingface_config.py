"""config.json of Hugging Face model folders, with generation_config.json beside it, read and written.

What differs between architectures is in `s1jax.checkpoint.families`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from s1jax.checkpoint.families.fields import wrong_type as wrong_type
from s1jax.checkpoint.families.rope import extended_length as extended_length
from s1jax.checkpoint.families.table import FAMILIES, REFUSED, WRAPPERS, exported
from s1jax.checkpoint.quantized.method import read_method
from s1jax.config.model import ModelConfig
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError
from s1jax.io import files

_MAX_JSON_BYTES = 100_000_000  # an index of a million tensors


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; UserError names the file when it is missing, broken (with the line) or no object.

    A link is followed within the file's own folder only, see `s1jax.io.files.check_own`.
    """
    files.check_own(path)
    if path.exists() and path.stat().st_size > _MAX_JSON_BYTES:
        raise UserError(f"{path} has more than {_MAX_JSON_BYTES // 10**6} MB; get the file again.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a folder with a complete Hugging Face model.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); get the file again.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; get the file again.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep; get the file again.") from None
    except ValueError:  # Python converts no number of more than 4,300 digits
        raise UserError(f"{path} holds a number with too many digits; get the file again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); get the file again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object; get the file again.")
    return values


def config_from_json(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Translates the contents of a config.json.

    Args:
      values: its keys, as written by transformers 4 (`rope_theta`) or 5 (`rope_parameters`).
      where: name of the file in errors.

    Raises:
      UserError: unknown architecture, a setting that the decoder cannot represent, a missing or mistyped key.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str | None):
        raise wrong_type(where, "model_type", model_type, "a string")
    if model_type in REFUSED:
        raise UserError(
            f"{where}: model_type {shown(model_type)} is not computed by s1jax: {REFUSED[str(model_type)]}. Get "
            "another model."
        )
    if model_type in WRAPPERS:
        return config_from_json(_of_text(values, where), where)
    family = FAMILIES.get(str(model_type))
    architectures = values.get("architectures") or ["unnamed" if family is None else family.architecture]
    if not isinstance(architectures, list):
        raise wrong_type(where, "architectures", architectures, "a list")
    if family is None or architectures != [family.architecture]:
        known = [one.architecture for one in FAMILIES.values()] + [one.architecture for one in WRAPPERS.values()]
        raise UserError(
            f"{where}: architecture {', '.join(plain(str(name)) for name in architectures[:3])} (model_type "
            f"{shown(model_type)}) is unknown; "
            f"s1jax reads {', '.join(known)}."
        )
    read_method(values, where)  # refuses what cannot be read
    if values.get("transformers_weights") is not None:
        raise UserError(
            f"{where}: transformers_weights names a file of its own, {shown(values['transformers_weights'])}; save the "
            "model with save_pretrained, which writes model.safetensors."
        )
    return family.read({key: value for key, value in values.items() if key != "quantization_config"}, where)


def _of_text(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The part of a config.json that describes the model of texts; the rest is for images.

    Raises:
      UserError: the file has no such part, or another than the wrapper has.
    """
    wrapper = WRAPPERS[values["model_type"]]
    if values.get("architectures") not in (None, [wrapper.architecture]):
        raise UserError(
            f"{where}: architectures is {shown(values['architectures'])}, where model_type "
            f"{shown(values['model_type'])} has {wrapper.architecture}; get the file again."
        )
    text = values.get("text_config")
    if not isinstance(text, Mapping):
        raise wrong_type(where, "text_config", text, "a JSON object")
    kinds = [family.model_type for family in wrapper.families]
    found = {key: value for key, value in text.items() if key != "architectures"}
    found.setdefault("model_type", kinds[0])
    if found["model_type"] not in kinds:
        raise UserError(
            f"{where}: text_config.model_type is {shown(found['model_type'])}; s1jax reads {', '.join(kinds)} there."
        )
    # transformers goes by the outer one
    of_all = {key: values[key] for key in ("tie_word_embeddings", "quantization_config") if key in values}
    return {**found, **of_all}


def config_to_json(config: ModelConfig, eos: Sequence[int] = (), dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    """The inverse of `config_from_json`: a config.json that transformers 4 and 5 read the same way.

    Args:
      config: of the model.
      eos: ids that end a text; none leaves `eos_token_id` null.
      dtype: of the stored weights.

    Raises:
      UserError: the model's family has no such layers, see `s1jax.checkpoint.families.table.exported`.
    """
    written = exported(config).write(config)
    return {**written, "eos_token_id": one_or_list(eos), "torch_dtype": np.dtype(dtype).name}


def one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    """Ids that end a text as `eos_token_id` has them."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def read_eos(folder: pathlib.Path) -> tuple[int, ...]:
    """Ids that end a text, from generation_config.json or else config.json; empty when neither says.

    Raises:
      UserError: where the file says something else than an id or a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            values = read_json(folder / name)
            text = values.get("text_config")
            ids = values.get("eos_token_id", text.get("eos_token_id") if isinstance(text, Mapping) else None)
            if ids is None:
                continue
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(id_) is int for id_ in ids):
                raise wrong_type(folder / name, "eos_token_id", ids, "an id or a list of ids")
            return tuple(ids)
    return ()
