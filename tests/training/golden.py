"""The runs that tests/training/golden_torch_*.json record: model, weights, batch and settings, from seeds alone."""

from typing import Any

import numpy as np

from s1jax.config.experiment import OptimizerConfig, TrainConfig
from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig

STEPS = 50
MODEL = ModelConfig.dense(
    vocab_size=96,
    d_model=32,
    mlp_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    qkv_bias=True,
)
# A rate and a decay far above the recipe's, so that an error in either shows within 50 steps.
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1)
LORA = LoraConfig(rank=8, alpha=12.0, rslora=True, base="float32")
LORA_OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
TRAIN = TrainConfig(batch_size=4, compute_dtype="float32", remat="none", loss_chunk=32)


def weights() -> dict[str, np.ndarray]:
    """Name in our tree -> float32 array; norms and biases are not trivial either."""

    from s1jax.model import decoder

    rng = np.random.default_rng(0)
    named: dict[str, np.ndarray] = {}

    def draw(tree: dict[str, Any], prefix: str) -> None:
        for name in sorted(tree):
            path = f"{prefix}/{name}" if prefix else name
            if isinstance(tree[name], dict):
                draw(tree[name], path)
            else:
                named[path] = (0.05 * rng.normal(size=tree[name].shape) + (name == "scale")).astype(np.float32)

    draw(decoder.abstract_params(MODEL), "")
    return named


def adapters() -> dict[str, np.ndarray]:
    """Path in the tree of adapters -> float32 array; as at the start of PEFT, B is zero."""
    import jax

    from s1jax.model import adapters as adapters_lib

    rng = np.random.default_rng(3)
    named = {}
    shapes = adapters_lib.abstract(MODEL, LORA, np.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = "/".join(entry.key for entry in path)
        bound = np.prod(leaf.shape[1:-1]) ** -0.5
        values = rng.uniform(-bound, bound, leaf.shape) if name.endswith("/a") else np.zeros(leaf.shape)
        named[name] = values.astype(np.float32)
    return named


def batch() -> dict[str, np.ndarray]:
    """4 padded rows of 24, sequence weighting, the first part of each without loss as a prompt has none."""
    rng = np.random.default_rng(1)
    lengths, prompts = np.array([[24], [17], [9], [21]]), np.array([[5], [2], [4], [11]])
    place = np.broadcast_to(np.arange(24), (4, 24))
    real, learned = place < lengths, (place >= prompts) & (place < lengths)
    ids = rng.integers(MODEL.vocab_size, size=(4, 25))
    return {
        "tokens": (ids[:, :-1] * real).astype(np.int32),
        "targets": (ids[:, 1:] * real).astype(np.int32),
        "positions": (place * real).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "weights": (learned / learned.sum(1, keepdims=True)).astype(np.float32),
    }


def torch_losses() -> list[float]:
    """The run with transformers' model and schedule and torch's AdamW and clipping, float32 on the CPU."""
    model = _torch_model()
    decayed = [p for name, p in model.named_parameters() if not ("norm" in name or name.endswith("bias"))]
    plain = [p for name, p in model.named_parameters() if "norm" in name or name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return _torch_curve(model, groups, OPTIMIZER)


def peft_losses() -> list[float]:
    """The same of PEFT's adapters on that model."""
    import peft
    import torch

    ours = adapters()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=LORA.rank, lora_alpha=int(LORA.alpha), use_rslora=True, target_modules=targets)
    model = peft.get_peft_model(_torch_model(), config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    paths = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
    for name, parameter in trained.items():
        _, _, _, _, layer, room, projection, which, _, _ = name.split(".")
        at = f"layers/{'attention' if room == 'self_attn' else room}/{paths.get(projection, projection[:-5])}"
        array = ours[f"{at}/{which[-1].lower()}"][int(layer)]
        array = array.reshape(-1, LORA.rank) if which == "lora_A" else array.reshape(LORA.rank, -1)
        parameter.data = torch.tensor(array.T).contiguous()
    assert len(trained) == len(ours) * MODEL.num_layers
    groups = [{"params": list(trained.values()), "weight_decay": LORA_OPTIMIZER.weight_decay}]
    return _torch_curve(model, groups, LORA_OPTIMIZER)


def _torch_model() -> Any:
    """transformers' model with our weights."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.d_model,
        intermediate_size=max(MODEL.mlp_dims),
        num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_heads,
        num_key_value_heads=MODEL.num_kv_heads,
        rope_theta=MODEL.rope_theta,
        rms_norm_eps=MODEL.norm_eps,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2ForCausalLM(config).float()
    model.load_state_dict({name: torch.tensor(array) for name, array in _torch_names(weights()).items()})
    return model


def _torch_curve(model: Any, groups: list[dict[str, Any]], settings: OptimizerConfig) -> list[float]:
    """Losses of all steps of a run of a model."""
    import torch
    import transformers

    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.b1, settings.b2), eps=settings.eps)
    warmup = int(np.ceil(settings.warmup_fraction * STEPS))
    schedule = transformers.get_cosine_schedule_with_warmup(adamw, warmup, STEPS)
    data = {name: torch.tensor(array) for name, array in batch().items()}
    losses = []
    for _ in range(STEPS):
        logits = model(input_ids=data["tokens"].long(), attention_mask=data["segment_ids"].long()).logits
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), data["targets"].long().flatten(), reduction="none"
        )
        loss = (each * data["weights"].flatten()).sum() / data["weights"].sum()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        adamw.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _torch_names(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our arrays under transformers' names, [outputs, inputs] as torch.nn.Linear has them; written out on purpose."""
    named = {
        "model.embed_tokens.weight": ours["embed/embedding"],
        "model.norm.weight": ours["final_norm/scale"],
        "lm_head.weight": ours["head/kernel"].T,
    }
    d = MODEL.d_model
    for i in range(MODEL.num_layers):
        layer = {path.removeprefix("layers/"): array[i] for path, array in ours.items() if path.startswith("layers/")}
        at = f"model.layers.{i}"
        for name, torch_name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            named[f"{at}.self_attn.{torch_name}.weight"] = layer[f"attention/{name}/kernel"].reshape(d, -1).T
            named[f"{at}.self_attn.{torch_name}.bias"] = layer[f"attention/{name}/bias"].reshape(-1)
        named[f"{at}.self_attn.o_proj.weight"] = layer["attention/out/kernel"].reshape(-1, d).T
        named[f"{at}.input_layernorm.weight"] = layer["attention_norm/scale"]
        named[f"{at}.post_attention_layernorm.weight"] = layer["mlp_norm/scale"]
        for name in ("gate", "up", "down"):
            named[f"{at}.mlp.{name}_proj.weight"] = layer[f"mlp/{name}/kernel"].T
    return named
