"""Budget forcing once more: one row, plain Python, float64, written from the rules and sharing no code with s1jax.

Slow and simple on purpose: the list of ids is the only state that the model sees, and it is run from the start for
every id.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from s1jax.config.sampling import SamplingParams
from s1jax.text.delimiters import Delimiters


@dataclasses.dataclass
class Result:
    """What the rules say about one row."""

    ids: list[int]
    forced: list[bool]
    thinking_tokens: int = 0
    answer_tokens: int = 0
    waits: int = 0
    thinking_end: str = ""
    answer_end: str = ""
    logprob: float = 0.0


def filter_logits(logits: np.ndarray, controls: SamplingParams) -> np.ndarray:
    """Temperature, top-k, top-p, min-p of one row [V]; -inf for what is left out. By sorting, in float64."""
    scores = logits.astype(np.float64) / controls.temperature
    if controls.top_k:
        kth = np.sort(scores)[::-1][min(controls.top_k, len(scores)) - 1]
        scores = np.where(scores < kth, -np.inf, scores)
    if controls.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        probabilities = softmax(scores)[order]
        needed = int(np.searchsorted(np.cumsum(probabilities), controls.top_p)) + 1
        scores = np.where(scores < scores[order[needed - 1 : needed]], -np.inf, scores)
    if controls.min_p:
        probabilities = softmax(scores)
        scores = np.where(probabilities < controls.min_p * probabilities.max(), -np.inf, scores)
    return scores


def softmax(scores: np.ndarray) -> np.ndarray:
    """Of one row, float64."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def choose(
    logits: np.ndarray, banned: set[int], controls: SamplingParams, count: int, before: Sequence[int] = ()
) -> int:
    """The id that a row with `count` ids samples; `banned` ids are out, those `before` are penalised."""
    logits = logits.astype(np.float64)
    for token in set(before):
        penalty = controls.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    logits[sorted(banned)] = -np.inf
    if controls.temperature == 0:
        return int(np.argmax(logits))
    noise = np.asarray(_noise(np.uint32(controls.seed), count, len(logits)))
    return int(np.argmax(filter_logits(logits, controls) + noise))


@functools.partial(jax.jit, static_argnums=2)
def _noise(seed, count, size):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), count)
    return jax.random.gumbel(key, (size,), np.float32)


def run(
    next_logits: Callable[[list[int]], np.ndarray],
    prompt: Sequence[int],
    controls: SamplingParams,
    d: Delimiters,
    wait: Sequence[int],
) -> Result:
    """Samples one row.

    Args:
      next_logits: all ids so far, prompt included -> raw logits [V] of the next one.
      prompt: ids.
      controls: of the row.
      d: delimiters.
      wait: ids of the wait.
    """
    row = Result(ids=list(d.think_start), forced=[True] * len(d.think_start))
    ends = set(d.end) | set(d.stop)

    def force(ids: Sequence[int]) -> None:
        row.ids += ids
        row.forced += [True] * len(ids)

    def sample(not_these: set[int]) -> tuple[int, float]:
        logits = next_logits([*prompt, *row.ids])
        unknown = set(range(d.num_ids, len(logits))) | set(d.illegal)
        token = choose(logits, unknown | not_these, controls, len(row.ids), [*prompt, *row.ids])
        return token, float(np.log(softmax(logits.astype(np.float64))[token]))

    def keep(token: int, logprob: float) -> None:
        row.ids.append(token)
        row.forced.append(False)
        row.logprob += logprob

    waits_left = controls.num_waits
    first = True  # after think_start or a wait
    while not row.thinking_end:
        if row.thinking_tokens >= controls.max_thinking_tokens:
            row.thinking_end = "cut"
            break
        token, logprob = sample(ends if first else set())
        if token not in ends:
            keep(token, logprob)
            row.thinking_tokens += 1
            first = False
        elif row.thinking_tokens >= controls.min_thinking_tokens and waits_left == 0:
            row.thinking_end = "natural"
        elif row.thinking_tokens + len(wait) > controls.max_thinking_tokens:
            row.thinking_end = "cut"
        else:
            if row.thinking_tokens >= controls.min_thinking_tokens:
                waits_left -= 1
            row.waits += 1
            if wait:
                force(wait)
                row.thinking_tokens += len(wait)
                first = True
            else:
                keep(*sample(ends))
                row.thinking_tokens += 1
                first = False

    if row.thinking_end == "cut" and [*prompt, *row.ids][-1] not in d.ends_in_newline:
        force(d.newline)
    force(d.think_end)
    if row.thinking_end == "cut":
        force(d.final_answer)

    while not row.answer_end:
        token, logprob = sample(ends if first else set())
        first = False
        keep(token, logprob)
        row.answer_tokens += 1
        if token in d.stop:
            row.answer_end = "stop"
        elif row.answer_tokens == controls.max_answer_tokens:
            row.answer_end = "length"
    return row
