"""One layer of a decoder as specs: attention, MLP or experts, and where the norms are.

Axis letters used all over s1jax: B batch, T query length, S key length, D model, F mlp, N query heads, K key/value
heads, H head dimension, E experts, L layers, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from s1jax.config.schema import at_least, from_zero, require


@dataclasses.dataclass(frozen=True)
class GQA:
    """Grouped-query attention (Ainslie et al. 2023).

    Attributes:
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads; divides N.
      head_dim: H, even.
      qkv_bias: query, key and value projections have a bias (Qwen2, gpt-oss).
      qk_norm: RMSNorm over H of queries and keys before RoPE (Qwen3, Gemma 3).
      out_bias: the output projection has a bias (gpt-oss).
      qk_norm_whole: RMSNorm over all heads of queries, and over all of keys, before RoPE (OLMo-2); its scales have
        N H and K H numbers.
      rope: `global` rotates by the model's `rope_theta` and `rope_scaling`, `local` by its `local_rope_theta` without
        scaling (Gemma 3, OLMo-3), `none` not at all (SmolLM3).
      rotary_dim: the first so many of H dimensions are rotated, even; 0: all of them (Phi-4-mini: 96 of 128).
      window: a query sees this many keys, its own included (sliding window); 0: all earlier ones.
      sinks: one learned logit for each query head takes part in the softmax and is dropped (gpt-oss).
      softcap: scores s become softcap * tanh(s / softcap) before the mask (Gemma 2: 50); 0: they do not.
      query_scale: scores are multiplied by it; 0: by H**-0.5.
      position_scaling: beta; queries at position p are multiplied by 1 + beta ln(1 + floor(p / original)), with the
        `original_context_length` of `rope_scaling` (Ministral 3: 0.1); 0: they are not.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    qk_norm: bool = False
    out_bias: bool = False
    qk_norm_whole: bool = False
    rope: Literal["global", "local", "none"] = "global"
    rotary_dim: int = 0
    window: int = 0
    sinks: bool = False
    softcap: float = 0.0
    query_scale: float = 0.0
    position_scaling: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, "model.", self, "num_heads", "num_kv_heads", "head_dim")
        at_least(0, "model.", self, "window", "rotary_dim")
        from_zero("model.", self, "softcap", "query_scale", "position_scaling")
        whole = self.num_heads % self.num_kv_heads == 0
        require(whole, f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}.")
        require(self.head_dim % 2 == 0, f"model.head_dim {self.head_dim} must be even for rotary embeddings.")
        require(
            self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
            f"model.rotary_dim is {self.rotary_dim}; it must be even and at most model.head_dim {self.head_dim}.",
        )
        require(
            not (self.qk_norm and self.qk_norm_whole),
            "model.qk_norm and model.qk_norm_whole are both on; choose the one that the model has.",
        )

    @property
    def rotated(self) -> int:
        """Number of rotated dimensions of a head."""
        return self.rotary_dim or self.head_dim

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return self.query_scale or self.head_dim**-0.5

    def num_params(self, d_model: int) -> int:
        """Number of weights of one layer's attention, its norms of queries and keys included."""
        n, k, h = self.num_heads, self.num_kv_heads, self.head_dim
        kernels = 2 * d_model * n * h + 2 * d_model * k * h
        biases = (n + 2 * k) * h * self.qkv_bias + d_model * self.out_bias + n * self.sinks
        return kernels + biases + 2 * h * self.qk_norm + (n + k) * h * self.qk_norm_whole


@dataclasses.dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    Keys and values of all heads come from one latent vector c [kv_rank] and one rotated key [rope_dim] of a token. The
    cache holds these two alone.

    Attributes:
      num_heads: N.
      q_rank: width of the latent vector that queries come from; 0: they come from the layer's input.
      kv_rank: width of c.
      nope_dim: dimensions of a head's query and key that are not rotated.
      rope_dim: dimensions that are, even; the key's are common to all heads.
      value_dim: dimensions of a head's value.
    """

    num_heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        at_least(1, "model.", self, "num_heads", "kv_rank", "nope_dim", "rope_dim", "value_dim")
        at_least(0, "model.", self, "q_rank")
        require(self.rope_dim % 2 == 0, f"model.rope_dim {self.rope_dim} must be even for rotary embeddings.")

    @property
    def head_dim(self) -> int:
        """Dimensions of a head's query and key."""
        return self.nope_dim + self.rope_dim

    @property
    def rotated(self) -> int:
        """Number of rotated dimensions of a head."""
        return self.rope_dim

    def num_params(self, d_model: int) -> int:
        """Number of weights of one layer's attention, its norms of latent vectors included."""
        n, width = self.num_heads, self.num_heads * self.head_dim
        query = d_model * width if not self.q_rank else self.q_rank * (d_model + 1 + width)
        latent = d_model * (self.kv_rank + self.rope_dim) + self.kv_rank
        return query + latent + self.kv_rank * n * (self.nope_dim + self.value_dim) + n * self.value_dim * d_model


