"""The bandits' histogram and rewards against a second way of computing them."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpref.data import bandits


def test_histogram_is_the_cauchy_distribution_function_between_squashed_edges():
    edges = np.arctanh(np.linspace(-1, 1, 101).clip(-1, 1), where=np.abs(np.linspace(-1, 1, 101)) < 1,
                       out=np.array([-np.inf, *np.zeros(99), np.inf]))  # fmt: skip
    expected = np.diff(stats.cauchy(-0.7, 0.4).cdf(edges))
    np.testing.assert_allclose(bandits.reference_probabilities(), expected, atol=2e-7)


def test_histogram_has_the_published_moments():
    p = np.asarray(bandits.reference_probabilities(), np.float64)
    np.testing.assert_allclose([p[0], p[99], p[50], p[70]], [0.0781, 0.0422, 0.0038, 0.0021], atol=5e-5)
    np.testing.assert_allclose([p.sum(), -(p * np.log(p)).sum(), (p**2).sum()], [1, 4.117, 0.0228], atol=5e-4)


@pytest.mark.parametrize(("name", "peak"), [("R1", 70), ("R2", 20)])
def test_reward_is_a_bump_of_width_ten_averaged_over_tokens(name, peak):
    reward = bandits.reward(name)
    tokens = jnp.array([[peak, peak + 10], [0, 99]])
    expected = np.exp(-(((np.array([[peak, peak + 10], [0, 99]]) - peak) / 10.0) ** 2)).mean(-1)
    np.testing.assert_allclose(reward(tokens), expected, rtol=1e-5)


def test_an_unknown_reward_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="R1, R2; got 'R3'"):
        bandits.reward("R3")
