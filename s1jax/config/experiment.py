"""The settings of a training run as frozen dataclasses, validated on construction; files of configs/ describe them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from s1jax.config import distil as distil_lib
from s1jax.config import lora as lora_lib
from s1jax.config import remat as remat_lib
from s1jax.config.distil import DistilConfig as DistilConfig
from s1jax.config.distil import RolloutConfig as RolloutConfig
from s1jax.config.lora import LoraConfig as LoraConfig
from s1jax.config.model import FLAT_DEFAULTS, ModelConfig
from s1jax.config.schema import at_least, from_zero, require, to_dict

_CORPUS = "countdown_corpus is endless text in packed rows, made to fit and weighted by token"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data.

    Attributes:
      source: `countdown`, `countdown_corpus`, `s1k`, `s1k_1_1`, or a file or folder of rows (see `s1jax.io.readers`).
        `FILE:0.7,FILE:0.3` mixes sources by weights, and `FILE,FILE` joins them (see `s1jax.data.mix`).
      traces: whose thinking is used of the `s1k_1_1` rows.
      num_rows: number of rows from the front of each source; 0 takes all (of `countdown` 1,000).
      block_size: T, tokens in one row of a batch.
      batching: `padded` puts one sequence in a row (the paper), `packed` as many as fit, with segment ids. Loss and
        gradients of a step depend on its sequences alone, so both give the same.
      weighting: `sequence` averages over each sequence's supervised tokens, then over sequences (the paper);
        `token` averages over all supervised tokens.
      too_long: what to do with an example of more than block_size + 1 tokens.
      control: instruction that is appended to every question (`s1jax.data.conditional`): `token` and `step` limit the
        thinking tokens or steps, `class` asks for short or long thinking; empty: none.
      loss_on: of a conversation of several turns, `last` trains on the last answer, with the messages before it as a
        server would be sent them. `all` trains on each answer with thinking as an example of its own.
      seed: seed of the order of the rows and, for generated sources, of the rows.
      validation: rows for `validation_loss`. A number such as `50` or a share such as `0.05` (rounded up) holds so many
        rows of the source out of training; which ones is a function of the seed. The name of a split such as
        `validation` takes that split of the source's folder. Anything else is a file or folder of rows; of a folder,
        the split validation is taken, or else test or train. Empty: no validation.
    """

    source: str = "countdown"
    traces: Literal["gemini", "deepseek"] = "deepseek"
    num_rows: int = 0
    block_size: int = 32768
    batching: Literal["padded", "packed"] = "padded"
    weighting: Literal["sequence", "token"] = "sequence"
    too_long: Literal["error", "drop", "truncate"] = "error"
    control: Literal["", "token", "step", "class"] = ""
    loss_on: Literal["last", "all"] = "last"
    seed: int = 0
    validation: str = ""

    def __post_init__(self) -> None:
        held_out(self.validation)
        require(bool(self.source.strip()), f"data.source is {self.source!r}; name a source or a file of rows.")
        require(self.block_size > 1, f"data.block_size is {self.block_size}; it must be at least 2.")
        require(self.num_rows >= 0, f"data.num_rows is {self.num_rows}; give 0 for all rows.")


