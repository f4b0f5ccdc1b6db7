"""Which arrays the parameter tree of a decoder has: paths and axes, from its configuration (`s1jax.model.params`).

Axis letters: D model, F hidden width of an MLP or an expert, N query heads, K key/value heads, H head dimension of
queries and keys, A and B that of all query and of all key heads together, E experts, S hidden width of the shared
expert, V vocabulary, O one. Of latent attention: Q and C latent vectors of queries and of keys, X such a vector with
the rotated key after it, P the part of a head's key that is not rotated, W a head's value.
"""

from __future__ import annotations

from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.model import ModelConfig

# Arrays that are float32 in trees of every dtype: routing must not depend on the dtype of the weights.
FLOAT32 = ("mlp/router/selection_bias",)


def of_model(config: ModelConfig) -> dict[str, str]:
    """Path -> axes of the arrays that belong to no layer."""
    found = {"embed/embedding": "VD", "final_norm/scale": "D"}
    return found if config.tied_embeddings else {**found, "head/kernel": "DV"}


def of_layer(layer: Layer) -> dict[str, str]:
    """Path -> axes of the arrays of one layer."""
    found: dict[str, str] = {}
    if layer.norms != "post":
        found |= {"attention_norm/scale": "D", "mlp_norm/scale": "D"}
    if layer.norms != "pre":
        found |= {"attention_out_norm/scale": "D", "mlp_out_norm/scale": "D"}
    attention = _latent(layer.attention) if isinstance(layer.attention, MLA) else _grouped(layer.attention)
    mlp = _experts(layer.mlp) if isinstance(layer.mlp, Experts) else _GATED
    return found | _below("attention", attention) | _below("mlp", mlp)


_GATED = {"gate/kernel": "DF", "up/kernel": "DF", "down/kernel": "FD"}


def _below(name: str, tree: dict[str, str]) -> dict[str, str]:
    return {f"{name}/{path}": axes for path, axes in tree.items()}


def _grouped(spec: GQA) -> dict[str, str]:
    found = {"query/kernel": "DNH", "key/kernel": "DKH", "value/kernel": "DKH", "out/kernel": "NHD"}
    if spec.qkv_bias:
        found |= {"query/bias": "NH", "key/bias": "KH", "value/bias": "KH"}
    if spec.out_bias:
        found["out/bias"] = "D"
    if spec.qk_norm:
        found |= {"query_norm/scale": "H", "key_norm/scale": "H"}
    if spec.qk_norm_whole:
        found |= {"query_norm/scale": "A", "key_norm/scale": "B"}
    if spec.sinks:
        found["sinks/logits"] = "N"
    return found


def _latent(spec: MLA) -> dict[str, str]:
    query = {"query_down/kernel": "DQ", "query_down_norm/scale": "Q", "query_up/kernel": "QNH"}
    return {
        **(query if spec.q_rank else {"query/kernel": "DNH"}),
        "latent/kernel": "DX",
        "latent_norm/scale": "C",
        "key_up/kernel": "CNP",
        "value_up/kernel": "CNW",
        "out/kernel": "NWD",
    }


def _experts(spec: Experts) -> dict[str, str]:
    found = {"router/kernel": "DE"}
    if spec.router_bias:
        found["router/bias"] = "E"
    if spec.selection_bias:
        found["router/selection_bias"] = "E"
    found |= _below("experts", {path: f"E{axes}" for path, axes in _GATED.items()})
    if spec.expert_bias:
        found |= {"experts/gate/bias": "EF", "experts/up/bias": "EF", "experts/down/bias": "ED"}
    if spec.shared_hidden:
        found |= _below("shared", {path: axes.replace("F", "S") for path, axes in _GATED.items()})
    if spec.shared_gate:
        found["shared_gate/kernel"] = "DO"
    return found


def sizes(config: ModelConfig, layer: Layer | None = None) -> dict[str, int]:
    """Axis letter -> size, in the model or in one of its layers."""
    found = {"V": config.vocab_size, "D": config.d_model, "O": 1}
    if layer is None:
        return found
    attention, mlp = layer.attention, layer.mlp
    found |= {"F": mlp.hidden, "N": attention.num_heads, "H": attention.head_dim}
    if isinstance(attention, MLA):
        found |= {"Q": attention.q_rank, "C": attention.kv_rank, "X": attention.kv_rank + attention.rope_dim}
        found |= {"P": attention.nope_dim, "W": attention.value_dim}
    else:
        n, k, h = attention.num_heads, attention.num_kv_heads, attention.head_dim
        found |= {"K": k, "A": n * h, "B": k * h}
    if not isinstance(mlp, Dense):
        found |= {"E": mlp.num_experts, "S": mlp.shared_hidden}
    return found
