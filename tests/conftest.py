"""Compilers optimise little in the tests, which compile much and compute little: a third less time, same numbers."""

import os

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read when jax is imported, here and in child processes
