import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.probes import flow


def test_flow_rates_are_minus_the_inner_products_with_the_gradient_of_the_objective():
    matrix = jax.random.normal(jax.random.key(0), (4, 3))
    params = jnp.array([0.5, -1.0, 2.0])
    rates = flow.flow_rates(lambda p: matrix @ p, lambda p: jnp.sum(p**2) / 2, params)
    np.testing.assert_allclose(rates, -np.asarray(matrix) @ np.asarray(params), rtol=1e-6)


def test_flow_rates_are_the_slope_of_a_small_step_of_gradient_descent():
    with jax.enable_x64(True):
        params = jnp.array([0.3, -0.7])
        logps_fn, objective = lambda p: jax.nn.log_softmax(p), lambda p: jnp.sin(p[0]) * p[1]
        step = params - 1e-6 * jax.grad(objective)(params)
        slope = (logps_fn(step) - logps_fn(params)) / 1e-6
        np.testing.assert_allclose(flow.flow_rates(logps_fn, objective, params), slope, rtol=1e-5)
