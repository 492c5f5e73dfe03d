"""From scores to log-probabilities. Float32 or wider from the logits on, whatever the model's dtype."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref.pairs import PairLogps, PairTokenLogps, TokenPairs, TokenRows


class TokenStatistics(NamedTuple):
    """What one look at the vocabulary tells of each token; a row's first token, unpredicted, has 0.

    Gradients go through `logps` alone.
    """

    logps: Float[Array, "*places"]  # of every token, prompt and padding too, nats
    entropy: Float[Array, "*places"]  # of the distribution that the token was drawn from, nats
    top1: Bool[Array, "*places"]  # it is the first of those with the largest logit
    mean_logit: Float[Array, "*places"]  # over the vocabulary
    log_sum_sq: Float[Array, "*places"]  # log of the sum of squared probabilities, nats


def wide(x: Array) -> Array:
    """Float32, or float64 where it already is: sums of log-probabilities lose nats in less."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def log_softmax(logits: Float[Array, "*rows vocab"]) -> Float[Array, "*rows vocab"]:
    """Normalized log-probabilities, nats, in float32 or wider."""
    return jax.nn.log_softmax(wide(logits), axis=-1)


def gather(logps: Float[Array, "*rows vocab"], ids: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """The entry of each row that `ids` names."""
    return jnp.take_along_axis(logps, ids[..., None], axis=-1)[..., 0]


def next_token_logps(
    logits: Float[Array, "rows length vocab"], rows: TokenRows
) -> Float[Array, "rows length"]:
    """Log-probability of each response token given what stands before it, nats; 0 elsewhere.

    Entry t belongs to the token AT t, predicted by the logits at t-1. The first token of a row is
    predicted by nothing and gets 0.
    """
    predicted = gather(log_softmax(logits[:, :-1]), rows.tokens[:, 1:])
    masked = jnp.where(rows.response_mask[:, 1:], predicted, 0.0)
    return jnp.pad(masked, ((0, 0), (1, 0)))


def predicting_mask(rows: TokenRows):
    """True where the NEXT token is a response token: the last prompt token to the one before the end."""
    return jnp.pad(rows.response_mask[:, 1:], ((0, 0), (0, 1)))


def stack_rows(batch: TokenPairs) -> TokenRows:
    """Chosen rows above rejected rows, so that one forward pass serves both; both of one length."""
    return jax.tree.map(lambda w, l: jnp.concatenate([w, l]), batch.chosen, batch.rejected)


def split_pairs(token_logps: Float[Array, "rows length"], rows: TokenRows) -> PairTokenLogps:
    """The inverse of `stack_rows`, on log-probabilities."""
    chosen, rejected = jnp.split(token_logps, 2)
    chosen_mask, rejected_mask = jnp.split(rows.response_mask, 2)
    return PairTokenLogps(chosen, rejected, chosen_mask, rejected_mask)


def finite_pair_logps(
    response_logps: Float[Array, "pairs responses"], chosen: Array, rejected: Array
) -> PairLogps:
    """The two responses' log-probabilities out of a table of all responses of each prompt."""
    return PairLogps(gather(response_logps, chosen), gather(response_logps, rejected))
