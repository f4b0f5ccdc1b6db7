"""Scores of prompts against the log-likelihoods of their continuations and against whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.engine import prompt_score, score
from s1jax.errors import UserError
from s1jax.model import decoder
from tests.engine import cases
from tests.engine.test_formats import CONFIG, LENGTH


@pytest.fixture(scope="module")
def params():
    return cases.random_weights(CONFIG)


def test_scores_are_those_of_the_whole_logits(params, monkeypatch):
    monkeypatch.setattr(score, "TOKENS", 80)  # several chunks, of which the last overlaps
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, CONFIG.vocab_size, n).tolist() for n in (1, 2, 31, 32, 33, LENGTH, 7, 100, 200)]
    found = prompt_score.score_prompts(params, CONFIG, prompts)

    @jax.jit
    def whole(tokens):
        hidden = decoder.forward(params, CONFIG, tokens, jnp.arange(LENGTH)[None], jnp.ones_like(tokens))
        return jax.nn.log_softmax(decoder.logits(params, CONFIG, hidden[0]))

    for prompt, one in zip(prompts, found, strict=True):
        padded = [prompt + [0] * (LENGTH - len(prompt))]  # a decoder does not look ahead
        want = np.asarray(whole(np.array(padded)))[: len(prompt)]
        np.testing.assert_allclose(one.best_logprobs, want.max(-1), atol=1e-3)
        np.testing.assert_allclose(want[np.arange(len(prompt)), one.best], want.max(-1), atol=1e-3)
        own = want[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(one.logprobs, [0, *own], atol=1e-3)
    pairs = [(prompt[:1], prompt[1:]) for prompt in prompts]
    sums = [total for total, _ in score.log_likelihoods(params, CONFIG, pairs)]
    np.testing.assert_allclose([one.logprobs.sum() for one in found], sums, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("prompt", "said"), [([], "has 0 tokens"), ([1] * (LENGTH + 1), "321"), ([999], "id 999")])
def test_bad_prompts(params, prompt, said):
    with pytest.raises(UserError, match=said):
        prompt_score.score_prompts(params, CONFIG, [prompt])
