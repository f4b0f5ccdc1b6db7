"""Rows of the tables between the tensors on disk and our parameter tree, and those that most families share.

Hugging Face and GGUF store matrices as [outputs, inputs] and merge heads with head dimension. Axis letters are those of
`s1jax.checkpoint.tensors`.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """Where one array of ours is on disk.

    In names, `{}` stands for the number of the layer and `{e}` for that of the expert: each has a tensor of its own,
    without the axis E.

    Attributes:
      huggingface: name of the stored tensor; "" where the row says nothing of such files.
      gguf: the same of GGUF files.
      path: of our array; with `{}` in the names it is one below each stack of layers.
      stored: order of the stored axes, spaces between them; "NH D" is N and H merged, then D.
      join: the letter of the axis along which the tensor holds several arrays of ours, one after the other in the order
        of their rows.
      alternating: they take turns along that axis instead.
      neighbours: the letter of the axis whose last dimensions are rotated, where pairs of a rotation are stored side by
        side; ours are i with i + d / 2.
      plus: what is added to our values in GGUF files.
    """

    huggingface: str
    gguf: str
    path: str
    stored: str
    join: str = ""
    alternating: bool = False
    neighbours: str = ""
    plus: float = 0.0


_LAYER = "model.layers.{}."
_ATTENTION = "model.layers.{}.self_attn."
_MLP = "model.layers.{}.mlp."
_EXPERT = "model.layers.{}.mlp.experts.{e}."

EMBED = (Row("model.embed_tokens.weight", "token_embd.weight", "embed/embedding", "V D"),)
HEAD = (
    Row("model.norm.weight", "output_norm.weight", "final_norm/scale", "D"),
    Row("lm_head.weight", "output.weight", "head/kernel", "V D"),
)
ATTENTION_NORM = (Row(_LAYER + "input_layernorm.weight", "blk.{}.attn_norm.weight", "attention_norm/scale", "D"),)
MLP_NORM = (Row(_LAYER + "post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", "mlp_norm/scale", "D"),)

QUERY = (
    Row(_ATTENTION + "q_proj.weight", "blk.{}.attn_q.weight", "attention/query/kernel", "NH D"),
    Row(_ATTENTION + "q_proj.bias", "blk.{}.attn_q.bias", "attention/query/bias", "NH"),
)
KEY_VALUE = (
    Row(_ATTENTION + "k_proj.weight", "blk.{}.attn_k.weight", "attention/key/kernel", "KH D"),
    Row(_ATTENTION + "k_proj.bias", "blk.{}.attn_k.bias", "attention/key/bias", "KH"),
    Row(_ATTENTION + "v_proj.weight", "blk.{}.attn_v.weight", "attention/value/kernel", "KH D"),
    Row(_ATTENTION + "v_proj.bias", "blk.{}.attn_v.bias", "attention/value/bias", "KH"),
)
QK_NORM = (
    Row(_ATTENTION + "q_norm.weight", "blk.{}.attn_q_norm.weight", "attention/query_norm/scale", "H"),
    Row(_ATTENTION + "k_norm.weight", "blk.{}.attn_k_norm.weight", "attention/key_norm/scale", "H"),
)
QK_NORM_WHOLE = (QK_NORM[0]._replace(stored="A"), QK_NORM[1]._replace(stored="B"))
OUT = (Row(_ATTENTION + "o_proj.weight", "blk.{}.attn_output.weight", "attention/out/kernel", "D NH"),)
OUT_BIAS = (Row(_ATTENTION + "o_proj.bias", "blk.{}.attn_output.bias", "attention/out/bias", "D"),)
SINKS = (Row(_ATTENTION + "sinks", "blk.{}.attn_sinks.weight", "attention/sinks/logits", "N"),)

MLP = (
    Row(_MLP + "gate_proj.weight", "blk.{}.ffn_gate.weight", "mlp/gate/kernel", "F D"),
    Row(_MLP + "up_proj.weight", "blk.{}.ffn_up.weight", "mlp/up/kernel", "F D"),
    Row(_MLP + "down_proj.weight", "blk.{}.ffn_down.weight", "mlp/down/kernel", "D F"),
)
ROUTER = (Row(_MLP + "gate.weight", "blk.{}.ffn_gate_inp.weight", "mlp/router/kernel", "E D"),)
SELECTION_BIAS = (
    Row(_MLP + "gate.e_score_correction_bias", "blk.{}.exp_probs_b.bias", "mlp/router/selection_bias", "E"),
)
EXPERTS = (
    Row(_EXPERT + "gate_proj.weight", "blk.{}.ffn_gate_exps.weight", "mlp/experts/gate/kernel", "E F D"),
    Row(_EXPERT + "up_proj.weight", "blk.{}.ffn_up_exps.weight", "mlp/experts/up/kernel", "E F D"),
    Row(_EXPERT + "down_proj.weight", "blk.{}.ffn_down_exps.weight", "mlp/experts/down/kernel", "E D F"),
)


def shared(name: str) -> tuple[Row, ...]:
    """Rows of the shared expert, which Hugging Face calls `name`."""
    return (
        Row(f"{_MLP}{name}.gate_proj.weight", "blk.{}.ffn_gate_shexp.weight", "mlp/shared/gate/kernel", "S D"),
        Row(f"{_MLP}{name}.up_proj.weight", "blk.{}.ffn_up_shexp.weight", "mlp/shared/up/kernel", "S D"),
        Row(f"{_MLP}{name}.down_proj.weight", "blk.{}.ffn_down_shexp.weight", "mlp/shared/down/kernel", "D S"),
    )


SHARED_GATE = (
    Row(_MLP + "shared_expert_gate.weight", "", "mlp/shared_gate/kernel", "O D"),
    Row("", "blk.{}.ffn_gate_inp_shexp.weight", "mlp/shared_gate/kernel", "OD"),
)

GQA_ROWS = QUERY + KEY_VALUE + QK_NORM + OUT

# Latent attention (DeepSeek); GGUF stores the two parts of kv_b_proj as tensors of their own, the keys' transposed.
LATENT = (
    Row(_ATTENTION + "q_proj.weight", "blk.{}.attn_q.weight", "attention/query/kernel", "NH D", neighbours="H"),
    Row(_ATTENTION + "q_a_proj.weight", "blk.{}.attn_q_a.weight", "attention/query_down/kernel", "Q D"),
    Row(_ATTENTION + "q_a_layernorm.weight", "blk.{}.attn_q_a_norm.weight", "attention/query_down_norm/scale", "Q"),
    Row(_ATTENTION + "q_b_proj.weight", "blk.{}.attn_q_b.weight", "attention/query_up/kernel", "NH Q", neighbours="H"),
    Row(
        _ATTENTION + "kv_a_proj_with_mqa.weight",
        "blk.{}.attn_kv_a_mqa.weight",
        "attention/latent/kernel",
        "X D",
        neighbours="X",
    ),
    Row(_ATTENTION + "kv_a_layernorm.weight", "blk.{}.attn_kv_a_norm.weight", "attention/latent_norm/scale", "C"),
    Row(_ATTENTION + "kv_b_proj.weight", "", "attention/key_up/kernel", "NP C", join="P"),
    Row(_ATTENTION + "kv_b_proj.weight", "", "attention/value_up/kernel", "NW C", join="W"),
    Row("", "blk.{}.attn_k_b.weight", "attention/key_up/kernel", "N C P"),
    Row("", "blk.{}.attn_v_b.weight", "attention/value_up/kernel", "N W C"),
    Row(_ATTENTION + "o_proj.weight", "blk.{}.attn_output.weight", "attention/out/kernel", "D NW"),
)

PLAIN = EMBED + ATTENTION_NORM + GQA_ROWS + MLP_NORM + MLP + HEAD

# Every array that a model can have, for those of no family.
ALL = (
    EMBED
    + ATTENTION_NORM
    + GQA_ROWS
    + OUT_BIAS
    + SINKS
    + QK_NORM_WHOLE
    + LATENT[1:]
    + (
        Row(_LAYER + "attention_out_norm.weight", "blk.{}.post_attention_norm.weight", "attention_out_norm/scale", "D"),
        Row(_LAYER + "mlp_out_norm.weight", "blk.{}.post_ffw_norm.weight", "mlp_out_norm/scale", "D"),
    )
    + MLP_NORM
    + MLP
    + ROUTER
    + (Row(_MLP + "gate.bias", "blk.{}.ffn_gate_inp.bias", "mlp/router/bias", "E"),)
    + SELECTION_BIAS
    + EXPERTS
    + (
        Row(_EXPERT + "gate_proj.bias", "blk.{}.ffn_gate_exps.bias", "mlp/experts/gate/bias", "E F"),
        Row(_EXPERT + "up_proj.bias", "blk.{}.ffn_up_exps.bias", "mlp/experts/up/bias", "E F"),
        Row(_EXPERT + "down_proj.bias", "blk.{}.ffn_down_exps.bias", "mlp/experts/down/bias", "E D"),
    )
    + shared("shared_experts")
    + SHARED_GATE
    + HEAD
)
