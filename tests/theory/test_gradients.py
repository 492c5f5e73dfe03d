"""Prediction against measurement: closed forms, probes and gradient steps actually taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.logps import log_softmax
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import IndexPairs
from jaxpref.policies import log_linear, tabular
from jaxpref.probes import gradients as probes
from jaxpref.theory import gradients as theory

pytestmark = pytest.mark.usefixtures("x64")


def random_geometry(num: int = 10_000, seed: int = 0):
    """Products of random vectors in the plane, of very unequal norms and all angles."""
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.normal(0, 1.5, (2, num)))
    cosine = np.cos(rng.uniform(0, np.pi, num) ** 2 / np.pi)  # more small angles than large
    values = (norms[0] * norms[1] * cosine, norms[0] ** 2, norms[1] ** 2)
    return probes.GradientGeometry(*map(jnp.asarray, values))


def random_weights(num: int = 10_000, seed: int = 1) -> GradientWeights:
    return GradientWeights(*map(jnp.asarray, np.exp(np.random.default_rng(seed).normal(0, 1, (2, num)))))


def test_all_cases_but_the_reversed_one_occur_for_positive_weights():
    cases = theory.case(random_geometry(), random_weights())
    assert set(np.unique(cases)) == {1, 2, 3}


def test_the_reversed_case_needs_a_negative_weight():
    geometry = random_geometry()
    negated = jax.tree.map(jnp.negative, random_weights())
    assert set(np.unique(theory.case(geometry, negated))) >= {4}


def test_dpo_cases_are_those_of_table_one():
    inner = jnp.array([0.5, 1.5, 1.5, -1.0])
    chosen, rejected = jnp.array([1.0, 1.0, 4.0, 1.0]), jnp.array([4.0, 4.0, 1.0, 4.0])
    weights = GradientWeights(jnp.full(4, 0.05), jnp.full(4, 0.05))
    cases = theory.case(probes.GradientGeometry(inner, chosen, rejected), weights)
    assert [theory.CASES[int(case)] for case in cases] == ["ideal", "both fall", "both rise", "ideal"]


def test_predicates_agree_with_the_cases():
    geometry, weights = random_geometry(), random_weights()
    cases = theory.case(geometry, weights)
    np.testing.assert_array_equal(theory.both_fall(geometry, weights), cases == 2)
    np.testing.assert_array_equal(theory.both_rise(geometry, weights), cases == 3)
    np.testing.assert_array_equal(theory.chosen_falls(geometry, weights), cases == 2)
    np.testing.assert_array_equal(theory.rejected_rises(geometry, weights), cases == 3)


def test_the_phase_diagram_in_kappa_and_cosine_is_complete():
    geometry, weights = random_geometry(), random_weights()
    kappa = theory.kappa(geometry, weights)
    np.testing.assert_array_equal(
        theory.case_of_kappa(kappa, geometry.cosine), theory.case(geometry, weights)
    )


def test_the_ideal_case_is_an_inner_product_below_its_bound():
    geometry, weights = random_geometry(), random_weights()
    ideal = geometry.inner <= theory.inner_bound(geometry, weights)
    np.testing.assert_array_equal(ideal, theory.case(geometry, weights) == 1)


def test_equal_weights_never_shrink_the_margin_and_unequal_ones_may():
    geometry, weights = random_geometry(), random_weights()
    equal = GradientWeights(weights.chosen, weights.chosen)
    assert jnp.all(theory.predicted_change(geometry, equal).margin >= 0)
    assert jnp.any(theory.predicted_change(geometry, weights).margin < 0)


def log_linear_problem(num_pairs: int = 4, seed: int = 0):
    """Pairs with features of their own and one weight vector: gradients of different pairs meet."""
    rng = np.random.default_rng(seed)
    features = jnp.asarray(rng.normal(size=(num_pairs, 5, 3)))
    ids = jnp.asarray(np.stack([rng.permutation(5)[:2] for _ in range(num_pairs)]))
    batch = log_linear.FeaturePairs(features, ids[:, 0], ids[:, 1])
    params = log_linear.LogLinearParams(jnp.asarray(rng.normal(size=3)))
    reference = log_linear.pair_logps(log_linear.LogLinearParams(jnp.zeros(3)), batch)
    return params, batch._replace(reference=reference)


def change_after_step(params, batch, learning_rate, loss_fn):
    loss = lambda params: loss_fn(log_linear.pair_logps(params, batch)).mean()
    after = jax.tree.map(lambda p, g: p - learning_rate * g, params, jax.grad(loss)(params))
    before = log_linear.pair_logps(params, batch)
    return jax.tree.map(lambda x, y: (x - y) / learning_rate, log_linear.pair_logps(after, batch), before)


@pytest.mark.parametrize("name", ["dpo", "ipo", "sppo_hard"])
def test_batch_prediction_errs_in_proportion_to_the_learning_rate(name):
    params, batch = log_linear_problem()
    loss_fn = {
        "dpo": lambda policy: losses.dpo_loss(policy, batch.reference, beta=0.5),
        "ipo": lambda policy: losses.ipo_loss(policy, batch.reference, tau=0.2),
        "sppo_hard": lambda policy: losses.sppo_hard_loss(policy, batch.reference, beta=0.3),
    }[name]
    weights = losses.gradient_weights(loss_fn, log_linear.pair_logps(params, batch))
    products = probes.batch_gradient_products(log_linear.pair_logps, params, batch)
    predicted = theory.predicted_batch_change(products, weights)
    error = lambda rate: np.abs(np.subtract(change_after_step(params, batch, rate, loss_fn), predicted))
    np.testing.assert_allclose(error(1e-4) / error(5e-5), 2.0, rtol=0.05)


def test_batch_prediction_is_the_directional_derivative_along_the_update():
    params, batch = log_linear_problem()
    weights = random_weights(4)
    products = probes.batch_gradient_products(log_linear.pair_logps, params, batch)
    direction = probes.update_direction(log_linear.pair_logps, params, batch, weights)
    measured = probes.directional(log_linear.pair_logps, params, direction, batch)
    np.testing.assert_allclose(theory.predicted_batch_change(products, weights), measured, rtol=1e-10)


def test_a_batch_of_one_is_predicted_from_its_own_geometry():
    params, batch = log_linear_problem(1)
    weights = random_weights(1)
    products = probes.batch_gradient_products(log_linear.pair_logps, params, batch)
    own = theory.predicted_change(products.own, weights)
    np.testing.assert_allclose(theory.predicted_batch_change(products, weights), own, rtol=1e-12)


def tabular_problem(num_pairs: int = 6, vocab: int = 5):
    params = tabular.init(jax.random.key(3), num_prompts=num_pairs, num_responses=vocab, scale=2.0)
    pair = jnp.arange(num_pairs)
    return params, IndexPairs(pair, pair % vocab, (pair + 1) % vocab)


def test_two_one_token_responses_have_the_geometry_of_a_table():
    params, batch = tabular_problem()
    p = jnp.exp(tabular.response_logps(params, batch.prompts))
    predicted = theory.single_token_geometry(p, batch.chosen, batch.rejected)
    measured = probes.gradient_geometry(tabular.pair_logps, params, batch)
    np.testing.assert_allclose(predicted, measured, atol=1e-14)


def test_one_token_changes_follow_from_that_geometry_and_are_ideal():
    params, batch = tabular_problem()
    p = jnp.exp(tabular.response_logps(params, batch.prompts))
    geometry = theory.single_token_geometry(p, batch.chosen, batch.rejected, 4.0)
    at = lambda ids: jnp.take_along_axis(p, ids[:, None], 1)[:, 0]
    ones = GradientWeights(jnp.ones(6), jnp.ones(6))
    change = theory.single_token_change(at(batch.chosen), at(batch.rejected))
    np.testing.assert_allclose(4.0 * np.asarray(change), theory.predicted_change(geometry, ones), rtol=1e-12)
    np.testing.assert_array_equal(theory.case(geometry, ones), 1)


def test_bystanders_of_a_one_token_pair_change_by_a_common_amount():
    logits = jnp.array([0.3, -1.0, 2.0, 0.5])
    margin = lambda z: log_softmax(z)[0] - log_softmax(z)[1]
    change = jax.jvp(log_softmax, (logits,), (jax.grad(margin)(logits),))[1]
    p = jnp.exp(log_softmax(logits))
    np.testing.assert_allclose(change[2:], theory.bystander_change(p[0], p[1]), atol=1e-14)


def test_all_mass_on_the_pair_means_opposite_gradients():
    geometry = theory.single_token_geometry(jnp.array([[0.3, 0.7]]), jnp.array([0]), jnp.array([1]))
    np.testing.assert_allclose(geometry.inner, -2 * 0.3 * 0.7, rtol=1e-12)
    np.testing.assert_allclose(geometry.cosine, -1.0, rtol=1e-12)


def test_suffixes_of_the_worked_example_lower_the_chosen_response():
    # a = .6, b = .3, V = 50, p_w = p_l = .5; the specification's values for 0, 2, 5, 10 and 20 tokens
    half = jnp.array(0.5)
    rate = lambda k: theory.suffix_change(half, half, jnp.full(k, 0.6), jnp.full(k, 0.3), 1 / 49).chosen
    np.testing.assert_allclose(
        [rate(k) for k in (0, 2, 5, 10, 20)], [1.0, 0.755, 0.388, -0.224, -1.449], atol=5e-4
    )


def test_the_chosen_response_falls_past_the_critical_suffix_length():
    half = jnp.array(0.5)
    after = jnp.array(0.6), jnp.array(0.3)
    critical = theory.critical_suffix_length(half, half, *after, 1 / 49)
    rate = lambda k: theory.suffix_change(half, half, jnp.full(k, 0.6), jnp.full(k, 0.3), 1 / 49).chosen
    assert rate(int(np.floor(critical))) > 0 > rate(int(np.ceil(critical)))
    assert theory.critical_suffix_length(half, half, *after[::-1], 1 / 49) == jnp.inf


def residuals(probabilities, token):
    return jax.nn.one_hot(token, probabilities.shape[-1]) - probabilities


def test_a_proportional_suffix_token_changes_as_autodiff_says():
    a, b, q = 0.6, 0.3, np.array([0.2, 0.5, 0.3])
    logits, offset = np.log(np.r_[a, (1 - a) * q]), np.log(np.r_[b, (1 - b) * q] / np.r_[a, (1 - a) * q])
    logps = lambda z: jnp.stack([log_softmax(z)[0], log_softmax(z + offset)[0]])
    jacobian = jax.jacrev(logps)(jnp.asarray(logits))
    expected = jacobian @ (jacobian[0] - jacobian[1])
    change = theory.suffix_token_change(jnp.array(a), jnp.array(b), float(q @ q))
    np.testing.assert_allclose(change, expected, rtol=1e-12)


def test_a_suffix_expected_after_the_chosen_beginning_falls_in_both_answers():
    rng = np.random.default_rng(0)
    chosen = rng.dirichlet(np.ones(6), 20_000)
    spread = rng.uniform(0, 1, (20_000, 1)) * chosen[:, :1] * rng.dirichlet(np.ones(5), 20_000)
    rejected = np.c_[1 - (chosen[:, 1:] + spread).sum(1), chosen[:, 1:] + spread]  # token 0 less likely
    rows = [residuals(jnp.asarray(p)[:, None], jnp.zeros((20_000, 1), int)) for p in (chosen, rejected)]
    ones = GradientWeights(jnp.ones(20_000), jnp.ones(20_000))
    change = theory.predicted_change(theory.shared_logits_geometry(*rows), ones)
    assert jnp.all(change.chosen <= 1e-12)
    assert jnp.all(change.rejected <= 1e-12)


def test_without_the_condition_on_other_tokens_the_chosen_suffix_can_rise():
    chosen, rejected = jnp.array([[[0.3, 0.0, 0.7]]]), jnp.array([[[0.2, 0.7, 0.1]]])
    token = jnp.zeros((1, 1), int)
    geometry = theory.shared_logits_geometry(residuals(chosen, token), residuals(rejected, token))
    change = theory.predicted_change(geometry, GradientWeights(jnp.ones(1), jnp.ones(1)))
    np.testing.assert_allclose([change.chosen[0], change.rejected[0]], [0.35, -0.51], atol=1e-12)


def test_the_last_layer_needs_no_backward_pass():
    rng = np.random.default_rng(0)
    unembedding = jnp.asarray(rng.normal(size=(6, 3)))
    hidden = [jnp.asarray(rng.normal(size=(length, 3))) for length in (2, 4)]
    tokens = [jnp.asarray(rng.integers(0, 6, length)) for length in (2, 4)]
    logps = lambda w, side: jnp.sum(residuals(0 * w[:, 0], tokens[side]) * log_softmax(hidden[side] @ w.T))
    grads = [jax.grad(logps)(unembedding, side).ravel() for side in (0, 1)]
    rows = [residuals(jax.nn.softmax(hidden[side] @ unembedding.T), tokens[side]) for side in (0, 1)]
    geometry = theory.last_layer_geometry(rows[0], hidden[0], rows[1], hidden[1])
    expected = (grads[0] @ grads[1], grads[0] @ grads[0], grads[1] @ grads[1])
    np.testing.assert_allclose(geometry, expected, rtol=1e-12)


def test_normalized_gradients_never_move_either_response_the_wrong_way():
    geometry = random_geometry()
    change = theory.normalized_change(geometry, jnp.full(10_000, 0.1))
    assert jnp.all(change.chosen >= -1e-12)
    assert jnp.all(change.rejected <= 1e-12)


def test_normalized_gradients_are_gradient_weights_of_one_over_the_norm():
    geometry = random_geometry()
    over_norm = lambda sq_norm: 0.1 / jnp.sqrt(sq_norm)
    weights = GradientWeights(over_norm(geometry.chosen_sq_norm), over_norm(geometry.rejected_sq_norm))
    expected = theory.predicted_change(geometry, weights)
    change = theory.normalized_change(geometry, jnp.full(10_000, 0.1))
    np.testing.assert_allclose(change, expected, atol=1e-10)
    np.testing.assert_allclose(theory.kappa(geometry, weights), 1.0, rtol=1e-12)


def test_masking_tokens_leaves_the_products_of_the_others():
    products = probes.TokenGradientProducts(jnp.arange(6.0).reshape(2, 3), jnp.ones(2), jnp.ones(3))
    kept = theory.masked_inner(products, jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0, 1.0]))
    assert kept == 3 + 5
