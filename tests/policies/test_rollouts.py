"""The transformer as a policy over responses of fixed length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import rollouts, transformer

CONFIG = transformer.TransformerConfig(
    vocab=11, dim=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_dim=24, tied=False
)


@pytest.fixture(scope="module")
def params():
    return transformer.init(jax.random.key(0), CONFIG)


@pytest.mark.parametrize("prompt_length", [1, 3])
def test_cached_sampling_draws_what_sampling_without_a_cache_draws(params, prompt_length):
    prompts = jax.random.randint(jax.random.key(1), (4, prompt_length), 0, 11)
    key = jax.random.key(2)
    sample = jax.jit(functools.partial(rollouts.sample, num_samples=3, config=CONFIG, num_tokens=5))
    fast = sample(params, key, prompts)
    tokens = jnp.pad(jnp.repeat(prompts, 3, axis=0), ((0, 0), (0, 5)))
    whole = jax.jit(functools.partial(transformer.logits, config=CONFIG))
    for length in range(prompt_length, prompt_length + 5):
        drawn = jax.random.categorical(jax.random.fold_in(key, length), whole(params, tokens)[:, length - 1])
        tokens = tokens.at[:, length].set(drawn)
    np.testing.assert_array_equal(fast.reshape(12, 5), tokens[:, prompt_length:])


def test_cached_scores_are_those_of_the_whole_row(params):
    tokens = jax.random.randint(jax.random.key(3), (2, 6), 0, 11)
    cache = transformer.empty_cache(2, 6, config=CONFIG)
    decode, scores = jax.jit(functools.partial(transformer.decode, config=CONFIG)), []
    for position in range(6):
        row, cache = decode(params, cache, tokens[:, position], jnp.asarray(position))
        scores.append(row)
    expected = transformer.logits(params, tokens, config=CONFIG)
    np.testing.assert_allclose(jnp.stack(scores, axis=1), expected, atol=1e-5)


def test_token_logps_are_the_shifted_log_softmax_of_the_response(params):
    prompts = jnp.array([[1, 2], [3, 4]])
    responses = jax.random.randint(jax.random.key(4), (2, 3, 4), 0, 11)
    measured = rollouts.token_logps(params, prompts, responses, config=CONFIG)
    row = np.concatenate([prompts[1], responses[1, 2]])
    scores = np.asarray(transformer.logits(params, jnp.asarray(row)[None], config=CONFIG)[0], np.float64)
    logps = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    np.testing.assert_allclose(measured[1, 2], [logps[t - 1, row[t]] for t in range(2, 6)], rtol=1e-4)
