"""What losses are made of: log-ratios, per-token means, log-odds."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxpref.pairs import PairLengths, PairLogps

LARGEST_LOGP = -1e-7  # about the float32 spacing at probability 1


def logratios(policy: PairLogps, reference: PairLogps) -> PairLogps:
    """Policy less reference log-probability of both responses, [pairs], nats."""
    return jax.tree.map(jnp.subtract, policy, reference)


def mean_logps(policy: PairLogps, lengths: PairLengths) -> PairLogps:
    """Log-probability per token of both responses, [pairs], nats; an empty response counts one token."""
    return PairLogps(
        chosen=policy.chosen / jnp.maximum(lengths.chosen, 1),
        rejected=policy.rejected / jnp.maximum(lengths.rejected, 1),
    )


def log1mexp(logps: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - p) from log p, nats: finite, with finite slope, up to p = 1 and beyond by rounding.

    The slope -p / (1 - p) has a pole at p = 1. Value and slope are those at `LARGEST_LOGP` from there
    on. The slope is not cut to 0: a softmax's own derivative carries the factor 1 - p that meets it, so
    a rejected response at p = 1 is still pushed down.
    """
    capped = logps + jax.lax.stop_gradient(jnp.minimum(logps, LARGEST_LOGP) - logps)
    return jnp.log(-jnp.expm1(capped))


def log_odds(logps: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(p / (1 - p)) from log p, nats."""
    return logps - log1mexp(logps)
