"""Everything that can be configured, as frozen dataclasses: validated on construction, JSON in and out.

Axis letters used all over s1jax: B batch, T query length, S key length, D model, F mlp, N query heads, K key/value
heads, H head dimension, L layers, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from s1jax.config.schema import InputError as InputError
from s1jax.config.schema import at_least as _at_least
from s1jax.config.schema import convert as _convert
from s1jax.config.schema import from_dict as from_dict
from s1jax.config.schema import from_zero as _from_zero
from s1jax.config.schema import require as _require
from s1jax.config.schema import to_dict as to_dict

_FLOATS = ("float32", "bfloat16")
_CORPUS = "countdown_corpus is endless text in packed rows, made to fit and weighted by token"
_STOPS, _SAMPLES = 64, 10_000  # of one row, at most
# While sampling: of weights and activations, of the cache, of matrices alone. Each may be left empty.
SAMPLING_DTYPES = {"dtype": _FLOATS, "cache_dtype": (*_FLOATS, "int8"), "weight_dtype": ("int8",)}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for rows longer than those of the first training (`s1jax.model.rope`).

    Names and formulas as in Hugging Face's `rope_scaling`.

    Attributes:
      kind: `linear` divides all frequencies by the factor; `llama3` (Llama 3.1 and later) and `yarn` (Peng et al. 2023)
        the low ones, and change those between gradually.
      factor: by which low frequencies are divided, at least 1.
      original_context_length: longest row of the first training, in tokens; `llama3` and `yarn` need it.
      low_freq_factor: `llama3`: wavelengths above original_context_length / low_freq_factor are low frequencies.
      high_freq_factor: `llama3`: those below original_context_length / high_freq_factor are kept.
      beta_fast: `yarn`: dimensions with more rotations than this in the original context are kept.
      beta_slow: `yarn`: those with fewer than this are divided.
      truncate: `yarn`: the two borders are rounded outwards to whole dimensions.
      attention_factor: `yarn`: cosines and sines are multiplied by it; None: 0.1 ln(factor) + 1.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        where = "model.rope_scaling."
        _require(1 <= self.factor <= 2**20, f"{where}factor is {self.factor}; give a number from 1 to 2**20.")
        original = self.original_context_length
        _require(original < 2**31, f"{where}original_context_length is {original}; give less than 2**31.")
        _at_least(0 if self.kind == "linear" else 1, where, self, "original_context_length")
        _from_zero(where, self, "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            _require(
                2**-20 <= getattr(self, low) < getattr(self, high) <= 2**20,
                f"{where}{low} is {getattr(self, low)} and {high} {getattr(self, high)}; the first must be positive "
                "and the smaller, both at most 2**20.",
            )
        of_cosines = self.attention_factor
        _require(
            of_cosines is None or 0 < of_cosines <= 2**20,
            f"{where}attention_factor is {of_cosines}; give a positive number of at most 2**20.",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder of the Qwen2/2.5, Qwen3 or Llama family; every field changes the output or a shape.

    Attributes:
      vocab_size: V, rows of the embedding; may exceed the tokenizer's ids.
      d_model: D.
      mlp_dim: F, hidden width of SwiGLU.
      num_layers: L.
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads; divides N.
      head_dim: H, even.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are changed for long rows; None: not at all.
      norm_eps: added to the mean square in RMSNorm.
      qkv_bias: query, key and value projections have a bias (Qwen2).
      qk_norm: RMSNorm over H of queries and keys before RoPE (Qwen3).
      tied_embeddings: the output projection is the embedding.
      context_length: longest sequence, in tokens, that the decoder accepts.
    """

    vocab_size: int
    d_model: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    context_length: int = 32768

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                _require(value > 0, f"model.{field.name} is {value}; it must be positive.")
        whole = self.num_heads % self.num_kv_heads == 0
        _require(whole, f"model.num_heads {self.num_heads} is no multiple of model.num_kv_heads {self.num_kv_heads}.")
        _require(self.head_dim % 2 == 0, f"model.head_dim {self.head_dim} must be even for rotary embeddings.")
        theta = self.rope_theta  # frequencies are float32
        _require(1 <= theta <= 1e30, f"model.rope_theta is {theta}; it must lie in [1, 1e30].")
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn":
            _require(theta > 1, f"model.rope_theta is {theta}; yarn needs more than 1.")

    @property
    def num_params(self) -> int:
        """Number of weights, a tied embedding counted once."""
        d, h, n, k = self.d_model, self.head_dim, self.num_heads, self.num_kv_heads
        attention = 2 * d * n * h + 2 * d * k * h
        attention += (n + 2 * k) * h * self.qkv_bias + 2 * h * self.qk_norm
        layer = attention + 3 * d * self.mlp_dim + 2 * d
        return self.num_layers * layer + d + self.vocab_size * d * (1 if self.tied_embeddings else 2)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
      source: `countdown`, `countdown_corpus`, `s1k`, `s1k_1_1`, or a file or folder of rows (see `s1jax.io.readers`).
      traces: whose thinking the `s1k_1_1` rows carry.
      num_rows: use this many rows from the front of the source; 0 takes all, but 1,000 of `countdown`.
      block_size: T, ids in one row of a batch.
      batching: `padded` puts one sequence in a row (the paper), `packed` as many as fit, told apart by segment ids.
        Loss and gradients of a step depend on its sequences alone, so both give the same.
      weighting: `sequence` averages over each sequence's supervised ids, then over sequences (the paper);
        `token` averages over all supervised ids.
      too_long: what happens to a row of more than block_size + 1 ids.
      control: instruction that every question gets (`s1jax.data.conditional`): `token` and `step` bound the thinking
        tokens or steps, `class` asks for short or long thinking; empty: none.
      seed: of the rows' order and, for generated sources, of the rows.
    """

    source: str = "countdown"
    traces: Literal["gemini", "deepseek"] = "deepseek"
    num_rows: int = 0
    block_size: int = 32768
    batching: Literal["padded", "packed"] = "padded"
    weighting: Literal["sequence", "token"] = "sequence"
    too_long: Literal["error", "drop", "truncate"] = "error"
    control: Literal["", "token", "step", "class"] = ""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.source.strip()), f"data.source is {self.source!r}; name a source or a file of rows.")
        _require(self.block_size > 1, f"data.block_size is {self.block_size}; it must be at least 2.")
        _require(self.num_rows >= 0, f"data.num_rows is {self.num_rows}; give 0 for all rows.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as in the s1 recipe, or Muon for the matrices with AdamW for the rest.

    Attributes:
      name: `adamw` or `muon`.
      learning_rate: peak of the schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled; applied to the matrices (embeddings, projections, MLP, head), never to biases or norms.
      warmup_fraction: share of all steps in which the rate rises linearly from 0.
      schedule: how the rate falls to 0 after the warm-up.
      clip_norm: largest global gradient norm; 0 does not clip.
      moment_dtype: of both moments between steps, whatever `train.param_dtype` is; arithmetic is float32. bfloat16
        rounds away changes of less than 1/256 of a moment, so that the mean of a steady value is off by up to
        1 / (256 (1 - b)) of it: 8 % at b = 0.95, 20 % at 0.98, which is the most allowed; at 0.999 it would never fall.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-5
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: float = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        _from_zero("optimizer.", self, "learning_rate", "weight_decay", "clip_norm")
        share = self.warmup_fraction
        _require(0 <= share <= 1, f"optimizer.warmup_fraction is {share}; it lies in [0, 1].")
        _require(0 < self.eps < math.inf, f"optimizer.eps is {self.eps}; give a positive number.")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optimizer.{name} is {value}; it must lie in [0, 1).")
            _require(
                value <= 0.98 or self.moment_dtype == "float32",
                f"optimizer.{name} is {value}: optimizer.moment_dtype='bfloat16' would round such slow changes away; "
                "give at most 0.98, or 'float32' moments.",
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and in which arithmetic.

    Attributes:
      batch_size: sequences per optimizer step over all devices; 0 where `batch_tokens` is given.
      batch_tokens: tokens per optimizer step over all devices, for data.batching `packed`: a step takes whole sequences
        until batch_tokens // data.block_size rows are full (`s1jax.data.batches`), so that their number differs from
        step to step and little is padding. 0: `batch_size` counts sequences.
      epochs: passes over the rows; not used where `steps` is given.
      steps: optimizer steps; 0 derives them from `epochs`.
      accumulation: micro-batches that one step's gradient is summed over; divides the rows of a batch.
      param_dtype: of the master weights; bfloat16 ones are updated with stochastic rounding, see
        `s1jax.train.optimizer.apply`, and are half the memory of float32 ones with their copies in compute_dtype.
      compute_dtype: of activations and of the weights inside the forward pass.
      remat: what the backward pass keeps of a layer, see `s1jax.model.remat`.
      attention: kernel, see `s1jax.model.attention.attend`; `auto` leaves the choice to its `choose`.
      mlp_parts: parts of the MLP's hidden width that are computed one after the other: less memory for long rows, no
        more operations with remat `full`.
      loss_chunk: tokens whose logits exist at one time.
    """

    batch_size: int = 16
    batch_tokens: int = 0
    epochs: int = 5
    steps: int = 0
    accumulation: int = 1
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "full", "save_attention", "save_dots"] = "full"
    attention: Literal["auto", "xla", "chunked", "splash", "cudnn", "flash"] = "xla"
    mlp_parts: int = 1
    loss_chunk: int = 1024

    def __post_init__(self) -> None:
        _at_least(1, "train.", self, "accumulation", "mlp_parts", "loss_chunk")
        _at_least(0, "train.", self, "batch_size", "batch_tokens", "steps", "epochs")
        _require(
            bool(self.batch_size) != bool(self.batch_tokens),
            f"train.batch_size is {self.batch_size} and train.batch_tokens is {self.batch_tokens}; give exactly one of"
            " them, the sequences or the tokens of a step, and set the other to 0.",
        )
        _require(self.steps < 2**31, f"train.steps is {self.steps:,}; it must lie below 2**31.")
        _require(self.steps > 0 or self.epochs > 0, "train.steps and train.epochs are both 0; give one of them.")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis (`s1jax.parallel`); one of them may be -1: all devices that are left."""

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saves every `every` steps (0: only at the end) and keeps the newest `keep` of them."""

    every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        _at_least(0, "checkpoint.", self, "every")
        _at_least(1, "checkpoint.", self, "keep")


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Price in US dollars of one device for one hour; 0 leaves dollars out."""

    per_device_hour: float = 0.0

    def __post_init__(self) -> None:
        _from_zero("cost.", self, "per_device_hour")


@dataclasses.dataclass(frozen=True)
class DelimiterConfig:
    """Text in place of the chat format's own delimiters, special token or not; empty keeps them.

    Attributes:
      think_start: before the trace.
      think_end: between trace and answer. Its first id, when sampled, ends thinking, so no trace should contain it.
    """

    think_start: str = ""
    think_end: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run: what `launch.train` reads from a file of configs/.

    Attributes:
      init_from: checkpoint whose weights, model, tokenizer and chat format are fine-tuned; `package:countdown_base`
        names the one that ships with s1jax. Empty: random weights of `model`.
      model: shape of random weights; None where `init_from` is given.
      tokenizer: tokenizer folder or file for random weights; empty where `init_from` is given.
      chat: name of the chat format (`s1jax.text.chat.FORMATS`); empty keeps the checkpoint's.
      delimiters: in place of the format's own.
      seed: of the random weights.
    """

    init_from: str = ""
    model: ModelConfig | None = None
    tokenizer: str = ""
    chat: str = ""
    delimiters: DelimiterConfig = DelimiterConfig()
    seed: int = 0
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cost: CostConfig = CostConfig()

    def __post_init__(self) -> None:
        _require(
            bool(self.init_from) != (self.model is not None),
            "config.init_from and config.model: give exactly one, a checkpoint to start from or a shape to initialise.",
        )
        _require(-(2**63) <= self.seed < 2**63, f"config.seed is {self.seed}; it must lie in [-2**63, 2**63).")
        _require(
            not (self.init_from and self.tokenizer),
            f"config.tokenizer {self.tokenizer!r} is not used with config.init_from, whose tokenizer fits its weights; "
            "leave it empty.",
        )
        tokens, block = self.train.batch_tokens, self.data.block_size
        _require(
            not tokens or self.data.batching == "packed",
            f"train.batch_tokens {tokens} needs data.batching=packed; set that, or give train.batch_size instead.",
        )
        _require(
            not tokens or tokens >= block,
            f"train.batch_tokens {tokens} is less than one row of data.block_size {block}; give at least {block}.",
        )


