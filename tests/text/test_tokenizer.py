"""Both kinds of tokenizers behind one class: the same tests for all of them."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
import tokenizers

from s1jax.errors import UserError
from s1jax.text.tokenizer import Tokenizer
from tests import byte_tokenizer
from tests.text.conftest import ADDED, HOLE, KINDS, SPECIAL, shared

TEXTS = [
    "",
    " ",
    "\n",
    "\n\n",
    "a",
    " leading and trailing ",
    "double  and   triple    spaces",
    "tab\tand\r\nreturn",
    "Wait try 7*1=7: 7+3=10 no",
    "naïve café, Ωμέγα, 世界, 😀👩‍👩‍👧, \u200bzero width, n\u0303",
    "line\n\n  indented\n",
    "<0x0A> written out, <unk-like> & <html>",
    "control \x00\x01\x7f bytes",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_of_random_text(tokenizer):
    rng = np.random.default_rng(0)
    points = [int(p) for p in rng.integers(0, 0x11000, 3000) if not 0xD800 <= p < 0xE000 and p != 0x2581]
    text = "".join(map(chr, points))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_parts_of_a_text_bring_no_space_of_their_own(tokenizer):
    parts = ["Make 21", " from 3", "\n", "7 1", "\nWait", " "]
    ids = [i for part in parts for i in tokenizer.encode(part)]
    assert tokenizer.decode(ids) == "".join(parts)


@pytest.mark.parametrize("token", SPECIAL + ADDED)
def test_special_tokens_in_text_are_one_id(tokenizer, token):
    id_ = tokenizer.id_of(token)
    assert tokenizer.encode(token) == [id_]
    assert tokenizer.encode(f"{token}{token}") == [id_, id_]
    text = f"Make{token}\n{token} 21{token}"
    ids = tokenizer.encode(text)
    assert ids.count(id_) == 3 and ids[-1] == id_
    after = [tokenizer.encode("\n", token), tokenizer.encode(" 21", token)]
    assert ids == [*tokenizer.encode("Make"), id_, *after[0], id_, *after[1], id_]
    # Some tokenizers put a space before every text that follows a special token.
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_nothing_is_added_cut_or_padded(tokenizer):
    text = "Make 21 from 3 7 1\n" * 40
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.id_of(token) for token in SPECIAL + ADDED} & set(ids)
    assert tokenizer.encode("") == []


def test_legal_ids_have_the_hole(tokenizer):
    first = tokenizer.id_of(ADDED[0])
    assert tokenizer.num_ids == first + len(ADDED)
    legal = tokenizer.legal_ids(tokenizer.num_ids + 7)
    assert legal.dtype == bool and legal.shape == (tokenizer.num_ids + 7,)
    expected = np.ones_like(legal)
    expected[first - HOLE : first] = False
    expected[tokenizer.num_ids :] = False
    np.testing.assert_array_equal(legal, expected)
    assert legal[tokenizer.encode("".join(TEXTS))].all()
    assert tokenizer.decode([first - 1]) == ""  # an id of the hole says nothing


def test_legal_ids_refuse_a_small_vocabulary(tokenizer):
    with pytest.raises(UserError, match=rf"ids up to {tokenizer.num_ids - 1}.* has 10 rows"):
        tokenizer.legal_ids(10)


def test_ends_in_newline_is_what_decoding_says(tokenizer):
    found = tokenizer.ends_in_newline()
    known = np.flatnonzero(tokenizer.legal_ids(tokenizer.num_ids)).tolist()
    assert found == [i for i in known if tokenizer.decode([i]).endswith("\n")]
    assert tokenizer.encode("\n")[-1] in found
    assert tokenizer.encode("a")[-1] not in found and tokenizer.id_of("<|im_start|>") not in found


def test_ends_in_newline_counts_merged_and_partial_characters():
    """Byte-level ids may hold a newline after half a character, which does not decode to text."""
    vocab = {"Ċ": 0, "ĠĊ": 1, "ĊĠ": 2, "ĸĊ": 3, ".Ċ": 4, "ĊĊ": 5, "a": 6, ".": 7, "Ġ": 8, "ĸ": 9}
    spec = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    tokenizer = Tokenizer({"tokenizer.json": json.dumps(spec).encode()})
    assert tokenizer.ends_in_newline() == [0, 1, 3, 4, 5]


def test_id_of_unknown_token(tokenizer):
    assert not tokenizer.knows("<|fim_pad|>")
    with pytest.raises(UserError, match=r"'<\|fim_pad\|>' is not in the tokenizer"):
        tokenizer.id_of("<|fim_pad|>")


def test_eos_and_pad_come_from_the_files(tokenizer):
    assert tokenizer.eos_id == tokenizer.id_of("<|im_end|>")
    assert tokenizer.pad_id == tokenizer.id_of("<|endoftext|>")


def test_save_is_byte_faithful(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "copy")
    again = Tokenizer.load(tmp_path / "deep" / "copy")
    assert again.files == tokenizer.files
    assert again.encode("Make 21<|im_end|>\n") == tokenizer.encode("Make 21<|im_end|>\n")


@pytest.mark.parametrize("kind", KINDS)
def test_save_copies_the_files_of_the_folder(kind, folders, tmp_path):
    Tokenizer.load(folders[kind]).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in folders[kind].iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folders[kind] / path.name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_loads_like_its_folder(kind, folders, tmp_path):
    name = "tokenizer.json" if (folders[kind] / "tokenizer.json").exists() else "tokenizer.model"
    whole, alone = Tokenizer.load(folders[kind]), Tokenizer.load(folders[kind] / name)
    assert alone.files == whole.files and alone.num_ids == whole.num_ids


def test_tokenizer_json_wins_over_a_model_beside_it(folders, tmp_path):
    for kind in ("byte_level", "sentencepiece_bpe"):
        for path in folders[kind].iterdir():
            shutil.copy(path, tmp_path / path.name)
    both = Tokenizer.load(tmp_path)
    assert both.encode("Wait") == Tokenizer.load(folders["byte_level"]).encode("Wait")
    assert {"tokenizer.json", "tokenizer.model"} <= set(both.files)


class _Counting:
    """Stands before a library's tokenizer and counts the characters that go in and the calls."""

    def __init__(self, inner):
        self._inner = inner
        self.calls = self.characters = 0

    def encode(self, text, **kwargs):
        self.calls += 1
        self.characters += len(text)
        return self._inner.encode(text, **kwargs)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("turns", [1, 400])
