"""The unembedding's products are those of per-response gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import head
from jaxpref.policies.tiles import Scoring, Tile
from jaxpref.probes.head import logit_cotangents, paired_weight_gradient

PAIRS, LENGTH, VOCAB, DIM = 3, 9, 21, 4
SMALL = Tile(places=4, vocab=8)  # neither fits evenly


def inputs():
    """Rows of unlike lengths; one has no token that counts."""
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = jnp.array([9, 3, 5, 4, 0, 7])
    mask = (jnp.arange(LENGTH) < lengths[:, None]) & (jnp.arange(LENGTH) != 1)
    states = jax.random.normal(keys[0], (2 * PAIRS, LENGTH, DIM))
    targets = jax.random.randint(keys[3], (2 * PAIRS, LENGTH), 0, VOCAB)
    matrix, bias = jax.random.normal(keys[1], (VOCAB, DIM)), jax.random.normal(keys[2], (VOCAB,))
    return states, matrix, bias, targets, mask


def row_gradients(states, matrix, bias, targets, mask, weights, settings):
    """Of each row's weighed log-probabilities by matrix and bias, with logits, [rows, ...]."""

    def one_row(weights_of_matrix, h, target, counts, weight):
        logits = Scoring(**settings).logits(h @ weights_of_matrix[0].T + weights_of_matrix[1])
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1)[:, 0]
        return jnp.sum(weight * jnp.where(counts, logps, 0))

    return jax.vmap(jax.grad(one_row), (None, 0, 0, 0, 0))((matrix, bias), states, targets, mask, weights)


def products(gradients):
    w, l = np.split(np.asarray(gradients, np.float64).reshape(2 * PAIRS, -1), 2)
    return np.stack([(w * l).sum(1), (w * w).sum(1), (l * l).sum(1)], axis=1)


@pytest.mark.parametrize("settings", [{"cap": None, "scale": 1.0}, {"cap": 2.0, "scale": 0.5}])
def test_products_and_gradient_are_those_of_each_response_alone(settings):
    states, matrix, bias, targets, mask = inputs()
    slopes = jax.random.normal(jax.random.key(5), mask.shape[:1])
    found = paired_with_norms(states, matrix, bias, targets, mask, slopes, settings)
    ones = row_gradients(states, matrix, bias, targets, mask, jnp.ones(mask.shape), settings)
    weights = jnp.broadcast_to(slopes[:, None], mask.shape)
    total = [x.sum(0) for x in row_gradients(states, matrix, bias, targets, mask, weights, settings)]
    np.testing.assert_allclose(found.matrix, products(ones[0]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.bias, products(ones[1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.weights.matrix, total[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.weights.bias, total[1], rtol=1e-5, atol=1e-5)


def paired_with_norms(states, matrix, bias, targets, mask, slopes, settings):
    @jax.jit
    def paired():
        norms = head.forward(states, matrix, targets, mask, bias=bias, tile=SMALL, **settings).log_norms
        return paired_weight_gradient(
            states, matrix, targets, mask, norms, slopes, bias=bias, tile=SMALL, **settings
        )

    return paired()


def test_logit_cotangents_are_the_gradient_by_the_products_at_some_entries():
    states, matrix, bias, targets, mask = inputs()
    states, targets, mask = states[0], targets[0], mask[0]
    scoring, ids = Scoring(2.0, 0.5), jnp.array([3, 20, 3, 0])

    def logp(products, target):
        return jax.nn.log_softmax(scoring.logits(products))[target]

    expected = jax.vmap(jax.grad(logp))(states @ matrix.T + bias, targets)[:, ids].T
    norms = jax.nn.logsumexp(scoring.logits(states @ matrix.T + bias), axis=1)
    found = logit_cotangents(states, matrix, targets, mask, norms, ids, bias=bias, cap=2.0, scale=0.5)
    np.testing.assert_allclose(found, jnp.where(mask, expected, 0), rtol=1e-5, atol=1e-6)
