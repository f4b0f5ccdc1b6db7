"""Compilers optimise little in the tests, which compile much and compute little: half the time, same assertions."""

import gc
import importlib.util
import mmap
import os
import pathlib

import pytest

# Fused loops become LLVM's code directly, not by way of MLIR; a program is one LLVM module, not one for each core.
_XLA_FLAGS = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}

# Few tests that take long, the longest first: no worker shall have such a module left at the end.
_LONG = ["cli/test_processes.py", "cli/test_plan.py", "parallel/test_parallel.py", "cli/test_sample.py"]
_LONG += ["cli/test_evaluate.py", "cli/test_moving_checkpoint.py", "training/test_elastic.py", "engine/test_mesh.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long modules first; --no-loadscope-reorder has pytest-xdist keep that."""
    here = pathlib.Path(__file__).parent
    place = {here / name: i for i, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path, len(_LONG)))


def _known(flags: dict[str, str]) -> str:
    """Those of XLA's flags that the installed jaxlib has, because it ends a process that gives another one.

    A flag is a C string of its own there; names of flags that were removed are left inside longer ones.
    """
    folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
    found = set()
    for library in folder.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found |= {name for name in flags if content.find(f"\0{name}\0".encode()) >= 0}
    return " ".join(f"--{name}={value}" for name, value in flags.items() if name in found)


# Read when jax is imported, here and in child processes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = _known(_XLA_FLAGS)
# The extras gpu-aot and tpu-aot bring compilers for machines that aren't here; JAX would look for their devices.
if not any(any(pathlib.Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*")):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
gc.set_threshold(100_000)  # as commands have it: collections over what tracing leaves took a tenth of the time
