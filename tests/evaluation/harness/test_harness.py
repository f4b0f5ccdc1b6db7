"""The released lm-evaluation-harness on s1jax checkpoints: its command line, its tasks, its own model beside ours."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint import huggingface, huggingface_tokenizer, store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine import score
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.evaluation.harness.cases import CONTEXT, FORMAT, ROWS
from tests.text.conftest import write_metaspace


@pytest.fixture(scope="module")
def model(harness, folder):
    return harness.HarnessModel(f"{folder}/model", max_thinking_tokens=10, max_answer_tokens=8, batch_size=4)


@pytest.fixture(scope="module")
def evaluate(harness, folder):
    """The harness's function behind its command line, with our tasks alone: to list its own takes it 15 s."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)

    def evaluate(model, *names, **settings):
        return lm_eval.simple_evaluate(model, tasks=list(names), task_manager=tasks, bootstrap_iters=0, **settings)

    return evaluate


def request(kind, *arguments, document=0):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, metadata=("a_task", document, 1))


def answers(evaluation):
    return [sample["resps"][0][0] for sample in evaluation["samples"]["answers"]]


def test_the_harness_runs_all_kinds_of_tasks_from_its_command_line(call_launcher, folder):
    arguments = f"checkpoint={folder}/model,max_thinking_tokens=10,num_waits=2,wait=Wait,dtype=float32"
    done = call_launcher(
        "--model", "s1jax", "--model_args", arguments, "--tasks", "answers,choices,texts",
        "--include_path", f"{folder}/tasks", "--batch_size", "4", "--output_path", f"{folder}/out", "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|answers|" in done.stdout.replace(" ", "") and "s1jax ({'checkpoint'" in done.stdout
    (file,) = (folder / "out").rglob("results_*.json")
    results = json.loads(file.read_text())
    assert set(results["results"]) == {"answers", "choices", "texts"}
    config = results["config"]
    assert config["provenance"] == {"made": "for a test"} and config["dtype"] == "float32"
    assert config["controls"]["num_waits"] == 2 and config["generated_rows"] == len(ROWS)
    engine = Engine(f"{folder}/model", dtype="float32")
    rows = [{"question": row["question"], "max_thinking_tokens": 10, "num_waits": 2} for row in ROWS]
    wanted = rows_lib.generate(engine, [{**row, "max_answer_tokens": 12} for row in rows], SamplingParams(wait="Wait"))
    assert config["average_thinking_tokens"] == sum(row["thinking_tokens"] for row in wanted) / len(wanted)
    (file,) = (folder / "out").rglob("samples_answers_*.jsonl")
    found = {sample["doc_id"]: sample["resps"][0][0] for sample in map(json.loads, file.read_text().splitlines())}
    assert found == {i: row["answer"].split("8")[0].split("1")[0] for i, row in enumerate(wanted)}
    assert any(found[i] != row["answer"] for i, row in enumerate(wanted)) and any(found.values())


def test_int8_weights_and_cache_are_those_of_the_engine(harness, folder):
    model = harness.HarnessModel(f"{folder}/model", weight_dtype="int8", cache_dtype="int8", max_thinking_tokens=10)
    asked = [request("generate_until", row["question"], {"until": [], "max_gen_toks": 12}) for row in ROWS]
    engine = Engine(f"{folder}/model", weight_dtype="int8", cache_dtype="int8")
    rows = [{"question": row["question"], "max_thinking_tokens": 10, "max_answer_tokens": 12} for row in ROWS]
    wanted = [row["answer"] for row in rows_lib.generate(engine, rows, SamplingParams(wait="Wait"))]
    assert model.generate_until(asked, disable_tqdm=True) == wanted
    info = model.get_model_info()
    assert info["dtype"] == "float32" and info["weight_dtype"] == info["cache_dtype"] == "int8"


def test_log_likelihoods_equal_those_of_the_harnesss_own_model(model, folder):
    """transformers' model, the harness's truncation, windows and empty contexts; also beyond the model's context."""
    for package in ("torch", "transformers", "accelerate", "peft"):
        pytest.importorskip(package, reason="the harness's own model needs it")
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(str(folder / "exported"), device="cpu", dtype="float32", batch_size=1)
    assert theirs.max_length == model.max_length == CONTEXT and theirs.prefix_token_id == model.prefix_token_id
    long = " ".join(["try 3 + 7 = 10 no"] * 20)
    pairs = [
        ("Make 5 from 2 3 1", " (2+3)*1"), ("Make 5 from 2 3 1", " so"), ("Make 5 from 2 3 1 ", "check"),
        ("", "Make 5 from 2 3 1"), (long, " so Final Answer: 3"), (long, f" {long[:100]}"),
    ]  # fmt: skip
    requests = [request("loglikelihood", *pair) for pair in pairs]
    logits = [logits_after(model, context + text) for context, text in pairs[:4]]
    best = [model.model.tokenizer.decode([int(row[-1].argmax())]) for row in logits]
    requests += [request("loglikelihood", c + t, f" {text}") for (c, t), text in zip(pairs, best, strict=False)]
    ours, wanted = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (model, theirs))
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in wanted], rtol=1e-5, atol=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in wanted]
    assert [greedy for _, greedy in ours[-4:]] == [True] * 4 and not all(greedy for _, greedy in ours)
    texts = [request("loglikelihood_rolling", text) for text in ("Make 5", long, long[:300], ROWS[0]["question"])]
    ours, wanted = (lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in (model, theirs))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    assert model.loglikelihood_rolling([request("loglikelihood_rolling", "")], disable_tqdm=True) == [0.0]


