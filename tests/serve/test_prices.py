import dataclasses
import json
import random

import pytest

from s1jax.errors import UserError
from s1jax.serve import chat, prices
from s1jax.serve.prices import Price, Prices
from s1jax.serve.protocol import Defaults
from s1jax.serve.reader import Reader
from tests.serve import replies


def call_and_result(**fields):
    body = {"messages": [{"role": "user", "content": "a"}]}
    result, _ = replies.result(random.Random(0))
    result = dataclasses.replace(result, prompt_ids=998, cached_tokens=600, device_seconds=1.8, **fields)
    return chat.read(Reader(body), Defaults("s1", 1000)), result


def test_the_cost_of_a_reply_by_list_and_by_device():
    call, result = call_and_result()
    output = result.completion_tokens
    listed = (400 * 1.0 + 600 * 0.25 + output * 4.0) / 1e6
    usage = chat.whole(call, [result], Prices({"s1": Price(1.0, 4.0, 0.25)}, 2.0).count)["usage"]
    assert usage["prompt_tokens"] == 1000 and usage["prompt_tokens_details"] == {"cached_tokens": 600}
    assert usage["cost"] == pytest.approx(listed)
    assert usage["cost_details"] == pytest.approx(
        {"device_seconds": 1.8, "device_cost": 1.8 * 2 / 3600, "list_cost": listed}
    )
    usage = chat.whole(call, [result], Prices({"other": Price(1, 1)}, 2.0).count)["usage"]
    assert usage["cost"] == pytest.approx(0.001)


def test_without_prices_there_is_no_cost():
    call, result = call_and_result()
    assert "cost" not in chat.whole(call, [result], Prices({"other": Price(1, 1)}).count)["usage"]
    assert Prices({"s1": Price(0, 0)}).count(call, [result]).cost == 0


def test_the_other_models_price_is_added():
    call, result = call_and_result(remote_cost=0.5)
    usage = Prices({"s1": Price(1.0, 0.0)}).count(call, [result])
    assert usage.cost == pytest.approx(0.501) and usage.cost_details["remote_cost"] == 0.5


def test_a_price_list_is_read(tmp_path):
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"s1": {"input": 1, "output": 2.5}, "b": {"input": 0, "output": 0, "cached": 0.1}}))
    found = prices.read(file, 3.0)
    assert found == Prices({"s1": Price(1.0, 2.5), "b": Price(0.0, 0.0, 0.1)}, 3.0)


@pytest.mark.parametrize(
    "text,message",
    [
        ("[", "not JSON"), ("[]", "MODEL"), ('{"s1": 3}', "s1"), ('{"s1": {"input": 1}}', "output"),
        ('{"s1": {"input": -1, "output": 1}}', "s1.input"), ('{"s1": {"input": NaN, "output": 1}}', "s1.input"),
        ('{"s1": {"input": 1, "output": 1, "prompt": 1}}', "prompt"), ('{"s1": {"input": "1", "output": 1}}', "input"),
    ],
)  # fmt: skip
def test_a_bad_price_list_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        prices.read(file)
    assert "prices.json" in str(error.value)
    with pytest.raises(UserError, match="absent"):
        prices.read(tmp_path / "absent.json")
