"""How one request is sampled: `SamplingParams`."""

from __future__ import annotations

import dataclasses

from s1jax.config.schema import at_least, convert, require, shown, type_hints

_STOPS, _SAMPLES = 64, 10_000  # of one row, at most
# Dtypes that the engine accepts; an empty string selects its default.
SAMPLING_DTYPES = {
    "dtype": ("float32", "bfloat16"),
    "cache_dtype": ("float32", "bfloat16", "int8"),
    "weight_dtype": ("int8", "int4", "fp8", "mxfp4"),
}


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one row is sampled; in a cache of a given length, nothing here causes a recompilation.

    Attributes:
      max_thinking_tokens: thinking is cut here; 0 means no thinking at all.
      min_thinking_tokens: an earlier end of thinking is replaced by the wait string. If that does not fit below the
        maximum any more, thinking is cut instead, and stays shorter than the minimum by less than a wait.
      num_waits: ends of thinking beyond the minimum that are replaced by the wait string.
      max_answer_tokens: sampled ids of the answer, its stop id included.
      max_completion_tokens: all tokens after the prompt and think_start: thinking, delimiters and answer; 0: no such
        bound. Thinking is cut early enough for the closing delimiters and an answer of a quarter of these tokens, at
        most `max_answer_tokens`.
      temperature: 0 is greedy.
      top_p: smallest set of ids with at least this probability; 1 keeps all.
      top_k: the k most probable ids; 0 keeps all.
      min_p: ids at least this fraction as probable as the best; 0 keeps all.
      seed: of the noise. A row that has a seed of its own gets the same ids in any batch and at any place; rows without
        one get different noise each, derived from this seed and their index (`s1jax.engine.seeds`).
      repetition_penalty: logits of ids that the prompt or the row has already are divided by it where they are
        positive and multiplied by it where they are negative, before anything else, as transformers and vLLM have it;
        1 changes nothing. Forced ids are not changed by it, and count as ids that the row has.
      stop: up to 64 texts that end the answer; a single string is a list of one. The answer's text ends before the
        stop string, its ids with the id that completes it. Stop strings are looked for in what the row samples for its
        answer, from its first character that is not white space on: never in thinking, never in a forced
        "Final Answer:".
      n: samples of the prompt, which share its prefill; above 1 they need a temperature above 0, as in vLLM.
      wait: string that replaces an end of thinking, as `num_waits` and `min_thinking_tokens` ask; special tokens in it
        are encoded as text. If it is empty, the end is masked instead and another token is sampled.
      reasoning_effort: how long the model shall think, as a word that its chat format writes into the prompt (gpt-oss:
        `low`, `medium`, `high`); empty: the format's own word, if it has any. It sets no number of tokens.
    """

    max_thinking_tokens: int = 4096
    min_thinking_tokens: int = 0
    num_waits: int = 0
    max_answer_tokens: int = 1024
    max_completion_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    wait: str = "Wait"
    reasoning_effort: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        require(isinstance(self.wait, str), f"wait is {shown(self.wait)}; it must be a string.")
        for name, hint in type_hints(SamplingParams).items():
            object.__setattr__(self, name, convert(hint, getattr(self, name), name))
        at_least(
            0, "", self, "max_thinking_tokens", "min_thinking_tokens", "num_waits", "top_k", "max_completion_tokens"
        )
        at_least(1, "", self, "max_answer_tokens")
        require(
            self.min_thinking_tokens <= self.max_thinking_tokens,
            f"min_thinking_tokens {self.min_thinking_tokens} exceeds max_thinking_tokens {self.max_thinking_tokens}.",
        )
        # Sampling computes in float32, which holds nothing much beyond these.
        require(0 <= self.temperature <= 1e38, f"temperature is {self.temperature}; it must lie in [0, 1e38].")
        require(1e-37 <= self.top_p <= 1, f"top_p is {self.top_p}; it must lie in [1e-37, 1].")
        require(0 <= self.min_p <= 1, f"min_p is {self.min_p}; it must lie in [0, 1].")
        require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must lie in [0, 2**32).")
        penalty = self.repetition_penalty
        require(0.01 <= penalty <= 100, f"repetition_penalty is {penalty}; it must lie in [0.01, 100], 1 for none.")
        require(len(self.stop) <= _STOPS, f"stop has {len(self.stop)} strings; give at most {_STOPS}.")
        require(all(self.stop), "stop has an empty string, which would end every answer; leave it out.")
        require(1 <= self.n <= _SAMPLES, f"n is {self.n}; it must lie in [1, {_SAMPLES}].")
        require(
            self.n == 1 or self.temperature > 0,
            f"n is {self.n}, but with temperature 0 all samples of a prompt are the same; raise temperature, or leave n"
            " out.",
        )
