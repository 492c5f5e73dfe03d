"""Which pairs preference learning can rank right, how low the loss must go, and how long it takes.

`margin` m = logp(chosen) - logp(rejected); `reference_gap` c = ref logp(rejected) - ref logp(chosen), so
c > 0 where the reference ranks the pair wrongly; `vote_share` is the share of raters who preferred the
chosen response. Everything in nats.

References: Chen et al. 2024, arXiv:2405.19534.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logit
from jaxtyping import Bool, Float

from jaxpref.probes.ranking import LogRatios, log_ratios

__all__ = [
    "LogRatios",
    "beta_crit",
    "difficulty",
    "flip_threshold",
    "flips",
    "idealized_accuracy",
    "idealized_margin",
    "implied_vote_share",
    "initial_weight",
    "ipo_accuracy_at_zero_loss",
    "ipo_optimal_margin",
    "ipo_surely_right",
    "log_ratios",
    "loss_surely_right",
    "reward_margin",
    "time_to_flip",
]


def reward_margin(
    margin: Float[Array, "*pairs"],
    reference_gap: Float[Array, "*pairs"],
    *,
    beta: float | Array,
    gamma: float | Array = 1.0,
) -> Float[Array, "*pairs"]:
    """u = beta (m + gamma c), whose -log sigmoid is the DPO loss; gamma scales the reference (equation 4)."""
    return beta * (margin + gamma * reference_gap)


def idealized_margin(
    reference_gap: Float[Array, "*pairs"],
    vote_share: Float[Array, "*pairs"],
    *,
    beta: float | Array,
    eps: float = 1e-3,
) -> Float[Array, "*pairs"]:
    """The margin at the exact optimum of DPO or KL-regularized RLHF, theorem 3.1: -c + logit(share) / beta.

    Args:
      eps: unanimous votes count as 1 - eps; with hard labels there is no finite optimum.
    """
    return -reference_gap + logit(jnp.clip(vote_share, eps, 1 - eps)) / beta


def idealized_accuracy(
    reference_gap: Float[Array, "pairs"],
    vote_share: Float[Array, "pairs"],
    *,
    beta: float | Array,
    eps: float = 1e-3,
) -> Float[Array, ""]:
    """Ranking accuracy at that optimum, corollary 3.3 (strict). Never increases with beta."""
    return jnp.mean(idealized_margin(reference_gap, vote_share, beta=beta, eps=eps) > 0, dtype=float)


def beta_crit(
    reference_gap: Float[Array, "*pairs"], vote_share: Float[Array, "*pairs"], *, eps: float = 1e-3
) -> Float[Array, "*pairs"]:
    """The beta below which the optimum ranks the pair right; infinite where the reference already does."""
    wrong = reference_gap > 0
    share = jnp.clip(vote_share, eps, 1 - eps)
    return jnp.where(wrong, logit(share) / jnp.where(wrong, reference_gap, 1.0), jnp.inf)


def implied_vote_share(agreement: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """Share of raters behind the majority if two of them agree with this probability, at least 1/2."""
    return (1 + jnp.sqrt(2 * agreement - 1)) / 2


def flip_threshold(
    reference_gap: Float[Array, "*pairs"], *, beta: float | Array, gamma: float | Array = 1.0
) -> Float[Array, "*pairs"]:
    """tau(c): the pair is ranked right exactly while its loss is at most this, theorem 4.1; nats.

    softplus(-beta gamma c), the DPO loss (reference scaled by gamma) at m = 0. To decide, use `flips`:
    past beta c = 17 two losses that differ are one number in float32.
    """
    return jax.nn.softplus(-beta * gamma * reference_gap)


def flips(reward_margin: Float[Array, "*pairs"], difficulty: Float[Array, "*pairs"]) -> Bool[Array, "*pairs"]:
    """Theorem 4.1 where it is exact: u >= beta gamma c."""
    return reward_margin >= difficulty


def difficulty(
    reference_gap: Float[Array, "*pairs"], *, beta: float | Array, gamma: float | Array = 1.0
) -> Float[Array, "*pairs"]:
    """beta gamma c: the reward margin that the pair needs, known before training; positive if misranked."""
    return beta * gamma * reference_gap


def loss_surely_right(
    loss: Float[Array, "*pairs"], reference_gap: Float[Array, "*pairs"], *, bound: float = 0.6
) -> Bool[Array, "*pairs"]:
    """Proposition 2.6: reference right and DPO loss at most 0.6 suffice (any bound up to log 2 does)."""
    return (reference_gap <= 0) & (loss <= bound)


def initial_weight(
    reference_gap: Float[Array, "*pairs"], *, beta: float | Array, gamma: float | Array = 1.0
) -> Float[Array, "*pairs"]:
    """-dloss/dm at the start, where m = -c: beta / 2 for DPO whatever c is."""
    return beta * jax.nn.sigmoid(beta * (1 - gamma) * reference_gap)


def time_to_flip(
    reference_gap: Float[Array, "*pairs"], *, beta: float | Array, rate: float = 1.0
) -> Float[Array, "*pairs"]:
    """When gradient flow dm/dt = rate beta sigmoid(-beta (m + c)) from m = -c reaches m = 0.

    (e^{beta c} - 1 + beta c) / (rate beta^2), exponential in beta c; 0 where the reference is right.
    """
    gap = beta * jnp.maximum(reference_gap, 0.0)
    return (jnp.expm1(gap) + gap) / (rate * beta**2)


# The squared loss of IPO, (m + c - 1 / (2 tau))^2.


def ipo_optimal_margin(reference_gap: Float[Array, "*pairs"], *, tau: float) -> Float[Array, "*pairs"]:
    """The margin at zero loss: -c + 1 / (2 tau)."""
    return 0.5 / tau - reference_gap


def ipo_surely_right(
    loss: Float[Array, "*pairs"], reference_gap: Float[Array, "*pairs"], *, tau: float
) -> Bool[Array, "*pairs"]:
    """Proposition A.7: a target at or above 0 and loss <= target^2 suffice, though m may overshoot."""
    target = ipo_optimal_margin(reference_gap, tau=tau)
    return (target >= 0) & (loss <= target**2)


def ipo_accuracy_at_zero_loss(reference_gap: Float[Array, "pairs"], *, tau: float) -> Float[Array, ""]:
    """Ranking accuracy of the zero-loss policy: the share of pairs with c <= 1 / (2 tau)."""
    return jnp.mean(ipo_optimal_margin(reference_gap, tau=tau) >= 0, dtype=float)
