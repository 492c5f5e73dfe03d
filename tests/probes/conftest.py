"""A small policy in float64 whose pairs are of several tokens, and token rows with prompts and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import PairLogps, TokenRows
from jaxpref.policies import unconstrained_features
from jaxpref.policies.unconstrained_features import PrefixPairs, PrefixRows


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def make_prefix_rows(rng, num_rows: int, length: int = 4) -> PrefixRows:
    """Responses of 1 to `length` tokens on hidden states that some of them share."""
    draw = lambda high: jnp.asarray(rng.integers(0, high, (num_rows, length)))
    mask = np.arange(length) < rng.integers(1, length + 1, (num_rows, 1))
    return PrefixRows(prefixes=draw(6), tokens=draw(5), mask=jnp.asarray(mask))


@pytest.fixture
def batch(x64) -> PrefixPairs:
    rng = np.random.default_rng(0)
    reference = PairLogps(jnp.zeros(3), jnp.zeros(3))
    return PrefixPairs(make_prefix_rows(rng, 3), make_prefix_rows(rng, 3), reference)


@pytest.fixture
def params(x64):
    return unconstrained_features.init(jax.random.key(0), vocab=5, prefixes=6, dim=3)


def make_rows(rng, prompts, responses, length: int = 9, vocab: int = 6) -> TokenRows:
    """Prompt, response, padding; the ids of the padding are random, for nothing may depend on them."""
    prompts, responses = np.asarray(prompts)[:, None], np.asarray(responses)[:, None]
    where = np.arange(length)
    mask = (where >= prompts) & (where < prompts + responses)
    return TokenRows(jnp.asarray(rng.integers(0, vocab, mask.shape)), jnp.asarray(mask))
