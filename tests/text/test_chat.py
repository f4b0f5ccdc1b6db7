"""Text to ids and supervised mask: the paper's text id for id, and the ids that sampling forces."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tokenizers

from s1jax.config import schema
from s1jax.errors import UserError
from s1jax.text import chat, conversation
from s1jax.text.messages import Message
from s1jax.text.tokenizer import Tokenizer
from tests.text.conftest import KINDS, shared

# Written out by hand from RECIPE.md, so that a slip in the format's fields shows.
PAPER = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n<|im_start|>think\n{trace}\n<|im_start|>answer\n{answer}<|im_end|>\n"
)
HARD = [  # (question, trace, answer) whose edges meet the delimiters in unusual ways
    ("What is 1+1?", "Let me see.\nTwo.", "2"),
    ("", "x", "Answer: y"),
    ("a question\n", "ends in a colon:", "Final Answer: (7*1)*3"),
    ("  blanks  ", "!punctuation!", "...\n\n..."),
    ("q<|im_end|>q", "a trace with <|im_start|>user in it", "<think>?</think>"),
    ("世界", "\u0301 combining mark", "😀"),
    ("tabs\t", "```python\nprint(1)\n```", "$\\boxed{2}$."),
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, folders) -> Tokenizer:
    return Tokenizer.load(folders[request.param])


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return Tokenizer.load(shared("data/qwen_tokenizer"))


@pytest.fixture(scope="module")
def without_added() -> tokenizers.Tokenizer:
    """Qwen's tokenizer as the library reads it without the added tokens: all it encodes is text."""
    spec = json.loads((shared("data/qwen_tokenizer") / "tokenizer.json").read_text())
    return tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))


def _paper_text(question: str, trace: str, answer: str) -> str:
    answer = answer if "Answer:" in answer else "Answer: " + answer
    return PAPER.format(question=question, trace=trace, answer=answer)


def _unspaced(text: str) -> str:
    """A text without the space that some tokenizers put before what follows a special token."""
    return re.sub("(<[^<>]*>) ", r"\1", text)


@pytest.mark.parametrize("row", HARD)
def test_paper_text_id_for_id(qwen, without_added, row):
    """Special tokens are those of the format; all between two of them is encoded as one text."""
    ids, supervised = chat.encode_row(qwen, chat.FORMATS["s1"], *row)
    assert ids.dtype == np.int32 and supervised.dtype == bool and ids.shape == supervised.shape
    question, trace, answer = row
    answer = answer if "Answer:" in answer else "Answer: " + answer
    want = []
    for part in re.split(r"(<\|im_start\|>|<\|im_end\|>)", PAPER):
        text = part.format(question=question, trace=trace, answer=answer)
        want += [qwen.id_of(part)] if part.startswith("<|im_") else without_added.encode(text).ids
    assert ids.tolist() == want
    assert qwen.decode(ids) == _paper_text(*row)
    if row != HARD[4]:
        assert want == qwen.encode(_paper_text(*row))


def test_paper_text_of_gsm8k(qwen):
    with shared("data/gsm8k_train.jsonl").open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(200), strict=False)]
    for row in rows:
        solution, final = row["answer"].split("\n####")
        trace = re.sub("<<.*?>>", "", solution).strip()
        ids, supervised = chat.encode_row(qwen, chat.FORMATS["s1"], row["question"], trace, final)
        assert ids.tolist() == qwen.encode(_paper_text(row["question"], trace, final.strip()))
        start = int(np.flatnonzero(supervised)[0])
        assert ids[:start].tolist() == chat.encode_prompt(qwen, chat.FORMATS["s1"], row["question"])


def test_one_row_as_numbers(qwen):
    """The ids of the first row above, checked by hand against the table in STACK.md."""
    ids, supervised = chat.encode_row(qwen, chat.FORMATS["s1_plain"], *HARD[0])
    header = [151644, 872, 198, 3838, 374, 220, 16, 10, 16, 30, 151645, 198, 151644, 77091, 198]
    response = [151644, 26865, 198, 10061, 752, 1490, 624, 11613, 624, 151644, 9217, 198, 16141, 25, 220, 17, 151645]
    assert ids.tolist() == [*header, *response, 198]
    assert supervised.tolist() == [False] * len(header) + [True] * len(response) + [False]


