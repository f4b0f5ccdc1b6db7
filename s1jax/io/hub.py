"""Repositories of the Hugging Face hub: downloads of a snapshot with its commit, uploads of a model folder."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Literal


def snapshot(
    repository: str, patterns: Sequence[str], *, kind: Literal["model", "dataset"], revision: str = ""
) -> tuple[pathlib.Path, str]:
    """Downloads files of a repository, or finds them in the hub's cache.

    Args:
      repository: OWNER/NAME.
      patterns: names of the files, with `*`.
      kind: kind of the repository.
      revision: branch, tag or commit; empty takes the newest.

    Returns:
      the folder that contains them, and the commit, which is empty if it is not known.

    Raises:
      Exception: whatever huggingface_hub raises, errors of several libraries.
    """
    import huggingface_hub

    folder = pathlib.Path(
        huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision or None, allow_patterns=list(patterns)
        )
    )
    return folder, commit(folder) or revision


def commit(folder: pathlib.Path) -> str:
    """Returns the commit of a folder in the hub's cache, models--OWNER--NAME/snapshots/COMMIT; else an empty string."""
    folder = folder.resolve()
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name) else ""


def create(repository: str, *, private: bool) -> bool:
    """Creates a model repository on the hub if there is none; returns whether it is public.

    Args:
      repository: OWNER/NAME.
      private: for a new repository; an existing one is not changed.

    Raises:
      Exception: any error of huggingface_hub, for example without a login.
    """
    import huggingface_hub

    huggingface_hub.create_repo(repository, private=private, repo_type="model", exist_ok=True)
    return not huggingface_hub.repo_info(repository, repo_type="model").private


def upload(folder: pathlib.Path, repository: str, message: str) -> str:
    """Uploads a model folder in one commit and returns the address of the repository.

    Safetensors files that the repository has under other names are deleted in the same commit: transformers would read
    an old model.safetensors before the new shards.

    Raises:
      Exception: any error of huggingface_hub.
    """
    import huggingface_hub

    huggingface_hub.upload_folder(
        repo_id=repository,
        folder_path=folder,
        repo_type="model",
        commit_message=message,
        delete_patterns=["*.safetensors", "*.safetensors.index.json"],
    )
    return f"https://huggingface.co/{repository}"
