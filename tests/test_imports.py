"""Which room may import which: the table of docs/architecture.md as data."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("s1jax", "launch", "configs", "benchmarks", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in FILES}
# A room is a folder or a file of s1jax/. Each may import itself and the rooms of the floors above it in this list.
FLOORS = (
    ("errors",),
    ("config",),
    ("io",),
    ("text", "model", "perf", "remote"),
    ("grading", "parallel"),
    ("tasks", "checkpoint"),
    ("data", "engine"),
    ("training", "curation", "distillation"),
    ("evaluation", "plan", "serve"),
    ("check",),
    ("cli",),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
JAX = ("jax", "flax", "optax", "orbax", "chex")
# Rooms and files that load no jax, not even through what they import.
WITHOUT_JAX = (
    "errors",
    "config",
    "io",
    "text",
    "grading",
    "tasks",
    "data",
    "evaluation",
    "remote",
    "curation",
    "distillation",
)
# Files of other rooms of which the same holds.
FILES_WITHOUT_JAX = tuple(
    f"s1jax/serve/{name}.py"
    for name in (
        "protocol", "reader", "budgets", "settings", "chat", "completions", "responses", "anthropic",
        "prices", "openapi",
        "curve", "handoff", "handoff_config", "leaving", "page", "spending",
    )
)  # fmt: skip
USES_THE_ENGINE = ("s1jax/evaluation/lm_eval.py",)  # an adapter to another program, which loads the engine by itself
# What the core must import without, because machines with accelerators often lack it. (rich comes with flax.)
OPTIONAL = (
    "tensorflow_datasets", "grain", "array_record", "ml_collections", "matplotlib", "math_verify", "tqdm",
    "tensorboardX", "pyarrow", "gguf", "huggingface_hub", "transformers", "torch", "tensorflow",
    "lm_eval", "wandb", "aiohttp",
)  # fmt: skip
CORE = (
    "s1jax.text.tokenizer", "s1jax.text.chat", "s1jax.tasks.countdown.problems", "s1jax.data.batches",
    "s1jax.model.decoder", "s1jax.parallel", "s1jax.training.loop", "s1jax.engine.engine", "s1jax.checkpoint.store",
    "s1jax.grading.compare", "s1jax.evaluation.metrics", "s1jax.tasks.benchmarks", "s1jax.evaluation.strategies",
    "s1jax.evaluation.outcomes", "s1jax.data.conditional", "s1jax.cli.convert",
    "s1jax.remote.client",
)  # fmt: skip


def imports(tree: ast.AST) -> list[str]:
    """All dotted names that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def offences(prefix: str, forbidden: tuple[str, ...]) -> list[str]:
    """Imports of `forbidden` packages in files whose name starts with `prefix`."""
    return [
        f"{name} imports {module}"
        for name, tree in TREES.items()
        if name.startswith(prefix)
        for module in imports(tree)
        if any(module == package or module.startswith(f"{package}.") for package in forbidden)
    ]


def run(code: str) -> None:
    """Runs Python code in a process of its own, which must succeed."""
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def room(name: str) -> str:
    """The room of a file of s1jax/."""
    return name.split("/")[1].removesuffix(".py")


def test_every_room_has_a_floor():
    rooms = {room(name) for name in TREES if name.startswith("s1jax/")} - {"__init__"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("name", FLOOR)
def test_a_room_imports_from_the_floors_before_its_own(name):
    allowed = {other for other in FLOOR if FLOOR[other] < FLOOR[name]} | {name}
    forbidden = tuple(f"s1jax.{other}" for other in FLOOR if other not in allowed)
    outside = ("launch", "configs", "benchmarks", "tests")
    found = [o for file in TREES for o in offences(file, (*forbidden, *outside)) if _is_in(file, name)]
    assert found == []


def _is_in(file: str, name: str) -> bool:
    return file.startswith("s1jax/") and room(file) == name


@pytest.mark.parametrize(
    ("prefix", "forbidden"),
    [
        ("launch/", ("tests", "benchmarks")),
        ("s1jax/engine/logits.py", ("s1jax.text", "s1jax.model", "s1jax.checkpoint")),
        ("s1jax/engine/budget.py", ("s1jax.model", "s1jax.checkpoint")),
    ],
)
def test_files_that_must_stay_small_import_little(prefix, forbidden):
    assert any(name.startswith(prefix) for name in TREES), f"there is no {prefix}"
    assert offences(prefix, forbidden) == []


def test_rooms_without_jax_do_not_load_it():
    """Not even by way of something that they import."""
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in TREES
        if name in FILES_WITHOUT_JAX
        or (name.startswith("s1jax/") and room(name) in WITHOUT_JAX and name not in USES_THE_ENGINE)
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"assert not set({JAX!r}) & set(sys.modules), sorted(set({JAX!r}) & set(sys.modules))\n"
    )
    run(code)


def test_the_core_imports_without_the_optional_packages():
    code = (
        "import importlib, sys\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {CORE!r}: importlib.import_module(name)\n"
    )
    run(code)
