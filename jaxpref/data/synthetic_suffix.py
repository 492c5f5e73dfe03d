"""One pair of responses for learnable logits: a differing first token, then a shared suffix."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxpref.policies.learnable_logits import LearnableLogits, OffsetPairs, OffsetRows

VOCAB = 20
CONTRAST_LOGIT, SUFFIX_LOGIT = 3.0, 1.5


def exact_pair(slots, gap, *, most: int) -> tuple[LearnableLogits, OffsetPairs]:
    """Token 0 against token 1, equally likely; then `slots` times token 0 behind both.

    Args:
      slots: suffix tokens, an integer up to `most`, traced or not.
      gap: logit of a suffix token behind the chosen start less that behind the rejected one.
      most: suffix positions that the policy owns; the arrays have most + 1 positions.

    Returns:
      The initial policy and the pair, a batch of one.
    """
    logits = jnp.zeros((most + 1, VOCAB)).at[0, :2].set(CONTRAST_LOGIT).at[1:, 0].set(SUFFIX_LOGIT)
    chosen, rejected = (_row(first, slots, sign * gap / 2, most) for first, sign in ((0, 1), (1, -1)))
    return LearnableLogits(logits), OffsetPairs(chosen, rejected)


def _row(first: int, slots, offset, most: int) -> OffsetRows:
    tokens = jnp.zeros((1, most + 1), int).at[0, 0].set(first)
    offsets = jnp.zeros((1, most + 1, VOCAB)).at[0, 1:, 0].set(offset)
    return OffsetRows(tokens, offsets, jnp.arange(most + 1)[None] <= slots)


def random_pair(key: Array, *, tokens: int, vocab: int) -> tuple[LearnableLogits, OffsetPairs]:
    """A pair of random lengths that shares a random number of its leading tokens, and its policy.

    Offsets of random size set the two contexts apart, so that the cosine of the gradients takes every
    value between -1 and 1.
    """
    logit_key, token_key, shared_key, length_key, scale_key, offset_key = jax.random.split(key, 6)
    drawn = jax.random.randint(token_key, (2, tokens), 0, vocab)
    shared = jnp.arange(tokens) < jax.random.randint(shared_key, (), 0, tokens)
    lengths = jax.random.randint(length_key, (2, 1), 1, tokens + 1)
    scale = jax.random.uniform(scale_key, (), maxval=2.0)
    offsets = scale * jax.random.normal(offset_key, (2, tokens, vocab))
    mask: Bool[Array, "two tokens"] = jnp.arange(tokens) < lengths
    picked = jnp.where(shared, drawn[0], drawn)
    chosen, rejected = (OffsetRows(picked[i][None], offsets[i][None], mask[i][None]) for i in (0, 1))
    return LearnableLogits(2 * jax.random.normal(logit_key, (tokens, vocab))), OffsetPairs(chosen, rejected)


def suffix_distributions(
    key: Array, *, draws: int, vocab: int, ordered: bool
) -> tuple[Float[Array, "draws vocab"], Float[Array, "draws vocab"]]:
    """Distributions of a suffix token, which is token 0, behind the chosen and the rejected beginning.

    Token 0 is likelier behind the chosen one. With `ordered` every other token is also less likely
    there, which is the assumption of the theory; without, the rest is drawn anew.
    """
    rejected_key, shrink_key, rest_key = jax.random.split(key, 3)
    after_rejected = jax.random.dirichlet(rejected_key, jnp.ones(vocab), (draws,))
    kept = jax.random.uniform(shrink_key, (draws, vocab)).at[:, 0].set(0.0) * after_rejected
    if not ordered:
        rest = jax.random.dirichlet(rest_key, jnp.ones(vocab - 1), (draws,)) * kept.sum(-1, keepdims=True)
        kept = kept.at[:, 1:].set(rest)
    return kept.at[:, 0].set(1 - kept.sum(-1)), after_rejected