def held_out(validation: str) -> int | float | None:
    """Returns the number or the share of rows that `DataConfig.validation` holds out; None where it names rows.

    Raises:
      UserError: for a number that is not whole and positive, and a share that is not between 0 and 1.
    """
    try:
        value = float(validation)
    except ValueError:
        return None
    require(
        0 < value < 1 or (value >= 1 and validation.strip().isdecimal()),
        f"data.validation is {validation}; give a number of rows such as 50, a share of them such as 0.05, or a file.",
    )
    return value if value < 1 else int(validation)


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
      moment_dtype: dtype of both moments between steps, independent of `train.param_dtype`; arithmetic is float32.
        bfloat16 rounds away changes of less than 1/256 of a moment. The mean of a constant value is then off by up to
        1 / (256 (1 - b)): 8 % at b = 0.95, 20 % at 0.98, which is the most allowed; at 0.999 it would never fall.
        int8 are 8-bit codes with a scale for each block of up to 256 values (`s1jax.training.moments`), with the same
        bound on b.
      offload: keep the moments in the host's memory between steps, on GPUs and TPUs. A step moves all of them to the
        device and back.
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
    moment_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    offload: bool = False

    def __post_init__(self) -> None:
        from_zero("optimizer.", self, "learning_rate", "weight_decay", "clip_norm")
        share = self.warmup_fraction
        require(0 <= share <= 1, f"optimizer.warmup_fraction is {share}; it must be in [0, 1].")
        require(0 < self.eps < math.inf, f"optimizer.eps is {self.eps}; give a positive number.")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} is {value}; it must lie in [0, 1).")
            require(
                value <= 0.98 or self.moment_dtype == "float32",
                f"optimizer.{name} is {value}: optimizer.moment_dtype={self.moment_dtype!r} would round such slow"
                " changes away; give at most 0.98, or 'float32' moments.",
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run, precision, and how a step is computed.

    Attributes:
      batch_size: sequences per optimizer step over all devices; 0 if `batch_tokens` is given.
      batch_tokens: tokens per optimizer step over all devices, for data.batching `packed`. A step takes whole sequences
        until batch_tokens // data.block_size rows are full (`s1jax.data.batches`). So the number of sequences differs
        from step to step, and there is little padding. 0: `batch_size` counts sequences.
      epochs: passes over the rows; ignored if `steps` is given.
      steps: optimizer steps; 0 derives them from `epochs`.
      accumulation: gradient accumulation: number of micro-batches per step; divides the rows of a batch.
      param_dtype: dtype of the master weights. bfloat16 weights are updated with stochastic rounding, see
        `s1jax.training.optimizer.apply`, and need half the memory of float32 ones with their copies in compute_dtype.
      compute_dtype: dtype of activations and of the weights inside the forward pass.
      remat: what the backward pass keeps of a layer: `full` its input alone, `save_attention`, `save_projections` and
        `save_dots` ever more products, `none` all (`s1jax.model.remat`). `save_attention,save_dots:10` keeps more of
        the last ten layers.
      attention: kernel, see `s1jax.model.attention.dispatch.attend`; `auto` chooses one.
      mlp_parts: chunked MLP: number of parts of the hidden width that are computed one after the other. It needs less
        memory for long rows, and no more FLOPs with remat `full`. Experts are narrow, and always computed whole.
      loss_chunk: number of tokens whose logits exist at one time.
      router_aux_loss: weight of the load-balancing loss of a model with experts (`s1jax.model.mlp.router.balance_loss`,
        as in transformers), which is experts_per_token where all experts get the same; 0: it is not in the loss.
      validate_every: steps between two measurements of the loss on data.validation; 0: only after the last step, where
        it is always measured.
    """

    batch_size: int = 16
    batch_tokens: int = 0
    epochs: int = 5
    steps: int = 0
    accumulation: int = 1
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: str = "full"
    attention: Literal["auto", "xla", "chunked", "splash", "cudnn", "flash"] = "xla"
    mlp_parts: int = 1
    loss_chunk: int = 1024
    router_aux_loss: float = 0.0
    validate_every: int = 100

    def __post_init__(self) -> None:
        remat_lib.check(self.remat)
        at_least(1, "train.", self, "accumulation", "mlp_parts", "loss_chunk")
        at_least(0, "train.", self, "batch_size", "batch_tokens", "steps", "epochs", "validate_every")
        require(
            bool(self.batch_size) != bool(self.batch_tokens),
            f"train.batch_size is {self.batch_size} and train.batch_tokens is {self.batch_tokens}; give exactly one of"
            " them, the sequences or the tokens of a step, and set the other to 0.",
        )
        from_zero("train.", self, "router_aux_loss")
        require(self.steps < 2**31, f"train.steps is {self.steps:,}; it must lie below 2**31.")
        require(self.steps > 0 or self.epochs > 0, "train.steps and train.epochs are both 0; give one of them.")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis (`s1jax.parallel`); one may be -1: all remaining devices."""

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves its state, and what it keeps.

    Attributes:
      every: steps between two checkpoints; 0: only after the last step, where one is always saved.
      keep: number of the newest checkpoints that are kept.
      best: with data.validation, also save each step whose validation loss is the lowest so far, and keep the best such
        checkpoint besides the newest ones.
    """

    every: int = 100
    keep: int = 2
    best: bool = True

    def __post_init__(self) -> None:
        at_least(0, "checkpoint.", self, "every")
        at_least(1, "checkpoint.", self, "keep")


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Price in US dollars of one device for one hour; 0 leaves dollars out."""

    per_device_hour: float = 0.0

    def __post_init__(self) -> None:
        from_zero("cost.", self, "per_device_hour")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where the numbers of metrics.jsonl are written as well.

    Attributes:
      tensorboard: event files in WORKDIR/tensorboard.
      wandb: project of Weights & Biases; empty: none. A resumed run goes on under its id, which WORKDIR/wandb.json
        keeps. The package wandb reads its own settings, such as WANDB_MODE=offline.
    """

    tensorboard: bool = True
    wandb: str = ""


@dataclasses.dataclass(frozen=True)
class DelimiterConfig:
    """Text that replaces the delimiters of the chat format, special token or not; empty keeps them.

    Attributes:
      think_start: before the trace.
      think_end: between trace and answer. Its first token, when sampled, ends thinking, so no trace should contain it.
    """

    think_start: str = ""
    think_end: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run: what `launch.train` reads from a file of configs/.

    Attributes:
      init_from: checkpoint whose weights, model, tokenizer and chat format are fine-tuned; `package:countdown_base`
        names the one that ships with s1jax. Empty: random weights of `model`.
      model: shape of random weights; None if `init_from` is given.
      tokenizer: tokenizer folder or file for random weights; empty if `init_from` is given.
      chat: name of the chat format (`s1jax.text.chat.FORMATS`); empty keeps the checkpoint's.
      delimiters: replace those of the format.
      seed: seed of the random weights, or of the adapters.
      lora: adapters that are trained in place of the weights.
    """

    init_from: str = ""
    model: ModelConfig | None = None
    tokenizer: str = ""
    chat: str = ""
    delimiters: DelimiterConfig = DelimiterConfig()
    seed: int = 0
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    distil: DistilConfig = distil_lib.DEFAULT
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = lora_lib.OFF
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cost: CostConfig = CostConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        require(
            bool(self.init_from) != (self.model is not None),
            "config.init_from and config.model: give exactly one, a checkpoint to start from or a shape to initialise.",
        )
        require(-(2**63) <= self.seed < 2**63, f"config.seed is {self.seed}; it must lie in [-2**63, 2**63).")
        require(
            not (self.init_from and self.tokenizer),
            f"config.tokenizer {self.tokenizer!r} is not used with config.init_from, whose tokenizer fits its weights; "
            "leave it empty.",
        )
        tokens, block = self.train.batch_tokens, self.data.block_size
        if self.lora.rank:
            self._check_lora()
        require(
            not tokens or self.data.batching == "packed",
            f"train.batch_tokens {tokens} needs data.batching=packed; set that, or give train.batch_size instead.",
        )
        require(
            not tokens or tokens >= block,
            f"train.batch_tokens {tokens} is less than one row of data.block_size {block}; give at least {block}.",
        )

    def _check_lora(self) -> None:
        """Checks what adapters need of the other settings."""
        require(
            self.optimizer.name == "adamw",
            f"optimizer.name is {self.optimizer.name!r}, and adapters are trained with 'adamw'; set that, or lora.rank"
            " to 0.",
        )
        require(
            not self.distil.on_policy,
            f"distil.on_policy is {self.distil.on_policy}, and a student with adapters does not sample during training;"
            " set it to 0, or lora.rank to 0.",
        )


def unused(experiment: Experiment) -> list[str]:
    """Returns sentences about changed settings that have no effect because of another setting.

    Combinations that would train something else than intended are errors instead: in `Experiment`, or later, when the
    source, the model and the machine are known.
    """
    data, train, found = experiment.data, experiment.train, []

    def say(group: Any, name: str, setting: str, why: str) -> None:
        value = getattr(group, name)
        if value != getattr(type(group)(), name):
            found.append(f"config.{setting}{name}={value} is not used: {why}.")

    if experiment.init_from and experiment.seed and not experiment.lora.rank:
        found.append(
            f"config.seed={experiment.seed} is not used: it is of random weights, and config.init_from has weights;"
            " config.data.seed is of the rows' order."
        )
    if train.steps:
        say(train, "epochs", "train.", f"config.train.steps={train.steps} says how long the run is")
    if not data.validation:
        say(train, "validate_every", "train.", "config.data.validation names no rows")
        say(experiment.checkpoint, "best", "checkpoint.", "config.data.validation names no rows")
    distil_lib.say_unused(experiment.distil, say)
    if data.source in ("countdown", "countdown_corpus", "s1k"):
        say(data, "traces", "data.", f"the rows of {data.source} have one trace each")
        say(data, "loss_on", "data.", f"the rows of {data.source} have one turn each")
    if data.source == "countdown_corpus":
        for name in ("num_rows", "batching", "too_long"):
            say(data, name, "data.", _CORPUS)
        if data.weighting != "token":
            found.append(f"config.data.weighting={data.weighting} is not used: {_CORPUS}.")
    return found


def defaults(model: str | Mapping[str, Any] = "") -> dict[str, Any]:
    """Every setting of an `Experiment` at its default, for files of configs/ to start from.

    Args:
      model: name of a preset (`s1jax.config.presets`) or the fields of a `ModelConfig`, mostly in the flat form of
        `ModelConfig.dense`, whose other fields get their defaults here so that flags can set them; empty for
        `init_from`.
    """
    settings = {
        field.name: to_dict(field.default) if dataclasses.is_dataclass(field.default) else field.default
        for field in dataclasses.fields(Experiment)
    }
    if isinstance(model, Mapping) and "groups" not in model:
        model = {**FLAT_DEFAULTS, **model}
    return settings | {"model": model}
