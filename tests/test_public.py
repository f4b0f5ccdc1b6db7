"""The public names: `import s1jax` loads nothing, every name of `__all__` is there, in whatever order of imports."""

import pathlib
import subprocess
import sys

import s1jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_importing_the_package_loads_nothing_else():
    code = (
        "import sys, typing, importlib; before = set(sys.modules); import s1jax\n"
        "assert set(sys.modules) - before <= {'s1jax', '__future__'}, sorted(set(sys.modules) - before)\n"
        "assert set(s1jax.__all__) <= set(dir(s1jax)) and not {'jax', 'numpy'} & set(sys.modules)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_every_public_name_is_documented_and_belongs_to_no_folder():
    for name in s1jax.__all__:
        assert getattr(s1jax, name).__doc__, name
        assert not (ROOT / "s1jax" / name).exists() and not (ROOT / "s1jax" / f"{name}.py").exists()
    assert set(s1jax.__all__) == set(s1jax._HOME)
    assert not hasattr(s1jax, "nothing")


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "s1jax" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text()
