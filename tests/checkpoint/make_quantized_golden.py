"""Writes quantized_golden.safetensors: modules quantised by other people's libraries, and what these make of them.

Needs torch, transformers, compressed-tensors and bitsandbytes, and the sources of AutoAWQ and AutoGPTQ unpacked, which
do not install beside a recent torch:

  python -m pip install --no-deps compressed-tensors bitsandbytes && python -m pip install loguru
  python -m pip download --no-deps autoawq auto-gptq  # then unpack both
  python -m tests.checkpoint.make_quantized_golden AUTOAWQ_FOLDER AUTO_GPTQ_FOLDER

Made with compressed-tensors 0.20.1, bitsandbytes 0.50.2, transformers 5.24.0, AutoAWQ 0.2.9, AutoGPTQ 0.7.1.
"""

import importlib.util
import json
import pathlib
import sys
import types

import torch
from safetensors.torch import save_file

OUTPUTS, INPUTS = 32, 64


def _weight(seed):
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed)) * 0.2 + 0.03


def _compressed(name, form, dtype, **weights):
    """Quantised and read back by compressed-tensors itself."""
    from compressed_tensors.compressors import compress_module, decompress_module
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    module = torch.nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype)
    weight = _weight(len(name)).to(dtype)
    module.weight.data = weight.clone()
    if args.strategy == "tensor":
        low, high = weight.min()[None], weight.max()[None]
    elif args.strategy == "channel":
        low, high = weight.amin(1, True), weight.amax(1, True)
    elif args.strategy == "block":
        blocks = weight.reshape(
            OUTPUTS // args.block_structure[0], args.block_structure[0], -1, args.block_structure[1]
        )
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    else:
        blocks = weight.reshape(OUTPUTS, -1, args.group_size)
        low, high = blocks.amin(2), blocks.amax(2)
    whole = None
    if form == "nvfp4-pack-quantized":
        whole = (448 * 6 / weight.abs().max()).float()[None]
        module.weight_global_scale = torch.nn.Parameter(whole, requires_grad=False)
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    module.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
    if not args.symmetric:
        module.weight_zero_point = torch.nn.Parameter(zero, requires_grad=False)
    module.quantization_scheme = scheme
    compress_module(module)
    parts = {key: value.detach().clone() for key, value in module.state_dict().items()}
    decompress_module(module)
    group = {"targets": ["Linear"], "weights": json.loads(args.model_dump_json()), "format": form}
    return parts, module.weight.detach(), {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": group},
    }  # fmt: skip


def _fp8(scale_dtype, block):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = _weight(5)
    blocks = weight.reshape(OUTPUTS // block[0], block[0], INPUTS // block[1], block[1])
    scale = blocks.abs().amax((1, 3)) / 448
    if scale_dtype == torch.uint8:
        stored = (127 + torch.ceil(torch.log2(scale))).to(torch.uint8)
        scale = torch.exp2(stored.float() - 127)
    else:
        stored = scale = scale.to(scale_dtype).float()
    codes = (blocks / scale[:, None, :, None]).reshape(OUTPUTS, INPUTS).to(torch.float8_e4m3fn)
    expected = Fp8Dequantize(None)._dequantize_one(codes, stored, torch.float32)
    form = {"scale_fmt": "ue8m0"} if scale_dtype == torch.uint8 else {}
    return {"weight": codes, "weight_scale_inv": stored}, expected, {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [*block], **form
    }  # fmt: skip


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _packages(folder, *names):
    """Packages without their __init__, which would import what is not there."""
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder / name.replace(".", "/"))]


