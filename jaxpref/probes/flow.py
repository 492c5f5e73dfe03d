"""How fast log-probabilities move under gradient flow: the measured side of `theory.likelihood`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree


def flow_rates(
    logps_fn: Callable[[PyTree], Array], objective: Callable[[PyTree], Array], params: PyTree
) -> Array:
    """d/dt of `logps_fn(params)` while the parameters follow minus the gradient of the objective.

    -<grad logps, grad objective> for every entry at once: one pass backward, one forward, whatever the
    number of responses.

    Args:
      logps_fn: log-probabilities of any responses, any shape, nats.
      objective: a scalar loss, nats.

    Returns:
      Rates of the shape of `logps_fn(params)`, nats per unit of time.

    References: Razin et al. 2025, arXiv:2410.08847, section 4.1.
    """
    direction = jax.tree.map(jnp.negative, jax.grad(objective)(params))
    return jax.jvp(logps_fn, (params,), (direction,))[1]
