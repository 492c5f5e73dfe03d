"""The golden vectors of the ranking study, and its theorems against optimizers and an ODE solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize

from jaxpref import losses
from jaxpref.pairs import PairLogps
from jaxpref.probes import ranking as probes
from jaxpref.theory import divergence
from jaxpref.theory import ranking as theory

pytestmark = pytest.mark.usefixtures("x64")

GAP, MARGIN = np.array([5, -3, 20, 0.5, 8]), np.array([-1.0, 2, -20, 0, 3])
VOTES = np.array([0.75, 0.75, 1, 1, 0.75])


@pytest.fixture
def gap(x64):
    return jnp.asarray(GAP)


@pytest.fixture
def margin(x64):
    return jnp.asarray(MARGIN)


@pytest.fixture
def votes(x64):
    return jnp.asarray(VOTES)


def dpo(margin, gap, *, beta=0.1, gamma=1.0):
    pair = lambda difference: PairLogps(difference, jnp.zeros_like(difference))
    return losses.dpo_loss(pair(margin), pair(-gamma * gap), beta=beta)


def test_reward_margins_are_the_golden_ones(margin, gap):
    np.testing.assert_allclose(
        theory.reward_margin(margin, gap, beta=0.1), [0.4, -0.1, 0, 0.05, 1.1], atol=1e-12
    )


def test_losses_are_the_golden_ones(margin, gap):
    np.testing.assert_allclose(dpo(margin, gap), [0.51302, 0.74440, 0.69315, 0.66846, 0.28734], atol=5e-6)
    np.testing.assert_allclose(
        dpo(margin, gap, gamma=0.5), [0.62096, 0.66846, 1.31326, 0.68073, 0.40319], atol=5e-6
    )


def test_flip_thresholds_are_the_golden_ones(gap):
    expected = [0.47408, 0.85436, 0.12693, 0.66846, 0.37110]
    np.testing.assert_allclose(theory.flip_threshold(gap, beta=0.1), expected, atol=5e-6)


def test_idealized_margins_are_the_golden_ones(gap, votes):
    high, low = [5.986, 13.986, 49.068, 68.568, 2.986], [-3.901, 4.099, -13.093, 6.407, -6.901]
    np.testing.assert_allclose(theory.idealized_margin(gap, votes, beta=0.1), high, atol=5e-4)
    np.testing.assert_allclose(theory.idealized_margin(gap, votes, beta=1.0), low, atol=5e-4)


def test_idealized_accuracies_are_the_golden_ones(gap, votes):
    assert theory.idealized_accuracy(gap, votes, beta=0.1) == 1.0
    np.testing.assert_allclose(theory.idealized_accuracy(gap, votes, beta=1.0), 0.4)


def test_critical_betas_are_the_golden_ones(gap, votes):
    expected = [0.2197, np.inf, 0.3453, 13.81, 0.1373]
    np.testing.assert_allclose(theory.beta_crit(gap, votes), expected, rtol=4e-4)


def test_the_optimum_turns_right_at_the_critical_beta(gap, votes):
    critical = theory.beta_crit(gap, votes)[jnp.array([0, 2, 3, 4])]
    wrong = gap[jnp.array([0, 2, 3, 4])], votes[jnp.array([0, 2, 3, 4])]
    assert jnp.all(theory.idealized_margin(*wrong, beta=0.999 * critical) > 0)
    assert jnp.all(theory.idealized_margin(*wrong, beta=1.001 * critical) < 0)


def test_idealized_accuracy_falls_from_the_majority_to_the_reference():
    rng = np.random.default_rng(0)
    gap, votes = jnp.asarray(rng.normal(0, 20, 400)), jnp.asarray(rng.choice([0.25, 0.75, 1.0], 400))
    curve = jnp.stack([theory.idealized_accuracy(gap, votes, beta=b) for b in np.geomspace(1e-6, 1e6, 25)])
    majority = votes > 0.5
    np.testing.assert_allclose(curve[0], majority.mean(), atol=1e-6)
    np.testing.assert_allclose(curve[-1], probes.reference_accuracy(gap), atol=1e-6)
    kept = [
        theory.idealized_accuracy(gap[majority], votes[majority], beta=b) for b in np.geomspace(1e-6, 1e6, 25)
    ]
    assert np.all(np.diff(kept) <= 0)  # pairs are labelled by their majority, as in the paper


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 5.0])
def test_the_soft_label_minimizer_is_the_idealized_margin(beta):
    for gap, share in [(5.0, 0.75), (-3.0, 0.6), (0.5, 0.9)]:
        expected_loss = lambda m, c=gap, a=share: (
            a * np.logaddexp(0, -beta * (m + c)) + (1 - a) * np.logaddexp(0, beta * (m + c))
        )
        best = optimize.minimize_scalar(expected_loss, bracket=(-c_range(beta), c_range(beta))).x
        predicted = theory.idealized_margin(jnp.array(gap), jnp.array(share), beta=beta)
        np.testing.assert_allclose(predicted, best, atol=1e-4 / beta)


def c_range(beta):
    return 10 + 5 / beta


def test_the_rlhf_optimum_has_the_idealized_margin_for_every_pair():
    rng = np.random.default_rng(0)
    rewards, reference = jnp.asarray(rng.normal(size=6)), jnp.log(jnp.asarray(rng.dirichlet(np.ones(6))))
    optimum = divergence.regularized_optimum(reference, rewards, beta=0.3)
    gaps = lambda x: (x[:, None] - x)[np.triu_indices(6, 1)]
    predicted = theory.idealized_margin(-gaps(reference), jax.nn.sigmoid(gaps(rewards)), beta=0.3)
    np.testing.assert_allclose(gaps(optimum), predicted, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_pair_is_right_exactly_while_its_loss_is_below_the_threshold(gamma):
    rng = np.random.default_rng(1)
    margin, gap = jnp.asarray(rng.normal(0, 30, 5000)), jnp.asarray(rng.normal(0, 60, 5000))
    loss = dpo(margin, gap, gamma=gamma)
    threshold = theory.flip_threshold(gap, beta=0.1, gamma=gamma)
    np.testing.assert_array_equal(loss <= threshold, probes.ranked_right(margin))


def test_float32_losses_tie_where_flips_does_not():
    margin, gap = jnp.float32(-20.0), jnp.float32(2000.0)
    loss, threshold = dpo(margin[None], gap[None])[0], theory.flip_threshold(gap, beta=0.1)
    assert loss <= threshold  # both round to one number: a false flip
    reward_margin = theory.reward_margin(margin, gap, beta=0.1)
    assert not theory.flips(reward_margin, theory.difficulty(gap, beta=0.1))


def test_a_low_loss_on_a_right_reference_means_a_right_ranking():
    rng = np.random.default_rng(2)
    margin, gap = jnp.asarray(rng.normal(0, 9, 5000)), jnp.asarray(rng.normal(0, 9, 5000))
    for bound in (0.6, np.log(2)):
        sure = theory.loss_surely_right(dpo(margin, gap), gap, bound=bound)
        assert sure.sum() > 100
        assert jnp.all(probes.ranked_right(margin)[sure])


def test_a_low_ipo_loss_means_a_right_ranking_but_not_the_reverse():
    rng = np.random.default_rng(3)
    margin, gap = jnp.asarray(rng.normal(0, 20, 5000)), jnp.asarray(rng.normal(0, 9, 5000))
    loss = (margin + gap - 1 / (2 * 0.1)) ** 2
    sure = theory.ipo_surely_right(loss, gap, tau=0.1)
    assert jnp.all(margin[sure] >= 0)
    assert jnp.any(margin[~sure] > 0)


def test_zero_ipo_loss_ranks_right_up_to_its_target(gap):
    right = theory.ipo_optimal_margin(gap, tau=0.1) >= 0
    np.testing.assert_array_equal(right, GAP <= 5.0)
    np.testing.assert_allclose(theory.ipo_accuracy_at_zero_loss(gap, tau=0.1), 0.6)


def flow_time(gap, beta, rate=1.0):
    """When the ODE dm/dt = rate beta sigmoid(-beta (m + c)) from m = -c crosses 0."""
    slope = lambda _, m: rate * beta / (1 + np.exp(beta * (m + gap)))
    crossing = lambda _, m: m[0]
    crossing.terminal = True
    return integrate.solve_ivp(slope, (0, 1e7), [-gap], events=crossing, rtol=1e-8, atol=1e-8).t_events[0][0]


@pytest.mark.parametrize("gap", [5.0, 10.0, 20.0, 40.0, 80.0])
def test_time_to_flip_is_that_of_the_flow(gap):
    predicted = theory.time_to_flip(jnp.array(gap), beta=0.1)
    np.testing.assert_allclose(predicted, flow_time(gap, 0.1), rtol=1e-4)


def test_flipping_is_fastest_at_two_over_the_gap():
    betas = jnp.linspace(0.01, 1.0, 991)
    times = theory.time_to_flip(jnp.full(991, 10.0), beta=betas)
    np.testing.assert_allclose(betas[jnp.argmin(times)], 2 / 10, atol=1e-3)


def test_a_right_reference_needs_no_time():
    assert theory.time_to_flip(jnp.array(-3.0), beta=0.1) == 0


def test_initial_weight_is_the_slope_of_the_loss_before_training(gap):
    for gamma in (0.0, 1.0, 2.0):
        slope = jax.grad(lambda m, gamma=gamma: dpo(m, gap, gamma=gamma).sum())(-gap)
        np.testing.assert_allclose(theory.initial_weight(gap, beta=0.1, gamma=gamma), -slope, rtol=1e-10)


def test_implied_vote_share_reproduces_the_agreement():
    share = theory.implied_vote_share(jnp.array(0.66))
    np.testing.assert_allclose(share**2 + (1 - share) ** 2, 0.66, rtol=1e-12)