def _rounded(bits, group, order=None):
    """Scales and zeros of groups as GPTQ's tools choose them, and a layer whose weights are what codes stand for."""
    weight = _weight(bits)
    groups = torch.arange(INPUTS) // group
    if order is not None:
        groups = groups[order]
    scales, zeros = (torch.zeros(OUTPUTS, INPUTS // group) for _ in range(2))
    for number in range(INPUTS // group):
        part = weight[:, groups == number]
        low, high = part.amin(1).clamp(max=-0.01), part.amax(1).clamp(min=0.01)
        scales[:, number] = ((high - low) / (2**bits - 1)).half().float()
        zeros[:, number] = torch.round(-low / scales[:, number]).clamp(1, 2**bits - 1)
    scale, zero = scales[:, groups], zeros[:, groups]
    codes = torch.clamp(torch.round(weight / scale) + zero, 0, 2**bits - 1)
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    layer.weight.data = (codes - zero) * scale
    return layer, scales, zeros, groups.int()


def _gptq(folder, bits, group, act_order=False):
    """Packed by AutoGPTQ; what its forward pass makes of unit vectors are the weights."""
    _packages(folder, "auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    name = "auto_gptq.nn_modules.qlinear.qlinear_cuda"
    library = _load(name, folder / (name.replace(".", "/") + ".py"))
    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(0)) if act_order else None
    layer, scales, zeros, groups = _rounded(bits, group, order)
    packed = library.QuantLinear(bits, group, INPUTS, OUTPUTS, False, weight_dtype=torch.float16)
    packed.pack(layer, scales.clone(), zeros.clone(), groups)
    expected = packed.double()(torch.eye(INPUTS, dtype=torch.float64)).T
    packed.half()
    assert torch.allclose(expected.float(), layer.weight, atol=1e-3)
    parts = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
    return parts, expected.float(), {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": False,
        "damp_percent": 0.01, "true_sequential": True, "checkpoint_format": "gptq",
    }  # fmt: skip


def _awq(folder, group):
    """Packed and read back by AutoAWQ."""
    _packages(folder, "awq", "awq.utils", "awq.modules", "awq.modules.linear")
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    layer, scales, zeros, _ = _rounded(4, group)
    packed = WQLinear_GEMM.from_linear(layer, 4, group, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    parts = {key: getattr(packed, key).contiguous() for key in ("qweight", "qzeros", "scales")}
    expected = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, group).T
    assert torch.allclose(expected.float(), layer.weight, atol=1e-3)
    return parts, expected, {
        "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip


def _bitsandbytes(kind, nested, storage=torch.uint8, dtype=torch.bfloat16):
    import bitsandbytes as library

    weight = _weight(7).to(dtype)
    if kind == "int8":
        codes, stats, _ = library.functional.int8_vectorwise_quant(weight.half())
        expected = library.functional.int8_vectorwise_dequant(codes, stats)
        form = torch.zeros([], dtype=torch.uint8)
        return {"weight": codes, "SCB": stats, "weight_format": form}, expected, {
            "quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": ["lm_head"],
        }  # fmt: skip
    codes, state = library.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=nested, quant_type=kind, quant_storage=storage
    )
    expected = library.functional.dequantize_4bit(codes, state)
    parts = {"weight": codes, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
    return parts, expected, {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": str(storage).removeprefix("torch."),
    }  # fmt: skip


def _mxfp4():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = torch.Generator().manual_seed(9)
    blocks = torch.randint(0, 256, (2, 8, 2, 16), dtype=torch.uint8, generator=random)
    scales = torch.randint(112, 130, (2, 8, 2), dtype=torch.uint8, generator=random)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    return {"_blocks": blocks, "_scales": scales}, expected, {"quant_method": "mxfp4"}


def _cases(awq, gptq):
    half, wide = torch.bfloat16, torch.float32
    group, block = dict(strategy="group", group_size=32), dict(strategy="block", block_structure=[16, 32])
    packed = dict(type="int", num_bits=4)
    integer, eight = dict(type="int", num_bits=8, strategy="channel"), dict(type="float", num_bits=8)
    four = dict(type="float", num_bits=4)
    compressed = {
        "pack4": ("pack-quantized", half, packed | group),
        "pack4-asymmetric": ("pack-quantized", half, packed | group | {"symmetric": False}),
        "pack4-channel": ("pack-quantized", torch.float16, packed | {"strategy": "channel", "symmetric": False}),
        "pack8": ("pack-quantized", half, integer),
        "int8": ("int-quantized", half, integer),
        "int8-asymmetric": ("int-quantized", wide, integer | {"symmetric": False}),
        "float8": ("float-quantized", half, eight | {"strategy": "channel"}),
        "float8-tensor": ("float-quantized", half, eight | {"strategy": "tensor"}),
        "float8-block": ("float-quantized", wide, eight | block),
        "nvfp4": ("nvfp4-pack-quantized", half, four | {"strategy": "tensor_group", "group_size": 16}),
        "mxfp4-packed": ("mxfp4-pack-quantized", half, four | group | {"scale_dtype": "torch.uint8"}),
        "mxfp8": ("mxfp8-quantized", half, eight | group | {"scale_dtype": "torch.uint8"}),
    }
    for name, (form, dtype, weights) in compressed.items():
        yield name, _compressed(name, form, dtype, **weights)
    yield "fp8", _fp8(torch.float32, (16, 32))
    yield "fp8-bfloat16", _fp8(torch.bfloat16, (32, 64))
    yield "fp8-exponents", _fp8(torch.uint8, (1, 32))
    for bits in (2, 3, 4, 8):
        yield f"gptq{bits}", _gptq(gptq, bits, 32)
    yield "gptq-act-order", _gptq(gptq, 4, 32, act_order=True)
    yield "gptq-one-group", _gptq(gptq, 4, INPUTS)
    yield "awq", _awq(awq, 32)
    for kind in ("nf4", "fp4"):
        yield kind, _bitsandbytes(kind, nested=False)
    yield "nf4-nested", _bitsandbytes("nf4", nested=True, dtype=torch.float32)
    yield "nf4-in-bfloat16", _bitsandbytes("nf4", nested=True, storage=torch.bfloat16)
    yield "bitsandbytes8", _bitsandbytes("int8", nested=False)
    yield "mxfp4", _mxfp4()


if __name__ == "__main__":
    tensors, configs = {}, {}
    for name, (parts, expected, config) in _cases(*map(pathlib.Path, sys.argv[1:])):
        separator = "" if name == "mxfp4" else "."
        tensors |= {f"{name}.m{separator}{part}": value.contiguous().clone() for part, value in parts.items()}
        tensors[f"{name}.expected"] = expected.contiguous()
        configs[name] = json.dumps(config)
    save_file(tensors, pathlib.Path(__file__).with_name("quantized_golden.safetensors"), configs)
