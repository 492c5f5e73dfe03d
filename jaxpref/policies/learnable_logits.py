"""Learnable logits: every response position owns a logit vector, which all responses share.

Contexts enter as fixed offsets, so that the same position may expect a token more behind one beginning
than behind another. The second toy model of Yuan et al. 2024 (arXiv:2410.13828, section 4.1), in the
reading in which a shared suffix has an effect: with one vector for each context it would have none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref import logps
from jaxpref.pairs import PairLengths, PairLogps, PairTokenLogps


class LearnableLogits(NamedTuple):
    logits: Float[Array, "tokens vocab"]


class OffsetRows(NamedTuple):
    """Responses: token t is predicted from the shared logits of position t plus this row's offsets."""

    tokens: Int[Array, "rows tokens"]
    offsets: Float[Array, "rows tokens vocab"]
    mask: Bool[Array, "rows tokens"]


class OffsetPairs(NamedTuple):
    chosen: OffsetRows
    rejected: OffsetRows
    reference: PairLogps | None = None

    @property
    def lengths(self) -> PairLengths:
        """Response tokens of each pair."""
        return PairLengths(self.chosen.mask.sum(-1), self.rejected.mask.sum(-1))


def init(key: Array, *, tokens: int, vocab: int, scale: float = 1.0) -> LearnableLogits:
    """Independent normal logits of standard deviation `scale`."""
    return LearnableLogits(scale * jax.random.normal(key, (tokens, vocab)))


def row_token_logps(params: LearnableLogits, rows: OffsetRows) -> Float[Array, "rows tokens"]:
    """Log-probability of each response token, nats; 0 where masked."""
    table = logps.log_softmax(params.logits + rows.offsets)
    return jnp.where(rows.mask, logps.gather(table, rows.tokens), 0.0)


def token_logps(params: LearnableLogits, batch: OffsetPairs) -> PairTokenLogps:
    """Log-probability of every token of both responses, nats."""
    chosen, rejected = (row_token_logps(params, rows) for rows in (batch.chosen, batch.rejected))
    return PairTokenLogps(chosen, rejected, batch.chosen.mask, batch.rejected.mask)


def pair_logps(params: LearnableLogits, batch: OffsetPairs) -> PairLogps:
    """Log-probability of both responses of each pair, nats."""
    return token_logps(params, batch).sum()