def test_prompt_equals_transformers_template(qwen):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(shared("data/qwen_tokenizer"))
    system = {"role": "system", "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."}
    for question, _, _ in HARD[:4] + HARD[5:]:  # transformers makes special tokens from a user's text, s1jax does not
        user = {"role": "user", "content": question}
        for name, turns in (("s1", [system, user]), ("s1_plain", [user]), ("think", [user])):
            want = reference.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
            assert chat.encode_prompt(qwen, chat.FORMATS[name], question) == want


def test_think_row_equals_transformers_template(qwen):
    """Qwen3's own template renders a thinking turn; its answer comes stripped of newlines, as ours does."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(shared("data/qwen_tokenizer"))
    for question, trace, answer in [HARD[0], HARD[2], HARD[3], HARD[6]]:
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "reasoning_content": trace},
        ]
        want = reference.apply_chat_template(turns, tokenize=True, return_dict=False)
        ids, supervised = chat.encode_row(qwen, chat.FORMATS["think"], question, trace, answer)
        assert ids.tolist() == want
        assert ids[supervised][0] == 151667 and ids[supervised][-1] == 151645


@pytest.mark.parametrize("name", ["s1", "s1_plain", "think"])
@pytest.mark.parametrize("row", HARD)
def test_mask_begins_after_the_header_and_ends_with_turn_end(tokenizer, name, row):
    fmt = chat.FORMATS[name]
    question, trace, answer = row
    ids, supervised = chat.encode_row(tokenizer, fmt, question, trace, answer)
    prompt = chat.encode_prompt(tokenizer, fmt, question)
    inside = np.flatnonzero(supervised)
    assert inside[0] == len(prompt) and ids[: len(prompt)].tolist() == prompt
    assert (np.diff(inside) == 1).all()
    assert ids[inside[-1]] == tokenizer.id_of("<|im_end|>")
    assert ids[inside[-1] + 1 :].tolist() == tokenizer.encode("\n", "<|im_end|>")
    start = tokenizer.encode(fmt.think_start)
    assert ids[len(prompt) : len(prompt) + len(start)].tolist() == start
    start = fmt.before_question + question + fmt.after_question + fmt.think_start
    assert _unspaced(tokenizer.decode(ids)).startswith(_unspaced(start))
    body = fmt.after_think_start + trace.strip() + fmt.before_think_end + fmt.think_end + fmt.after_think_end
    assert _unspaced(body) in _unspaced(tokenizer.decode(ids[supervised]))


def test_answer_prefix_and_strip(tokenizer):
    def text(answer: str, name: str = "s1_plain") -> str:
        ids, supervised = chat.encode_row(tokenizer, chat.FORMATS[name], "q", " \n trace\n", answer)
        return _unspaced(tokenizer.decode(ids[supervised]))

    end = "<|im_end|>"
    assert text(" 21\n") == f"<|im_start|>think\ntrace\n<|im_start|>answer\nAnswer: 21{end}"
    assert text("Answer: 21").endswith(f"answer\nAnswer: 21{end}")
    assert text("Final Answer: (7*1)*3").endswith(f"answer\nFinal Answer: (7*1)*3{end}")
    assert text("**Answer:**\n21").endswith(f"answer\n**Answer:**\n21{end}")
    assert text("21", "think") == f"<think>\ntrace\n</think>\n\n21{end}"


@pytest.mark.parametrize("name", sorted(chat.FORMATS))
def test_formats_survive_json(name):
    fmt = chat.FORMATS[name]
    assert schema.from_dict(chat.ChatFormat, json.loads(json.dumps(schema.to_dict(fmt)))) == fmt


def test_every_field_of_the_format_is_live(tokenizer):
    """Changing any one string changes the ids of a row, the delimiters, or whether the format is accepted."""

    def outcome(fmt):
        row = [part.tolist() for part in chat.encode_row(tokenizer, fmt, "q", "t", "a")]
        row += [chat.encode_prompt(tokenizer, fmt, "q", "s")]
        said = [Message("user", "q"), Message("assistant", "a", thinking="t"), Message("user", "q")]
        said += [Message("assistant", "a"), Message("user", "q")]
        row += [conversation.encode(tokenizer, fmt, said)] if conversation.turns(fmt).user else []
        row += [chat.encode_prompt(tokenizer, chat.with_effort(fmt, "high"), "q")] if "high" in fmt.efforts else []
        asked = [("token", 8), ("step", 8), ("class", "short"), ("class", "long")]
        row += [chat.instruct(tokenizer, fmt, "q", *what) for what in asked] + [chat.headed(fmt, ["a", "b"])]
        try:
            return row, chat.delimiters(tokenizer, fmt)
        except UserError as error:
            return row, str(error)

    base = dataclasses.replace(
        chat.FORMATS["s1_plain"],
        before_question="effort low\n<|im_start|>user\n",
        effort="low",
        efforts=("low", "high"),
        effort_line="effort {effort}",
    )
    for field in dataclasses.fields(base):
        others = {"stop": ("<think>",), "special": ("<|nowhere|>",), "turn_end": "</think>", "earlier_thinking": "drop"}
        others["efforts"] = ("low",)
        other = others.get(field.name, "<think>")
        assert outcome(dataclasses.replace(base, **{field.name: other})) != outcome(base), field.name


def wait_ids(tokenizer, name, wait):
    """The ids of a wait string in the chat format `name`."""
    fmt = chat.FORMATS[name]
    return chat.encode_wait(tokenizer, fmt, chat.delimiters(tokenizer, fmt), wait)


def test_delimiters_of_qwen(qwen):
    """BUDGET_FORCING.md and STACK.md."""
    found = chat.delimiters(qwen, chat.FORMATS["s1"])
    assert found.think_start == (151644, 26865) and found.think_end == (151644, 9217)
    assert found.newline == (198,) and found.final_answer == (198, 19357, 21806, 25)
    assert wait_ids(qwen, "s1", "Wait") == (14190,)
    assert found.stop == (151643, 151645) and found.end == (151643, 151644, 151645)
    assert found.ends_in_newline == tuple(qwen.ends_in_newline()) and 624 in found.ends_in_newline
    assert found.num_ids == 151669 and found.illegal == () and found.pad == 151643
    think = chat.delimiters(qwen, chat.FORMATS["think"])
    assert think.think_start == (151667,) and think.think_end == (151668,)
    assert think.end == (151643, 151645, 151668) and think.final_answer == found.final_answer
    wait = wait_ids(qwen, "think", "Wait, let me check")
    assert wait == tuple(qwen.encode("Wait, let me check")) and len(wait) > 1
    assert wait_ids(qwen, "s1", "") == ()


def test_delimiters_of_any_tokenizer(tokenizer):
    found = chat.delimiters(tokenizer, chat.FORMATS["s1_plain"])
    im_start, im_end, text_end = map(tokenizer.id_of, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    assert found.think_start == (im_start, *tokenizer.encode("think", "<|im_start|>"))
    assert found.think_end == (im_start, *tokenizer.encode("answer", "<|im_start|>"))
    assert found.end == tuple(sorted({im_start, im_end, text_end})) and found.stop == tuple(sorted({im_end, text_end}))
    assert found.final_answer == tuple(tokenizer.encode("\nFinal Answer:"))
    assert tokenizer.decode(found.final_answer) == "\nFinal Answer:"
    assert found.newline == tuple(tokenizer.encode("\n")) and found.newline[-1] in found.ends_in_newline
    legal = tokenizer.legal_ids(tokenizer.num_ids)
    assert found.num_ids == tokenizer.num_ids and found.illegal == tuple(np.flatnonzero(~legal)) and found.illegal
    assert found.pad == text_end
    assert all(isinstance(i, int) for name in ("end", "illegal") for i in getattr(found, name))
    assert all(isinstance(i, int) for i in chat.encode_wait(tokenizer, chat.FORMATS["s1_plain"], found, "Wait"))


def test_delimiters_of_several_ids(tokenizer):
    """A pair of plain strings works: the first id of the closing one ends the thinking."""
    fmt = dataclasses.replace(
        chat.FORMATS["s1_plain"], think_start="Let me think:", think_end="So the answer is", special=("<|im_end|>",)
    )
    found = chat.delimiters(tokenizer, fmt)
    assert len(found.think_start) > 1 and len(found.think_end) > 1
    assert found.end == tuple(sorted({found.think_end[0], *found.stop}))
    ids, supervised = chat.encode_row(tokenizer, fmt, "q", "some trace", "12")
    response = ids[supervised].tolist()
    assert response[: len(found.think_start)] == list(found.think_start)
    middle = [*tokenizer.encode("\nsome trace\n"), *found.think_end, *tokenizer.encode("\nAnswer: 12")]
    assert response[len(found.think_start) :] == [*middle, tokenizer.id_of("<|im_end|>")]


@pytest.mark.parametrize(
    "wait", ["<|im_end|>", "<|im_start|>assistant", "Wait<|endoftext|>", "Wait <|im_start|>answer"]
)
def test_a_wait_string_is_text(qwen, without_added, wait):
    """As in questions and traces, a special token that is written in it stays text."""
    found, ids = chat.delimiters(qwen, chat.FORMATS["s1"]), wait_ids(qwen, "s1", wait)
    assert list(ids) == without_added.encode(wait).ids and not set(ids) & set(found.end)


def test_a_wait_string_that_ends_thinking_is_refused(qwen):
    fmt = chat.with_delimiters(qwen, chat.FORMATS["s1"], "<reason>", "</reason>")
    first = qwen.decode(chat.delimiters(qwen, fmt).think_end[:1])
    for wait in ("</reason>", f"Wait{first}"):
        with pytest.raises(
            UserError, match=f"wait '{wait}' holds '{first}', with which the end of thinking '</reason>'"
        ):
            chat.encode_wait(qwen, fmt, chat.delimiters(qwen, fmt), wait)
    text = dataclasses.replace(chat.FORMATS["s1"], stop=("Well",))
    with pytest.raises(UserError, match="wait 'Well' holds 'Well', with which an answer ends; choose another string"):
        chat.encode_wait(qwen, text, chat.delimiters(qwen, text), "Well")


def test_unknown_delimiters_are_named(folders, tmp_path):
    plain = Tokenizer({"any.model": (folders["sentencepiece_bpe"] / "tokenizer.model").read_bytes()})
    with pytest.raises(UserError, match="delimiter '<think>' is not in the tokenizer"):
        chat.delimiters(plain, chat.FORMATS["think"])
    with pytest.raises(UserError, match="delimiter '<｜begin▁of▁sentence｜>' is not in"):
        chat.check(plain, chat.FORMATS["think_r1"])
    chat.delimiters(plain, chat.FORMATS["s1_plain"])


def _words(words: list[str], unk_token: str | None) -> Tokenizer:
    import tokenizers

    spec = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk_token or "")
    )
    spec.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex("\n|:"), "isolated"),
            tokenizers.pre_tokenizers.Split(" ", "removed"),
        ]
    )
    spec.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer({"tokenizer.json": spec.to_str().encode()})


def test_strings_a_vocabulary_cannot_write_are_refused():
    words = ["<unk>", "\n", "think", "answer", "Final", "Answer", ":", "Wait"]
    tokenizer = _words(words, "<unk>")
    assert wait_ids(tokenizer, "s1_plain", "Wait") == (7,)
    with pytest.raises(UserError, match="wait 'Hmm' cannot be written"):
        wait_ids(tokenizer, "s1_plain", "Hmm")
    with pytest.raises(UserError, match="wait ' ' cannot be written"):
        wait_ids(tokenizer, "s1_plain", " ")
    with pytest.raises(UserError, match=r"final_answer .* cannot be written"):
        chat.delimiters(_words(words[:4], "<unk>"), chat.FORMATS["s1_plain"])
    with pytest.raises(UserError, match="no id for a newline"):
        chat.delimiters(_words(["<unk>", *words[2:]], "<unk>"), chat.FORMATS["s1_plain"])


def test_r1_format():
    """DeepSeek's template: full-width bars, no newline between turns."""
    fmt = chat.FORMATS["think_r1"]
    tokens = [
        "<｜begin▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<think>",
        "</think>",
        "<｜end▁of▁sentence｜>",
    ]
    import tokenizers

    spec = tokenizers.Tokenizer(tokenizers.models.BPE({chr(c): c for c in range(128)}, []))
    spec.decoder = tokenizers.decoders.Fuse()
    spec.add_special_tokens(tokens)
    tokenizer = Tokenizer({"tokenizer.json": spec.to_str().encode()})
    ids, supervised = chat.encode_row(tokenizer, fmt, "q", "t", "a")
    want = "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>\nt\n</think>\n\na<｜end▁of▁sentence｜>"
    assert tokenizer.decode(ids) == want
    assert tokenizer.decode(ids[supervised]) == "<think>\nt\n</think>\n\na<｜end▁of▁sentence｜>"
    found = chat.delimiters(tokenizer, fmt)
    assert found.stop == (tokenizer.id_of(tokens[-1]),)
    assert found.end == tuple(sorted((tokenizer.id_of("</think>"), *found.stop)))


