"""How far a policy over finitely many responses is from a target, and which of its modes it holds.

Distributions are log-probabilities, nats, over the last axis; minus infinity is an empty bin. Arguments
come in the order (target, policy) everywhere.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def _mean_log_ratio(first: Array, second: Array) -> Array:
    """E_first[log first - log second]; empty bins of `first` count nothing, in the gradient too."""
    held = first > -jnp.inf
    safe = jnp.where(held, first, 0.0)
    return jnp.sum(jnp.where(held, jnp.exp(safe) * (safe - jnp.where(held, second, 0.0)), 0.0), axis=-1)


def forward_kl(
    target: Float[Array, "*rows bins"], policy: Float[Array, "*rows bins"]
) -> Float[Array, "*rows"]:
    """KL(target, policy), nats: maximum likelihood's, mass covering."""
    return _mean_log_ratio(target, policy)


def reverse_kl(
    target: Float[Array, "*rows bins"], policy: Float[Array, "*rows bins"]
) -> Float[Array, "*rows"]:
    """KL(policy, target), nats: reinforcement learning's, mode seeking."""
    return _mean_log_ratio(policy, target)


def entropy(policy: Float[Array, "*rows bins"]) -> Float[Array, "*rows"]:
    """Entropy, nats."""
    return -_mean_log_ratio(policy, jnp.zeros_like(policy))


def total_variation(
    target: Float[Array, "*rows bins"], policy: Float[Array, "*rows bins"]
) -> Float[Array, "*rows"]:
    """Half the summed difference of probabilities, in [0, 1]."""
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(target) - jnp.exp(policy)), axis=-1)


def modes(target: Float[Array, "*rows bins"], *, threshold: float) -> Bool[Array, "*rows bins"]:
    """Bins to which the target gives at least the probability `threshold`."""
    return jnp.exp(target) >= threshold


def mode_coverage(
    target: Float[Array, "*rows bins"], policy: Float[Array, "*rows bins"], *, threshold: float
) -> Float[Array, "*rows"]:
    """Share of the mass in the target's modes that the policy holds too, in [0, 1]; NaN without modes.

    The overlap min(policy, target) over the modes: mass beyond the target's in one mode makes up for
    nothing missing in another.
    """
    in_mode = modes(target, threshold=threshold)
    overlap = jnp.minimum(jnp.exp(target), jnp.exp(policy))
    return jnp.sum(overlap * in_mode, axis=-1) / jnp.sum(jnp.exp(target) * in_mode, axis=-1)


def modes_held(
    target: Float[Array, "*rows bins"],
    policy: Float[Array, "*rows bins"],
    *,
    threshold: float,
    fraction: float = 0.5,
) -> Float[Array, "*rows"]:
    """Share of the target's modes to which the policy gives at least `fraction` of the target's mass."""
    in_mode = modes(target, threshold=threshold)
    held = in_mode & (policy >= target + jnp.log(fraction))
    return jnp.sum(held, axis=-1) / jnp.sum(in_mode, axis=-1)
