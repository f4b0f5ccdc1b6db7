"""Encodes and samples with a chat format of your own: other delimiters around the thinking.

    python examples/your_own_chat_format.py

A chat format says which strings surround question, thinking and answer. Training writes them, sampling forces them. To
add one for good, put it into FORMATS of s1jax/text/formats.py. Then `--config.chat=NAME` trains with it, and the
checkpoint keeps it. The delimiters may be special tokens or plain text, but every string must be writable in the
tokenizer's vocabulary: that of the embedded task has few words.
"""

from __future__ import annotations

import dataclasses

import s1jax
from s1jax.text import chat

# The text of one example:   Make 21 from 3 7 1 / think / TRACE / answer / ANSWER <|endoftext|>
LINES = chat.ChatFormat(
    before_question="",
    after_question="\n",  # the end of the prompt
    think_start="think",  # forced after the prompt
    after_think_start="\n",
    before_think_end="\n",
    think_end="answer",  # forced when thinking ends; its first token, when sampled, ends thinking
    after_think_end="\n",
    turn_end="<|endoftext|>",  # ends the answer
    special=("<|endoftext|>",),  # must be single tokens of the tokenizer
    after_turn="",
    final_answer="\nFinal Answer:",  # forced after think_end when thinking is cut
)


def main() -> dict[str, str]:
    """Prints a training example and a sample in the format, and returns both as text."""
    model = s1jax.load_model("package:countdown_base")
    tokens, supervised = chat.encode_row(
        model.tokenizer, LINES, "Make 21 from 3 7 1", "try 3*7=21: 21*1=21 yes", "(3*7)*1"
    )
    example = model.tokenizer.decode(tokens)
    print(f"== a training example: {supervised.sum()} of {len(tokens)} tokens carry loss")
    print(example)

    # The model was never trained in this format. It shows that the delimiters are forced, not how well it does.
    engine = s1jax.Engine(dataclasses.replace(model, chat=LINES), slots=4, cache_length=512)
    params = s1jax.SamplingParams(max_thinking_tokens=16, max_answer_tokens=8)
    (output,) = engine.generate(["Make 21 from 3 7 1"], params)
    sample = model.tokenizer.decode(output.token_ids)
    print("== a sample")
    print(sample)
    return {"example": example, "sample": sample}


if __name__ == "__main__":
    main()
