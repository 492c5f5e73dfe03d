import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.probes import alignment


def test_positive_share_counts_unmasked_pairs_of_tokens_one_by_one():
    first, second = (jax.random.normal(jax.random.key(i), (4, 5 + i, 3)) for i in range(2))
    masks = [jax.random.bernoulli(jax.random.key(2 + i), 0.6, (4, 5 + i)) for i in range(2)]
    signs = [
        float(np.dot(first[r, i], second[r, j])) > 0
        for r in range(4) for i in range(5) for j in range(6) if masks[0][r, i] and masks[1][r, j]
    ]  # fmt: skip
    share = alignment.positive_share(first, second, *masks)
    np.testing.assert_allclose(share, np.mean(signs), rtol=1e-6)


def test_a_response_points_its_own_way():
    vectors = jnp.ones((1, 3, 2))
    assert alignment.positive_share(vectors, vectors, jnp.ones((1, 3), bool), jnp.ones((1, 3), bool)) == 1.0
