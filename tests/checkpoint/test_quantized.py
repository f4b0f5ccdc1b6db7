"""Quantised checkpoints of other libraries as floats: recorded modules, whole folders, and what can be wrong."""

import dataclasses
import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors

from s1jax.checkpoint import huggingface, huggingface_config, names
from s1jax.checkpoint.quantized import method as method_lib
from s1jax.checkpoint.quantized.held import RESTORED, Held, held
from s1jax.errors import UserError
from tests.checkpoint import quantized_folders as folders
from tests.checkpoint.quantized_folders import CONFIG, GOLDEN


@pytest.fixture(scope="module")
def golden():
    with safetensors.safe_open(GOLDEN, framework="np", backend="pread") as file:
        yield file


def _names():
    with safetensors.safe_open(GOLDEN, framework="np") as file:
        return sorted(file.metadata())


def _parts(golden, name):
    return {key: held(golden, key, str(GOLDEN)) for key in golden.keys() if key.startswith(f"{name}.m")}  # noqa: SIM118


def _restored(golden, name, **changes):
    config = json.loads(golden.metadata()[name]) | changes
    method = method_lib.read_method({"quantization_config": config}, "config.json")
    return method, method_lib.restore(method, _parts(golden, name), [])


@pytest.mark.parametrize("name", _names())
def test_weights_are_those_of_the_library(golden, name):
    """Bit for bit, once ours are rounded to the type that the library computes in."""
    expected = golden.get_tensor(f"{name}.expected")
    method, found = _restored(golden, name)
    ((key, tensor),) = found.items()
    assert key == (f"{name}.m" if name == "mxfp4" else f"{name}.m.weight")
    assert tensor.kind == RESTORED and tensor.shape == expected.shape
    array = tensor.read()
    assert array.shape == expected.shape and method.about
    assert np.array_equal(array.astype(expected.dtype), expected)
    assert np.abs(expected.astype(np.float32)).mean() > 0.1


# Parts that a module may lack.
OPTIONAL = ("g_idx", "weight_format")


@pytest.mark.parametrize("name", _names())
def test_every_part_that_is_missing_or_wrong_is_named(golden, name):
    """One sentence with the module's name, before anything is read; nothing is made up."""
    config = {"quantization_config": json.loads(golden.metadata()[name])}
    method = method_lib.read_method(config, "config.json")
    parts = _parts(golden, name)
    for key, part in parts.items():
        optional = key.endswith(OPTIONAL) and name != "gptq-act-order"
        first = "quant_state" in key  # names the rest
        if not optional and not first:
            rest = {other: tensor for other, tensor in parts.items() if other != key}
            try:
                found = method_lib.restore(method, rest, [])
            except UserError as error:
                assert f"tensor {key} is missing" in str(error) and "get a complete copy" in str(error)
            else:  # weights without scales, which huggingface.read_params refuses for their type
                assert all(tensor.kind != RESTORED for tensor in found.values()), key
        if part.shape and not first and key != "float8-tensor.m.weight":  # whose one scale fits every shape
            long = {**parts, key: dataclasses.replace(part, shape=(part.shape[0] + 3, *part.shape[1:]))}
            with pytest.raises(UserError, match=f"{name}.m.*get the file again"):
                method_lib.restore(method, long, [])
        if not first and "weight_packed" not in key:
            odd = {**parts, key: dataclasses.replace(part, kind="F64")}
            with pytest.raises(UserError, match=f"{name}.m.*stored as F64, not "):
                method_lib.restore(method, odd, [])


