"""The perceptron policy of the one-token bandit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import IndexPairs
from jaxpref.policies import contextual

CONFIG = contextual.ContextualConfig(context_dim=3, num_responses=5, first=4, hidden=(6,), gain=1.0)


@pytest.fixture(scope="module")
def params():
    return contextual.init(jax.random.key(0), CONFIG)


def by_hand(params, contexts):
    """Log-probabilities in float64 NumPy."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    x = dense("first", np.asarray(contexts, np.float64))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = np.maximum(x * p["norm"]["scale"] + p["norm"]["bias"], 0)
    scores = dense("head", np.maximum(dense("hidden_0", x), 0))
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_response_logps_are_the_perceptron_by_hand(params):
    contexts = jax.random.uniform(jax.random.key(1), (4, 3))
    measured = contextual.response_logps(params, contexts, config=CONFIG)
    np.testing.assert_allclose(measured, by_hand(params, contexts), atol=1e-5)


def test_pairs_and_samples_read_the_same_table(params):
    contexts = jax.random.uniform(jax.random.key(1), (4, 3))
    table = by_hand(params, contexts)
    batch = IndexPairs(jnp.array([0, 3]), jnp.array([1, 2]), jnp.array([4, 0]))
    pairs = contextual.pair_logps(params, batch, contexts=contexts, config=CONFIG)
    np.testing.assert_allclose(pairs.chosen, [table[0, 1], table[3, 2]], atol=1e-5)
    np.testing.assert_allclose(pairs.rejected, [table[0, 4], table[3, 0]], atol=1e-5)
    responses = jnp.array([[[1], [4]], [[0], [0]], [[2], [3]], [[2], [1]]])
    tokens = contextual.token_logps(params, contexts, responses, config=CONFIG)
    np.testing.assert_allclose(tokens[3, :, 0], table[3, [2, 1]], atol=1e-5)


def test_samples_follow_the_table(params):
    contexts = jax.random.uniform(jax.random.key(1), (2, 3))
    drawn = contextual.sample(params, jax.random.key(2), contexts, 20_000, config=CONFIG)[..., 0]
    shares = np.stack([np.bincount(row, minlength=5) / 20_000 for row in np.asarray(drawn)])
    np.testing.assert_allclose(shares, np.exp(by_hand(params, contexts)), atol=0.02)


def test_a_config_out_of_range_is_refused():
    with pytest.raises(ValueError, match="gain must be positive; got 0"):
        contextual.ContextualConfig(gain=0.0)
