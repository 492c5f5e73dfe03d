"""Log-probabilities without logits are those with logits, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.logps import TokenStatistics
from jaxpref.policies import head
from jaxpref.policies.tiles import Tile

PLACES, VOCAB, DIM = 11, 37, 5
SMALL = Tile(places=4, vocab=16)  # neither fits evenly


def inputs(dtype=jnp.float32, seed=0):
    """States, matrix, bias, targets, mask; the states of places that do not count are not numbers."""
    keys = jax.random.split(jax.random.key(seed), 5)
    mask = jax.random.bernoulli(keys[4], 0.7, (PLACES,))
    states = 2 * jax.random.normal(keys[0], (PLACES, DIM), dtype)
    targets = jnp.where(mask, jax.random.randint(keys[3], (PLACES,), 0, VOCAB), -5)
    matrix, bias = (
        jax.random.normal(keys[1], (VOCAB, DIM), dtype),
        jax.random.normal(keys[2], (VOCAB,), dtype),
    )
    return jnp.where(mask[:, None], states, jnp.nan), matrix, bias, targets, mask


def plain(states, matrix, bias, targets, mask, *, cap=None, scale=1.0) -> TokenStatistics:
    """With logits, in the dtype of the states' products."""
    states, targets = jnp.where(mask[:, None], states, 0), jnp.where(mask, targets, 0)
    wide = jnp.promote_types(states.dtype, jnp.float32)
    logits = jnp.matmul(states, matrix.T, preferred_element_type=wide)
    logits = scale * (logits if bias is None else logits + bias)
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    logps = jax.nn.log_softmax(logits)
    found = TokenStatistics(
        jnp.take_along_axis(logps, targets[:, None], 1)[:, 0], -(jnp.exp(logps) * logps).sum(1),
        logits.argmax(1) == targets, logits.mean(1), jax.nn.logsumexp(2 * logps, 1),
    )  # fmt: skip
    return TokenStatistics(*(jnp.where(mask, x, 0).astype(x.dtype) for x in found))


def close(found, expected, rtol):
    """To `rtol` of the largest value."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        y = np.asarray(y, np.float64)
        np.testing.assert_allclose(
            np.asarray(x, np.float64), y, atol=rtol * max(np.abs(y).max(), 1e-30), rtol=0
        )


def both(function, arrays, weights, tile=SMALL, **settings):
    """Statistics and gradients of a weighted sum of log-probabilities, tiled and plain."""
    states, matrix, bias, targets, mask = arrays

    def value(function, weighed):
        statistics = function(*weighed)
        return jnp.sum(weights * statistics.logps), statistics

    tiled = lambda h, w, b: head.token_statistics(h, w, targets, mask, bias=b, tile=tile, **settings)
    expected = lambda h, w, b: function(h, w, b, targets, mask, **settings)
    grad = lambda f: jax.jit(jax.grad(lambda x: value(f, x), has_aux=True))((states, matrix, bias))
    return grad(tiled), grad(expected)


CASES = {"plain": {}, "capped": {"cap": 3.0}, "scaled": {"scale": 0.25}, "both": {"cap": 2.0, "scale": 0.5}}
WEIGHTS = jnp.linspace(-1, 2, PLACES)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_with_logits(settings, biased):
    states, matrix, bias, targets, mask = inputs()
    arrays = states, matrix, bias if biased else None, targets, mask
    found, expected = both(plain, arrays, WEIGHTS, **settings)
    close(found, expected, 1e-5)