@dataclasses.dataclass(frozen=True)
class Dense:
    """Gated MLP (Shazeer 2020).

    Attributes:
      hidden: F, its hidden width.
      activation: of the gate: SiLU (SwiGLU), or GELU in its tanh form (Gemma).
    """

    hidden: int
    activation: Literal["silu", "gelu_tanh"] = "silu"

    def __post_init__(self) -> None:
        require(self.hidden > 0, f"model.mlp_dim is {self.hidden}; it must be positive.")

    def num_params(self, d_model: int) -> int:
        """Number of weights of one layer's MLP."""
        return 3 * d_model * self.hidden

    def active_params(self, d_model: int) -> int:
        """Number of weights that a token is multiplied with: all."""
        return self.num_params(d_model)


@dataclasses.dataclass(frozen=True)
class Experts:
    """Mixture of experts: a router chooses some of E gated MLPs for each token.

    Attributes:
      num_experts: E.
      experts_per_token: k.
      hidden: F, the hidden width of an expert.
      scores: `softmax` over all experts, then the best k (Mixtral, Qwen, DeepSeek-V2); `topk_softmax`: softmax over the
        logits of the best k (gpt-oss); `sigmoid` (DeepSeek-V3).
      normalize: the k weights are divided by their sum; `topk_softmax` does it by itself.
      routed_scale: the k weights are multiplied by it.
      groups: experts are divided into so many groups; only those of the best groups are chosen.
      top_groups: how many groups that is. A group's score is its largest score; with `selection_bias` the sum of its
        two largest.
      selection_bias: a bias for each expert that chooses experts and never weighs them (DeepSeek-V3).
      router_bias: the router has a bias (gpt-oss).
      expert_bias: the experts' projections have biases (gpt-oss).
      activation: `silu` (SwiGLU), or `clamped` (gpt-oss): with g = min(gate, 7) and u = clip(up, -7, 7) the hidden
        values are g sigmoid(1.702 g) (u + 1).
      shared_hidden: hidden width of a SwiGLU that every token passes as well; 0: there is none.
      shared_gate: its output is multiplied by sigmoid(x g) with a learned g [D] (Qwen2-MoE).
    """

    num_experts: int
    experts_per_token: int
    hidden: int
    scores: Literal["softmax", "topk_softmax", "sigmoid"] = "softmax"
    normalize: bool = False
    routed_scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    selection_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    activation: Literal["silu", "clamped"] = "silu"
    shared_hidden: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        at_least(1, "model.", self, "num_experts", "experts_per_token", "hidden", "groups", "top_groups")
        at_least(0, "model.", self, "shared_hidden")
        from_zero("model.", self, "routed_scale")
        require(
            self.num_experts % self.groups == 0 and self.top_groups <= self.groups,
            f"model.groups is {self.groups} and model.top_groups {self.top_groups}; the groups must divide the "
            f"{self.num_experts} experts and be at least top_groups.",
        )
        available = self.num_experts // self.groups * self.top_groups
        require(
            self.experts_per_token <= available,
            f"model.experts_per_token is {self.experts_per_token}, of {available} experts that can be chosen; give at "
            "most as many.",
        )
        require(
            bool(self.shared_hidden) or not self.shared_gate,
            "model.shared_gate is on without a shared expert; give model.shared_hidden.",
        )

    def num_params(self, d_model: int) -> int:
        """Number of weights of one layer's router and experts."""
        router = self.num_experts * (d_model + self.router_bias + self.selection_bias)
        return router + self.num_experts * self._one(d_model) + self._shared(d_model)

    def active_params(self, d_model: int) -> int:
        """Number of weights that a token is multiplied with."""
        return self.num_experts * d_model + self.experts_per_token * self._one(d_model) + self._shared(d_model)

    def _one(self, d_model: int) -> int:
        return 3 * d_model * self.hidden + (2 * self.hidden + d_model) * self.expert_bias

    def _shared(self, d_model: int) -> int:
        return 3 * d_model * self.shared_hidden + d_model * self.shared_gate


@dataclasses.dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
      attention: its spec.
      mlp: its spec.
      norms: of attention and of the MLP: `pre`, of their inputs; `post`, of their outputs (OLMo-2); `both` (Gemma).
    """

    attention: GQA | MLA
    mlp: Dense | Experts
    norms: Literal["pre", "post", "both"] = "pre"

    def num_params(self, d_model: int) -> int:
        """Number of weights of the layer."""
        norms = (4 if self.norms == "both" else 2) * d_model
        return self.attention.num_params(d_model) + self.mlp.num_params(d_model) + norms