def test_instructions_of_s1_letter_by_letter():
    s1 = chat.FORMATS["s1"]
    assert s1.token_instruction == "\n\nThink for up to {tokens} tokens."
    assert s1.step_instruction == "\n\nThink for up to {steps} steps."
    assert s1.step_header == "{steps} steps left\n"
    assert s1.short_instruction == (
        "\n\nAnswer after a short amount of thinking. Do not spend excessive time double-checking your work."
    )
    assert s1.long_instruction == (
        "\n\nAnswer after a long amount of thinking. If you feel like you are finished early, spend the extra time"
        " trying to double-check your work until you are absolutely sure that you have the correct answer."
    )


def test_instructions_in_the_paper_s_words(qwen):
    """As its released evaluation asks (eval/lm-evaluation-harness/lm_eval/tasks/aime/utils.py)."""
    for name in ("s1", "think", "think_r1"):
        fmt = chat.FORMATS[name]
        assert chat.instruct(qwen, fmt, "Q?", "token", 2048) == "Q?\n\nThink for up to 2048 tokens."
        assert chat.instruct(qwen, fmt, "Q?", "step", 16) == "Q?\n\nThink for up to 16 steps."
        assert "Q?\n\nAnswer after a short amount of thinking. " in chat.instruct(qwen, fmt, "Q?", "class", "short")
        assert "Q?\n\nAnswer after a long amount of thinking. " in chat.instruct(qwen, fmt, "Q?", "class", "long")
        assert chat.headed(fmt, ["a", "b"]) == ["2 steps left\na", "1 steps left\nb"]


