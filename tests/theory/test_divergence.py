import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.logps import log_softmax
from jaxpref.losses.weights import GradientWeights
from jaxpref.probes import divergence as probes
from jaxpref.theory import divergence as theory
from jaxpref.theory import gradients

pytestmark = pytest.mark.usefixtures("x64")


def distributions(num: int, bins: int, concentration: float = 1.0, seed: int = 0):
    return jnp.log(jnp.asarray(np.random.default_rng(seed).dirichlet(np.full(bins, concentration), num)))


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_logit_gradients_are_those_of_autodiff(name):
    probe, gradient = getattr(probes, f"{name}_kl"), getattr(theory, f"{name}_kl_gradient")
    target, policy = distributions(2, 6)
    expected = jax.grad(lambda z: probe(target, log_softmax(z)))(policy)
    np.testing.assert_allclose(gradient(target, policy), expected, atol=1e-12)


def test_three_steps_give_the_two_vectors_of_the_toy_figure():
    # the published bars carry the two names the other way round; these are plain logit descent
    start, target = jnp.log(jnp.array([0.3, 0.3, 0.1, 0.3])), jnp.log(jnp.array([0.2, 0.1, 0.6, 0.1]))
    descend = functools.partial(
        theory.logit_descent, target=target, start=start, learning_rate=0.92, num_steps=3
    )
    forward, reverse = (
        descend(gradient) for gradient in (theory.forward_kl_gradient, theory.reverse_kl_gradient)
    )
    np.testing.assert_allclose(jnp.exp(forward[-1]), [0.251, 0.202, 0.345, 0.202], atol=1e-3)
    np.testing.assert_allclose(jnp.exp(reverse[-1]), [0.331, 0.223, 0.223, 0.223], atol=1e-3)
    assert forward.shape == (4, 4)


def test_gap_changes_are_exact_for_a_step_of_any_size():
    target, policy = distributions(2, 5)
    for gradient in (theory.forward_kl_gradient, theory.reverse_kl_gradient):
        after = theory.logit_descent(gradient, target, policy, learning_rate=3.0, num_steps=1)[-1]
        gap = lambda p: p[1] - p[4]
        predicted = theory.gap_change(gradient, target, policy, jnp.array(1), jnp.array(4))
        np.testing.assert_allclose((gap(after) - gap(policy)) / 3.0, predicted, atol=1e-10)


def paired_bins(x, y_first, y_second, rest, seed):
    """Two distributions whose bins 0 and 1 have x, x and y_first, y_second; the rest is random."""
    rng = np.random.default_rng(seed)
    other = lambda left: left[:, None] * rng.dirichlet(np.ones(rest), len(left))
    equal = np.c_[x, x, other(1 - 2 * x)]
    unequal = np.c_[y_first, y_second, other(1 - y_first - y_second)]
    return jnp.log(jnp.asarray(equal)), jnp.log(jnp.asarray(unequal))


def draw_bins(seed: int, num: int = 10_000):
    """One common and two unequal probabilities, all valid together."""
    rng = np.random.default_rng(seed)
    common = rng.uniform(0.005, 0.45, num)
    low, high = np.sort(rng.dirichlet(np.ones(3), num)[:, :2], axis=1).T
    return paired_bins(common, high, low, 3, seed)


def gap_changes(target, policy):
    of = lambda gradient: jax.vmap(
        lambda q, p: theory.gap_change(gradient, q, p, jnp.array(0), jnp.array(1))
    )(target, policy)
    return of(theory.forward_kl_gradient), of(theory.reverse_kl_gradient)


def test_condition_one_holds_exactly_on_random_draws():
    policy, target = draw_bins(0)  # p1 = p2, q1 > q2
    forward, reverse = gap_changes(target, policy)
    q = jnp.exp(target)
    predicted = theory.reverse_widens_faster(jnp.exp(policy[:, 0]), q[:, 0], q[:, 1])
    np.testing.assert_array_equal(reverse > forward, predicted)
    assert 0.1 < predicted.mean() < 0.9