def test_work_on_long_rows_is_linear(folders, turns):
    """A long row goes through the library once, however many special tokens stand in it, and repeats itself."""
    for kind in KINDS:
        tokenizer = Tokenizer.load(folders[kind])
        backend = tokenizer._backend
        holder, names = (
            (backend._library, ("whole", "inside"))
            if hasattr(backend, "_library")
            else (backend, ("_processor", "_prefixing"))
        )
        counting = _Counting(getattr(holder, names[0]))
        for name in names:
            setattr(holder, name, counting)
        unit = "<|im_start|>user\nMake 21 from 3 7 1, please: try and try again\n<|im_end|>\n"
        ids = tokenizer.encode(unit * turns)
        assert counting.characters <= len(unit) * turns
        assert counting.calls <= 3 * turns  # at most the parts between special tokens
        one = Tokenizer.load(folders[kind]).encode(unit)
        assert ids == one * turns and (turns == 1 or len(ids) > 9000)
        assert tokenizer.decode(ids).replace("> ", ">") == unit * turns  # a space of Llama's after a special token


def test_missing_folder_empty_folder_and_garbage(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; give a folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no tokenizer; give a folder with one tokenizer\.json"):
        Tokenizer.load(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        for content in (b"", b"garbage", b"{}", b"[1]", b"\xff\xfe"):
            (folder / name).write_bytes(content)
            with pytest.raises(UserError, match=rf"{name} is no"):
                Tokenizer.load(folder)


def test_two_models_are_ambiguous(folders, tmp_path):
    for name in ("a.model", "b.model"):
        shutil.copy(folders["sentencepiece_bpe"] / "tokenizer.model", tmp_path / name)
    with pytest.raises(UserError, match="more than one tokenizer"):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(tmp_path / "a.model").num_ids > 300


def test_broken_companion_names_the_file(folders, tmp_path):
    shutil.copy(folders["sentencepiece_bpe"] / "tokenizer.model", tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "added_tokens.json").write_text(content)
        with pytest.raises(UserError, match=r"added_tokens\.json is no"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", KINDS[0]])
@pytest.mark.parametrize("values", [["a"], 7, {"content": ["a"]}])
def test_a_named_token_that_is_no_text(folders, tmp_path, kind, values):
    shutil.copytree(folders[kind], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": values}))
    with pytest.raises(UserError, match=r"tokenizer_config.json: eos_token is .*; it must be one token; repair"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("values", [7, {"x": {"content": "a"}}, {"5": "a"}, {"5": {}}, {"5": {"content": 3}}])
def test_added_tokens_that_are_none(folders, tmp_path, values):
    shutil.copy(folders["sentencepiece_bpe"] / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": values}))
    with pytest.raises(UserError, match=r"added_tokens_decoder is not a table|has an added token that is not text"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match=r"tokenizer_config.json is not JSON"):
        Tokenizer.load(tmp_path)


def test_text_a_vocabulary_cannot_hold_is_one_sentence():
    spec = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
    tokenizer = Tokenizer({"tokenizer.json": spec.to_str().encode()})
    with pytest.raises(UserError, match="cannot encode 'c'"):
        tokenizer.encode("c")


def test_sentencepiece_ids_are_the_librarys_but_for_the_dummy_prefix(folders):
    """Against the library on the same model; its prefix is one id here, as the text starts with a blank."""
    path = folders["sentencepiece_bpe"] / "tokenizer.model"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = Tokenizer.load(path)
    for text in TEXTS[3:]:
        if text.startswith(" "):
            continue
        assert tokenizer.encode(" " + text) == reference.encode(text), text


def test_sentencepiece_reads_added_tokens_of_its_config(folders, tmp_path):
    shutil.copy(folders["sentencepiece_bpe"] / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"500": {"content": "<|special|>"}}, "eos_token": "</s>"})
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("a<|special|>")[-1] == 500 and tokenizer.num_ids == 501
    assert tokenizer.eos_id == tokenizer.id_of("</s>") == 2


def test_sentencepiece_eos_without_a_config(folders):
    content = (folders["sentencepiece_bpe"] / "tokenizer.model").read_bytes()
    tokenizer = Tokenizer({"any.model": content})
    assert tokenizer.eos_id == 2 and tokenizer.pad_id is None


def test_qwen_ids():
    """The ids that STACK.md and the published tokenizer tell."""
    tokenizer = Tokenizer.load(shared("data/qwen_tokenizer"))
    assert tokenizer.num_ids == 151669
    known = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|fim_pad|>": 151662}
    assert {token: tokenizer.id_of(token) for token in known} == known
    assert tokenizer.encode("<|im_start|>think") == [151644, 26865]
    assert tokenizer.encode("<|im_start|>answer") == [151644, 9217]
    assert tokenizer.encode("Wait") == [14190]
    assert tokenizer.encode(".\n") == [624]
    legal = tokenizer.legal_ids(152064)
    assert legal[:151669].all() and not legal[151669:].any()
    newline = set(tokenizer.ends_in_newline())
    assert {198, 624} <= newline and len(newline) > 2000
    text = "Prove that √2 is irrational.\n\n世界 😀" + " x" * 9000
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) > 9000


def test_qwen_equals_transformers():
    transformers = pytest.importorskip("transformers")
    folder = shared("data/qwen_tokenizer")
    reference, tokenizer = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n<think>\nx</think>"]:
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"], text
    assert tokenizer.eos_id == reference.eos_token_id and tokenizer.pad_id == reference.pad_token_id


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    """A folder of somebody else could have a secret of this machine copied as its chat template."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_tokenizer.save(folder)
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_template.jinja").symlink_to("../secret")
    for path in (folder, folder / "tokenizer.json"):
        with pytest.raises(UserError, match=r"chat_template.jinja is a link to '.*secret', which is not in its folder"):
            Tokenizer.load(path)
    (folder / "chat_template.jinja").unlink()
    (folder / "kept.jinja").write_text("template")
    (folder / "chat_template.jinja").symlink_to("kept.jinja")
    assert Tokenizer.load(folder).files["chat_template.jinja"] == b"template"
