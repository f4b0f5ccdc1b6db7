"""Writes golden_torch_*.json: `python -m tests.training.make_golden`; needs torch, transformers and peft."""

import json
import pathlib

from tests.training import golden


def main() -> None:
    import peft
    import torch
    import transformers

    record = {
        "command": "python -m tests.training.make_golden",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    folder = pathlib.Path(__file__).parent
    for name, more in (
        ("adamw", {"losses": golden.torch_losses()}),
        ("lora", {"peft": peft.__version__, "losses": golden.peft_losses()}),
    ):
        (folder / f"golden_torch_{name}.json").write_text(json.dumps(record | more, indent=1) + "\n")


if __name__ == "__main__":
    main()
