"""What the first optimizer step will do to every response, before it is taken.

To first order a step changes log pi by the Jacobian times the update. Plain gradient descent steps along
the gradient; Adam and RMSProp step along something close to its sign, which can push a response down that
gradient descent pushes up. So the forecast asks the optimizer itself for its update.
"""

from typing import Any

import jax
import optax
from jax import Array
from jaxtyping import Float, PyTree

from jaxpref.train import Objective, ResponseLogpsFn


def first_step(
    response_logps: ResponseLogpsFn,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    batch: Any,
) -> Float[Array, "pairs responses"]:
    """First-order change of each response's log-probability by the optimizer's first step, nats.

    One backward pass, for the update, and one forward derivative along it.

    Args:
      response_logps: `(params, batch) -> [pairs, responses]`, nats.
      objective: `(params, batch) -> (loss, metrics)`, as `train.make_step` takes it.
      optimizer: fresh; with state from earlier steps its update would be another.
      params: where the step starts.
      batch: what it is taken on; the forecast is for the same pairs.

    References: the instantaneous rates of Razin et al. 2025, arXiv:2410.08847, theorem 4, are this
    forecast for gradient descent.
    """
    grads, _ = jax.grad(objective, has_aux=True)(params, batch)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return jax.jvp(lambda p: response_logps(p, batch), (params,), (updates,))[1]
