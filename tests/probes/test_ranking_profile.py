"""Means by category, the flip profile and the AUC of some pairs, held against loops over pairs."""

import jax.numpy as jnp
import numpy as np

from jaxpref.probes import ranking


def random_pairs(num_pairs=200):
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 10, num_pairs).astype(np.float32)
    return rng.normal(0, 10, num_pairs).astype(np.float32), gap


def test_category_means_are_the_means_of_the_members():
    margin, gap = random_pairs()
    category = ranking.category(jnp.array(margin), jnp.array(gap))
    names = [("c" if c <= 0 else "i") + ("c" if m >= 0 else "i") for m, c in zip(margin, gap, strict=True)]
    values = np.arange(len(margin), dtype=np.float32)
    expected = [
        np.mean([v for v, n in zip(values, names, strict=True) if n == k]) for k in ranking.CATEGORIES
    ]
    np.testing.assert_allclose(ranking.category_means(jnp.array(values), category), expected, rtol=1e-5)


def test_the_mean_of_an_empty_category_is_nan():
    always_right = jnp.zeros(3, int)
    means = ranking.category_means(jnp.ones(3), always_right)
    np.testing.assert_array_equal(means, [1.0, np.nan, np.nan, np.nan])


def test_flip_profile_counts_a_bin_from_above_its_lower_to_its_upper_edge():
    gap = jnp.array([-1.0, 0.0, 1.0, 2.0, 2.5, 5.0, 6.0])
    margin = jnp.array([1.0, 1.0, 0.0, -1.0, 3.0, -2.0, 9.0])
    profile = ranking.flip_profile(margin, gap, jnp.array([0.0, 2.0, 5.0, 5.5]))
    np.testing.assert_array_equal(profile, [0.5, 0.5, np.nan])  # (0, 2]: 1 and 2; (2, 5]: 2.5 and 5


def test_auc_of_some_pairs_is_the_auc_without_the_others():
    scores, gap = random_pairs()
    scores, labels, where = np.round(scores), gap + scores > 0, gap > 2
    difference = scores[where & labels][:, None] - scores[where & ~labels]
    expected = np.mean((difference > 0) + 0.5 * (difference == 0))
    measured = ranking.auc(jnp.array(scores), jnp.array(labels), jnp.array(where))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
