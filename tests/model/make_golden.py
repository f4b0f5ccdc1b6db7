"""Records transformers' logits for tests/model/test_parity.py, so that parity is tested without torch.

python -m tests.model.make_golden    (needs torch and transformers; writes tests/model/golden_logits.npz)
"""

import pathlib

import numpy as np

from tests.model import parity_cases

PATH = pathlib.Path(__file__).with_name("golden_logits.npz")
LENGTH, STRIDE = 300, 5  # of a row of which every fifth place is recorded, from the first on; for every case
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
    print(f"wrote {PATH}, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
