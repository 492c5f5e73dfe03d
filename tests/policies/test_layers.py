"""Layers against sums written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.policies import layers


def test_a_vector_beside_every_row_is_a_broadcast_and_its_gradient_the_sum_over_rows():
    x, cotangent = jnp.zeros((2, 7, 3, 5)), np.random.default_rng(0).normal(size=(2, 7, 3, 5))
    vector = jnp.array([1.0, -2.0, 1e-8, 3e4, 0.1])
    copies, back = jax.vjp(lambda vector: layers.beside_rows(vector, x), vector)
    np.testing.assert_array_equal(copies, np.broadcast_to(vector, x.shape))
    found = back(jnp.asarray(cotangent, jnp.float32))[0]
    np.testing.assert_allclose(found, cotangent.sum((0, 1, 2)), rtol=1e-5, atol=1e-6)
