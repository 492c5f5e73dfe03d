"""A softmax table: one free logit for every response of every prompt. It can represent any policy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxpref import logps
from jaxpref.pairs import IndexPairs, PairLogps


class TabularParams(NamedTuple):
    logits: Float[Array, "prompts responses"]


def init(key: Array, *, num_prompts: int, num_responses: int, scale: float = 1.0) -> TabularParams:
    """Independent normal logits of standard deviation `scale`; 0 is the uniform policy."""
    return TabularParams(scale * jax.random.normal(key, (num_prompts, num_responses)))


def response_logps(params: TabularParams, prompts: Int[Array, "pairs"]):
    """Log-probability of every response of the named prompts, [pairs, responses], nats."""
    return logps.log_softmax(params.logits[prompts])


def pair_logps(params: TabularParams, batch: IndexPairs) -> PairLogps:
    """Log-probability of both responses of each pair, nats."""
    table = response_logps(params, batch.prompts)
    return logps.finite_pair_logps(table, batch.chosen, batch.rejected)


def uniform(num_prompts: int, num_responses: int) -> TabularParams:
    """Every response equally likely."""
    return TabularParams(jnp.zeros((num_prompts, num_responses)))
