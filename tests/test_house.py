"""The rules of the house: which room imports what, who prints and reads the environment, and what files look like."""

import ast
import glob
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("s1jax", "launch", "configs", "benchmarks", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in FILES}
PRODUCT = {name: tree for name, tree in TREES.items() if not name.startswith("tests/")}
PACKAGE = {name: tree for name, tree in TREES.items() if name.startswith("s1jax/")}
ROOMS = ("text", "grading", "data", "model", "train", "checkpoint", "sample", "evaluate", "plan")
JAX = ("jax", "flax", "optax", "orbax", "chex")
# What the core must import without, because machines with accelerators often lack it. (rich comes with flax.)
OPTIONAL = (
    "tensorflow_datasets", "grain", "array_record", "ml_collections", "matplotlib", "math_verify", "tqdm",
    "tensorboardX", "pyarrow", "gguf", "huggingface_hub", "transformers", "torch", "tensorflow",
    "lm_eval",
)  # fmt: skip
CORE = (
    "s1jax.text.tokenizer", "s1jax.text.chat", "s1jax.data.countdown", "s1jax.data.batches", "s1jax.model.decoder",
    "s1jax.parallel", "s1jax.train.loop", "s1jax.sample.rows", "s1jax.checkpoint.store", "s1jax.grading.compare",
    "s1jax.evaluate.scaling", "s1jax.evaluate.tasks", "s1jax.evaluate.strategies", "s1jax.evaluate.outcomes",
    "s1jax.data.conditional",
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


@pytest.mark.parametrize(
    ("prefix", "forbidden"),
    [
        ("s1jax/text/", JAX),
        ("s1jax/data/", JAX),
        ("s1jax/evaluate/", JAX),
        ("s1jax/grading/", JAX),
        ("s1jax/config.py", JAX),
        # Data flows one way: text -> data -> train -> checkpoint -> sample -> evaluate; model and parallel lie below.
        ("s1jax/text/", tuple(f"s1jax.{room}" for room in ROOMS if room != "text")),
        ("s1jax/data/", tuple(f"s1jax.{room}" for room in ROOMS if room not in ("text", "grading", "data"))),
        ("s1jax/grading/", tuple(f"s1jax.{room}" for room in ROOMS if room != "grading")),
        ("s1jax/model/", tuple(f"s1jax.{room}" for room in ROOMS if room != "model")),
        ("s1jax/parallel.py", tuple(f"s1jax.{room}" for room in ROOMS if room != "model")),
        ("s1jax/train/", ("s1jax.sample", "s1jax.evaluate")),
        ("s1jax/checkpoint/", ("s1jax.data", "s1jax.train", "s1jax.sample", "s1jax.evaluate")),
        ("s1jax/plan/", ("s1jax.text", "s1jax.data", "s1jax.checkpoint", "s1jax.sample", "s1jax.evaluate")),
        ("s1jax/sample/", ("s1jax.data", "s1jax.train", "s1jax.evaluate")),
        ("s1jax/sample/logits.py", ("s1jax.text", "s1jax.model", "s1jax.checkpoint")),
        ("s1jax/sample/budget.py", ("s1jax.text", "s1jax.model", "s1jax.checkpoint")),
        ("s1jax/", ("launch", "configs", "benchmarks", "tests", "absl")),
        ("launch/", ("tests", "benchmarks")),
    ],
)  # fmt: skip
def test_rooms_import_only_what_they_may(prefix, forbidden):
    assert any(name.startswith(prefix) for name in TREES), f"there is no {prefix}"
    assert offences(prefix, forbidden) == []


def test_configs_import_only_the_config_library():
    allowed = ("ml_collections", "s1jax.config", "configs")
    found = [
        f"{name} imports {module}"
        for name, tree in TREES.items()
        if name.startswith("configs/")
        for module in imports(tree)
        if module != "s1jax" and not any(module == package or module.startswith(f"{package}.") for package in allowed)
    ]
    assert not found, found


def test_only_launch_prints_reads_the_environment_and_starts_processes():
    names = {"print", "input", "breakpoint"}
    attributes = {
        ("os", "environ"), ("os", "getenv"), ("os", "putenv"), ("os", "system"), ("os", "fork"), ("sys", "argv"),
        ("sys", "exit"),
    }  # fmt: skip
    found = offences("s1jax/", ("subprocess", "argparse", "multiprocessing"))
    for name, tree in PACKAGE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                found.append(f"{name}:{node.lineno} calls {node.func.id}")
            base = getattr(node, "value", None)
            if isinstance(node, ast.Attribute) and isinstance(base, ast.Name) and (base.id, node.attr) in attributes:
                found.append(f"{name}:{node.lineno} uses {base.id}.{node.attr}")
    assert not found, found


def test_every_public_function_and_class_says_what_it_is_for():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [f"{name} has no docstring" for name, tree in PRODUCT.items() if tree.body and not ast.get_docstring(tree)]
    for name, tree in PRODUCT.items():
        for node in tree.body:
            # What these do is what the docstring of their file says.
            public = (
                isinstance(node, kinds) and not node.name.startswith("_") and node.name not in ("main", "get_config")
            )
            if public and not ast.get_docstring(node):
                found.append(f"{name}:{node.lineno} {node.name} has no docstring")
    assert not found, found


def test_no_file_is_too_long_to_read_in_a_sitting():
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_all_of_the_assets_are_in_the_package():
    """The arrays of an Orbax checkpoint are told by a `.zarray`, which `*` does not match."""
    setup = ast.parse((ROOT / "setup.py").read_text())
    (data,) = [k.value for k in ast.walk(setup) if isinstance(k, ast.keyword) and k.arg == "package_data"]
    patterns = ast.literal_eval(data)["s1jax"]
    packed = {file for pattern in patterns for file in glob.glob(pattern, root_dir=ROOT / "s1jax", recursive=True)}
    assets = (ROOT / "s1jax" / "assets").rglob("*")
    assert {str(file.relative_to(ROOT / "s1jax")) for file in assets if file.is_file()} - packed == set()


def test_no_file_is_called_utils():
    assert [name for name in TREES if pathlib.Path(name).stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_nothing_names_places_on_one_machine():
    """Absolute paths of the machine that something was written on mean nothing elsewhere."""
    places = re.compile(r"(?<![\w.\-/:}])/(?:work|root|home|Users|farm|mnt)/[\w.]|/tmp/(?!\w*\{)")
    suffixes = {".py", ".md", ".sh", ".toml", ".json", ".yaml", ".yml", ".txt", ".cfg", ""}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is no git checkout")
    found = []
    for name in tracked.stdout.splitlines():
        file = ROOT / name
        if file.suffix not in suffixes or not file.is_file() or file.resolve() == pathlib.Path(__file__).resolve():
            continue
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{name}:{number}: {line.strip()[:100]}" for number, line in enumerate(lines, 1) if places.search(line)
        ]
    assert not found, found


def test_the_core_imports_without_the_optional_packages():
    code = (
        "import importlib, sys\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {CORE!r}: importlib.import_module(name)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_the_rooms_without_jax_do_not_load_it():
    """Not even by way of something that they import."""
    rooms = [
        name.removesuffix(".py").replace("/", ".")
        for name in PACKAGE
        if name.split("/")[1] in ("text", "grading", "data", "evaluate", "config.py")
        and not name.endswith("__init__.py")
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {rooms!r}: importlib.import_module(name)\n"
        f"assert not set({JAX!r}) & set(sys.modules), sorted(set({JAX!r}) & set(sys.modules))\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
