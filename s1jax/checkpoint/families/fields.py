"""The fields of a config.json, read with their types and counted, so that none is overlooked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from s1jax.config.schema import plain, shown
from s1jax.errors import UserError


def wrong_type(where: object, key: str, value: Any, wanted: str) -> UserError:
    """The error for a value of a JSON file that has another type than it must have."""
    return UserError(f"{where}: {key} is {shown(value)}; it must be {wanted}, so get the file again.")


# What transformers assumes for keys that config.json does not have; a family may have more of them.
_DEFAULTS = {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}

# Fields that change no logits: dropout, the start of training, generation and bookkeeping.
_HARMLESS = """
    architectures model_type transformers_version torch_dtype dtype name_or_path auto_map tokenizer_class
    transformers_weights quantization_config
    attention_dropout hidden_dropout embd_pdrop resid_pdrop initializer_range use_cache pretraining_tp
    return_dict output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss pruned_heads
    chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder finetuning_task id2label label2id problem_type task_specific_params prefix
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    output_router_logits router_aux_loss_coef unsloth_version unsloth_fixed transformers.js_config
    is_llama_config attn_implementation gradient_checkpointing classifier_dropout model_max_length max_sequence_length
    tokenizer_model_max_length tokenizer_padding_side
"""
HARMLESS = frozenset(_HARMLESS.split())


class Fields:
    """The fields of one config.json.

    Attributes:
      values: as the file has them.
      where: name of the file in errors.
    """

    def __init__(self, values: Mapping[str, Any], where: str, silent: Mapping[str, Any]):
        self.values, self.where = values, where
        self._known = {**_DEFAULTS, **silent, **{key: value for key, value in values.items() if value is not None}}
        self._read: set[str] = set()

    def default(self, key: str, value: Any) -> None:
        """Gives a field a value where the file has none."""
        self._known.setdefault(key, value)

    def replace(self, key: str, value: Any) -> None:
        """Gives a field another value than the file's."""
        self._known[key] = value

    def has(self, key: str) -> bool:
        """Whether a field has a value other than null."""
        self._read.add(key)
        return key in self._known

    def raw(self, key: str) -> Any:
        """The value of a field of any type; None where there is none."""
        self._read.add(key)
        return self._known.get(key)

    def get(self, key: str, kind: type) -> Any:
        """The value of a field that must be there, of type `kind`.

        Raises:
          UserError: it is missing, has another type or is not finite.
        """
        if not self.has(key):
            raise UserError(f"{self.where} lacks {key}; get the complete file.")
        value = self._known[key]
        if kind is float and type(value) is int:
            value = float(str(value))  # infinite where float(value) would overflow
        if value in (math.inf, -math.inf) or value != value:
            raise UserError(f"{self.where}: {key} is {value}; it must be finite.")
        if type(value) is not kind:
            raise UserError(f"{self.where}: {key} is {shown(value)}; it must be of type {kind.__name__}.")
        return value

    def optional(self, key: str, kind: type, default: Any) -> Any:
        """The value of a field, or `default` where it is null or missing."""
        return self.get(key, kind) if self.has(key) else default

    def nullable(self, key: str, kind: type) -> Any:
        """The value of a field for which null is a value of its own, None."""
        self._read.add(key)
        return None if self.values.get(key, 0) is None or key not in self._known else self.get(key, kind)

    def first(self, keys: Collection[str], kind: type) -> Any:
        """The value of a field that has several names; where the file has more than one, they must agree."""
        given = [key for key in keys if self.has(key)]
        if not given:
            raise UserError(f"{self.where} lacks {' or '.join(keys)}; get the complete file.")
        found = {key: self.get(key, kind) for key in given}
        if len({*found.values()}) > 1:
            raise UserError(
                f"{self.where}: " + " and ".join(f"{k} is {v}" for k, v in found.items()) + ", which mean the same; "
                "keep one."
            )
        return found[given[0]]

    def names(self, key: str, length: int, allowed: Collection[str]) -> list[str] | None:
        """The value of a field that names the kind of every layer; None where there is none.

        Raises:
          UserError: it is something else than a list of `length` names of `allowed`.
        """
        if not self.has(key):
            return None
        value = self.get(key, list)
        if len(value) != length:
            raise UserError(f"{self.where}: {key} has {len(value)} entries for {length} layers; get the file again.")
        for name in value:
            if name not in [*allowed]:
                raise UserError(
                    f"{self.where}: {key} names {shown(name)}, which this decoder does not compute; only "
                    f"{', '.join(allowed)} are."
                )
        return value

    def fixed(self, accepted: Mapping[str, Any]) -> None:
        """Checks fields that change the computation in a way the decoder does not have.

        Args:
          accepted: field -> the only value accepted beside null.
        """
        for key, wanted in accepted.items():
            self._read.add(key)
            if self.values.get(key, wanted) not in (wanted, None):
                raise UserError(
                    f"{self.where}: {key} is {shown(self.values[key])}, which this decoder does not compute; only "
                    f"{wanted!r} is."
                )

    def finish(self, harmless: Collection[str]) -> None:
        """Checks that nothing was overlooked: every field was read, is harmless or null.

        Raises:
          UserError: names the first field that is none of that.
        """
        known = self._read | HARMLESS | set(harmless)
        for key, value in self.values.items():
            if key not in known and not key.startswith("_") and value is not None:
                raise UserError(
                    f"{self.where}: {plain(key)} is {shown(value)}, a field that s1jax does not know for model_type "
                    f"{shown(self.values.get('model_type'))}; it may change what the model computes, so remove it only "
                    "if it does not."
                )
