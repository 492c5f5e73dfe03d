import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import losses
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import IndexPairs, PairLogps, TokenPairs
from jaxpref.policies import tabular, transformer, unconstrained_features
from jaxpref.policies.unconstrained_features import PrefixPairs
from jaxpref.probes import gradients

from .conftest import make_rows

PAIR, TOKEN = unconstrained_features.pair_logps, unconstrained_features.token_logps


def flat_gradients(function, params):
    """One flat gradient per entry of the output, by reverse mode on all entries at once."""
    leaves = jax.tree.leaves(jax.jacrev(function)(params))
    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def test_gradient_geometry_is_products_of_explicit_gradients(params, batch):
    chosen = flat_gradients(lambda params: PAIR(params, batch).chosen, params)
    rejected = flat_gradients(lambda params: PAIR(params, batch).rejected, params)
    geometry = gradients.gradient_geometry(PAIR, params, batch)
    np.testing.assert_allclose(geometry.inner, (chosen * rejected).sum(1), rtol=1e-10)
    np.testing.assert_allclose(geometry.chosen_sq_norm, (chosen**2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(geometry.rejected_sq_norm, (rejected**2).sum(1), rtol=1e-10)


def test_a_pair_of_equal_responses_has_one_gradient(params, batch):
    same = PrefixPairs(batch.chosen, batch.chosen)
    geometry = gradients.gradient_geometry(PAIR, params, same)
    np.testing.assert_allclose(geometry.inner, geometry.chosen_sq_norm, rtol=1e-12)
    np.testing.assert_allclose(geometry.rejected_sq_norm, geometry.chosen_sq_norm, rtol=1e-12)
    np.testing.assert_allclose(geometry.cosine, 1.0, rtol=1e-12)


def test_swapping_the_responses_swaps_the_norms_and_keeps_the_inner_product(params, batch):
    geometry = gradients.gradient_geometry(PAIR, params, batch)
    swapped = gradients.gradient_geometry(PAIR, params, PrefixPairs(batch.rejected, batch.chosen))
    np.testing.assert_allclose(swapped.inner, geometry.inner, rtol=1e-12)
    np.testing.assert_allclose(swapped.chosen_sq_norm, geometry.rejected_sq_norm, rtol=1e-12)


def test_the_gradient_of_the_margin_has_the_norm_that_polarization_says(params, batch):
    margin = flat_gradients(lambda params: PAIR(params, batch).margin, params)
    geometry = gradients.gradient_geometry(PAIR, params, batch)
    expected = geometry.chosen_sq_norm + geometry.rejected_sq_norm - 2 * geometry.inner
    np.testing.assert_allclose((margin**2).sum(1), expected, rtol=1e-10)


def test_padding_does_not_change_the_geometry(params, batch):
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 3)))
    padded = PrefixPairs(*jax.tree.map(pad, (batch.chosen, batch.rejected)))
    before = gradients.gradient_geometry(PAIR, params, batch)
    after = gradients.gradient_geometry(PAIR, params, padded)
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_vanishing_gradients_have_cosine_zero():
    zero = jnp.zeros(1)
    assert gradients.GradientGeometry(zero, zero, zero).cosine == 0


def test_products_of_half_precision_gradients_are_summed_in_float32():
    ones = jnp.ones(4096, jnp.bfloat16)  # a bfloat16 running sum sticks at 256
    assert gradients.tree_inner(ones, ones).dtype == jnp.float32
    assert gradients.tree_inner(ones, ones) == 4096


@pytest.fixture(scope="module")
def language_model():
    """A transformer so wide that one gradient outweighs its activations, pairs, and the compiled probe."""
    config = transformer.tiny(128, dim=64, layers=1)
    rng = np.random.default_rng(0)
    rows = [make_rows(rng, np.full(16, 2), 1 + rng.integers(0, 3, 16), 5) for _ in range(2)]
    policy = functools.partial(transformer.pair_logps, config=config)
    args = transformer.init(jax.random.key(0), config), TokenPairs(*rows)
    return (
        policy,
        args,
        jax.jit(functools.partial(gradients.gradient_geometry, policy)).lower(*args).compile(),
    )


def test_memory_does_not_grow_with_the_number_of_pairs(language_model):
    _, (params, _), probe = language_model
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert probe.memory_analysis().temp_size_in_bytes < 4 * size  # 32 gradients at once would be 32


