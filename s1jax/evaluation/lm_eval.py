"""The model `s1jax` of EleutherAI's lm-evaluation-harness, for its tasks under a thinking budget.

    python -m launch.lm_eval --model s1jax --model_args checkpoint=CKPT,max_thinking_tokens=4096 --tasks gsm8k

Release 0.4.13 of the harness (https://github.com/EleutherAI/lm-evaluation-harness) only finds models in its own
list. Importing this module adds `s1jax` to it, which `s1jax/cli/lm_eval.py` does before it starts the harness. Later
releases also read entry points of the group `lm_eval.models`, where `setup.py` names this one.

`--model_args` are `checkpoint`, `dtype`, `cache_dtype`, `weight_dtype`, `cache_length`, `bos_token` and the fields of
`SamplingParams`: the task's generation settings and `--gen_kwargs` take precedence.
`--batch_size` is the number of batch slots; the harness sets it to 1 by default.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval.models  # its own models: it adds them by itself only to an empty list
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from s1jax.config.sampling import SAMPLING_DTYPES, SamplingParams
from s1jax.config.schema import to_dict
from s1jax.engine import rows as rows_lib
from s1jax.engine import score
from s1jax.engine.engine import Engine
from s1jax.engine.fields import ALIASES, CONTROLS, row_controls
from s1jax.errors import UserError
from s1jax.text import chat as chat_lib

_ARGUMENTS = ("checkpoint", *SAMPLING_DTYPES, "cache_length", "bos_token", *CONTROLS)
# What the harness and other libraries call max_answer_tokens; the first one given counts, as in the harness.
_MAX_ANSWER = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_AUTO_BATCH_SIZE = 16
_REPEAT = 1_000_003  # between the seeds of repeats of a document; more than tasks have documents


@register_model("s1jax")
class HarnessModel(TemplateLM):
    """A checkpoint as the harness sees models: texts in; texts and log-likelihoods out.

    Generation puts the context, few-shot examples included, into the checkpoint's chat format as the question, lets the
    model think under the budget and returns the text of the answer, without delimiters, up to the first of the task's
    `until` strings. For tasks that have none the harness takes a blank line; `--gen_kwargs "until=[]"` cuts nothing.
    Answers are sampled to their end before they are cut, and one after cut thinking begins with "Final Answer:".

    Log-likelihoods are those of plain text: no chat format unless `--apply_chat_template` asks for it, and no thinking.
    Texts are encoded as the harness's Hugging Face models do, except that nothing is put before a context but
    `bos_token`. Contexts that are too long lose their left end, see `score.log_likelihoods`.

    Attributes:
      model: the loaded checkpoint.
      controls: for what a task does not say itself.
      batch_size: rows that run at one time.
    """

    def __init__(
        self,
        checkpoint: str = "",
        *,
        dtype: str = "",
        cache_dtype: str = "",
        weight_dtype: str = "",
        cache_length: int = 0,
        bos_token: str = "",
        batch_size: int | str = _AUTO_BATCH_SIZE,
        max_batch_size: int | None = None,
        device: str | None = None,
        **controls: Any,
    ):
        """Loads the checkpoint.

        Args:
          checkpoint: s1jax checkpoint, training workdir or package:NAME.
          dtype: of weights and cache; by default float32 on a CPU, bfloat16 elsewhere.
          cache_dtype: of the cache: `dtype` by default, float32, bfloat16 or int8.
          weight_dtype: of the matrices: `dtype` by default, int8, int4, fp8 or mxfp4; log-likelihoods use the
            checkpoint's where it is int8 or int4.
          cache_length: cache slots per row; 0: as many as the longest row can need.
          bos_token: put before every context whose log-likelihoods are wanted, for models that were trained so. Without
            it an empty context is the end-of-sequence token.
          batch_size: rows that run at one time; `auto` is 16.
          max_batch_size: not supported, because no batch size is searched for.
          device: ignored: the harness passes cuda:0 by default, and JAX_PLATFORMS chooses the device.
          **controls: fields of `SamplingParams` for what a task does not say itself.

        Raises:
          UserError: for an argument that is unknown or has a value that makes no sense, or a bad checkpoint.
        """
        super().__init__()
        unknown = sorted(set(controls) - set(CONTROLS))
        if unknown:
            raise UserError(f"--model_args has {unknown[0]}, which s1jax has not; it has {', '.join(_ARGUMENTS)}.")
        if not checkpoint:
            raise UserError(
                "--model_args has no checkpoint; add checkpoint=CKPT, a checkpoint, a training workdir or package:NAME."
            )
        dtypes = {"dtype": dtype, "cache_dtype": cache_dtype, "weight_dtype": weight_dtype}
        for name, asked in dtypes.items():
            if asked not in ("", *SAMPLING_DTYPES[name]):
                raise UserError(f"--model_args has {name} {asked!r}; choose {' or '.join(SAMPLING_DTYPES[name])}.")
        for name, text in (("wait", controls.get("wait", "")), ("bos_token", bos_token)):
            if not isinstance(text, str):
                raise UserError(f"--model_args has {name} {text!r}; it must be a string.")
        if isinstance(cache_length, bool) or not isinstance(cache_length, int) or cache_length < 0:
            raise UserError(f"--model_args has cache_length {cache_length!r}; it must be a number, not negative.")
        if max_batch_size is not None:
            raise UserError(
                "--max_batch_size is not supported: no batch size is searched for; give --batch_size alone."
            )
        self.controls = row_controls(controls, SamplingParams(), "--model_args")
        if self.controls.n > 1:
            raise UserError("--model_args has n above 1, but the harness takes one answer a request; leave it out.")
        self.batch_size = _batch_size(batch_size)
        self._checkpoint = str(checkpoint)
        self._engine = Engine(
            self._checkpoint,
            slots=self.batch_size,
            cache_length=cache_length,
            dtype=dtype,
            cache_dtype=cache_dtype,
            weight_dtype=weight_dtype,
        )
        self._dtypes = dtypes | {"dtype": self._engine.dtype}
        self.model = self._engine.model
        self._bos = [self.model.tokenizer.id_of(bos_token)] if bos_token else []
        self._rows = self._thinking_tokens = 0

    @property
    def max_length(self) -> int:
        """The model's context length."""
        return self.model.config.context_length

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of sequence, or else the id that ends a turn."""
        eos = self.model.tokenizer.eos_id
        return self.model.tokenizer.id_of(self.model.chat.turn_end) if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context and a text whose perplexity is asked for begin with."""
        return self._bos[0] if self._bos else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests: the same for the same tokenizer and chat format."""
        digest = hashlib.sha256(json.dumps(to_dict(self.model.chat)).encode())
        for name, content in sorted(self.model.tokenizer.files.items()):
            digest.update(name.encode() + content)
        return f"s1jax-{digest.hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns what `apply_chat_template` puts around a question, for the harness's records.

        Raises:
          UserError: for a template that is asked for by name.
        """
        if isinstance(chat_template, str):
            raise UserError(
                f"--apply_chat_template names {chat_template!r}, but a checkpoint has one chat format; leave it out."
            )
        chat = self.model.chat
        return f"{chat.before_question}{{question}}{chat.after_question}"

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Returns the text up to and including the assistant header; `generate_until` knows it from a bare question.

        Args:
          chat_history: the user's turn, `{"role": "user", "content": ...}`, after at most one system turn.
          add_generation_prompt: must be True.

        Raises:
          UserError: for anything else.
        """
        system, history = "", list(chat_history)
        if history and history[0]["role"] == "system":
            system, history = history[0]["content"], history[1:]
        roles = [turn["role"] for turn in history]
        if not add_generation_prompt or roles[-1:] == ["assistant"]:
            raise UserError(
                "the task begins the answer itself (gen_prefix), where the model has to think first; leave out"
                " --apply_chat_template or choose another task."
            )
        if roles != ["user"]:
            raise UserError(
                f"the text that the harness hands over is read as one user turn, not {len(roles)} turns; add"
                " --fewshot_as_multiturn=false."
            )
        question = history[0]["content"]
        if not isinstance(question, str) or not isinstance(system, str):
            raise UserError("a turn of the task is not text, and s1jax models read nothing else; choose another task.")
        before = chat_lib.with_system(self.model.chat, system) if system else self.model.chat
        return before.before_question + question + before.after_question

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the ids of a text, after `bos_token` unless `add_special_tokens` is False or the text begins so."""
        ids = self.model.tokenizer.encode(string, after="")
        bos = [] if add_special_tokens is False or ids[:1] == self._bos else self._bos
        return [*bos, *ids]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each (context, continuation) in nats and whether it is the greedy one."""
        for request in requests:
            _arguments(request, (str, str))
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        # A context of nothing but spaces has lost them to its continuation.
        pairs = [(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        return self._log_likelihoods(pairs, "loglikelihood", disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text in nats, in windows of the model's context without overlap."""
        windows: list[score.Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = _arguments(request, (str,))
            found = lm_eval.utils.get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, self.max_length, context_len=1
            )
            windows += map(lm_eval.utils.make_disjoint_window, found)
            owners += [i] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        scores = self._log_likelihoods(windows, "loglikelihood_rolling", disable_tqdm)
        for i, (value, _) in zip(owners, scores, strict=True):
            totals[i] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the answer to each (context, generation settings).

        The settings are `until`, a string or several; `do_sample`, False for temperature 0 and True for temperature 1
        where nobody gives one; `max_gen_toks`, or one of its other names, for `max_answer_tokens`; and the fields of
        `SamplingParams`, under the names that prompt rows may use (`s1jax.engine.fields.ALIASES`), except `n`. A
        `stop` string ends sampling, `until` cuts the text. Repeat j of document i is sampled with
        seed + i + 1,000,003 j, whatever else is asked.

        Raises:
          UserError: before anything runs, for a setting that is unknown or makes no sense, a request that is not one
            text, or a row that could outgrow the cache; names task and document.
        """
        rows, stops, names = [], [], []
        repeats: collections.Counter[tuple[Any, ...]] = collections.Counter()
        for request in requests:
            context, settings = _arguments(request, (str, dict))
            names.append(_name(request))
            own, until = _own_controls(settings, self.controls, names[-1])
            seed = own.get("seed", self.controls.seed)
            which = (request.task_name, request.doc_id, request.idx)
            place = (request.doc_id or 0) + _REPEAT * repeats[which]
            own["seed"] = (seed + place) % 2**32 if isinstance(seed, int) else seed
            repeats[which] += 1
            question, system = self._turns(context)
            row: dict[str, Any] = {"question": question}
            if system:
                try:
                    ids = chat_lib.encode_prompt(self.model.tokenizer, self.model.chat, question, system)
                except UserError as error:
                    raise UserError(f"{names[-1]}: {error}") from None
                row = {"prompt_ids": ids}
            rows.append({**row, **own})
            stops.append(until)
        texts = [""] * len(rows)
        with tqdm(total=len(rows), desc="generate_until", disable=disable_tqdm) as bar:
            stream = rows_lib.stream(
                self._engine, rows, self.controls, names=names,
                progress=lambda finished, *_: bar.update(finished - bar.n),
            )  # fmt: skip
            for i, output in stream:
                texts[i] = _cut(output["answer"], stops[i])
                self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])  # for --use_cache
                self._rows += 1
                self._thinking_tokens += output["thinking_tokens"]
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the harness adds to `config` in its results, with the average thinking tokens of all answers."""
        return {
            "checkpoint": self._checkpoint,
            "provenance": self.model.provenance,
            **self._dtypes,
            "wait": self.controls.wait,
            "controls": to_dict(self.controls),
            "generated_rows": self._rows,
            "average_thinking_tokens": self._thinking_tokens / self._rows if self._rows else None,
        }

    def _turns(self, context: str) -> tuple[str, str]:
        """Question and system prompt of a context, without what `apply_chat_template` has put around them."""
        chat = self.model.chat
        if context.startswith(chat.before_question) and context.endswith(chat.after_question):
            return context.removeprefix(chat.before_question).removesuffix(chat.after_question), ""
        try:
            start, end = chat_lib.system_turn(chat)
        except UserError:
            return context, ""
        if start and end in context and context.startswith(start) and context.endswith(chat.after_question):
            system, _, question = context.removeprefix(start).removesuffix(chat.after_question).partition(end)
            return question, system
        return context, ""

    def _log_likelihoods(self, pairs: Sequence[score.Pair], what: str, quiet: bool) -> list[tuple[float, bool]]:
        with tqdm(total=len(pairs), desc=what, disable=quiet) as bar:
            return score.log_likelihoods(
                self.model.params, self.model.config, pairs, dtype=self._engine.dtype, batch_size=self.batch_size,
                progress=lambda finished: bar.update(finished - bar.n),
            )  # fmt: skip


