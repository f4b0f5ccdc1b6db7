"""Shapes of rows: each gives the same example; what cannot be used is refused by name."""

import json
import pathlib

import pytest

from s1jax.data import s1k, shapes
from s1jax.errors import UserError

CASES = pathlib.Path(__file__).resolve().parents[3] / "shared" / "cases"
Q, T, A = "What is 12 plus 30?", "First I add 12 and 30.", "The answer is 42."
TAGGED = f"<think>\n{T}\n</think>\n\n{A}"
USER, SYSTEM = {"role": "user", "content": Q}, {"role": "system", "content": "You are careful."}


def said(content=TAGGED, **more):
    return {"role": "assistant", "content": content} | more


OPEN_R1 = {"problem": Q, "solution": "s", "generations": ["<think>no</think>no", TAGGED, "<think>x</think>y"]}
SHAPES = {
    "s1k": ({"question": Q, "thinking_trajectories": [T], "attempt": A}, "question, thinking_trajectories, attempt"),
    "s1k_1_1": (
        {"question": Q, "deepseek_thinking_trajectory": T, "deepseek_attempt": A, "gemini_attempt": "x"},
        "question, deepseek_thinking_trajectory, deepseek_attempt; not used: gemini_attempt",
    ),
    "messages": ({"messages": [USER, said()], "source": "x"}, "messages; not used: source"),
    "other roles": ({"messages": [{**USER, "role": "human", "tool_calls": None}, said(role="model")]}, "messages"),
    "reasoning_content": ({"messages": [USER, said(A, reasoning_content=T)]}, "messages, messages.reasoning_content"),
    "reasoning": ({"messages": [USER, said(A, reasoning=T, thinking=None)]}, "messages, messages.reasoning"),
    "thinking": ({"messages": [USER, said(A, thinking=T)]}, "messages, messages.thinking"),
    "typed": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]},
                      said([{"type": "thinking", "thinking": T}, {"type": "text", "text": A}])]},
        "messages, messages.thinking",
    ),
    "no first tag": ({"messages": [USER, said(f"{T}\n</think>\n{A}")]}, "messages"),
    "sharegpt": ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": TAGGED}]}, "conversations"),
    "openthoughts": (
        {"conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value":
         f"<|begin_of_thought|>\n\n{T}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{A}\n\n<|end_of_solution|>"}]},
        "conversations",
    ),
    "prompt": ({"prompt": Q, "completion": TAGGED}, "prompt, completion"),
    "prompt beside": ({"prompt": Q, "completion": A, "reasoning_content": T}, "prompt, completion, reasoning_content"),
    "prompt as messages": ({"prompt": [USER], "completion": [said()]}, "prompt, completion"),
    "open-r1": (
        {**OPEN_R1, "correctness_math_verify": [False, True, True]},
        "problem, generations, correctness_math_verify; not used: solution",
    ),
    "open-r1 complete": (
        {**OPEN_R1, "correctness_math_verify": [True, False, True], "correctness_llama": [False, True, None],
         "is_reasoning_complete": [False, True, True]},
        "problem, generations, correctness_math_verify, correctness_llama, is_reasoning_complete; not used: solution",
    ),
    "open-r1 messages": (
        {**OPEN_R1, "messages": [USER, said()]}, "messages; not used: generations, problem, solution",
    ),
    "openthoughts metadata": (
        {"problem": Q, "deepseek_reasoning": T, "deepseek_solution": A, "ground_truth_solution": "42"},
        "problem, deepseek_reasoning, deepseek_solution; not used: ground_truth_solution",
    ),
    "solution": ({"problem": Q, "solution": TAGGED, "answer": "42"}, "problem, solution; not used: answer"),
    "columns": ({"question": Q, "reasoning": T, "answer": A}, "question, answer, reasoning"),
    "filled by parquet": (
        {"messages": [USER, said()], "thinking_trajectories": None, "question": None, "attempt": None, "prompt": None},
        "messages; not used: attempt, prompt, question, thinking_trajectories",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("system", ["", "column", "turn"])
def test_every_shape_gives_the_same_example(name, system):
    record, used = SHAPES[name]
    turns = next((key for key in ("messages", "conversations") if isinstance(record.get(key), list)), None)
    if system == "turn":
        if turns is None:
            pytest.skip("no turns in this shape")
        first = SYSTEM if turns == "messages" else {"from": "system", "value": SYSTEM["content"]}
        record = {**record, turns: [first, *record[turns]]}
    elif system:
        record = {**record, "system": SYSTEM["content"]}
        column = ", system" if "; " not in used else ", system; "
        used = used + column if "; " not in used else used.replace("; ", column, 1)
    found = shapes.parts(record, "deepseek", "f:1")
    assert (found.question, found.trace.strip(), found.answer.strip()) == (Q, T, A)
    assert found.system == (SYSTEM["content"] if system else "")
    tally = shapes.Tally()
    tally.add(found, record)
    assert str(tally) == f"1 row with {used}"


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_the_shared_cases(name):
    file = CASES / f"{name}.jsonl"
    if not file.exists():
        pytest.skip("needs ../shared/cases, which is not here")
    notes: list[str] = []
    (row,) = s1k.load_rows(str(file), notes=notes)
    assert (row.question, row.answer.strip(), row.name) == (Q, A, f"{file}:1")
    assert row.trace.strip() == (T if name == "messages" else "First I add.")
    assert row.system == (SYSTEM["content"] if name == "messages" else "")
    assert notes == [f"{file}: 1 row with {'messages' if name == 'messages' else 'conversations'}."]


def test_a_file_of_several_shapes_says_so(tmp_path):
    file = tmp_path / "a.jsonl"
    records = [SHAPES["s1k"][0], SHAPES["messages"][0], SHAPES["messages"][0]]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    notes: list[str] = []
    assert len(s1k.load_rows(str(file), notes=notes)) == 3
    used = "1 row with question, thinking_trajectories, attempt; 2 rows with messages; not used: source"
    assert notes == [f"{file}: {used}."]


WRONG = [
    ({"messages": [USER, said(), USER, said()]}, r"messages holds user, assistant, user, assistant; one turn is read"),
    ({"messages": [USER]}, "messages holds user; the last two messages must be a user's and the assistant's answer"),
    ({"messages": []}, "messages holds nothing; the last two messages"),
    ({"messages": [USER, said(), USER]}, "messages holds user, assistant, user; the last two messages"),
    ({"messages": [USER, said(), said()]}, "messages holds user, assistant, assistant; the last two messages"),
    ({"messages": [SYSTEM, SYSTEM, USER, said()]}, "messages holds system, user, assistant; one turn"),
    (
        {"messages": [USER, {"role": "tool", "content": "4"}, said()]},
        r"messages\[1\] has the role 'tool'; system, user",
    ),
    ({"messages": [USER, said(tool_calls=[{"id": 1}])]}, r"messages\[1\] has tool_calls, which cannot be used"),
    ({"messages": [USER, said()], "tools": [{"name": "f"}]}, "column tools is not empty and cannot be used"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, said()]}, "content of type 'image_url'; text"),
    ({"messages": "text"}, "column messages is str, not a list of messages"),
    ({"messages": ["text", "x"]}, r"messages\[0\] is str, not an object with role and content"),
    ({"messages": [USER, said(A)]}, r"messages\[1\] has no thinking: no <think> tags and no field reasoning_content"),
    ({"messages": [USER, said(f"<think>{T}")]}, r"messages\[1\] begins with <think>, which is never closed"),
    ({"messages": [USER, said(f"Well. {TAGGED}")]}, r"messages\[1\] has text before <think>: 'Well\.'"),
    ({"messages": [USER, said("<think>\n\n</think>\n\nA")]}, "f:1: the trace is empty; fill it or remove the row"),
    ({"messages": [USER, said(f"<think>{T}</think>\n")]}, "f:1: the answer is empty"),
    ({"messages": [{"role": "user", "content": " "}, said()]}, "f:1: the question is empty"),
    ({"messages": [USER, said(reasoning=T)]}, "has its thinking in reasoning as well as in <think> tags"),
    ({"messages": [USER, said(A, reasoning="a", thinking="b")]}, "reasoning and thinking differ; keep one"),
    ({"messages": [USER, said(A, reasoning=["a"])]}, "reasoning is list, not text"),
    ({"messages": [SYSTEM, USER, said()], "system": "Other."}, "column system is not the system turn that the row has"),
    ({**SHAPES["s1k"][0], "system": 3}, "column system is int, not text"),
    ({**SHAPES["s1k"][0], "thinking_trajectories": "['a', 'b']"}, "is a list that was written as text"),
    ({**SHAPES["s1k"][0], "question": "x" * 1_000_001}, "f:1: column question has 1,000,001 characters; at most"),
    ({"messages": [USER, said("<think>" + "x" * 1_000_001 + "</think>A")]}, "f:1: the trace has 1,000,001 characters"),
    ({"messages": [USER, said(f"<think>\ud800</think>{A}")]}, "f:1: the trace is not valid Unicode"),
    ({**OPEN_R1, "correctness_math_verify": [False] * 3}, "none of its 3 generations is marked right and complete by"),
    ({**OPEN_R1, "correctness_math_verify": [True]}, "correctness_math_verify has 1 values for 3 generations"),
    ({**OPEN_R1, "generations": []}, r"column generations is \[\], not a list of texts"),
    (
        {"problem": Q, "solution": A},
        r"neither column thinking_trajectories .*\(there are no <think> tags in solution\)",
    ),
    ({"messages": [USER, said(weight=0)]}, r"messages\[1\] has weight 0; the assistant's last message is trained on"),
    (
        {"messages": [USER, said(weight=0.5)]},
        r"messages\[1\] has weight 0\.5; an assistant's message is trained on with",
    ),
    ({"messages": [USER, said(train=False)]}, r"messages\[1\] has train False"),
    ({"messages": [{**USER, "reasoning_content": T}, said()]}, r"messages\[0\] has reasoning_content.* in a user turn"),
    ({"messages": [{**SYSTEM, "thinking": T}, USER, said()]}, r"messages\[0\] has thinking, .* in a system turn"),
    (
        {"question": Q, "answer": TAGGED, "input": "3 4"},
        "column input is not empty and not used, as the question is in q",
    ),
    ({"prompt": Q, "completion": TAGGED, "context": "3 4"}, "column context is not empty and not used"),
    ({"problem": Q, "answer": TAGGED, "history": [["a", "b"]]}, "column history is not empty and not used"),
    ({**SHAPES["s1k"][0], "correct": False}, "column correct says that the answer is wrong"),
    ({"messages": [USER, said()], "is_correct": "False"}, "column is_correct says that the answer is wrong"),
    ({"text": TAGGED}, "neither column thinking_trajectories nor deepseek_thinking_trajectory, but text; rename"),
]


@pytest.mark.parametrize(("record", "message"), WRONG)
def test_what_cannot_be_used_is_refused(record, message):
    with pytest.raises(UserError, match=message) as caught:
        shapes.parts(record, "deepseek", "f:1")
    assert "f:1" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{**USER, "weight": 0, "reasoning_content": ""}, said(weight=1)], "input": "of another form"},
        {"question": Q, "answer": TAGGED, "input": " ", "context": Q[2:], "history": [], "correct": True},
        {"question": Q, "answer": TAGGED, "input": None, "correct": None, "is_correct": "yes"},
    ],
)
def test_what_changes_nothing_is_not_refused(record):
    found = shapes.parts(record, "deepseek", "f:1")
    assert (found.question, found.trace.strip(), found.answer.strip()) == (Q, T, A)
