"""Writes golden_torch_adamw.json: `python -m tests.training.make_golden`; needs torch and transformers."""

import json
import pathlib

from tests.training import golden


def main() -> None:
    import torch
    import transformers

    record = {
        "command": "python -m tests.training.make_golden",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "losses": golden.torch_losses(),
    }
    path = pathlib.Path(__file__).parent / "golden_torch_adamw.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
