"""Theorems of arXiv:2410.08847 against automatic differentiation of the model that they are about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import unconstrained_features as ufm
from jaxpref.theory import likelihood as theory

pytestmark = pytest.mark.usefixtures("x64")

SLOPE = -0.37  # ell'(margin): any negative number, for rates are linear in it


@pytest.fixture
def params(x64) -> ufm.UnconstrainedFeatures:
    return ufm.init(jax.random.key(0), vocab=7, prefixes=9, dim=5)


def inner(first, second):
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    return jax.tree.reduce(jnp.add, products)


def flow_rate(logp, margin, params):
    """d/dt of logp under gradient flow on the margin with ell' = -1, by two gradients."""
    return jax.jit(lambda params: inner(jax.grad(logp)(params), jax.grad(margin)(params)))(params)


def token_logp(token, prompt=0):
    return lambda params: ufm.response_logps(params, jnp.array([prompt]))[0, token]


def token_margin(chosen, rejected, prompt=0):
    return lambda params: token_logp(chosen, prompt)(params) - token_logp(rejected, prompt)(params)


def one_token(params, chosen=2, rejected=5):
    return params.unembedding, params.hidden[0], jnp.array(chosen), jnp.array(rejected)


def test_theorem_four_is_the_flow_of_the_chosen_token(params):
    expected = flow_rate(token_logp(2), token_margin(2, 5), params)
    np.testing.assert_allclose(theory.chosen_rate(*one_token(params)).total, expected, rtol=1e-9)


def test_norms_never_lower_the_chosen_token(params):
    drawn = jax.vmap(
        lambda scale: theory.chosen_rate(*one_token(jax.tree.map(lambda x: scale * x, params))).norms
    )
    assert jnp.all(drawn(jnp.linspace(-3, 3, 50)) >= 0)


