"""How hard a loss pushes: the chosen response up, the rejected response down."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxpref.pairs import PairLogps, PairTokenLogps


class GradientWeights(NamedTuple):
    """d_w = -dL/dlogps of the chosen, d_l = +dL/dlogps of the rejected; negative against the usual way.

    [pairs] for losses of response log-probabilities, [pairs, tokens] for losses of token log-probabilities.
    """

    chosen: Float[Array, "pairs *tokens"]
    rejected: Float[Array, "pairs *tokens"]


def gradient_weights(
    loss_fn: Callable[..., Array], policy: PairLogps | PairTokenLogps, *args: Any, **hyperparameters: Any
) -> GradientWeights:
    """Gradient weights of each pair's own loss, by automatic differentiation.

    A gradient descent step moves the parameters along sum(d_w grad logps_w - d_l grad logps_l).

    Args:
      loss_fn: a loss of this package, or one from `bind`; one value per pair.
      policy: under the policy in training, nats.
      *args: what `loss_fn` takes after the policy: reference, lengths, or a batch.
      **hyperparameters: passed on to `loss_fn`.

    Returns:
      d_w and d_l, shaped like `policy.chosen`; no unit (nats of loss per nat of log-probability). Pairs of
      a batch are independent in every loss of the package once its batch statistics are detached, so
      the gradient of the sum is each pair's own.

    References: Yuan et al. 2024, arXiv:2410.13828, eq. 1 and table 2.
    """

    def total(chosen, rejected):
        return jnp.sum(loss_fn(policy._replace(chosen=chosen, rejected=rejected), *args, **hyperparameters))

    chosen, rejected = jax.grad(total, argnums=(0, 1))(policy.chosen, policy.rejected)
    return GradientWeights(chosen=-chosen, rejected=rejected)
