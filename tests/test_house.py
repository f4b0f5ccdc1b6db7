"""The rules of the house: who prints and reads the environment, and what files look like."""

import ast
import glob
import io
import pathlib
import re
import subprocess
import tokenize

import pytest

from tests.test_imports import FILES, TREES, imports, offences

ROOT = pathlib.Path(__file__).resolve().parents[1]
PRODUCT = {name: tree for name, tree in TREES.items() if not name.startswith("tests/")}
LIBRARY = {n: tree for n, tree in TREES.items() if n.startswith("s1jax/") and not n.startswith("s1jax/cli/")}


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


def test_only_the_command_line_prints_reads_the_environment_and_starts_processes():
    names = {"print", "input", "breakpoint"}
    attributes = {
        ("os", "environ"), ("os", "getenv"), ("os", "putenv"), ("os", "system"), ("os", "fork"), ("sys", "argv"),
        ("sys", "exit"),
    }  # fmt: skip
    found = [o for name in LIBRARY for o in offences(name, ("subprocess", "argparse", "multiprocessing", "absl"))]
    for name, tree in LIBRARY.items():
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


def test_docstrings_and_comments_are_plain():
    """Words that made readers read a sentence twice; docs/glossary.md has those to use."""
    unclear = re.compile(
        r"(?<!there )\b(?:is|are) no \w+|\blies?\b|\bbehind\b|\banew\b|\bapart\b|\btold\b|\btells?\b|\bcomes? to\b"
        r"|\bof which\b|\bas it is\b"
    )
    found = []
    for name in PRODUCT:
        if not name.startswith("s1jax/"):
            continue
        for token in tokenize.generate_tokens(io.StringIO((ROOT / name).read_text()).readline):
            docstring = token.type == tokenize.STRING and token.string.lstrip("r").startswith('"""')
            if docstring or token.type == tokenize.COMMENT:
                found += [f"{name}:{token.start[0]} {words}" for words in unclear.findall(token.string)]
    assert not found, found


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