def test_a_transformer_has_the_geometry_of_its_explicit_gradients(language_model):
    policy, (params, batch), probe = language_model
    jacobian = jax.jit(jax.jacrev(policy))(params, batch)
    flat = lambda tree: np.concatenate([np.reshape(x, (16, -1)) for x in jax.tree.leaves(tree)], axis=1)
    chosen, rejected = flat(jacobian.chosen), flat(jacobian.rejected)
    geometry = probe(params, batch)
    tolerance = 1e-5 * np.sqrt((chosen**2).sum(1) * (rejected**2).sum(1))
    assert np.all(np.abs(geometry.inner - (chosen * rejected).sum(1)) < tolerance)
    np.testing.assert_allclose(geometry.chosen_sq_norm, (chosen**2).sum(1), rtol=1e-5)


def test_batch_products_hold_each_pairs_own_geometry_on_the_diagonal(params, batch):
    own = gradients.batch_gradient_products(PAIR, params, batch).own
    expected = gradients.gradient_geometry(PAIR, params, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), own, expected)


def test_update_direction_is_minus_the_gradient_of_the_mean_loss(params, batch):
    dpo = lambda policy: losses.dpo_loss(policy, batch.reference, beta=0.3)
    weights = losses.gradient_weights(dpo, PAIR(params, batch))
    direction = gradients.update_direction(PAIR, params, batch, weights)
    expected = jax.grad(lambda params: -dpo(PAIR(params, batch)).mean())(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), direction, expected)


def test_directional_is_the_central_difference(params, batch):
    direction = jax.tree.map(jnp.cos, params)
    at = lambda step: PAIR(optax.tree.add_scale(params, step, direction), batch)
    change = gradients.directional(PAIR, params, direction, batch)
    high, low = at(1e-5), at(-1e-5)
    np.testing.assert_allclose(change.chosen, (high.chosen - low.chosen) / 2e-5, rtol=1e-6)
    np.testing.assert_allclose(change.rejected, (high.rejected - low.rejected) / 2e-5, rtol=1e-6)


@pytest.fixture
def one_pair(batch):
    return jax.tree.map(lambda x: x[:1], batch)


def test_token_products_are_products_of_explicit_token_gradients(params, one_pair):
    chosen = flat_gradients(lambda params: TOKEN(params, one_pair).chosen[0], params)
    rejected = flat_gradients(lambda params: TOKEN(params, one_pair).rejected[0], params)
    products = gradients.token_gradient_products(TOKEN, params, one_pair)
    np.testing.assert_allclose(products.inner, chosen @ rejected.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(products.chosen_sq_norm, (chosen**2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(products.rejected_sq_norm, (rejected**2).sum(1), rtol=1e-9)


def test_token_products_sum_to_the_inner_product(params, one_pair):
    products = gradients.token_gradient_products(TOKEN, params, one_pair)
    inner = gradients.gradient_geometry(PAIR, params, one_pair).inner[0]
    np.testing.assert_allclose(products.inner.sum(), inner, rtol=1e-10)
    weighted = (
        jnp.sqrt(products.chosen_sq_norm)[:, None] * products.cosine * jnp.sqrt(products.rejected_sq_norm)
    )
    np.testing.assert_allclose(weighted.sum(), inner, rtol=1e-10)


def test_tokens_off_the_response_have_no_gradient(params, one_pair):
    products = gradients.token_gradient_products(TOKEN, params, one_pair)
    np.testing.assert_array_equal(products.inner[~one_pair.chosen.mask[0]], 0.0)
    np.testing.assert_array_equal(products.cosine[:, ~one_pair.rejected.mask[0]], 0.0)


def test_probes_can_be_vmapped_over_seeds():
    batch = IndexPairs(jnp.array([0, 1]), jnp.array([0, 1]), jnp.array([2, 2]))
    init = lambda key: tabular.init(key, num_prompts=2, num_responses=3)
    probe = lambda params: gradients.gradient_geometry(tabular.pair_logps, params, batch)
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), 4))
    together = jax.jit(jax.vmap(probe))(params)
    alone = probe(jax.tree.map(lambda x: x[2], params))
    np.testing.assert_allclose(together.inner[2], alone.inner, rtol=1e-5)


def test_entangled_means_a_dpo_step_moves_both_the_same_way(params, batch):
    geometry = gradients.gradient_geometry(PAIR, params, batch)
    ones = jnp.ones(3)
    for pair in range(3):
        one = jax.tree.map(lambda x, i=pair: x[i : i + 1], batch)
        weights = GradientWeights(ones[:1], ones[:1])
        direction = gradients.update_direction(PAIR, params, one, weights)
        change: PairLogps = gradients.directional(PAIR, params, direction, one)
        assert bool(geometry.entangled[pair]) == bool((change.chosen * change.rejected)[0] > 0)
