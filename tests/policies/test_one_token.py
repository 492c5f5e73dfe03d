"""One-token responses from the last prompt position, against whole rows scored token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses, train
from jaxpref.pairs import PairLogps, TokenPairs, TokenRows
from jaxpref.policies import one_token, transformer
from jaxpref.policies.one_token import OneTokenPairs

CONFIG = transformer.tiny(13, dim=32, layers=1)
LENGTHS = np.array([3, 7, 5])


@pytest.fixture(scope="module")
def params():
    return transformer.init(jax.random.key(0), CONFIG)


def pairs(seed: int = 0, padding: int = 0) -> OneTokenPairs:
    draw = np.random.default_rng(seed)
    prompts = draw.integers(0, 13, (3, 7))
    prompts[np.arange(7) >= LENGTHS[:, None]] = padding
    reference = PairLogps(jnp.array([-1.0, -2.0, -3.0]), jnp.array([-2.0, -2.0, -1.0]))
    return OneTokenPairs(
        jnp.array(prompts), jnp.array(LENGTHS - 1), jnp.array([1, 2, 3]), jnp.array([4, 5, 6]), reference
    )


def as_rows(batch: OneTokenPairs, responses) -> TokenRows:
    """Prompt, response token, padding: what a language model reads otherwise."""
    tokens = np.concatenate([np.asarray(batch.prompts), np.zeros((3, 1), int)], axis=1)
    mask = np.arange(8) == LENGTHS[:, None]
    tokens[mask] = responses
    return TokenRows(jnp.array(tokens), jnp.array(mask))


def test_one_forward_pass_gives_what_two_rows_a_pair_give(params):
    batch = pairs()
    slow = TokenPairs(as_rows(batch, batch.chosen), as_rows(batch, batch.rejected))
    expected = transformer.pair_logps(params, slow, config=CONFIG)
    got = one_token.pair_logps(params, batch, config=CONFIG)
    np.testing.assert_allclose(got.chosen, expected.chosen, atol=1e-5)
    np.testing.assert_allclose(got.rejected, expected.rejected, atol=1e-5)


def test_responses_are_a_distribution_over_the_vocabulary(params):
    table = one_token.response_logps(params, pairs(), config=CONFIG)
    np.testing.assert_allclose(np.exp(table).sum(-1), 1.0, rtol=1e-5)


def test_what_stands_behind_the_prompt_is_not_seen(params):
    table = lambda padding: one_token.response_logps(params, pairs(padding=padding), config=CONFIG)
    np.testing.assert_allclose(table(0), table(9), atol=1e-6)


def test_every_response_has_one_token():
    np.testing.assert_array_equal(pairs().lengths.chosen, [1, 1, 1])


def test_scoring_all_responses_at_once_changes_neither_loss_nor_gradient(params):
    loss_fn, batch = losses.bind("dpo", beta=0.1), pairs()
    once = train.response_objective(functools.partial(one_token.response_logps, config=CONFIG), loss_fn)
    twice = train.pair_objective(functools.partial(one_token.pair_logps, config=CONFIG), loss_fn)
    value_and_grad = lambda objective: jax.jit(jax.value_and_grad(objective, has_aux=True))(params, batch)
    (loss, metrics), grads = value_and_grad(once)
    (expected_loss, expected_metrics), expected_grads = value_and_grad(twice)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert set(metrics) == {*expected_metrics, "logps/responses"}
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), grads, expected_grads)
