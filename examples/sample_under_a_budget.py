"""Samples a checkpoint under thinking budgets: cut short, unlimited, extended by "Wait", and streamed.

    python examples/sample_under_a_budget.py [CHECKPOINT] [QUESTION]

By default it asks the small model that ships in the package. It needs no GPU and takes seconds.
"""

from __future__ import annotations

import sys

import s1jax

BUDGETS = {
    "cut at 8 tokens": s1jax.SamplingParams(max_thinking_tokens=8, max_answer_tokens=32),
    "no limit": s1jax.SamplingParams(max_thinking_tokens=256, max_answer_tokens=32),
    "Wait x2": s1jax.SamplingParams(max_thinking_tokens=256, num_waits=2, max_answer_tokens=32),
}


def main(checkpoint: str = "package:countdown_base", question: str = "Make 21 from 3 7 1") -> dict[str, int]:
    """Prints thinking and answer under each budget and returns the numbers of thinking tokens."""
    # One cache length for all calls: they share the compiled programs. Budgets are arrays and compile nothing.
    engine = s1jax.Engine(checkpoint, slots=4, cache_length=512)
    tokens = {}
    for name, params in BUDGETS.items():
        (output,) = engine.generate([question], params)
        tokens[name] = output.thinking_tokens
        print(f"== {name}: {output.thinking_tokens} thinking tokens, thinking ended by {output.thinking_end}")
        print(output.thinking, "->", output.answer)

    print("== streamed")
    for piece in engine.stream_tokens(question, BUDGETS["Wait x2"]):
        print(piece.text, end=" " if piece.forced else "", flush=True)
    print()
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
