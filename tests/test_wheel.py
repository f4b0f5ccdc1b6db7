"""A wheel that is built here: what it holds, and that its command line works without a checkout."""

import configparser
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEEDED = ("s1jax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
CONFIGS = sorted(file.stem for file in (ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the contents of the wheel, as pip would unpack it, and nothing of the checkout."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building a wheel takes setuptools 77 (python -m pip install 'setuptools>=77')")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in NEEDED:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(place, source)
    stale = source / "build" / "lib" / "s1jax" / "renamed_since.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(source / "dist" / built.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


def run(site, folder, *arguments):
    """Runs the console script's function with the wheel alone, in an empty folder."""
    entries = configparser.ConfigParser()
    (file,) = site.glob("*.dist-info/entry_points.txt")
    entries.read(file)
    module, function = entries["console_scripts"]["s1jax"].split(":")
    code = f"import sys, {module} as m; sys.argv[0] = 's1jax'; sys.exit(m.{function}())"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder, env={"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip


def test_it_holds_the_package_and_the_configs_and_nothing_else(site):
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"s1jax"}
    files = {str(path.relative_to(site / "s1jax")) for path in (site / "s1jax").rglob("*") if path.is_file()}
    own = {path.relative_to(ROOT / "s1jax") for path in (ROOT / "s1jax").rglob("*") if path.is_file()}
    own = {str(path) for path in own if "__pycache__" not in path.parts}
    assert files == own | {f"configs/{name}.py" for name in CONFIGS}
    assert "py.typed" in files and "assets/countdown_base/params/state/embed.embedding/.zarray" in files
    assert len(list(site.glob("*.dist-info/licenses/LICENSE"))) == 1


def test_the_command_lists_its_subcommands(site, tmp_path):
    done = run(site, tmp_path, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert {"quickstart", "train", "sample", "evaluate", "convert", "plan"} <= set(done.stdout.split())


def test_an_experiment_is_known_by_its_name(site, tmp_path):
    file = site / "s1jax" / "configs" / "countdown_s1.py"
    done = run(site, tmp_path, "train", "--config=countdown_s1", "--config.data.num_rowz=2")
    assert done.returncode == 2 and f"--config.data.num_rowz=2 is not a setting of {file}" in done.stderr
    done = run(site, tmp_path, "train", "--config=countdown_s1", "--config.data.num_rows=2")
    assert done.returncode == 2 and done.stderr.startswith("error: --workdir is missing"), done.stderr
    done = run(site, tmp_path, "train", "--config=nothing")
    assert done.returncode == 2 and done.stderr.endswith(f"give a file, or one of {', '.join(CONFIGS)}.\n")
    assert list(tmp_path.iterdir()) == []


def test_every_experiment_loads_without_the_checkout(site, tmp_path):
    code = (
        "import runpy, s1jax\n"
        "from s1jax.cli import configs\n"
        "from s1jax.config import presets\n"
        "for name, file in configs.files().items():\n"
        "    presets.experiment(runpy.run_path(str(file))['get_config']().to_dict())\n"
        "    print(name)\n"
        "print(s1jax.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [*CONFIGS, str(site / "s1jax" / "__init__.py")], done.stderr
