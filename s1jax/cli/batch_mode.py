"""The flags of batch mode of `s1jax distil`, and what a step of it says."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from absl import flags

from s1jax.cli import terminal
from s1jax.distillation import batch
from s1jax.distillation.batch_journal import MOST_REQUESTS
from s1jax.distillation.distil import Summary
from s1jax.distillation.plan import Plan
from s1jax.distillation.settings import DistilSettings, Price
from s1jax.errors import UserError
from s1jax.remote.client import Endpoint

WAITING = 4  # exit code

MODE = flags.DEFINE_enum(
    "batch", "", ["", "submit", "collect", "write", "read", "cancel"],
    "Ask by OpenAI's Batch API: submit, then collect; or write files, and read their results.",
)  # fmt: skip
_RESULTS = flags.DEFINE_list("batch_results", [], "Files of results for --batch=read.")
_DISCOUNT = flags.DEFINE_float(
    "batch_discount", 0.5, "Price of a token in a batch, as a share of --dollars_per_million.", 0.0
)
_MOST = flags.DEFINE_integer("batch_requests", MOST_REQUESTS, "Most requests in a file.", 1, MOST_REQUESTS)


def check(own: str) -> None:
    """Refuses flags that do not go together.

    Args:
      own: --checkpoint.

    Raises:
      UserError: names the flag.
    """
    if MODE.value and own:
        raise UserError("--batch is for an --endpoint; the teacher of --checkpoint answers at once, drop one of them.")
    if bool(_RESULTS.value) != (MODE.value == "read"):
        raise UserError("--batch=read and --batch_results=FILE,... belong together; give both or neither.")


def priced(settings: DistilSettings) -> DistilSettings:
    """Returns the settings with the price of batches."""
    price = settings.price
    if price is None or not MODE.value:
        return settings
    share = _DISCOUNT.value
    try:
        return dataclasses.replace(settings, price=Price(price.prompt * share, price.output * share))
    except UserError as error:
        raise UserError(f"--batch_discount={share:g}: {error}") from None


def run(
    questions: str,
    out: pathlib.Path,
    endpoint: Endpoint,
    settings: DistilSettings,
    show: Callable[[Plan], object],
    say: Callable[[Summary, pathlib.Path], object],
    budget: int,
) -> int:
    """Does the step of --batch; returns the exit code: 0, `budget`, or `WAITING` where answers are still to come.

    Args:
      questions: --questions.
      out: --out.
      endpoint: of the flags.
      settings: of the flags, see `priced`.
      show: prints a plan.
      say: prints what the folder holds.
      budget: exit code where --max_dollars ends the step.
    """
    mode: batch.Mode = MODE.value  # type: ignore[assignment]
    outcome = batch.run(
        mode, questions, out, endpoint, settings, results=_RESULTS.value, most_requests=_MOST.value,
        on_note=terminal.note, on_plan=show,
    )  # fmt: skip
    say(outcome.summary, out)
    if outcome.waiting:
        count = sum(known.requests for known in outcome.waiting)
        many = len(outcome.waiting) > 1
        most = f", at most {outcome.dollars:.4f} dollars" if outcome.dollars else ""
        batches = f"{len(outcome.waiting)} batch{'es that have' if many else ' that has'} not ended"
        print(f"{count:,} requests{most}, are in {batches}")
    if outcome.summary.reason == "budget":
        return budget
    return WAITING if outcome.waiting and mode in ("collect", "read") else 0