def test_log_likelihoods_with_a_tokenizer_that_puts_a_space_in_front(harness, tmp_path):
    """Llama's normalizer does so once for context and continuation, not for each of them."""
    for package in ("torch", "transformers", "accelerate", "peft"):
        pytest.importorskip(package, reason="the harness's own model needs it")
    from lm_eval.models.huggingface import HFLM

    (tmp_path / "tokenizer").mkdir()
    write_metaspace(tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    config = ModelConfig.dense(
        vocab_size=512, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=CONTEXT,
    )  # fmt: skip
    params = decoder.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda a: np.asarray(a * 8 if a.ndim > 1 else a), params)
    store.save_model(tmp_path / "model", params, config, tokenizer, chat.FORMATS["s1_plain"], {"made": "for a test"})
    (tmp_path / "exported").mkdir()
    huggingface.write_model(tmp_path / "exported", params, config, eos=[tokenizer.id_of("<|im_end|>")])
    huggingface_tokenizer.write(tmp_path / "exported", tokenizer, chat.FORMATS["s1_plain"])
    ours = harness.HarnessModel(str(tmp_path / "model"))
    theirs = HFLM(str(tmp_path / "exported"), device="cpu", dtype="float32", batch_size=1)
    pairs = [("Make 21 from", " 3 7 1"), ("Wait", " try"), ("the lazy dog.\n", "Final"), ("", "Make")]
    requests = [request("loglikelihood", *pair) for pair in pairs]
    found, wanted = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (ours, theirs))
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in wanted], rtol=1e-5, atol=1e-4)
    texts = [request("loglikelihood_rolling", "The quick brown fox\nso")]
    found, wanted = (lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in (ours, theirs))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def logits_after(model, text):
    """[T, V] by one plain run of the decoder."""
    loaded = model.model
    ids = jnp.array([loaded.tokenizer.encode(text)], jnp.int32)
    hidden = decoder.forward(loaded.params, loaded.config, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids))
    return np.asarray(decoder.logits(loaded.params, loaded.config, hidden[0]))


def test_a_beginning_of_sequence_token_goes_before_every_context(harness, folder):
    token = "<|endoftext|>"
    model = harness.HarnessModel(f"{folder}/model", bos_token=token)
    loaded = model.model
    encode = loaded.tokenizer.encode
    pairs = [("Make 5", " from 2"), ("", "Make 5"), (f"{token}Make 5", " from 2"), ("  ", "Make 5")]
    found = model.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    wanted = score.log_likelihoods(
        loaded.params, loaded.config, [(encode(token + a.removeprefix(token)), encode(b)) for a, b in pairs]
    )
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in wanted], rtol=1e-6)


