"""Compiles for machines that aren't here, in the tests that ask what their compilers make of a program."""

import importlib.util

import jax
import pytest

from s1jax.plan import targets

_PACKAGES = {"cuda": "jax_cuda12_plugin", "tpu": "libtpu"}


def compile_for(target, jitted, *args, **static):
    """The jitted function for one device of `target`, for arguments of these shapes; skips where nothing compiles."""
    machine = targets.parse(target)
    if importlib.util.find_spec(_PACKAGES[machine.platform]) is None:
        pytest.skip(f"the compiler for {target} is not installed")
    one = jax.sharding.SingleDeviceSharding(targets.devices(machine)[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), args)
    return jitted.trace(*placed, **static).lower(lowering_platforms=(machine.platform,)).compile()
