"""Gradient weights of the margin losses in closed form: the mirror of `losses.gradient_weights`.

Each function takes (policy, reference, lengths) and returns d_w = -dloss/dlogp(chosen) and
d_l = +dloss/dlogp(rejected), [pairs]. In every log-sigmoid row q = sigma(-argument); every inequality is
strict. A loss is m(h_w(a) - h_l(b)) and a term on the chosen alone: Yuan et al. 2024, arXiv:2410.13828,
equation 1 and table 2; derivatives taken by hand.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import PairLengths, PairLogps


def _equal(weight: Array) -> GradientWeights:
    return GradientWeights(weight, weight)


def _h(policy: PairLogps, reference: PairLogps) -> Array:
    return policy.margin - reference.margin


def dpo(policy: PairLogps, reference: PairLogps, lengths: PairLengths, *, beta: float) -> GradientWeights:
    """beta q on both sides."""
    return _equal(beta * jax.nn.sigmoid(-beta * _h(policy, reference)))


def r_dpo_len(policy, reference, lengths, *, beta: float, alpha: float) -> GradientWeights:
    """DPO's, the length shift inside q: only the step size changes."""
    shift = alpha * (lengths.chosen - lengths.rejected)
    return _equal(beta * jax.nn.sigmoid(-beta * _h(policy, reference) - shift))


def dpo_hinge(policy, reference, lengths, *, beta: float) -> GradientWeights:
    """beta while the reward margin is below 1, then nothing."""
    return _equal(beta * (beta * _h(policy, reference) < 1))


def ipo(policy, reference, lengths, *, tau: float) -> GradientWeights:
    """2 (1/(2 tau) - h): both turn negative past the target."""
    return _equal(2 * (1 / (2 * tau) - _h(policy, reference)))


def ipo_mean(policy, reference, lengths, *, tau: float) -> GradientWeights:
    """IPO of per-token means: each side divided by its own length."""
    chosen = (policy.chosen - reference.chosen) / lengths.chosen
    rejected = (policy.rejected - reference.rejected) / lengths.rejected
    short_of = 2 * (1 / (2 * tau) - (chosen - rejected))
    return GradientWeights(short_of / lengths.chosen, short_of / lengths.rejected)


def simpo(policy, reference, lengths, *, beta: float, gamma: float) -> GradientWeights:
    """beta q, each side divided by its own length."""
    means = policy.chosen / lengths.chosen - policy.rejected / lengths.rejected
    q = jax.nn.sigmoid(gamma - beta * means)
    return GradientWeights(beta * q / lengths.chosen, beta * q / lengths.rejected)


def cpo_sum(policy, reference, lengths, *, beta: float, lam: float) -> GradientWeights:
    """beta q + lam and beta q: the ratio grows without bound as q vanishes."""
    q = jax.nn.sigmoid(-beta * policy.margin)
    return GradientWeights(beta * q + lam, beta * q)


def slic_hf(policy, reference, lengths, *, delta: float, lam: float) -> GradientWeights:
    """1 + lam and 1 below the margin; maximum likelihood above it."""
    short = (policy.margin < delta).astype(policy.chosen.dtype)
    return GradientWeights(short + lam, short)


def rrhf(policy, reference, lengths, *, lam: float) -> GradientWeights:
    """Per-token weights while the order is wrong, maximum likelihood on top."""
    wrong = policy.rejected / lengths.rejected > policy.chosen / lengths.chosen
    return GradientWeights(wrong / lengths.chosen + lam, wrong / lengths.rejected)


def dpop(policy, reference, lengths, *, beta: float, lam: float) -> GradientWeights:
    """DPO's, the chosen side times 1 + lam while it is below its reference."""
    below = policy.chosen < reference.chosen
    penalty = lam * jnp.maximum(0, reference.chosen - policy.chosen)
    q = jax.nn.sigmoid(-beta * (_h(policy, reference) - penalty))
    return GradientWeights(beta * q * (1 + lam * below), beta * q)


def kto(policy, reference, lengths, *, beta: float, kl: float, undesirable_weight: float) -> GradientWeights:
    """A sigmoid's slope on each side, at its own reward: saturates in both tails."""
    u = jax.nn.sigmoid(beta * (policy.chosen - reference.chosen - kl))
    v = jax.nn.sigmoid(beta * (policy.rejected - reference.rejected - kl))
    return GradientWeights(beta * u * (1 - u), undesirable_weight * beta * v * (1 - v))


def sppo_hard(policy, reference, lengths, *, beta: float) -> GradientWeights:
    """Twice the distance of each log-ratio from its target, as TRL's loss has it (the paper halves)."""
    target = 1 / (2 * beta)
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    return GradientWeights(2 * (target - chosen), 2 * (target + rejected))


def orpo(policy, reference, lengths, *, lam: float) -> GradientWeights:
    """Odds of per-token means, and the mean likelihood of the chosen."""
    chosen, rejected = policy.chosen / lengths.chosen, policy.rejected / lengths.rejected
    rest_w, rest_l = -jnp.expm1(chosen), -jnp.expm1(rejected)  # 1 - p
    q = jax.nn.sigmoid(-(chosen - jnp.log(rest_w) - rejected + jnp.log(rest_l)))
    odds_w, odds_l = lam * q / (rest_w * lengths.chosen), lam * q / (rest_l * lengths.rejected)
    return GradientWeights(odds_w + 1 / lengths.chosen, odds_l)


def odds(policy, reference, lengths) -> GradientWeights:
    """Odds of whole responses: nearly equal weights, because long responses have tiny probabilities."""
    rest_w, rest_l = -jnp.expm1(policy.chosen), -jnp.expm1(policy.rejected)
    q = jax.nn.sigmoid(-(policy.margin - jnp.log(rest_w) + jnp.log(rest_l)))
    return GradientWeights(q / rest_w, q / rest_l)
