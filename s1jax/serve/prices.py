"""What a reply costs: by a price list, and by the time of the device.

A price list is a JSON file of models with US dollars per million tokens; thinking is output:

    {"s1-32B": {"input": 0.5, "cached": 0.05, "output": 2.0}}

`usage.cost` is the list price of the model, or what its device cost if it has none, plus what another model that
answered in its place costs. `usage.cost_details` has the parts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

from s1jax.config import schema
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError
from s1jax.io import paths
from s1jax.serve.protocol import Call, Result, Usage


@dataclasses.dataclass(frozen=True)
class Price:
    """USD per million tokens. Thinking is output.

    Attributes:
      input: of prompt tokens.
      output: of completion tokens.
      cached: of prompt tokens that were in the prefix cache; None: as the others.
    """

    input: float
    output: float
    cached: float | None = None

    def of(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Returns the price of a request in USD."""
        cached = min(cached_tokens, prompt_tokens) if self.cached is not None else 0
        dollars = (prompt_tokens - cached) * self.input + cached * (self.cached or 0.0)
        return (dollars + completion_tokens * self.output) / 1e6


@dataclasses.dataclass(frozen=True)
class Prices:
    """The prices of a server.

    Attributes:
      models: price of each model; those that are missing have none.
      dollars_per_hour: of the device; None: unknown.
    """

    models: Mapping[str, Price] = dataclasses.field(default_factory=dict)
    dollars_per_hour: float | None = None

    def __post_init__(self) -> None:
        hour = self.dollars_per_hour
        if hour is not None and not 0 <= hour < math.inf:
            raise UserError(f"dollars_per_hour is {hour}; give a number from 0 on.")

    def count(self, call: Call, results: Sequence[Result]) -> Usage:
        """Returns the tokens and money of a call; see `s1jax.serve.protocol.Count`."""
        usage, details = Usage.of(call, results), {}
        price = self.models.get(call.model)
        if self.dollars_per_hour is not None:
            details["device_seconds"] = usage.device_seconds
            details["device_cost"] = usage.device_seconds * self.dollars_per_hour / 3600
        if price is not None:
            details["list_cost"] = price.of(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        remote = sum(result.remote_cost for result in results)
        if remote:
            details["remote_cost"] = remote
        if not details:
            return usage
        local = details.get("list_cost", details.get("device_cost", 0.0))
        return dataclasses.replace(usage, cost=local + remote, cost_details=details)


def read(file: str | pathlib.Path, dollars_per_hour: float | None = None) -> Prices:
    """Reads a price list.

    Args:
      file: JSON, see above.
      dollars_per_hour: of the device; None: unknown.

    Raises:
      UserError: names the file and what is wrong.
    """
    path = paths.local(file, "the price list")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f'{path} is {shown(found)}; write {{"MODEL": {{"input": 0.5, "output": 2.0}}}}.')
    models = {}
    for model, price in found.items():
        where = f"{path}: {plain(model)}"
        models[model] = schema.convert(Price, price, where)
        for name in ("input", "output", "cached"):
            value = getattr(models[model], name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{where}.{name} is {value}; give US dollars per million tokens, from 0 on.")
    return Prices(models, dollars_per_hour)