def unused(experiment: Experiment) -> list[str]:
    """Sentences on settings other than their defaults that another setting makes meaningless; harmless ones only.

    Combinations that would train something else than what was asked for are errors: of `Experiment`, or where the
    source, the model and the machine are known.
    """
    data, train, found = experiment.data, experiment.train, []

    def say(group: Any, name: str, setting: str, why: str) -> None:
        value = getattr(group, name)
        if value != getattr(type(group)(), name):
            found.append(f"config.{setting}{name}={value} is not used: {why}.")

    if experiment.init_from and experiment.seed:
        found.append(
            f"config.seed={experiment.seed} is not used: it is of random weights, and config.init_from has weights;"
            " config.data.seed is of the rows' order."
        )
    if train.steps:
        say(train, "epochs", "train.", f"config.train.steps={train.steps} says how long the run is")
    if data.source in ("countdown", "countdown_corpus", "s1k"):
        say(data, "traces", "data.", f"the rows of {data.source} have one trace each")
    if data.source == "countdown_corpus":
        for name in ("num_rows", "batching", "too_long"):
            say(data, name, "data.", _CORPUS)
        if data.weighting != "token":
            found.append(f"config.data.weighting={data.weighting} is not used: {_CORPUS}.")
    return found


def defaults(model: str | Mapping[str, Any] = "") -> dict[str, Any]:
    """Every setting of an `Experiment` at its default, for files of configs/ to start from; `model` as below."""
    settings = {
        field.name: to_dict(field.default) if dataclasses.is_dataclass(field.default) else field.default
        for field in dataclasses.fields(Experiment)
    }
    return settings | {"model": model}


