"""PEFT folders: names, shapes and scales, what PEFT computes with them, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from s1jax.checkpoint import adapters as peft_lib
from s1jax.checkpoint import huggingface
from s1jax.checkpoint import merge as merge_lib
from s1jax.checkpoint import names as names_lib
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.lora import LoraConfig
from s1jax.config.model import Group, ModelConfig
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib
from s1jax.model import decoder
from tests.model import family_cases
from tests.model.parity_cases import CASES, tokens, weights

LORA = LoraConfig(rank=3, alpha=8.0, rslora=True)
MIXTURE = ModelConfig(
    vocab_size=61,
    d_model=48,
    groups=(Group(2, (Layer(GQA(6, 2, 8, qk_norm=True), Experts(num_experts=4, experts_per_token=2, hidden=16)),)),),
    family="qwen3_moe",
)
_LATENT = MLA(num_heads=3, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, value_dim=12)
_EXPERTS = Experts(4, 2, 16, "sigmoid", normalize=True, selection_bias=True, shared_hidden=16)
LATENT = ModelConfig(
    vocab_size=61,
    d_model=48,
    groups=(Group(1, (Layer(_LATENT, Dense(40)),)), Group(1, (Layer(_LATENT, _EXPERTS),))),
    family="deepseek_v3",
)
latent = pytest.param(LATENT, id="latent")
mixtral = pytest.param(family_cases.config("mixtral"), id="mixtral")


def random_adapters(config: ModelConfig, lora: LoraConfig) -> dict:
    rng = np.random.default_rng(2)
    shapes = adapters_lib.abstract(config, lora, jnp.float32)
    return jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def logits(config, params, tree, lora, ids):
    positions, segments = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), jnp.ones_like(ids)
    adapters = adapters_lib.Adapters(tree, lora.scale)
    hidden = decoder.forward(params, config, ids, positions, segments, adapters=adapters)
    return np.asarray(decoder.logits(params, config, hidden))


@pytest.mark.parametrize("config", [CASES["qwen2"], MIXTURE, latent])
def test_round_trip(config, tmp_path):
    lora = LORA if config is not LATENT else LoraConfig(3, 8.0, "q_a_proj,q_b_proj,kv_a_proj_with_mqa,o_proj", True)
    tree = random_adapters(config, lora)
    peft_lib.write(tmp_path, tree, config, lora, "owner/base")
    read, settings, base = peft_lib.read(tmp_path, config)
    assert (settings.rank, settings.scale, settings.rslora, base) == (3, lora.scale, True, "owner/base")
    assert settings.projections() & adapted(config) == lora.projections() & adapted(config)
    for one, other in zip(*map(jax.tree.leaves, (read, tree)), strict=True):
        np.testing.assert_array_equal(one, other)


def adapted(config):
    return {path[-1] for path, _, _ in adapters_lib.paths(config, LoraConfig(rank=1))}


def test_names_and_layout_are_those_of_peft_and_vllm(tmp_path):
    tree = random_adapters(MIXTURE, LORA)
    peft_lib.write(tmp_path, tree, MIXTURE, LORA, "owner/base")
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * (4 + 3 * 4)
    at = "base_model.model.model.layers.1."
    pair = tree["layers"]["attention"]["out"]  # a [L, N, H, R], b [L, R, D]
    np.testing.assert_array_equal(tensors[at + "self_attn.o_proj.lora_A.weight"], pair["a"][1].reshape(48, 3).T)
    np.testing.assert_array_equal(tensors[at + "self_attn.o_proj.lora_B.weight"], pair["b"][1].T)
    pair = tree["layers"]["mlp"]["experts"]["down"]  # a [L, E, F, R], b [L, E, R, D]
    np.testing.assert_array_equal(tensors[at + "mlp.experts.2.down_proj.lora_A.weight"], pair["a"][1, 2].T)
    np.testing.assert_array_equal(tensors[at + "mlp.experts.2.down_proj.lora_B.weight"], pair["b"][1, 2].T)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["use_rslora"]) == (3, 8, True)
    assert about["target_modules"] == sorted(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))


@pytest.mark.parametrize("config", [CASES["qwen2"], CASES["llama3_scaled"], latent, MIXTURE, mixtral])
def test_peft_computes_the_same_logits(config, tmp_path):
    peft, transformers, torch = map(pytest.importorskip, ("peft", "transformers", "torch"))
    lora = LORA if config is not LATENT else LoraConfig(3, 8.0, "q_a_proj,q_b_proj,kv_a_proj_with_mqa,o_proj", True)
    if config.experts is not None and config is not LATENT:
        lora = LoraConfig(3, 8.0)  # peft 0.21 makes rslora's scale larger by sqrt(2) when it joins gate and up
    params, tree = weights(config), random_adapters(config, lora)
    huggingface.write_model(tmp_path, params, config)
    (tmp_path / "adapter").mkdir()
    peft_lib.write(tmp_path / "adapter", tree, config, lora, str(tmp_path))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = tokens(config, (2, 20))
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids).long()).logits.numpy()
    ours = logits(config, params, tree, lora, ids)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(ours - logits(config, params, jax.tree.map(np.zeros_like, tree), lora, ids)).max() > 0.1
    # And back: what PEFT saves of what it has loaded computes the same, with other tensors where it has experts.
    model.save_pretrained(tmp_path / "saved")
    read, settings, _ = peft_lib.read(tmp_path / "saved", config)
    np.testing.assert_allclose(logits(config, params, read, settings, ids), ours, rtol=0, atol=1e-4)
    if settings.rank == lora.rank:
        for one, other in zip(*map(jax.tree.leaves, (read, tree)), strict=True):
            np.testing.assert_array_equal(one, other)


PLAIN = {"peft_type": "LORA", "r": 3, "lora_alpha": 8, "use_rslora": False}


def _save(folder, tensors, about):
    folder.mkdir(exist_ok=True)
    prefixed = {f"base_model.model.{name}": np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(prefixed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **about}))


def _is_read_as(folder, config, deltas):
    """Whether the merged weights are those with `deltas` added, by names of Hugging Face's tensors."""
    tree, lora, _ = peft_lib.read(folder, config)
    params, rng = names_lib.allocate(config, np.float32), np.random.default_rng(3)
    for view in names_lib.views(config, params, "huggingface").values():
        names_lib.copy(view, rng.normal(size=view.shape).astype(np.float32))
    wanted = {name: np.array(view) for name, view in names_lib.views(config, params, "huggingface").items()}
    for name, delta in deltas.items():
        wanted[name] = wanted[name] + delta
    merged = merge_lib.merge(params, tree, config, lora)
    for name, view in names_lib.views(config, merged, "huggingface").items():
        np.testing.assert_allclose(np.array(view), wanted[name], rtol=0, atol=1e-5, err_msg=name)
    return lora