def _batch_size(value: int | str) -> int:
    if str(value).split(":")[0] == "auto":
        return _AUTO_BATCH_SIZE
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"--batch_size is {value!r}; give a positive number or auto.")
    return int(value)


def _name(request: Instance) -> str:
    return f"task {request.task_name}, document {request.doc_id}"


def _arguments(request: Instance, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """Returns the arguments of a request; refuses those of other kinds, such as images or several prompts."""
    found = request.args
    if len(found) != len(kinds) or not all(map(isinstance, found, kinds)):
        raise UserError(
            f"{_name(request)}: s1jax models take one text, but this request has"
            f" ({', '.join(type(value).__name__ for value in found)}); choose a task without images or several prompts."
        )
    return found


def _own_controls(settings: Mapping[str, Any], defaults: SamplingParams, name: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of `SamplingParams` that the settings of a request fix, and its `until` strings."""
    left = dict(settings)
    until = left.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list) or not all(isinstance(text, str) for text in until):
        raise UserError(f"{name}: until is {until!r}; it must be a string or a list of strings.")
    do_sample = left.pop("do_sample", None)
    limits = [(key, value) for key in _MAX_ANSWER if (value := left.pop(key, None)) is not None]
    unknown = sorted(set(left) - {*CONTROLS, *ALIASES})
    if unknown:
        known = ("until", "do_sample", _MAX_ANSWER[0], *CONTROLS)
        raise UserError(
            f"{name}: the generation setting {unknown[0]} is not one that s1jax has; it has {', '.join(known)}."
        )
    if row_controls(left, defaults, name).n > 1:
        raise UserError(f"{name}: n is above 1, but the harness takes one answer a request; set repeats in the task.")
    for key, value in limits:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}: {key} is {value!r}; it must be a whole number, 1 or more.")
    if limits:
        left["max_answer_tokens"] = limits[0][1]
    if do_sample is not None and not do_sample:
        left["temperature"] = 0.0
    elif do_sample and not defaults.temperature:
        left.setdefault("temperature", 1.0)
    return left, until


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in filter(None, until):
        text = text.split(stop, 1)[0]
    return text