def test_the_chat_template_is_the_checkpoints_chat_format(evaluate, model):
    plain = evaluate(model, "answers", "choices")
    turned = evaluate(model, "answers", "choices", apply_chat_template=True)
    assert answers(turned) == answers(plain)  # in generation a bare context becomes the same prompt
    for task in ("answers", "choices"):
        for sample, row in zip(turned["samples"][task], ROWS, strict=True):
            assert sample["arguments"][0][0] == FORMAT.before_question + row["question"] + FORMAT.after_question
            assert len(model.tok_encode(sample["arguments"][0][0])) == len(
                chat.encode_prompt(model.model.tokenizer, FORMAT, row["question"])
            )
    (first,) = {sample["arguments"][0][0] for sample in plain["samples"]["choices"][:1]}
    assert first == ROWS[0]["question"]
    assert model.chat_template(True) == FORMAT.before_question + "{question}" + FORMAT.after_question


def test_few_shot_examples_are_part_of_the_question(evaluate, model):
    shots = dict(num_fewshot=1, apply_chat_template=True)
    one_turn = evaluate(model, "answers", fewshot_as_multiturn=False, **shots)
    context = one_turn["samples"]["answers"][0]["arguments"][0][0]
    assert context.count("Make") == 2 and context.startswith(FORMAT.before_question + "Make")
    with pytest.raises(UserError, match="one user turn, not 3 turns; add --fewshot_as_multiturn=false"):
        evaluate(model, "answers", fewshot_as_multiturn=True, **shots)
    with pytest.raises(UserError, match=r"the tokenizer cannot encode .*system"):
        evaluate(model, "answers", system_instruction="so", apply_chat_template=True)
    with pytest.raises(UserError, match="names 'default', but a checkpoint has one chat format"):
        model.chat_template("default")
    with pytest.raises(UserError, match="begins the answer itself"):
        model.apply_chat_template(
            [{"role": "user", "content": "Make 5"}, {"role": "assistant", "content": "so"}], add_generation_prompt=False
        )
    with pytest.raises(UserError, match="is not text"):
        model.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


def test_the_cache_of_requests_tells_checkpoints_apart(model, harness, folder, tmp_path):
    loaded = store.load_model(f"{folder}/model")
    store.save_model(tmp_path / "m", loaded.params, loaded.config, loaded.tokenizer, chat.FORMATS["s1"], {})
    other = harness.HarnessModel(str(tmp_path / "m"))
    same = harness.HarnessModel(f"{folder}/model", max_thinking_tokens=3)
    assert other.tokenizer_name != model.tokenizer_name == same.tokenizer_name


def test_the_cache_of_answers_spares_a_second_run(evaluate, model, tmp_path, monkeypatch):
    first = evaluate(model, "answers", "choices", use_cache=str(tmp_path / "cache"))
    monkeypatch.setattr(model, "generate_until", None)
    monkeypatch.setattr(model, "loglikelihood", None)
    second = evaluate(model, "answers", "choices", use_cache=str(tmp_path / "cache"))
    assert answers(second) == answers(first) and second["results"] == first["results"]


def recorded(model, monkeypatch, *requests):
    """The rows that `generate_until` hands to the engine."""
    rows = []

    def stream(engine, given, controls, **keywords):
        assert engine is model._engine
        rows.extend(given)
        assert controls == model.controls and controls.wait == "Wait"
        return ((i, {"answer": "so 3 = 3", "thinking_tokens": 0}) for i in reversed(range(len(given))))

    monkeypatch.setattr(rows_lib, "stream", stream)
    return rows, model.generate_until(list(requests), disable_tqdm=True)


