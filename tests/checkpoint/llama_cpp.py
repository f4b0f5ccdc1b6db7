"""llama.cpp's own code as a reference, where a machine has it.

`S1JAX_LLAMA_CPP` names a folder in which node-llama-cpp is installed: its libraries are somewhere below it, and node
runs models with it (`llama_cpp.mjs`). WORKSPACE.md says how to install it.
"""

import atexit
import ctypes
import functools
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

# ggml_type of ggml.h.
TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "BF16": 30, "MXFP4": 39,
}  # fmt: skip


def folder():
    """The folder of node-llama-cpp; skips the test where there is none."""
    found = os.environ.get("S1JAX_LLAMA_CPP")
    if not found:
        pytest.skip("S1JAX_LLAMA_CPP names no folder with llama.cpp; see WORKSPACE.md")
    return pathlib.Path(found)


@functools.cache
def _node():
    """A process that runs models; skips the test without node."""
    place = folder()
    if shutil.which("node") is None:
        pytest.skip("node-llama-cpp needs node, which is not installed")
    script = pathlib.Path(__file__).with_suffix(".mjs")
    # Its standard error has warnings of llama.cpp on tiny vocabularies.
    process = subprocess.Popen(
        ["node", str(script), str(place.resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(process.kill)
    return process


def _ask(**request):
    process = _node()
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    reply = json.loads(process.stdout.readline() or '{"error": "node ended"}')
    assert "error" not in reply, reply["error"]
    return reply


def run(path, ids, count=24, length=512):
    """What llama.cpp makes of a prompt: `count` greedy `ids`, and {id: probability} of the first."""
    reply = _ask(path=str(path), ids=[int(i) for i in ids], count=count, length=length)
    return reply["ids"], {int(i): p for i, p in reply["probabilities"]}


def tokenize(path, texts):
    """What llama.cpp knows of a file's tokenizer.

    Args:
      path: of the file.
      texts: (text, whether special tokens written in it become their ids).

    Returns:
      `texts`: the ids of each; `bos`, `eos`, `eot`: ids; `addsBos`; `template`.
    """
    return _ask(path=str(path), texts=list(texts))


@functools.cache
def library(name="libggml-base.so"):
    """A library of llama.cpp; skips the test where there is none."""
    found = sorted(folder().rglob(name))
    if not found:
        pytest.fail(f"S1JAX_LLAMA_CPP: {folder()} holds no {name}")
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


class _Parameters(ctypes.Structure):
    """llama_model_quantize_params of llama.h; `rest` are switches and pointers, which keep their defaults."""

    _fields_ = (("threads", ctypes.c_int32), ("ftype", ctypes.c_int32), ("rest", ctypes.c_uint8 * 248))


def quantize_file(source, target, ftype):
    """llama-quantize: writes the file `target` of a number of llama_ftype from a float file."""
    found = library("libllama.v*.so")
    found.llama_model_quantize_default_params.restype = _Parameters
    parameters = found.llama_model_quantize_default_params()
    parameters.threads, parameters.ftype = 2, ftype
    code = found.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert code == 0, code
