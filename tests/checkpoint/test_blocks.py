"""GGUF's blocks in numpy against llama.cpp's C code, gguf-py, and decoders written element by element."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint.codecs import blocks
from tests.checkpoint import llama_cpp

QUANTIZED = [kind for kind in blocks.KINDS if kind not in ("F32", "F16", "BF16")]


def weights(rows=6, width=1024, seed=0):
    """Sums of integers, equal on every machine; rows differ in size, and one group has an outlier."""
    random = np.random.RandomState(seed)
    values = random.randint(-1000, 1001, size=(rows, width, 4)).sum(-1).astype(np.float32)
    values *= np.float32(2.0) ** -np.arange(9, 9 + rows, dtype=np.float32)[:, None]
    values[1, 300] = 40.0
    values[2, 256:512] = 0
    values[3, :64] = 0.25
    return values


# SHA-256 of what llama.cpp 0.4.0's C code makes of `weights()`, recorded by this file run as a program.
GOLDEN = {
    "F32": "57ec9db8b5ae2d7d458b0f80ced02e9cd91f36259f1e18517fbd52e01258d42b",
    "F16": "ca30a5a6631813e5fd2d1797882b7605d88b539edb0eb64ba3cc4eded15f40b8",
    "BF16": "8103aaf59d5f0c88594f60c84bbb1c8d7812638669f49436522c388b22263bf3",
    "Q8_0": "f011e1b22146379b440511412953b14e3b98b8d5971f601db45e93eb8cdff8b1",
    "Q4_0": "773a6ef60107d123df2dfe8b89fd68ab5a27f0163bd47d1593e25f3c1c0812a4",
    "Q4_1": "bec19231845398455d96626d991a51809a5b541b89c76fe70ea6756ba47daf4b",
    "Q5_0": "f7d310916130ef5bf1e56ff8f3082b728b1db02c49aeca47178446aee6cc3874",
    "Q5_1": "a81a2434d392ed0f85fb3f5876bed53a1ad714a64a717a04ef5e6a4c32a667ba",
    "MXFP4": "4be6ed7ccf58ecf2582cc5dddaaf7c79ce4fd8e7cb748fa5b50cb8bc4af5113f",
    "Q4_K": "88e78c6728306d50d70b06d7845e6614762825de71210728d0180c6a8ad70299",
    "Q5_K": "e843e77ded7c529ebc3e923f61339c136646d0d050df048d68d8d69cf7ea4fa1",
    "Q6_K": "d63f9d30d8395ef8f82c80ee65ffba3e183828969e50223ba287a7d4c7e84602",
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_bytes_are_those_of_llama_cpp(kind):
    assert hashlib.sha256(blocks.encode(weights(), kind).tobytes()).hexdigest() == GOLDEN[kind]


@pytest.mark.parametrize("kind", sorted(set(llama_cpp.TYPES) - {"F32"}))
def test_bytes_and_error_are_those_of_the_c_code(kind):
    shapes = {
        "normal": np.random.RandomState(1).standard_normal((16, 2048)) * 0.02,
        "heavy tails": np.random.RandomState(2).standard_t(3, size=(16, 2048)),
        "positive": np.random.RandomState(3).uniform(size=(4, 512)),
        "negative": -1 - np.random.RandomState(4).uniform(size=(4, 512)),
        "ties": np.random.RandomState(5).randint(-16, 17, size=(4, 512)) / 16,
    }
    for name, values in shapes.items():
        values = values.astype(np.float32)
        ours = blocks.encode(values, kind)
        theirs = llama_cpp.quantize(values, kind, ours.shape[1])
        if not kind.endswith("_K"):  # whose codes under a scale of 0 are free
            assert np.array_equal(ours, theirs), name
        assert np.array_equal(blocks.decode(ours, kind), blocks.decode(theirs, kind)), name


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind not in ("Q4_K", "Q5_K", "Q6_K")])
def test_bytes_are_those_of_gguf_py(kind):
    library = pytest.importorskip("gguf")
    values = weights(seed=1)
    theirs = library.quants.quantize(values, library.GGMLQuantizationType[kind])
    assert np.array_equal(blocks.encode(values, kind), theirs)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_decodes_as_the_format_says(kind):
    library = pytest.importorskip("gguf")
    from tests.checkpoint import gguf_blocks

    number = library.GGMLQuantizationType[kind]
    data = gguf_blocks.random_blocks(number, 3, 512)
    by_element = [
        value for block in data.reshape(-1, blocks.block(kind)[1]) for value in gguf_blocks.DECODERS[number](block)
    ]
    decoded = blocks.decode(data, kind)
    np.testing.assert_allclose(decoded.ravel(), by_element, rtol=2e-6, atol=1e-7)
    assert np.array_equal(decoded, library.quants.dequantize(data, number))


# Relative root mean square error on normal weights, rounded up from what the C code has.
ERRORS = {
    "Q8_0": 0.0056, "Q6_K": 0.019, "Q5_K": 0.038, "Q5_0": 0.044, "Q5_1": 0.039, "Q4_K": 0.073, "Q4_1": 0.08,
    "Q4_0": 0.088, "MXFP4": 0.117,
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_error_is_that_of_so_many_bits(kind):
    values = np.random.RandomState(0).standard_normal((8, 4096)).astype(np.float32)
    decoded = blocks.decode(blocks.encode(values, kind), kind)
    assert np.sqrt(np.mean((decoded - values) ** 2)) < ERRORS[kind]


@pytest.mark.parametrize("kind", blocks.KINDS)
def test_extreme_rows(kind):
    """Zeros stay zeros, a constant and a single outlier keep their size, tiny weights do not blow up."""
    values = np.zeros([7, 512], np.float32)
    values[1] = 0.75
    values[2] = -0.75
    values[3, 77] = -24.0
    values[4] = np.random.RandomState(0).standard_normal(512) * 1e-40
    values[5] = np.random.RandomState(1).standard_normal(512) * 1e-20
    values[6] = -0.0
    decoded = blocks.decode(blocks.encode(values, kind), kind)
    assert not decoded[0].any() and not decoded[6].any()
    # float16 rounds a scale by 2^-11 of it at most, and with it a minimum of -24.
    np.testing.assert_allclose(decoded[1:4], values[1:4], rtol=2**-10, atol=24 * 2**-11)
    assert np.abs(decoded[4:6]).max() < 1e-19


def test_any_memory_order_and_float_type():
    values = np.random.RandomState(0).standard_normal((4096, 512)).astype(np.float32)
    expected = blocks.encode(values.astype(ml_dtypes.bfloat16).astype(np.float32), "Q5_0")
    assert np.array_equal(blocks.encode(np.asfortranarray(values).astype(ml_dtypes.bfloat16), "Q5_0"), expected)
    assert blocks.encode(values[:0], "Q6_K").shape == (0, 420)


@pytest.mark.parametrize("kind", blocks.KINDS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(kind, bad):
    values = weights(4, 512)
    values[1, 3] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        blocks.encode(values, kind)


def test_what_is_too_large_is_refused():
    message = "is beyond float16|needs the scale|is too large to be quantised"
    for kind in set(blocks.KINDS) - {"F32", "BF16", "MXFP4"}:
        for value in (2e7, 1e38):
            with pytest.raises(ValueError, match=message):
                blocks.encode(np.full([1, 256], value, np.float32), kind)
    with pytest.raises(ValueError, match="beyond bfloat16"):
        blocks.encode(np.full([1, 1], 3.4e38, np.float32), "BF16")


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind.endswith("_K")])
def test_large_weights_are_quantised_as_well_as_others(kind):
    values = np.random.RandomState(0).standard_normal((2, 512)).astype(np.float32) * np.float32(2**15)
    decoded = blocks.decode(blocks.encode(values, kind), kind) / 2**15
    assert np.sqrt(np.mean((decoded - values / 2**15) ** 2)) < ERRORS[kind]


def test_widths_that_are_not_whole_blocks():
    with pytest.raises(ValueError, match="width of 96 is not a multiple of Q4_K's 256 weights"):
        blocks.encode(np.zeros([1, 96], np.float32), "Q4_K")
    with pytest.raises(ValueError, match="rows of 33 bytes are not whole blocks of Q8_0's 34"):
        blocks.decode(np.zeros([1, 33], np.uint8), "Q8_0")


if __name__ == "__main__":
    for name in blocks.KINDS:
        made = llama_cpp.quantize(weights(), name, blocks.encode(weights(), name).shape[1])
        print(f'    "{name}": "{hashlib.sha256(made.tobytes()).hexdigest()}",')