@pytest.mark.parametrize(
    ("settings", "row", "text"),
    [
        ({}, {}, "so 3 = 3"),
        ({"until": "="}, {}, "so 3 "),
        ({"until": ["=", " 3", ""]}, {}, "so"),
        ({"until": None, "do_sample": None}, {}, "so 3 = 3"),
        ({"max_gen_toks": 7, "max_tokens": 8}, {"max_answer_tokens": 7}, "so 3 = 3"),
        ({"max_new_tokens": 9, "max_gen_toks": None}, {"max_answer_tokens": 9}, "so 3 = 3"),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}, "so 3 = 3"),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}, "so 3 = 3"),
        ({"do_sample": True}, {"temperature": 1.0}, "so 3 = 3"),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, None, "so 3 = 3"),
        ({"thinking_budget": 3, "stop": ["x"], "repetition_penalty": 1.5}, None, "so 3 = 3"),
        ({"max_thinking_tokens": 3, "num_waits": 1, "seed": 5}, None, "so 3 = 3"),
    ],
)
def test_generation_settings_become_controls(model, monkeypatch, settings, row, text):
    given = json.dumps(settings)
    rows, texts = recorded(model, monkeypatch, request("generate_until", "Make 5", settings))
    assert texts == [text] and json.dumps(settings) == given
    assert rows == [{"question": "Make 5", "seed": 0, **(settings if row is None else row)}]


def test_repeats_of_a_question_have_seeds_of_their_own(model):
    requests = [request("generate_until", "Make 5 from 2 3", {"do_sample": True, "temperature": 2.0})] * 3
    first, again = (model.generate_until(requests, disable_tqdm=True) for _ in range(2))
    assert first == again and len(set(first)) > 1


def test_seeds_belong_to_documents_and_not_to_places_among_requests(model, monkeypatch):
    def seeds(*documents):
        asked = [request("generate_until", "Make 5", {"seed": 7}, document=document) for document in documents]
        return [row["seed"] for row in recorded(model, monkeypatch, *asked)[0]]

    assert seeds(0, 3) == [7, 10] and seeds(3, 3, 4) == [10, 10 + 1_000_003, 11]


def test_answers_are_kept_as_they_come(model, monkeypatch):
    """For --use_cache, which a killed run goes on from."""
    kept = []
    monkeypatch.setattr(model.cache_hook, "add_partial", lambda *given: kept.append(given))
    asked = [request("generate_until", text, {"until": "="}, document=i) for i, text in enumerate(["Make 5", "Make 6"])]
    recorded(model, monkeypatch, *asked)
    assert kept == [("generate_until", each.args, "so 3 ") for each in reversed(asked)]


def test_repeats_of_a_task_are_samples_of_their_own(evaluate, model):
    samples = evaluate(model, "repeats")["samples"]["repeats"]
    assert [len(set(sample["resps"][0])) for sample in samples] == [3] * len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("Make 5", {"num_beams": 4}), "a_task, document 7: the generation setting num_beams is not one"),
        (("Make 5", {"n": 2, "temperature": 1.0}), "document 7: n is above 1, but the harness takes one answer"),
        (("Make 5", {"until": 3}), "document 7: until is 3; it must be a string or a list"),
        (("Make 5", {"until": [3]}), "document 7: until is"),
        (("Make 5", {"temperature": "warm"}), "document 7.*temperature is 'warm'"),
        (("Make 5", {"seed": "x"}), "document 7.*seed is 'x'"),
        (("Make 5", {"top_p": 2}), "document 7: top_p is 2"),
        (("Make 5", {"max_gen_toks": 0}), "document 7: max_gen_toks is 0; it must be a whole number, 1 or more"),
        (("Make 5", {"max_tokens": "9"}), "document 7: max_tokens is '9'"),
        (("Make 5", {"max_gen_toks": 500}), f"document 7: a prompt of .* context length is {CONTEXT}"),
        ((" ", {}), "document 7: question is ' '"),
        (("Make 5", {}, {"visual": []}), r"document 7: s1jax models take one text.*\(str, dict, dict\)"),
        ((["Make 5", "Make 6"], {}), r"document 7: s1jax models take one text.*\(list, dict\)"),
    ],
)
def test_wrong_requests_are_named(model, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        model.generate_until([request("generate_until", *arguments, document=7)], disable_tqdm=True)


def test_wrong_pairs_are_named(model):
    with pytest.raises(UserError, match=r"document 7: s1jax models take one text.*\(str, str, dict\)"):
        model.loglikelihood([request("loglikelihood", "Make", " 5", {"visual": []}, document=7)])
    with pytest.raises(UserError, match="a continuation of 100 ids exceeds the model's context length"):
        model.loglikelihood([request("loglikelihood", "Make", " so" * 100)], disable_tqdm=True)
