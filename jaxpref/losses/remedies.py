"""Two ways out of gradient entanglement: normalize the two gradients, or drop the tokens that both share.

References: Yuan et al. 2024, arXiv:2410.13828, section 5, which outlines both designs; the formulas here
are the project's reading of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxpref.pairs import PairLogps, PairTokenLogps, TokenPairs
from jaxpref.probes.likelihood import compact

NORM_FLOOR = 1e-6  # added to norms: a response whose gradient vanishes is not to be blown up


class PairMasks(NamedTuple):
    """Which tokens of both responses enter the loss, aligned with the rows that they were made from."""

    chosen: Bool[Array, "pairs tokens"]
    rejected: Bool[Array, "pairs tokens"]


def normalized_gradient_loss(
    policy: PairLogps, reference: PairLogps, norms: PairLogps, *, beta: float
) -> Float[Array, "pairs"]:
    """Pairwise normalized gradients: -S (logp(chosen) / |g_w| - logp(rejected) / |g_l|), S DPO's own weight.

    A surrogate: S = beta sigma(-beta h) and the norms are constants, so that its gradient is
    -S (g_w / |g_w| - g_l / |g_l|) and its value means little. On a pair by itself the chosen response
    cannot fall nor the rejected one rise, to first order; in a batch they may.

    Args:
      policy, reference: log-probabilities, [pairs], nats.
      norms: norms (not squared) of the gradients of both responses' `logps`, [pairs].
      beta: weight of the implicit KL penalty, > 0.

    Returns:
      [pairs]; with the gradient above, not a likelihood.
    """
    strength = beta * jax.nn.sigmoid(-beta * (policy.margin - reference.margin))
    chosen = policy.chosen * jax.lax.stop_gradient(strength / (norms.chosen + NORM_FLOOR))
    return policy.rejected * jax.lax.stop_gradient(strength / (norms.rejected + NORM_FLOOR)) - chosen


def scaled_normalized_gradient_loss(
    policy: PairLogps, reference: PairLogps, norms: PairLogps, *, beta: float
) -> Float[Array, "pairs"]:
    """`normalized_gradient_loss` times sqrt(|g_w| |g_l|): steps as long as DPO's at one learning rate."""
    scale = jax.lax.stop_gradient(jnp.sqrt(norms.chosen * norms.rejected))
    return scale * normalized_gradient_loss(policy, reference, norms, beta=beta)


def keep(token_logps: PairTokenLogps, masks: PairMasks) -> PairLogps:
    """Log-probability of the kept tokens, [pairs], nats: feed policy and reference to any pairwise loss."""
    total = lambda logps, mask: jnp.sum(jnp.where(mask, logps, 0.0), axis=-1)
    return PairLogps(total(token_logps.chosen, masks.chosen), total(token_logps.rejected, masks.rejected))


def difference_masks(batch: TokenPairs) -> PairMasks:
    """Tokens in which the two responses of each pair differ, by their longest common subsequence.

    The oracle mask: a token that an alignment matches with the other response's is False, prompt and
    padding are False. Of several alignments the one that matches latest tokens is taken.
    """
    chosen, rejected = compact(batch.chosen), compact(batch.rejected)
    common = jax.vmap(_common_subsequence)(chosen.tokens, chosen.mask, rejected.tokens, rejected.mask)
    return PairMasks(
        batch.chosen.response_mask & ~_uncompact(common[0], batch.chosen.response_mask),
        batch.rejected.response_mask & ~_uncompact(common[1], batch.rejected.response_mask),
    )


def _uncompact(flags: Bool[Array, "rows length"], response_mask: Bool[Array, "rows length"]) -> Array:
    """Moves flags of compacted responses back behind their prompts."""
    length = flags.shape[1]
    start = jnp.argmax(response_mask, axis=1)
    return jnp.take_along_axis(flags, (jnp.arange(length) - start[:, None]) % length, axis=1)


def _common_subsequence(first: Array, first_mask: Array, second: Array, second_mask: Array):
    """Flags of the tokens of both sequences that are matched: the usual table, walked back from its end."""
    equal = (first[:, None] == second) & first_mask[:, None] & second_mask
    table = _common_lengths(equal)

    def walk(position: tuple[Array, Array], _):
        i, j = position
        match = (i > 0) & (j > 0) & equal[i - 1, j - 1]
        up = (i > 0) & ((j == 0) | (table[i - 1, j] >= table[i, j - 1]))
        step = (i - (match | up), j - (match | ~up & (j > 0)))
        return step, (jnp.where(match, i - 1, -1), jnp.where(match, j - 1, -1))

    end = (first_mask.sum(), second_mask.sum())
    _, matched = jax.lax.scan(walk, end, None, length=first.size + second.size)
    return tuple(_flags(ids, size) for ids, size in zip(matched, equal.shape, strict=True))


def _common_lengths(equal: Array) -> Array:
    """Length of the longest common subsequence of every two prefixes, [first + 1, second + 1]."""
    start = jnp.zeros(equal.shape[1] + 1, int)

    def next_row(row: Array, equal: Array):
        matched = jnp.maximum(row[1:], row[:-1] + equal)
        after = jax.lax.cummax(jnp.concatenate([row[:1], matched]))
        return after, after

    return jnp.concatenate([start[None], jax.lax.scan(next_row, start, equal)[1]])


def _flags(ids: Array, size: int) -> Array:
    """True at each of `ids`; negative ones name nothing."""
    return jnp.any(ids[:, None] == jnp.arange(size), axis=0)