@dataclasses.dataclass(frozen=True)
class Controls:
    """How one row is sampled; in a cache of a given length, nothing here causes a recompilation.

    Attributes:
      max_thinking_tokens: thinking is cut here; 0 means no thinking at all.
      min_thinking_tokens: an earlier end of thinking is replaced by the wait string.
      num_waits: ends of thinking beyond the minimum that are replaced by the wait string.
      max_answer_tokens: sampled ids of the answer, its stop id included.
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
    """

    max_thinking_tokens: int = 4096
    min_thinking_tokens: int = 0
    num_waits: int = 0
    max_answer_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, hint in typing.get_type_hints(Controls).items():
            object.__setattr__(self, name, _convert(hint, getattr(self, name), name))
        _at_least(0, "", self, "max_thinking_tokens", "min_thinking_tokens", "num_waits", "top_k")
        _at_least(1, "", self, "max_answer_tokens")
        _require(
            self.min_thinking_tokens <= self.max_thinking_tokens,
            f"min_thinking_tokens {self.min_thinking_tokens} exceeds max_thinking_tokens {self.max_thinking_tokens}.",
        )
        # Sampling computes in float32, which holds nothing much beyond these.
        _require(0 <= self.temperature <= 1e38, f"temperature is {self.temperature}; it must lie in [0, 1e38].")
        _require(1e-37 <= self.top_p <= 1, f"top_p is {self.top_p}; it must lie in [1e-37, 1].")
        _require(0 <= self.min_p <= 1, f"min_p is {self.min_p}; it must lie in [0, 1].")
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must lie in [0, 2**32).")
        penalty = self.repetition_penalty
        _require(0.01 <= penalty <= 100, f"repetition_penalty is {penalty}; it must lie in [0.01, 100], 1 for none.")
        _require(len(self.stop) <= _STOPS, f"stop has {len(self.stop)} strings; give at most {_STOPS}.")
        _require(all(self.stop), "stop has an empty string, which would end every answer; leave it out.")
        _require(1 <= self.n <= _SAMPLES, f"n is {self.n}; it must lie in [1, {_SAMPLES}].")
        _require(
            self.n == 1 or self.temperature > 0,
            f"n is {self.n}, but with temperature 0 all samples of a prompt are the same; raise temperature, or leave n"
            " out.",
        )
