"""Records transformers' logits for the parity tests, so that parity is tested without torch.

python -m tests.model.make_golden    (needs torch and transformers; writes golden_logits.npz and golden_families.npz)
"""

import pathlib

import numpy as np

from tests.checkpoint.tiny import CONFIGS
from tests.model import family_cases, parity_cases

PATH = pathlib.Path(__file__).with_name("golden_logits.npz")
FAMILIES = pathlib.Path(__file__).with_name("golden_families.npz")
LENGTH, STRIDE = 300, 5  # of a row of which every fifth place is recorded, from the first on; for every case
FAMILY_STRIDE = 15  # the same for the cases of family_cases.py
SHAPE = (2, 48)  # recorded whole, as NAME/whole, for some


def main() -> None:
    logits = {}
    for name, config in parity_cases.CASES.items():
        model = parity_cases.transformers_model(config, parity_cases.weights(config))
        logits[name] = parity_cases.transformers_logits(model, parity_cases.tokens(config, (1, LENGTH)))[0, ::STRIDE]
        if name in parity_cases.WHOLE:
            rows = parity_cases.tokens(config, SHAPE)
            logits[f"{name}/whole"] = parity_cases.transformers_logits(model, rows)
    np.savez_compressed(PATH, **logits)
    families = {}
    for name in CONFIGS:
        rows = family_cases.ids(name)[:1]
        logits_of_row = parity_cases.transformers_logits(family_cases.transformers_model(name), rows)[0]
        families[name] = logits_of_row[::FAMILY_STRIDE]
    np.savez_compressed(FAMILIES, **families)
    for path in (PATH, FAMILIES):
        print(f"wrote {path}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
