"""The forecast of a step against a closed form and against the step itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import losses, train
from jaxpref.pairs import IndexPairs, PairLogps
from jaxpref.policies import tabular, unconstrained_features
from jaxpref.probes import forecast

BETA = 0.1


def with_reference(response_logps, params, batch):
    table, rows = response_logps(params, batch), jnp.arange(batch.chosen.size)
    return batch._replace(reference=PairLogps(table[rows, batch.chosen], table[rows, batch.rejected]))


def test_under_gradient_descent_a_softmax_table_moves_as_its_closed_form_says():
    response_logps = lambda params, batch: tabular.response_logps(params, batch.prompts)
    params = tabular.init(jax.random.key(0), num_prompts=1, num_responses=4)
    start = IndexPairs(jnp.array([0]), jnp.array([2]), jnp.array([1]))
    batch = with_reference(response_logps, params, start)
    objective = train.response_objective(response_logps, losses.bind("dpo", beta=BETA))

    predicted = forecast.first_step(response_logps, objective, optax.sgd(0.5), params, batch)

    p = np.exp(np.asarray(response_logps(params, batch), np.float64))[0]
    update = 0.5 * BETA * 0.5 * np.array([0.0, -1.0, 1.0, 0.0])  # lr beta sigmoid(0) (e_w - e_l)
    np.testing.assert_allclose(predicted[0], update - p @ update, atol=1e-7)


@pytest.mark.parametrize("optimizer", [optax.sgd, functools.partial(optax.adam, eps=1e-12)])
def test_a_small_step_moves_every_token_as_forecast_whatever_the_optimizer(optimizer):
    with jax.enable_x64(True):
        response_logps = lambda params, batch: unconstrained_features.response_logps(params, batch.prompts)
        params = unconstrained_features.init(jax.random.key(0), vocab=7, prefixes=1, dim=3)
        batch = IndexPairs(jnp.array([0]), jnp.array([3]), jnp.array([5]))
        batch = with_reference(response_logps, params, batch)
        objective = train.response_objective(response_logps, losses.bind("dpo", beta=BETA))
        step = train.make_step(objective, optimizer(1e-7))

        state, metrics = step(train.init_state(params, optimizer(1e-7)), batch)
        moved = response_logps(state.params, batch) - metrics["logps/responses"]
        predicted = forecast.first_step(response_logps, objective, optimizer(1e-7), params, batch)

    np.testing.assert_allclose(moved, predicted, rtol=1e-5)
