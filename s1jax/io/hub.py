"""Downloads snapshots of Hugging Face hub repositories, with the commit that identifies them."""

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
