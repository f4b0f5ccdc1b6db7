"""The setting `train.remat`: what the backward pass keeps, layer by layer."""

from __future__ import annotations

import re

from s1jax.config.schema import require

# From the most memory to the fewest operations; `s1jax.model.remat` says what each of them keeps.
POLICIES = ("full", "save_attention", "save_projections", "save_dots", "none")


def by_layer(setting: str, num_layers: int) -> list[str]:
    """The policy of every layer.

    Args:
      setting: a policy, or several for successive layers, each but one with its number of layers:
        `save_attention,save_dots:10` keeps more of the last ten.
      num_layers: of the model.

    Raises:
      UserError: as `check`, or if there are more layers in the setting than in the model.
    """
    parts = check(setting)
    rest = num_layers - sum(count or 0 for _, count in parts)
    require(rest >= 0, f"train.remat is {setting!r}, of more than the {num_layers} layers of the model; name fewer.")
    return [policy for policy, count in parts for _ in range(rest if count is None else count)]


def check(setting: str) -> list[tuple[str, int | None]]:
    """The policies of a setting with their numbers of layers; None: all that the others leave.

    Raises:
      UserError: for an unknown policy, and unless exactly one of them has no number.
    """
    parts = []
    for text in setting.split(","):
        found = re.fullmatch(r"\s*(\w+)(?::(\d+))?\s*", text)
        require(
            found is not None and found[1] in POLICIES,
            f"train.remat is {setting!r}; give one of {', '.join(POLICIES)}, or several with numbers of layers, as in"
            " save_attention,save_dots:10.",
        )
        assert found is not None
        parts.append((found[1], int(found[2]) if found[2] else None))
    free = sum(count is None for _, count in parts)
    require(free == 1, f"train.remat is {setting!r}; give each policy but one a number of layers.")
    return parts