@pytest.mark.parametrize(
    ("config", "modules", "targets"),
    [
        # module, rank, scale, outputs, inputs
        (
            LATENT,
            [("self_attn.kv_b_proj", 5, 2.0, 3 * (8 + 12), 16), ("self_attn.q_a_proj", 3, 8 / 3, 24, 48)],
            "q_a_proj,kv_b_proj",
        ),
        (
            family_cases.config("phi3"),
            [("self_attn.qkv_proj", 5, 2.0, 80, 48), ("mlp.gate_up_proj", 3, 8 / 3, 160, 48)],
            "q_proj,k_proj,v_proj,gate_proj,up_proj",
        ),
    ],
    ids=["latent", "phi3"],
)
def test_projections_that_are_ours_in_parts_and_ranks_by_pattern(config, modules, targets, tmp_path):
    rng, tensors, deltas = np.random.default_rng(5), {}, {}
    for layer in range(2):
        for name, rank, scale, out, into in modules:
            module = f"model.layers.{layer}.{name}"
            a, b = rng.normal(size=(rank, into)).astype(np.float32), rng.normal(size=(out, rank)).astype(np.float32)
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
            deltas[f"{module}.weight"] = scale * (b @ a)
    name = modules[0][0].split(".")[1]
    _save(tmp_path, tensors, {"rank_pattern": {name: 5}, "alpha_pattern": {f".*{name}": 10}})
    lora = _is_read_as(tmp_path, config, deltas)
    assert (lora.rank, lora.targets) == (5, targets)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_as_peft_stacks_them_on_transformers_5(family, tmp_path):
    """`peft.tuners.lora.layer.ParamWrapper.get_delta_weight` is the formula; gpt-oss has [E, inputs, outputs]."""
    config = MIXTURE if family == "qwen3_moe" else family_cases.config(family)
    rng, tensors, deltas = np.random.default_rng(5), {}, {}
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    experts = config.stacks()[0].layer.mlp
    e, d, f = experts.num_experts, config.d_model, experts.hidden
    for layer in range(config.num_layers):
        module = f"model.layers.{layer}.mlp.experts"
        for inner, name, rank, scale, out, into in (
            (".base_layer", "gate_up_proj", 6, 16 / 6, 2 * f, d),
            ("", "down_proj", 3, 8 / 3, d, f),
        ):
            a, b = draw(e * rank, into), draw(out, rank * e)
            tensors[f"{module}{inner}.lora_A.weight"], tensors[f"{module}{inner}.lora_B.weight"] = a, b
            delta = scale * np.einsum("ore,eri->eoi", b.reshape(out, rank, e), a.reshape(e, rank, into))
            if family == "gpt_oss":
                deltas[f"{module}.{name}"] = delta.swapaxes(1, 2)
                continue
            for number, one in enumerate(delta):
                parts = {"gate_proj": one[:f], "up_proj": one[f:]} if name == "gate_up_proj" else {"down_proj": one}
                deltas.update({f"{module}.{number}.{part}.weight": value for part, value in parts.items()})
    patterns = {"rank_pattern": {r".*\.gate_up_proj": 6}, "alpha_pattern": {r".*\.gate_up_proj": 16}}
    _save(tmp_path, tensors, {**patterns, "target_parameters": ["gate_up_proj", "down_proj"]})
    assert _is_read_as(tmp_path, config, deltas).targets == "gate_proj,up_proj,down_proj"


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_what_peft_saves_of_experts_gives_its_logits(family, tmp_path):
    peft, torch = map(pytest.importorskip, ("peft", "torch"))
    model, config = family_cases.transformers_model(family), family_cases.config(family)
    modules = ["kv_b_proj", "q_a_proj"] if family == "deepseek_v3" else ["q_proj", "o_proj"]
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=3, lora_alpha=8, target_modules=modules, target_parameters=targets)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    model.eval().save_pretrained(tmp_path)
    tree, lora, _ = peft_lib.read(tmp_path, config)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(2, 20)).astype(np.int32)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids).long()).logits.numpy()
    ours = logits(config, family_cases.weights(family), tree, lora, ids)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    peft_lib.write(folder, random_adapters(CASES["qwen2"], LORA), CASES["qwen2"], LORA, "owner/base")
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, r"use_dora is True; s1jax reads adapters that have False there"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which s1jax does not compute"),
        ({"rank_pattern": {"q_proj": 8}}, r"q_proj.lora_A.weight has shape \[3, 48\] where the model needs \[8, 48\]"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0; it must be a positive number"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern is '\('; it must be a table of regular expressions"),
        ({"layers_to_transform": [0]}, "layers_to_transform is"),
        ({"some_new_kind": True}, "some_new_kind is True"),
        ({"r": 0}, "r is 0; it must be a positive number"),
        (
            {"r": 4},
            r"has shape \[3, 80\] where the model needs \[4, 80\].*another base \(it names 'owner",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(folder, tmp_path, change, words):
    about = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**about, **change}))
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=words):
        peft_lib.read(tmp_path, CASES["qwen2"])


def test_tensors_of_another_base_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"has shape .* belongs to another base"):
        peft_lib.read(folder, CASES["llama"])
    with pytest.raises(UserError, match=r"lacks .*layers\.2\..* another base \(it names 'owner/base'\)"):
        peft_lib.read(folder, CASES["qwen3_wide_heads"])
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.zeros((3, 61), np.float32)
    (tmp_path / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"no place for the tensor base_model\.model\.model\.embed_tokens"):
        peft_lib.read(tmp_path, CASES["qwen2"])
    with pytest.raises(UserError, match=r"has no adapter_config\.json"):
        peft_lib.read(tmp_path.parent / "nothing", CASES["qwen2"])


def test_part_of_a_larger_tensor_has_no_peft_form(tmp_path):
    lora = LoraConfig(rank=2, targets="kv_b_proj")
    with pytest.raises(UserError, match=r"attention/key_up has no PEFT form: .* part of .*kv_b_proj.*--merge"):
        peft_lib.write(tmp_path, random_adapters(LATENT, lora), LATENT, lora, "base")
    assert not list(tmp_path.iterdir())