def test_theorem_five_is_the_flow_of_every_token(params):
    rates = theory.token_rates(*one_token(params))
    expected = [flow_rate(token_logp(token), token_margin(2, 5), params) for token in range(7)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_bystanders_gain_in_the_order_of_their_alignment_with_the_difference(params):
    bystanders = np.array([0, 1, 3, 4, 6])
    gains = jnp.array([flow_rate(token_logp(token), token_margin(2, 5), params) for token in bystanders])
    scores = theory.gain_scores(params.unembedding, jnp.array(2), jnp.array(5))
    np.testing.assert_array_equal(jnp.argsort(gains), jnp.argsort(scores[bystanders]))


def test_fixed_features_rule_displacement_out(params):
    held = lambda logp: lambda unembedding: logp(params._replace(unembedding=unembedding))
    expected = flow_rate(held(token_logp(2)), held(token_margin(2, 5)), params.unembedding)
    rate = theory.fixed_features_rate(*one_token(params))
    np.testing.assert_allclose(rate, expected, rtol=1e-9)
    assert rate > 0


def test_the_two_halves_of_the_model_add_up(params):
    args = one_token(params)
    halves = theory.fixed_features_rate(*args) + theory.fixed_unembedding_rate(*args)
    np.testing.assert_allclose(halves, theory.chosen_rate(*args).total, rtol=1e-9)


def test_the_split_of_the_difference_obeys_pythagoras(params):
    split = theory.unembedding_split(params.unembedding, jnp.array(2), jnp.array(5))
    w, l = np.asarray(params.unembedding)[[2, 5]]
    np.testing.assert_allclose(split.projection**2 + split.orthogonal**2, (w - l) @ (w - l), rtol=1e-12)
    np.testing.assert_allclose(split.projection, abs((w - l) @ w) / np.linalg.norm(w), rtol=1e-12)


# prefix 0 is the prompt; the two responses and the third share no other prefix
CHOSEN = ufm.PrefixRows(jnp.array([[0, 1, 2]]), jnp.array([[2, 4, 2]]), jnp.array([[True, True, True]]))
REJECTED = ufm.PrefixRows(jnp.array([[0, 3, 0]]), jnp.array([[5, 2, 0]]), jnp.array([[True, True, False]]))
OTHER = ufm.PrefixRows(jnp.array([[0, 4, 5]]), jnp.array([[3, 3, 6]]), jnp.array([[True, True, True]]))


def response(params, rows: ufm.PrefixRows) -> theory.Response:
    return theory.Response(params.hidden[rows.prefixes[0]], rows.tokens[0], rows.mask[0])


def response_logp(rows):
    return lambda params: ufm.row_token_logps(params, rows).sum()


def response_margin(params):
    return response_logp(CHOSEN)(params) - response_logp(REJECTED)(params)


def test_theorem_six_is_the_flow_of_a_chosen_response_of_many_tokens(params):
    rate = theory.response_rate(params.unembedding, response(params, CHOSEN), response(params, REJECTED))
    expected = flow_rate(response_logp(CHOSEN), response_margin, params)
    np.testing.assert_allclose(rate, expected, rtol=1e-9)


def test_theorem_seven_is_the_flow_of_any_other_response(params):
    triple = (response(params, rows) for rows in (OTHER, CHOSEN, REJECTED))
    expected = flow_rate(response_logp(OTHER), response_margin, params)
    np.testing.assert_allclose(theory.other_response_rate(params.unembedding, *triple), expected, rtol=1e-9)


def test_theorem_six_of_single_tokens_is_theorem_four(params):
    single = lambda token: theory.Response(params.hidden[:1], jnp.array([token]), jnp.array([True]))
    rate = theory.response_rate(params.unembedding, single(2), single(5))
    np.testing.assert_allclose(rate, theory.chosen_rate(*one_token(params)).total, rtol=1e-12)


def test_coefficients_lie_between_minus_two_and_two_and_vanish_off_the_response(params):
    alpha = theory.coefficients(params.unembedding, response(params, CHOSEN), response(params, REJECTED))
    assert alpha.shape == (3, 3)
    assert jnp.all(jnp.abs(alpha) <= 2)
    np.testing.assert_array_equal(alpha[:, 2], 0.0)


def test_theorems_eight_and_nine_are_the_flow_of_a_batch(params):
    chosen, rejected = np.array([2, 5, 2]), np.array([5, 0, 1])
    slopes = np.array([-0.1, -0.4, -0.3])
    loss = lambda params: sum(
        slope * token_margin(w, l, prompt)(params) / 3
        for prompt, (slope, w, l) in enumerate(zip(slopes, chosen, rejected, strict=True))
    )  # its gradient is that of the mean loss whose slopes these are
    table = lambda params: ufm.response_logps(params, jnp.arange(3))
    ascent = jax.tree.map(jnp.negative, jax.grad(loss)(params))
    expected = jax.jvp(table, (params,), (ascent,))[1]
    rates = theory.batch_token_rates(
        params.unembedding, params.hidden[:3], *map(jnp.asarray, (chosen, rejected, slopes))
    )
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def flow_of_loss(params, loss):
    """d/dt of the chosen token's log-probability under gradient flow on `loss`."""
    return -flow_rate(token_logp(2), loss, params)


def chosen_sq_norm(params):
    return flow_rate(token_logp(2), token_logp(2), params)


def test_proposition_one_is_the_flow_with_an_sft_term(params):
    rate = -SLOPE * theory.chosen_rate(*one_token(params)).total
    loss = lambda params: SLOPE * token_margin(2, 5)(params) - 0.2 * token_logp(2)(params)
    predicted = theory.sft_rate(rate, chosen_sq_norm(params), 0.2)
    np.testing.assert_allclose(predicted, flow_of_loss(params, loss), rtol=1e-9)


def test_proposition_two_is_the_flow_with_unequal_weights(params):
    rate = -SLOPE * theory.chosen_rate(*one_token(params)).total
    loss = lambda params: -jax.nn.log_sigmoid(1.5 * token_logp(2)(params) - 0.5 * token_logp(5)(params))
    weighted_margin = 1.5 * token_logp(2)(params) - 0.5 * token_logp(5)(params)
    predicted = theory.reweighted_rate(
        rate, chosen_sq_norm(params), slope=jnp.array(SLOPE),
        weighted_slope=-jax.nn.sigmoid(-weighted_margin), chosen_weight=1.5, rejected_weight=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(predicted, flow_of_loss(params, loss), rtol=1e-9)
