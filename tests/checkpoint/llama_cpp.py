"""llama.cpp's own code as a reference, where a machine has it.

`S1JAX_LLAMA_CPP` names a folder with its libraries in it or below it, for example that of node-llama-cpp's package
`@node-llama-cpp/linux-x64`.
"""

import ctypes
import functools
import os
import pathlib

import numpy as np
import pytest

# ggml_type of ggml.h.
TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "BF16": 30, "MXFP4": 39,
}  # fmt: skip


@functools.cache
def library(name="libggml-base.so"):
    """A library of llama.cpp; skips the test where there is none."""
    folder = os.environ.get("S1JAX_LLAMA_CPP")
    if not folder:
        pytest.skip("S1JAX_LLAMA_CPP names no folder with llama.cpp's libraries")
    found = sorted(pathlib.Path(folder).rglob(name))
    if not found:
        pytest.fail(f"S1JAX_LLAMA_CPP: {folder} holds no {name}")
    return ctypes.CDLL(str(found[0]))


def quantize(values, kind, size):
    """Bytes [rows, size] that the C code makes of float32 rows."""
    function = library().ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    values = np.ascontiguousarray(values, np.float32)
    out = np.zeros([len(values), size], np.uint8)
    written = function(TYPES[kind], values.ctypes.data, out.ctypes.data, 0, *values.shape, None)
    assert written == out.size
    return out
