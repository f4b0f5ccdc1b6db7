"""Loads the adapters that an engine is given, and checks that they belong to its model."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib

Loaded = dict[str, tuple[Mapping[str, Any], LoraConfig]]


def load(adapters: Mapping[str, Any], config: ModelConfig, fingerprint: str) -> Loaded:
    """Loads adapters.

    Args:
      adapters: name -> PEFT folder, checkpoint of a run with `lora.rank`, or (tree of `s1jax.model.adapters`, its
        `LoraConfig`).
      config: of the engine's model.
      fingerprint: of its checkpoint (`s1jax.checkpoint.digests`); empty: not known.

    Returns:
      name -> tree, settings.

    Raises:
      UserError: an adapter can't be loaded, or belongs to another model; begins with its name.
    """
    found: Loaded = {}
    for name, source in adapters.items():
        if not name or not isinstance(name, str):
            raise UserError(f"an adapter is called {name!r:.80}; give it a name, which requests write.")
        try:
            found[name] = _one(source, config, fingerprint)
        except UserError as error:
            raise UserError(f"adapter {name}: {error}") from None
    return found


def _one(source: Any, config: ModelConfig, fingerprint: str) -> tuple[Mapping[str, Any], LoraConfig]:
    if isinstance(source, tuple):
        tree, lora = source
        adapters_lib.check(tree, config, lora)
        return tree, lora
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"{source!r:.80} is not a path; give a PEFT folder or the checkpoint of a run with lora.rank.")
    folder = pathlib.Path(source)
    if (folder / "adapter_config.json").exists():
        from s1jax.checkpoint import adapters as peft

        tree, lora, _ = peft.read(folder, config)
        return tree, lora
    from s1jax.checkpoint import store  # Orbax takes a second to import

    tree, info = store.load_adapters(source)
    if fingerprint and info.fingerprint != fingerprint:
        raise UserError(f"{folder} was trained for {info.base} and not for this checkpoint; give the engine that one.")
    return tree, info.lora