@pytest.mark.parametrize("name", ["gptq4", "awq", "pack4", "nvfp4"])
def test_groups_of_another_size(golden, name):
    config = json.loads(golden.metadata()[name])
    for size in (16 if name != "nvfp4" else 32, 24, 64):
        changed = {"group_size": size}
        if "config_groups" in config:
            (group,) = config["config_groups"].values()
            changed = {"config_groups": {"a": {**group, "weights": {**group["weights"], "group_size": size}}}}
        with pytest.raises(UserError, match=r"do not divide|ask for|groups of 16"):
            _restored(golden, name, **changed)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gptq4", {"quant_method": "aqlm"}, "quant_method 'aqlm' is unknown; s1jax reads compressed-tensors, gptq"),
        ("gptq4", {"quant_method": None}, "quant_method None is unknown"),
        ("gptq4", {"bits": 5}, "bits is 5; s1jax reads 2, 3, 4, 8"),
        ("gptq4", {"bits": None}, "lacks bits"),
        ("gptq4", {"bits": True}, "bits is True"),
        ("gptq4", {"group_size": 0}, "group_size is 0; it must be at least 1"),
        ("gptq4", {"group_size": "32"}, "group_size is '32'; it must be of type int"),
        ("gptq4", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; s1jax reads 'gptq', 'gptq_v2'"),
        ("gptq4", {"rotation": "hadamard"}, "rotation is 'hadamard', which s1jax does not read"),
        ("gptq4", {"dynamic": {"+:.*up": {"bits": 8}}}, "dynamic gives '\\+:\\.\\*up' settings of its own"),
        ("gptq4", {"dynamic": {"-:gptq4": {}}}, "dynamic skips gptq4.m, whose weights are quantised"),
        ("gptq4", {"dynamic": {"-:(": {}}}, "'\\(' is not a regular expression"),
        ("gptq4", {"new": 3}, "new is 3, a field that s1jax does not know"),
        ("awq", {"version": "gemv"}, "version is 'gemv'; s1jax reads 'gemm'"),
        ("awq", {"zero_point": False}, "zero_point is False"),
        ("awq", {"modules_to_not_convert": ["m"]}, "modules_to_not_convert names awq.m \\('m'\\), whose weights are"),
        ("awq", {"modules_to_not_convert": "m"}, "modules_to_not_convert is 'm'; it must be of type list"),
        ("fp8", {"fmt": "e5m2"}, "fmt is 'e5m2'; s1jax reads 'e4m3'"),
        ("fp8", {"weight_block_size": [16]}, "weight_block_size is \\[16\\]; it must be two positive numbers"),
        ("fp8", {"weight_block_size": [32, 32]}, "shape \\[2, 2\\] where .* ask for \\[1, 2\\]"),
        ("fp8", {"weight_block_size": None}, "has no weight_block_size"),
        ("fp8", {"expert_dtype": "fp4"}, "expert_dtype is 'fp4'"),
        ("fp8", {"modules_to_not_convert": ["fp8"]}, "modules_to_not_convert names fp8.m"),
        ("nf4", {"load_in_8bit": True}, "asks for neither 4 nor 8 bits, or for both"),
        ("nf4", {"llm_int8_skip_modules": ["nf4.m"]}, "llm_int8_skip_modules names nf4.m"),
        ("mxfp4", {"modules_to_not_convert": ["mxfp4"]}, "modules_to_not_convert names mxfp4.m"),
        ("mxfp4", {"bits": 4}, "bits is 4, a field that s1jax does not know"),
        ("pack4", {"format": "marlin-24"}, "format is 'marlin-24'; s1jax reads 'pack-quantized', "),
        ("pack4", {"quantization_status": "calibration"}, "quantization_status is 'calibration'"),
        ("pack4", {"transform_config": {"config_groups": {"u": {}}}}, "transform_config is "),
        ("pack4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is "),
        ("pack4", {"ignore": ["re:pack.*"]}, "ignore names pack4.m"),
        ("pack4", {"ignore": ["Linear"]}, "ignore names pack4.m"),
        ("pack4", {"config_groups": None}, "lacks config_groups"),
        ("pack4", {"config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16 is \\['Linear'\\], not the settings"),
        ("pack4", {"config_groups": {}}, "no group names pack4.m"),
    ],
)  # fmt: skip
def test_what_is_refused(golden, name, changes, message):
    with pytest.raises(UserError, match=f"^config.json: quantization_config.*{message}|{message}"):
        _restored(golden, name, **changes)


# Configurations with the fields that the tools write, and what is said of them.
KNOWN = json.loads(GOLDEN.with_name("quantization_configs.json").read_text())


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known["about"])
def test_configurations_as_the_tools_write_them(known):
    assert method_lib.read_method(known, "config.json").about == known["about"]


