import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpref.probes import divergence


@pytest.fixture
def distributions():
    return np.random.default_rng(0).dirichlet(np.full(6, 0.5), (2, 10))


def logs(probabilities):
    return jnp.log(jnp.asarray(probabilities))


def test_both_divergences_are_relative_entropies(x64, distributions):
    target, policy = distributions
    forward, reverse = stats.entropy(target, policy, axis=1), stats.entropy(policy, target, axis=1)
    np.testing.assert_allclose(divergence.forward_kl(logs(target), logs(policy)), forward, rtol=1e-10)
    np.testing.assert_allclose(divergence.reverse_kl(logs(target), logs(policy)), reverse, rtol=1e-10)


def test_entropy_is_shannons(x64, distributions):
    expected = stats.entropy(distributions[0], axis=1)
    np.testing.assert_allclose(divergence.entropy(logs(distributions[0])), expected, rtol=1e-10)


def test_empty_bins_of_the_first_distribution_count_nothing():
    target, policy = logs([0.5, 0.5, 0.0]), logs([0.25, 0.25, 0.5])
    np.testing.assert_allclose(divergence.forward_kl(target, policy), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(divergence.entropy(target), np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda z: divergence.forward_kl(target, jax.nn.log_softmax(z)))(policy)
    assert jnp.all(jnp.isfinite(gradient))


def test_mass_where_the_other_has_none_is_infinitely_far():
    target, policy = logs([0.5, 0.5, 0.0]), logs([0.25, 0.25, 0.5])
    assert divergence.reverse_kl(target, policy) == jnp.inf


def test_total_variation_is_the_largest_difference_of_any_event():
    target, policy = logs([0.5, 0.3, 0.2]), logs([0.1, 0.6, 0.3])
    np.testing.assert_allclose(divergence.total_variation(target, policy), 0.4, rtol=1e-6)


def test_a_policy_on_one_of_two_modes_covers_half():
    target, policy = logs([0.49, 0.49, 0.02]), logs([0.98, 0.01, 0.01])
    coverage = divergence.mode_coverage(target, policy, threshold=0.1)
    np.testing.assert_allclose(coverage, (0.49 + 0.01) / 0.98, rtol=1e-6)
    np.testing.assert_allclose(divergence.modes_held(target, policy, threshold=0.1), 0.5)


def test_the_target_covers_all_of_its_modes(distributions):
    target = logs(distributions[0])
    np.testing.assert_allclose(divergence.mode_coverage(target, target, threshold=0.1), 1.0)
    np.testing.assert_allclose(divergence.modes_held(target, target, threshold=0.1), 1.0)