def test_conditions_two_and_three_hold_exactly_on_random_draws():
    target, policy = draw_bins(1)  # q1 = q2, p1 > p2
    forward, reverse = gap_changes(target, policy)
    p, q, divergence = jnp.exp(policy), jnp.exp(target[:, 0]), probes.reverse_kl(target, policy)
    keeps = theory.reverse_keeps_subset(p[:, 0], p[:, 1], q, divergence)
    np.testing.assert_array_equal(reverse > forward, keeps)
    np.testing.assert_array_equal(
        reverse < forward, theory.reverse_drops_faster(p[:, 0], p[:, 1], q, divergence)
    )
    assert 0.1 < keeps.mean() < 0.9


def test_means_lie_between_their_arguments_and_meet_them():
    x, y = jnp.array([0.3, 0.2, 0.7]), jnp.array([0.1, 0.2, 0.9])
    for mean in (theory.logarithmic_mean, theory.identric_mean):
        value = mean(x, y)
        assert jnp.all((value >= jnp.minimum(x, y)) & (value <= jnp.maximum(x, y)))
        assert value[1] == 0.2
        np.testing.assert_allclose(value, mean(y, x), rtol=1e-12)


def test_regularized_reward_is_a_reverse_kl_to_its_optimum():
    reference, policy = distributions(2, 8)
    rewards = jnp.linspace(-1, 2, 8)
    optimum = theory.regularized_optimum(reference, rewards, beta=0.4)
    value = theory.regularized_value(reference, rewards, beta=0.4)
    reward = theory.regularized_reward(policy, reference, rewards, beta=0.4)
    np.testing.assert_allclose(reward, value - 0.4 * probes.reverse_kl(optimum, policy), rtol=1e-10)


def test_best_of_n_is_the_share_of_tuples_whose_best_it_is():
    policy, rewards = jnp.log(jnp.array([0.2, 0.5, 0.3])), np.array([1.0, 0.0, 2.0])
    p, expected = np.exp(policy), np.zeros(3)
    for draw in np.ndindex(3, 3, 3):
        expected[max(draw, key=lambda i: rewards[i])] += np.prod(p[list(draw)])
    np.testing.assert_allclose(
        jnp.exp(theory.best_of_n(policy, jnp.asarray(rewards), 3)), expected, rtol=1e-12
    )


def test_equal_rewards_share_in_proportion_to_the_policy():
    policy = jnp.log(jnp.array([0.1, 0.3, 0.6, 0.0]))
    best = jnp.exp(theory.best_of_n(policy, jnp.array([5.0, 5.0, 1.0, 9.0]), 2))
    np.testing.assert_allclose(best, [(1 - 0.36) / 4, 3 * (1 - 0.36) / 4, 0.36, 0.0], rtol=1e-12)


