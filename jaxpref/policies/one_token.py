"""A language model whose responses are single tokens: one forward pass over the prompt scores them all.

Only the last prompt position meets the unembedding, so the [vocab] row of log-probabilities is the
response distribution itself, and chosen and rejected are two entries of it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from jaxpref import logps
from jaxpref.pairs import PairLengths, PairLogps
from jaxpref.policies import transformer
from jaxpref.policies.transformer import TransformerConfig


class OneTokenPairs(NamedTuple):
    """Prompts, padded on the right, and the two tokens of each pair."""

    prompts: Int[Array, "pairs length"]
    last: Int[Array, "pairs"]  # position of the last prompt token; what stands behind it is not seen
    chosen: Int[Array, "pairs"]
    rejected: Int[Array, "pairs"]
    reference: PairLogps | None = None

    @property
    def lengths(self) -> PairLengths:
        """One token each."""
        return PairLengths(jnp.ones_like(self.chosen), jnp.ones_like(self.rejected))


def response_logps(
    params: PyTree, batch: OneTokenPairs, *, config: TransformerConfig
) -> Float[Array, "pairs vocab"]:
    """Log-probability of every token of the vocabulary as the response, nats."""
    return logps.log_softmax(transformer.next_token_logits(params, batch.prompts, batch.last, config=config))


def pair_logps(params: PyTree, batch: OneTokenPairs, *, config: TransformerConfig) -> PairLogps:
    """Log-probability of both responses of each pair, [pairs], nats."""
    table = response_logps(params, batch, config=config)
    return logps.finite_pair_logps(table, batch.chosen, batch.rejected)
