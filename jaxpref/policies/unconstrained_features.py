"""The unconstrained-features model: an unembedding, and a free hidden state for every token prefix.

The model in which Razin et al. 2025 (arXiv:2410.08847, section 4) derive likelihood displacement. A
prompt is the prefix that it leaves; a one-token response is a response of length 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref import logps
from jaxpref.pairs import PairLogps, PairTokenLogps


class UnconstrainedFeatures(NamedTuple):
    unembedding: Float[Array, "vocab dim"]
    hidden: Float[Array, "prefixes dim"]  # row z: the state after reading prefix z


class PrefixRows(NamedTuple):
    """Responses as the model sees them: token t is predicted from the hidden state of prefix t."""

    prefixes: Int[Array, "rows tokens"]
    tokens: Int[Array, "rows tokens"]
    mask: Bool[Array, "rows tokens"]


class PrefixPairs(NamedTuple):
    chosen: PrefixRows
    rejected: PrefixRows
    reference: PairLogps | None = None


def init(key: Array, *, vocab: int, prefixes: int, dim: int, scale: float = 1.0):
    """Independent normal entries of standard deviation `scale`."""
    first, second = jax.random.split(key)
    normal = lambda key, shape: scale * jax.random.normal(key, shape)
    return UnconstrainedFeatures(normal(first, (vocab, dim)), normal(second, (prefixes, dim)))


def one_token(prompts: Int[Array, "rows"], tokens: Int[Array, "rows"]) -> PrefixRows:
    """Responses of a single token behind each prompt."""
    return PrefixRows(prompts[:, None], tokens[:, None], jnp.ones((*tokens.shape, 1), bool))


def response_logps(params: UnconstrainedFeatures, prompts: Int[Array, "rows"]):
    """Log-probability of every token as a one-token response, [rows, vocab], nats."""
    return logps.log_softmax(params.hidden[prompts] @ params.unembedding.T)


def row_token_logps(params: UnconstrainedFeatures, rows: PrefixRows) -> Float[Array, "rows tokens"]:
    """Log-probability of each response token, nats; 0 where masked."""
    scores = params.hidden[rows.prefixes] @ params.unembedding.T
    return jnp.where(rows.mask, logps.gather(logps.log_softmax(scores), rows.tokens), 0.0)


def token_logps(params: UnconstrainedFeatures, batch: PrefixPairs) -> PairTokenLogps:
    """Log-probability of every token of both responses, nats."""
    chosen, rejected = (row_token_logps(params, rows) for rows in (batch.chosen, batch.rejected))
    return PairTokenLogps(chosen, rejected, batch.chosen.mask, batch.rejected.mask)


def pair_logps(params: UnconstrainedFeatures, batch: PrefixPairs) -> PairLogps:
    """Log-probability of both responses of each pair, nats."""
    return token_logps(params, batch).sum()
