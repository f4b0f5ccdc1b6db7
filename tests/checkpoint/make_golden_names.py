"""Records which tensors transformers saves for the models of tests/checkpoint/tiny.py.

python -m tests.checkpoint.make_golden_names    (needs torch and transformers; writes golden_names.json)
"""

import hashlib
import json
import pathlib
import tempfile

import safetensors

from tests.checkpoint import tiny

PATH = pathlib.Path(__file__).with_name("golden_names.json")


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """Stands for names and shapes of tensors."""
    lines = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def saved(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a folder with one safetensors file."""
    with safetensors.safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def main() -> None:
    found = {}
    for name in tiny.CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            tiny.model(name).save_pretrained(folder)
            found[name] = digest(saved(pathlib.Path(folder)))
    PATH.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