def test_any_pair_of_delimiters(tokenizer):
    """Of several ids, of one, or the format's own; what training shows is what sampling forces."""
    base = chat.FORMATS["think"]
    for start, end in (("Let me think:", "So the answer is"), ("<reason>", "</reason>"), ("", "Now"), ("", "")):
        fmt = chat.with_delimiters(tokenizer, base, start, end)
        assert (fmt.think_start, fmt.think_end) == (start or "<think>", end or "</think>")
        assert fmt.special == tuple(
            token for token in base.special if not ((start and token == "<think>") or (end and token == "</think>"))
        )
        found = chat.delimiters(tokenizer, fmt)
        ids, supervised = chat.encode_row(tokenizer, fmt, "q", "trace", "12")
        response = ids[supervised].tolist()
        inner = tokenizer.encode("\ntrace\n", tokenizer.last_special(fmt.think_start))
        assert response[: len(found.think_start)] == list(found.think_start)
        assert response[len(found.think_start) :][: len(inner)] == inner
        assert response[len(found.think_start) + len(inner) :][: len(found.think_end)] == list(found.think_end)
        assert found.think_end[0] in found.end


def test_delimiters_that_cannot_work(tokenizer):
    for end in ("\nSo", "\n</think>"):
        with pytest.raises(UserError, match="begins with white space"):
            chat.with_delimiters(tokenizer, chat.FORMATS["s1_plain"], think_end=end)
    words = _words(["<unk>", "\n", "think", "answer", "Final", "Answer", ":", "Wait"], "<unk>")
    with pytest.raises(UserError, match="think_start '<reason>' cannot be written"):
        chat.with_delimiters(words, chat.FORMATS["s1_plain"], "<reason>", "answer")
    with pytest.raises(UserError, match="cannot write the instruction"):
        chat.instruct(words, chat.FORMATS["s1_plain"], "think", "token", 8)
