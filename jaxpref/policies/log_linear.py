"""A log-linear policy: the logit of a response is the inner product of its features with `weights`.

Prompts share the weights, so pairs interact: the smallest model in which gradients are entangled.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxpref import logps
from jaxpref.pairs import PairLogps


class LogLinearParams(NamedTuple):
    weights: Float[Array, "dim"]


class FeaturePairs(NamedTuple):
    """Features of every response of each pair's prompt, and which two of them were compared."""

    features: Float[Array, "pairs responses dim"]
    chosen: Int[Array, "pairs"]
    rejected: Int[Array, "pairs"]
    reference: PairLogps | None = None


def init(key: Array, *, dim: int) -> LogLinearParams:
    """Zero weights, the uniform policy; `key` is unused and kept for the common signature."""
    del key
    return LogLinearParams(jnp.zeros(dim))


def response_logps(params: LogLinearParams, features: Float[Array, "pairs responses dim"]):
    """Log-probability of every response, [pairs, responses], nats."""
    return logps.log_softmax(features @ params.weights)


def pair_logps(params: LogLinearParams, batch: FeaturePairs) -> PairLogps:
    """Log-probability of both responses of each pair, nats."""
    table = response_logps(params, batch.features)
    return logps.finite_pair_logps(table, batch.chosen, batch.rejected)