def _group(golden, name, **changes):
    (group,) = json.loads(golden.metadata()[name])["config_groups"].values()
    targets = changes.pop("targets", group["targets"])
    return {**group, "targets": targets, "weights": {**group["weights"], **changes}}


def test_the_group_with_the_closest_target_counts(golden):
    """A name, then a regular expression, then a type of modules, in whatever order the groups are."""
    right, wrong = _group(golden, "pack4"), _group(golden, "pack4", num_bits=8)
    for targets in (["re:pack4.*"], ["pack4.m"], ["re:nothing", "pack4.m"]):
        for order in (1, -1):
            groups = [{**wrong, "targets": ["Linear"]}, {**right, "targets": targets}][::order]
            _, found = _restored(golden, "pack4", config_groups=dict(zip("ab", groups, strict=True)))
            assert np.array_equal(
                found["pack4.m.weight"].read(), _restored(golden, "pack4")[1]["pack4.m.weight"].read()
            )
    groups = {"0": {**wrong, "targets": ["re:pack4.*"]}, "1": {**right, "targets": ["Linear"]}}
    with pytest.raises(UserError, match=r"pack4\.m\.weight_packed has shape"):
        _restored(golden, "pack4", config_groups=groups)


def test_the_strategy_follows_from_the_size_of_groups_where_it_is_not_given(golden):
    for name, changes in (
        ("pack4", {"strategy": None, "group_size": 32}),
        ("int8", {"strategy": None, "group_size": -1}),
        ("float8-tensor", {"strategy": None, "group_size": None}),
    ):
        (key,) = (key for key in _restored(golden, name)[1])
        _, found = _restored(golden, name, config_groups={"a": _group(golden, name, **changes)})
        assert np.array_equal(found[key].read(), _restored(golden, name)[1][key].read())


def test_a_group_of_activations_alone_is_passed_over(golden):
    groups = {"a": _group(golden, "pack4"), "b": {"targets": ["re:.*attn"], "weights": None, "input_activations": {}}}
    method, found = _restored(golden, "pack4", config_groups=groups)
    assert len(method.schemes) == 1 and found["pack4.m.weight"].kind == RESTORED


def test_mixed_precision_has_a_format_a_group(golden):
    group = _group(golden, "pack4")
    _, found = _restored(golden, "pack4", format="mixed-precision", config_groups={"a": group})
    assert found["pack4.m.weight"].kind == RESTORED
    del group["format"]
    with pytest.raises(UserError, match="lacks format, which mixed-precision asks of every group"):
        _restored(golden, "pack4", format="mixed-precision", config_groups={"a": group})
    with pytest.raises(UserError, match="reads int-quantized of type int with 8 bits, not int with 4"):
        _restored(golden, "pack4", format="int-quantized", config_groups={"a": group})
    assert _restored(golden, "pack4", config_groups={"a": group})[1].keys() == found.keys()


