"""One distribution over finitely many bins, no prompt: the histogram policy of the mode-seeking study."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxpref import logps
from jaxpref.pairs import IndexPairs, PairLogps


class CategoricalParams(NamedTuple):
    logits: Float[Array, "bins"]


def init(key: Array, *, num_bins: int, scale: float = 1.0) -> CategoricalParams:
    """Independent normal logits of standard deviation `scale`."""
    return CategoricalParams(scale * jax.random.normal(key, (num_bins,)))


def from_probabilities(probabilities: Float[Array, "bins"]) -> CategoricalParams:
    """The policy that is this distribution; a bin of probability 0 gets a logit of -inf."""
    return CategoricalParams(jnp.log(probabilities))


def response_logps(params: CategoricalParams, prompts: Int[Array, "pairs"] | None = None):
    """Log-probability of every bin, nats: [bins], or repeated for prompts that it ignores."""
    table = logps.log_softmax(params.logits)
    return table if prompts is None else jnp.broadcast_to(table, (*prompts.shape, *table.shape))


def pair_logps(params: CategoricalParams, batch: IndexPairs) -> PairLogps:
    """Log-probability of both bins of each pair, nats."""
    table = response_logps(params)
    return PairLogps(table[batch.chosen], table[batch.rejected])


def sample(params: CategoricalParams, key: Array, num: int) -> Int[Array, "num"]:
    """Bins drawn from the policy."""
    return jax.random.categorical(key, params.logits, shape=(num,))
