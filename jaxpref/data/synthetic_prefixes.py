"""Random problems for the unconstrained-features model: weights, prefixes, pairs, nothing meant by them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jaxpref.policies import unconstrained_features as ufm
from jaxpref.policies.unconstrained_features import PrefixPairs, PrefixRows, UnconstrainedFeatures


class PrefixProblem(NamedTuple):
    """One pair of long responses and a third one, behind one prompt, whose first tokens all differ."""

    params: UnconstrainedFeatures
    pair: PrefixPairs  # one pair
    other: PrefixRows  # one row


class BatchProblem(NamedTuple):
    """Several one-token pairs, each behind a prompt of its own."""

    params: UnconstrainedFeatures
    pairs: PrefixPairs


def one_prompt(key: Array, *, vocab: int, dim: int, lengths: tuple[int, int, int]) -> PrefixProblem:
    """Normal weights, uniform tokens; `lengths` are those of chosen, rejected and the other response.

    Prefix 0 is the prompt; every later prefix belongs to one response, since all part at the first token.
    """
    params_key, first_key, *row_keys = jax.random.split(key, 5)
    ends = [1, *(1 + sum(length - 1 for length in lengths[: i + 1]) for i in range(3))]
    params = ufm.init(params_key, vocab=vocab, prefixes=ends[-1], dim=dim)
    firsts = jax.random.permutation(first_key, vocab)[:3]
    chosen, rejected, other = (
        _row(row_keys[i], firsts[i], jnp.arange(ends[i], ends[i + 1]), vocab) for i in range(3)
    )
    return PrefixProblem(params, PrefixPairs(chosen, rejected), other)


def _row(key: Array, first: Int[Array, ""], later: Int[Array, "later"], vocab: int) -> PrefixRows:
    tokens = jnp.concatenate([first[None], jax.random.randint(key, later.shape, 0, vocab)])[None]
    prefixes = jnp.concatenate([jnp.zeros(1, later.dtype), later])[None]
    return PrefixRows(prefixes, tokens, jnp.ones(tokens.shape, bool))


def many_prompts(key: Array, *, vocab: int, dim: int, num_pairs: int) -> BatchProblem:
    """One-token pairs of two different tokens, drawn alike for every prompt, so that tokens recur."""
    params_key, token_key = jax.random.split(key)
    params = ufm.init(params_key, vocab=vocab, prefixes=num_pairs, dim=dim)
    draw = lambda key: jax.random.permutation(key, vocab)[:2]
    chosen, rejected = jax.vmap(draw)(jax.random.split(token_key, num_pairs)).T
    prompts = jnp.arange(num_pairs)
    return BatchProblem(params, PrefixPairs(ufm.one_token(prompts, chosen), ufm.one_token(prompts, rejected)))