@pytest.mark.parametrize("order", ["group", "none"])
def test_inputs_of_a_group_may_be_anywhere_in_older_files_of_compressed_tensors(golden, order):
    """`weight_g_idx` has the group of each input; -1 says that inputs are in their order."""
    parts = _parts(golden, "pack4")
    groups = np.random.default_rng(0).permutation(np.arange(64) // 32) if order == "group" else np.full(64, -1)
    parts["pack4.m.weight_g_idx"] = Held("pack4.m.weight_g_idx", "f", "I32", (64,), lambda: groups.astype(np.int32))
    method, plain = _restored(golden, "pack4")
    found = method_lib.restore(method, parts, [])["pack4.m.weight"].read()
    scales = parts["pack4.m.weight_scale"].read().astype(np.float32)
    codes = plain["pack4.m.weight"].read() / scales[:, np.arange(64) // 32]
    chosen = groups if order == "group" else np.arange(64) // 32
    np.testing.assert_allclose(found, np.rint(codes) * scales[:, chosen], rtol=1e-6)


def test_zeros_of_the_first_version_wrap_and_those_of_the_second_do_not(golden):
    """A zero of 0 is stored as 15 in version 1."""
    parts = _parts(golden, "gptq4")
    parts["gptq4.m.qzeros"] = dataclasses.replace(
        parts["gptq4.m.qzeros"], read=lambda: np.full((2, 4), 0xF7F7F7F7, np.uint32).view(np.int32)
    )
    for version, zeros in (("gptq", [8, 0]), ("gptq_v2", [7, 15])):
        method = _restored(golden, "gptq4", checkpoint_format=version)[0]
        found = method_lib.restore(method, parts, [])["gptq4.m.weight"].read()
        scales = parts["gptq4.m.scales"].read().astype(np.float32).T
        codes = np.rint(found / scales[:, np.arange(64) // 32])
        for output in range(4):
            offset = zeros[output % 2]
            assert codes[output].min() >= -offset and codes[output].max() <= 15 - offset
            assert codes[output].min() == -offset or codes[output].max() == 15 - offset


def test_the_last_group_of_gptq_may_be_smaller(golden):
    """Without `g_idx`, the group of an input follows from the size of groups."""
    parts = _parts(golden, "gptq4")
    stored = parts.pop("gptq4.m.g_idx").read()
    assert np.array_equal(_restored(golden, "gptq4")[1]["gptq4.m.weight"].read(), _weights(golden, parts, 32))
    groups = np.arange(64) // 48
    own = Held("gptq4.m.g_idx", "f", "I32", (64,), lambda: groups.astype(np.int32))
    assert np.array_equal(_weights(golden, parts, 48), _weights(golden, {**parts, own.name: own}, 48))
    assert not np.array_equal(groups, stored)


def _weights(golden, parts, size):
    method = _restored(golden, "gptq4", group_size=size)[0]
    return method_lib.restore(method, parts, [])["gptq4.m.weight"].read()


def test_act_order_needs_its_groups_and_they_must_be_there(golden):
    config = {"quantization_config": json.loads(golden.metadata()["gptq-act-order"])}
    method = method_lib.read_method(config, "config.json")
    parts = _parts(golden, "gptq-act-order")
    del parts["gptq-act-order.m.g_idx"]
    with pytest.raises(UserError, match=r"tensor gptq-act-order\.m\.g_idx is missing, without"):
        method_lib.restore(method, parts, [])
    parts = _parts(golden, "gptq-act-order")
    key = "gptq-act-order.m.g_idx"
    parts[key] = dataclasses.replace(parts[key], read=lambda: np.full(64, 2, np.int32))
    with pytest.raises(UserError, match="g_idx names a group outside of the 2"):
        method_lib.restore(method, parts, [])["gptq-act-order.m.weight"].read()


def test_biases_of_zeros_that_the_model_lacks_are_left_out(golden):
    method = _restored(golden, "gptq4")[0]
    for value, wanted, kept in ((0, [], False), (0, ["gptq4.m.bias"], True), (1, [], True)):
        bias = np.full(32, value, np.float16)
        parts = {**_parts(golden, "gptq4"), "gptq4.m.bias": Held("gptq4.m.bias", "f", "F16", (32,), lambda b=bias: b)}
        assert ("gptq4.m.bias" in method_lib.restore(method, parts, wanted)) == kept


def test_damaged_states_of_bitsandbytes(golden):
    config = {"quantization_config": json.loads(golden.metadata()["nf4-nested"])}
    method = method_lib.read_method(config, "config.json")
    key = "nf4-nested.m.weight.quant_state.bitsandbytes__nf4"
    good = json.loads(_parts(golden, "nf4-nested")[key].read().tobytes())
    for bad in (b"{", b"[]", b"{}", *(json.dumps(good | change).encode() for change in (
        {"shape": [32]}, {"shape": None}, {"blocksize": 0}, {"nested_blocksize": "a"}, {"nested_offset": "a"},
        {"shape": [-32, -64]},
    ))):  # fmt: skip
        parts = _parts(golden, "nf4-nested")
        parts[key] = dataclasses.replace(parts[key], read=lambda bad=bad: np.frombuffer(bad, np.uint8))
        with pytest.raises(UserError, match="bitsandbytes__nf4 is damaged"):
            method_lib.restore(method, parts, [])
    parts[key] = dataclasses.replace(
        parts[key], read=lambda: np.frombuffer(json.dumps(good | {"shape": [32, 32]}).encode(), np.uint8)
    )
    with pytest.raises(UserError, match=r"m\.weight has shape .* where its state says \[32, 32\]"):
        method_lib.restore(method, parts, [])


def test_a_weight_beside_its_parts(golden):
    method = _restored(golden, "awq")[0]
    parts = _parts(golden, "awq") | {"awq.m.weight": Held("awq.m.weight", "f", "F32", (32, 64), lambda: np.zeros(1))}
    with pytest.raises(UserError, match=r"f: tensor awq\.m\.weight is stored beside its quantised parts \(qweight\)"):
        method_lib.restore(method, parts, [])


@pytest.mark.parametrize("name", [name for name in _names() if name != "mxfp4"])
def test_a_folder_is_read_as_if_it_were_unquantised(tmp_path, name):
    expected = folders.write_folder(tmp_path, name)
    config = huggingface_config.config_from_json(huggingface_config.read_json(tmp_path / "config.json"))
    assert config == CONFIG
    found = huggingface.read_params(tmp_path, config)
    theirs = names.views(CONFIG, expected, "huggingface")
    # Libraries round to a half type; ours does not.
    for key, view in names.views(CONFIG, found, "huggingface").items():
        assert view.dtype == np.float32
        np.testing.assert_allclose(
            view, theirs[key], rtol=2**-8 if key.rpartition(".")[0].endswith(folders.QUANTIZED) else 0
        )
    (note,) = huggingface.notes(tmp_path)
    assert "holds quantised weights" in note and "they become floats" in note


def test_the_dtype_is_that_of_the_tensors_that_are_not_quantised(tmp_path):
    for dtype, wanted in ((ml_dtypes.bfloat16, ml_dtypes.bfloat16), (np.float16, np.float32)):
        folders.write_folder(tmp_path, "awq", dtype)
        assert huggingface.read_params(tmp_path, CONFIG)["layers"]["mlp"]["up"]["kernel"].dtype == wanted


def test_weights_under_a_name_of_their_own(tmp_path):
    folders.write_folder(tmp_path, "gptq4")
    (tmp_path / huggingface.SINGLE).rename(tmp_path / "gptq_model-4bit-128g.safetensors")
    with pytest.raises(UserError, match=r"another name than model\.safetensors; rename gptq_model-4bit-128g\."):
        huggingface.read_params(tmp_path, CONFIG)


def test_a_folder_whose_configuration_says_nothing_of_it(tmp_path):
    folders.write_folder(tmp_path, "fp8")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="is stored as F8_E4M3; s1jax reads F32, F16, BF16 and what quantization_config"
    ):
        huggingface.read_params(tmp_path, CONFIG)


def test_eight_bit_floats_that_end_early(tmp_path):
    folders.write_folder(tmp_path, "fp8")
    file = tmp_path / huggingface.SINGLE
    tensors = folders.read_safetensors(file)
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1][0] == "F8_E4M3"))
    folders.write_safetensors(file, tensors)
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        huggingface.read_params(tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["pack4", "int8", "float8", "float8-block", "fp8", "nf4-nested", "bitsandbytes8"])
def test_logits_are_those_of_transformers_with_the_library(tmp_path, name):
    """transformers dequantises with the library that quantised: the whole way, names and configuration included."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    by_bitsandbytes = name in ("nf4-nested", "bitsandbytes8")
    pytest.importorskip("bitsandbytes" if by_bitsandbytes else "compressed_tensors")
    from tests.model.parity_cases import tokens, transformers_logits, transformers_model

    folders.write_folder(tmp_path, name)
    options = {}
    if name == "fp8":
        options = {"quantization_config": transformers.FineGrainedFP8Config(dequantize=True)}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options).eval()
    loaded = loaded.dequantize() if by_bitsandbytes else loaded
    ids = tokens(CONFIG, (2, 20))
    ours = transformers_model(CONFIG, huggingface.read_params(tmp_path, CONFIG))
    np.testing.assert_allclose(transformers_logits(ours, ids), transformers_logits(loaded, ids), atol=1e-4)
