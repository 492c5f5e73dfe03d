"""Policies over finitely many responses: normalized, and with the gradients that the formulas give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import IndexPairs, PairLogps
from jaxpref.policies import categorical, log_linear, tabular
from jaxpref.policies import unconstrained_features as ufm

KEY = jax.random.key(0)
FEATURES = jax.random.normal(jax.random.key(1), (3, 5, 4))
PROMPTS = jnp.array([0, 2, 1])


def all_policies():
    table = tabular.init(KEY, num_prompts=3, num_responses=5)
    linear = log_linear.LogLinearParams(jax.random.normal(KEY, (4,)))
    return {
        "tabular": tabular.response_logps(table, PROMPTS),
        "log_linear": log_linear.response_logps(linear, FEATURES),
        "categorical": categorical.response_logps(categorical.init(KEY, num_bins=5), PROMPTS),
        "unconstrained_features": ufm.response_logps(ufm.init(KEY, vocab=5, prefixes=3, dim=4), PROMPTS),
    }


@pytest.mark.parametrize("name", all_policies())
def test_the_probabilities_of_all_responses_sum_to_one(name):
    table = all_policies()[name]
    assert table.shape == (3, 5)
    np.testing.assert_allclose(np.exp(np.asarray(table, np.float64)).sum(-1), 1.0, rtol=1e-6)


def test_tabular_gradient_is_one_hot_less_probabilities():
    params = tabular.init(KEY, num_prompts=3, num_responses=5)
    grads = jax.grad(lambda p: tabular.response_logps(p, PROMPTS)[1, 3])(params)
    p = np.exp(np.asarray(tabular.response_logps(params, PROMPTS)[1], np.float64))
    expected = np.zeros((3, 5))
    expected[2] = np.eye(5)[3] - p  # pair 1 is about prompt 2
    np.testing.assert_allclose(grads.logits, expected, atol=1e-6)


def test_log_linear_gradient_is_features_less_their_mean():
    params = log_linear.LogLinearParams(jax.random.normal(KEY, (4,)))
    grads = jax.grad(lambda p: log_linear.response_logps(p, FEATURES)[0, 2])(params)
    p = np.exp(np.asarray(log_linear.response_logps(params, FEATURES)[0], np.float64))
    np.testing.assert_allclose(grads.weights, FEATURES[0, 2] - p @ np.asarray(FEATURES[0]), atol=1e-5)


def test_a_categorical_policy_is_the_distribution_that_it_was_made_from():
    params = categorical.from_probabilities(jnp.array([0.5, 0.25, 0.25, 0.0]))
    np.testing.assert_allclose(jnp.exp(categorical.response_logps(params)), [0.5, 0.25, 0.25, 0.0])


def test_categorical_samples_come_with_their_probabilities():
    p = jnp.array([0.6, 0.3, 0.1])
    draws = categorical.sample(categorical.from_probabilities(p), KEY, 20_000)
    share = np.bincount(np.asarray(draws), minlength=3) / 20_000
    np.testing.assert_allclose(share, p, atol=0.015)  # four standard errors of the largest


def test_pair_logps_pick_the_two_responses_of_each_pair():
    params = tabular.init(KEY, num_prompts=3, num_responses=5)
    batch = IndexPairs(PROMPTS, jnp.array([0, 1, 2]), jnp.array([4, 3, 0]))
    table = np.asarray(tabular.response_logps(params, PROMPTS))
    policy = tabular.pair_logps(params, batch)
    np.testing.assert_array_equal(policy.chosen, table[[0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(policy.rejected, table[[0, 1, 2], [4, 3, 0]])
    np.testing.assert_allclose(policy.margin, table[[0, 1, 2], [0, 1, 2]] - table[[0, 1, 2], [4, 3, 0]])


def test_a_multi_token_response_is_the_sum_over_its_prefixes_and_masked_tokens_are_nothing():
    params = ufm.init(KEY, vocab=5, prefixes=6, dim=4)
    tokens, prefixes = jnp.array([[1, 3, 0]]), jnp.array([[0, 4, 5]])
    rows = ufm.PrefixRows(prefixes, tokens, jnp.array([[True, True, False]]))
    w, h = (np.asarray(x, np.float64) for x in params)
    expected = 0.0
    for prefix, token in [(0, 1), (4, 3)]:
        scores = w @ h[prefix]
        expected += scores[token] - np.log(np.exp(scores).sum())
    logps = ufm.pair_logps(params, ufm.PrefixPairs(rows, rows))
    np.testing.assert_allclose(logps.chosen, [expected], rtol=1e-5)


def test_a_one_token_response_is_a_response_of_length_one():
    params = ufm.init(KEY, vocab=5, prefixes=3, dim=4)
    tokens = jnp.array([4, 0, 2])
    rows = ufm.one_token(PROMPTS, tokens)
    expected = ufm.response_logps(params, PROMPTS)[jnp.arange(3), tokens]
    np.testing.assert_allclose(
        ufm.pair_logps(params, ufm.PrefixPairs(rows, rows)).chosen, expected, rtol=1e-6
    )


def test_margin_is_chosen_less_rejected():
    assert float(PairLogps(jnp.array([-1.0]), jnp.array([-3.0])).margin[0]) == 2.0
