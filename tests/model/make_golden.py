"""Records transformers' logits for tests/model/test_parity.py, so that parity is tested without torch.

python -m tests.model.make_golden    (needs torch and transformers; writes tests/model/golden_logits.npz)
"""

import pathlib

import numpy as np

from tests.model import parity_cases

PATH = pathlib.Path(__file__).with_name("golden_logits.npz")
SHAPE = (2, 48)


def main() -> None:
    logits = {}
    for name in parity_cases.GOLDEN:
        config = parity_cases.CASES[name]
        model = parity_cases.transformers_model(config, parity_cases.weights(config))
        logits[name] = parity_cases.transformers_logits(model, parity_cases.tokens(config, SHAPE))
    np.savez_compressed(PATH, **logits)
    print(f"wrote {PATH}, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
