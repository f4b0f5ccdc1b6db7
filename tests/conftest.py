"""Compilers optimise little in the tests, which compile much and compute little: a third less time, same numbers."""

import os
import pathlib

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read when jax is imported, here and in child processes
# The extras gpu-aot and tpu-aot bring compilers for machines that aren't here; JAX would look for their devices.
if not any(any(pathlib.Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*")):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
