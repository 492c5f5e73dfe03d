"""Log-probabilities are float32 or wider, whatever goes in."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import logps


def test_bfloat16_logits_are_normalized_in_float32():
    logits = jax.random.normal(jax.random.key(0), (2, 50)).astype(jnp.bfloat16)
    out = logps.log_softmax(logits)
    assert out.dtype == jnp.float32
    scores = np.asarray(logits.astype(jnp.float32), np.float64)
    expected = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        assert logps.log_softmax(jnp.zeros((1, 3), jnp.float64)).dtype == jnp.float64


def test_logits_of_any_size_give_finite_log_probabilities():
    out = logps.log_softmax(jnp.array([[1e4, 0.0, -1e4]]))
    np.testing.assert_allclose(out, [[0.0, -1e4, -2e4]])
