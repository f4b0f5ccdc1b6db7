"""Questions out of any file, and the most tokens that a prompt can have."""

import json
import random

import pytest

from s1jax.data.identity import question_id
from s1jax.distillation import questions
from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.spending import prompt_bound
from s1jax.errors import UserError
from s1jax.io import hub

TEXT = "What is 1 + 1?"
USER = {"role": "user", "content": TEXT}


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"question": TEXT, "solution": "2"}, ""),
        ({"problem": TEXT, "question": None}, ""),
        ({"prompt": TEXT, "system": "Think."}, "Think."),
        ({"prompt": [USER]}, ""),
        ({"prompt": [{"role": "system", "content": "Think."}, USER], "completion": [{"role": "assistant"}]}, "Think."),
        ({"messages": [USER, {"role": "assistant", "content": "2"}]}, ""),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]}, ""),
        ({"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": "2"}]}, ""),
        ({"question": TEXT, "input": "", "context": "1 + 1"}, ""),
    ],
)
def test_a_question_is_found_in_every_shape(row, system):
    found, _ = questions.parse(row, "row")
    assert found == questions.Question(question_id(TEXT), TEXT, system)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": TEXT}, "q:1 has none of the columns question, problem, prompt, messages, conversations, but text"),
        ({"question": " "}, "q:1: question is ' '"),
        ({"question": 7}, "q:1: question is 7"),
        (
            {"messages": [USER, {"role": "assistant", "content": "2"}, USER]},
            "q:1: messages holds user, assistant, user",
        ),
        ({"messages": []}, "q:1: messages holds nothing"),
        ({"messages": "[{}]"}, "q:1: messages is '[{}]'; it must be a list of messages"),
        ({"question": TEXT, "images": [b"x"]}, "q:1: column images is not empty"),
        ({"question": "Sum?", "input": "1 1"}, "q:1: column input is not empty and not used"),
        ({"question": "\ud800"}, "q:1: question is not valid Unicode"),
        ({"messages": [{"role": "system", "content": "a"}, USER], "system": "b"}, "q:1 has two system prompts"),
        ({"question": "x" * 1_000_001}, "q:1: question has 1,000,001 characters"),
    ],
)
def test_a_row_that_is_no_question_is_named(row, says):
    with pytest.raises(UserError) as caught:
        questions.parse(row, "q:1")
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_kind_of_file_gives_the_same_questions(tmp_path, kind):
    rows = [{"question": f"What is\n{i} + ä?", "solution": str(i)} for i in range(5)]
    path = tmp_path / f"pool.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        path.write_text("question,solution\n" + "".join(f'"{r["question"]}",{r["solution"]}\n' for r in rows))
    elif kind == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(__import__("pyarrow").Table.from_pylist(rows), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(path))
    found = questions.read(path)
    assert [question.text for question in found] == [row["question"] for row in rows]
    assert [question.id for question in found] == [question_id(row["question"]) for row in rows]


def test_a_dataset_of_the_hub_is_read_with_its_commit(tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, patterns, *, kind, revision=""):
        asked.append((repository, kind, revision))
        (tmp_path / "train.jsonl").write_text(json.dumps({"question": TEXT}) + "\n")
        return tmp_path, "c0ffee"

    monkeypatch.setattr(hub, "snapshot", snapshot)
    notes = []
    assert len(questions.read("simplescaling/s1K", notes=notes)) == 1
    assert len(questions.read("hub:simplescaling/s1K@v2", notes=notes)) == 1
    assert asked == [("simplescaling/s1K", "dataset", ""), ("simplescaling/s1K", "dataset", "v2")]
    assert "the questions are simplescaling/s1K at revision c0ffee of the hub." in notes
    with pytest.raises(UserError, match=r"pool/questions.jsonl does not exist"):  # a file's name is not looked up
        questions.read("pool/questions.jsonl")
    monkeypatch.setattr(hub, "snapshot", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"no/such is neither a file here nor .*ZeroDivisionError"):
        questions.read("no/such")
    assert len(asked) == 2


def test_too_few_or_no_rows_are_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no rows"):
        questions.read(tmp_path / "q.jsonl")
    with pytest.raises(UserError, match=r"has 1 rows, fewer than the 2 of num_questions"):
        questions.read([{"question": TEXT}], 2)
    assert len(questions.read(({"question": str(i)} for i in range(9)), 2)) == 2


def test_the_request_is_what_the_settings_say():
    question = questions.Question("id", "{x} + 1", "")
    settings = DistilSettings(template="Solve {question} now", system="S", seed=7, temperature=0.5, body={"top_k": 3})
    request = question.request(settings, 2)
    assert request.messages == ({"role": "system", "content": "S"}, {"role": "user", "content": "Solve {x} + 1 now"})
    assert request.sampling == {"top_k": 3, "temperature": 0.5, "seed": 9}
    own = questions.Question("id", "x", "own").request(settings, 0)
    assert own.messages[0]["content"] == "own"


def _texts():
    rng = random.Random(0)
    yield from ("", " ", "a" * 500, "\n" * 99, "\ufdfa" * 50, "\u3391" * 40, "🏳️‍🌈" * 30, "ก" * 60, "\x00\x07" * 20)
    for top in (0x7F, 0x2FF, 0xFFFF, 0x10FFFF):
        for _ in range(30):
            points = (rng.randrange(top + 1) for _ in range(rng.randrange(1, 80)))
            yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def test_no_prompt_has_more_tokens_than_its_bound():
    """Against tokenizers with fallback to bytes and next to no merges, before and after NFKC: the worst there are."""
    tokenizers = pytest.importorskip("tokenizers")
    level = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    level.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab = {"<unk>": 0} | {f"<0x{i:02X}>": i + 1 for i in range(256)}
    fallback = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    fallback.normalizer = tokenizers.normalizers.NFKC()
    for text in _texts():
        messages = [{"role": "user", "content": text}]
        bound = prompt_bound(messages, 0)  # 16 of them are for delimiters
        assert max(len(level.encode(text).ids), len(fallback.encode(text).ids)) <= bound - 16
        assert prompt_bound([*messages, *messages], 256) == 2 * bound + 256


def test_settings_of_a_row_are_named_and_not_sent():
    row = {"question": "q", "system": "s", "max_tokens": 4, "n": 4, "thinkingBudget": 5, "stop": None, "level": 3}
    notes = []
    (question,) = questions.read([row], notes=notes)
    assert question.system == "s" and len(notes) == 1
    assert notes[0].startswith("max_tokens, n of the rows: sampling settings of a row are not sent")