def test_best_of_n_fitted_twice_is_best_of_n_squared():
    policy, rewards = distributions(1, 30)[0], jnp.asarray(np.random.default_rng(1).normal(size=30))
    twice = theory.best_of_n(theory.best_of_n(policy, rewards, 5), rewards, 5)
    np.testing.assert_allclose(jnp.exp(twice), jnp.exp(theory.best_of_n(policy, rewards, 25)), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_best_of_n_stays_within_its_divergence_bound(n):
    policies = distributions(20, 50)
    best = jax.vmap(lambda p: theory.best_of_n(p, jnp.arange(50.0), n))(policies)
    bound = theory.best_of_n_kl_bound(n)
    assert jnp.all(probes.reverse_kl(policies, best) <= bound + 1e-12)


def test_rare_responses_reach_the_divergence_bound():
    fine = jnp.full(2000, -jnp.log(2000.0))
    best = theory.best_of_n(fine, jnp.arange(2000.0), 4)
    np.testing.assert_allclose(probes.reverse_kl(fine, best), theory.best_of_n_kl_bound(4), rtol=1e-3)


def test_ipo_over_all_pairs_has_its_least_squares_solution():
    num, beta = 10, 10.0
    couples = [(low, high) for high in range(num) for low in range(high)]
    design = np.zeros((len(couples), num))
    for row, (low, high) in enumerate(couples):
        design[row, [low, high]] = [-1, 1]
    least = np.linalg.lstsq(design, np.full(len(couples), beta), rcond=None)[0]
    optimum = theory.ipo_all_pairs_optimum(num, beta)
    np.testing.assert_allclose(optimum, least, atol=1e-10)
    np.testing.assert_allclose(optimum, np.arange(-9, 10, 2), atol=1e-12)
    np.testing.assert_allclose(np.mean((design @ optimum - beta) ** 2), 26.67, atol=5e-3)


def test_negative_gradients_widen_the_margin_of_every_table():
    policies = jnp.exp(distributions(1000, 20, concentration=0.2))
    chosen, rejected = jnp.zeros(1000, int), jnp.ones(1000, int)
    geometry = gradients.single_token_geometry(policies, chosen, rejected)
    gain = theory.negative_gradient_gain(geometry)
    np.testing.assert_allclose(gain.margin, 1 + policies[:, 0] - policies[:, 1], rtol=1e-10)
    helps = theory.negative_gradient_helps_chosen(policies, chosen, rejected)
    np.testing.assert_array_equal(helps, gain.chosen >= 0)
    assert 0 < helps.mean() < 1


def test_negative_gradient_gain_is_the_prediction_with_less_that_without():
    geometry = gradients.single_token_geometry(
        jnp.exp(distributions(9, 4)), jnp.zeros(9, int), jnp.ones(9, int)
    )
    change = lambda d_l: gradients.predicted_change(geometry, GradientWeights(jnp.ones(9), jnp.full(9, d_l)))
    gain = np.subtract(change(1.0), change(0.0))
    np.testing.assert_allclose(theory.negative_gradient_gain(geometry), gain, atol=1e-12)


def test_bystanders_of_a_pair_step_gain_by_one_factor_iff_the_law_says():
    policies = distributions(500, 6, concentration=0.5)
    size = jnp.array(0.3)
    after = jax.vmap(lambda p: theory.pair_step(p, jnp.array(0), jnp.array(1), size))(policies)
    gained = (after - policies)[:, 2:]
    np.testing.assert_allclose(gained - gained[:, :1], 0.0, atol=1e-10)
    p = jnp.exp(policies)
    np.testing.assert_array_equal(gained[:, 0] > 0, theory.bystanders_gain(p[:, 0], p[:, 1], size))
    assert jnp.all(after[:, 0] > policies[:, 0])
    assert jnp.all(after[:, 1] < policies[:, 1])


def test_pushing_one_response_down_feeds_what_is_already_likely():
    policy = jnp.log(jnp.array([0.6, 0.2, 0.15, 0.05]))
    after = theory.push_down_step(policy, jnp.array(3), jnp.array(1.0))
    ratio = (after - policy)[:3]
    assert jnp.all(jnp.diff(ratio) < 0)
    expected = jax.grad(lambda z: log_softmax(z)[3])(policy)
    np.testing.assert_allclose(after, log_softmax(policy - expected), atol=1e-12)


def test_tilted_log_ratio_is_that_of_a_product_of_tilted_unigrams():
    reference, scores = distributions(1, 5)[0], jnp.asarray(np.random.default_rng(0).normal(size=5))
    tokens = np.array([0, 3, 3, 1])
    tilted = log_softmax(reference + 0.7 * scores)
    counts = jnp.asarray(np.bincount(tokens, minlength=5).astype(float))
    logratio = theory.tilted_logratio(reference, scores, counts, jnp.array(0.7))
    np.testing.assert_allclose(logratio, (tilted - reference)[tokens].sum(), rtol=1e-12)


def test_the_chosen_log_ratio_peaks_where_the_policy_scores_as_it_does():
    reference, scores = distributions(1, 5)[0], jnp.linspace(-1.0, 1.0, 5)
    counts = jnp.array([0.0, 0, 1, 2, 1])
    strengths = jnp.linspace(0.0, 8.0, 4001)
    curve = jax.vmap(lambda s: theory.tilted_logratio(reference, scores, counts, s))(strengths)
    best = strengths[jnp.argmax(curve)]
    own = jnp.exp(log_softmax(reference + best * scores)) @ scores
    np.testing.assert_allclose(own, counts @ scores / 4, atol=1e-3)
