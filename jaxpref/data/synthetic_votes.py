"""Token pairs with a hidden reward and a few votes on each: a toy on which every quantity is known.

Prompts and responses are walks of one random Markov chain, so that what a reference thinks of a response
depends mostly on its length; the reward depends on which tokens a response holds and not on how many.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int
from scipy.special import comb

from jaxpref.pairs import PairLogps, TokenPairs, TokenRows

END_TOKEN = 0


class VotedPairs(NamedTuple):
    """Preference pairs, how many raters took each side, and what they could not see."""

    pairs: TokenPairs
    votes_chosen: Int[Array, "pairs"]
    votes_rejected: Int[Array, "pairs"]
    reward_margin: Float[Array, "pairs"]  # hidden reward, chosen less rejected, nats

    @property
    def alpha(self) -> Float[Array, "pairs"]:
        """Share of the raters who took the chosen side, above 1/2."""
        return self.votes_chosen / (self.votes_chosen + self.votes_rejected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VotesConfig:
    """Sizes of the toy of the ranking-accuracy study."""

    vocab: int = 40  # token 0 ends a response
    prompt_length: int = 5
    min_length: int = 3  # response tokens before the end token
    max_length: int = 23
    num_votes: int = 4  # a tied vote is held again, so every pair has a majority
    sharpness: float = 1.5  # standard deviation of the chain's logits; 0 is uniform
    reward_scale: float = 2.0  # standard deviation of the hidden reward, nats

    def __post_init__(self):
        if self.vocab < 3:
            raise ValueError(f"vocab must be at least 3, the end token and two others; got {self.vocab}")
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length must be at least 1; got {self.prompt_length}")
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(
                f"min_length must be in [1, max_length={self.max_length}]; got {self.min_length}"
            )
        if self.num_votes < 1:
            raise ValueError(f"num_votes must be at least 1; got {self.num_votes}")

    @property
    def row_length(self) -> int:
        """Prompt, longest response, end token."""
        return self.prompt_length + self.max_length + 1


class World(NamedTuple):
    """What all pairs of a data set have in common."""

    chain_logits: Float[Array, "vocab vocab"]  # of the next token given this one; the end token never
    token_rewards: Float[Array, "vocab"]


def world(key: Array, config: VotesConfig) -> World:
    """A random chain and a random reward of every token."""
    chain_key, reward_key = jax.random.split(key)
    chain = config.sharpness * jax.random.normal(chain_key, (config.vocab, config.vocab))
    rewards = config.reward_scale * jax.random.normal(reward_key, (config.vocab,))
    return World(chain.at[:, END_TOKEN].set(-jnp.inf), rewards.at[END_TOKEN].set(0.0))


def walks(key: Array, chain: World, start: Int[Array, "rows"], num_tokens: int) -> Int[Array, "rows tokens"]:
    """Walks of the chain that begin after `start`."""

    def walk(token: Array, key: Array):
        token = jax.random.categorical(key, chain.chain_logits[token])
        return token, token

    return jax.lax.scan(walk, start, jax.random.split(key, num_tokens))[1].T


def responses(key: Array, chain: World, prompts: Int[Array, "rows prompt"], config: VotesConfig) -> TokenRows:
    """Each prompt continued by the chain for a uniformly drawn number of tokens, then ended."""
    walk_key, length_key = jax.random.split(key)
    rows, prompt_length = prompts.shape
    lengths = jax.random.randint(length_key, (rows, 1), config.min_length, config.max_length + 1)
    walked = walks(walk_key, chain, prompts[:, -1], config.max_length + 1)
    position = jnp.arange(config.max_length + 1)
    body = jnp.where(position < lengths, walked, END_TOKEN)
    mask = jnp.pad(position <= lengths, ((0, 0), (prompt_length, 0)))
    return TokenRows(jnp.concatenate([prompts, body], axis=1), mask)


def rewards(chain: World, rows: TokenRows) -> Float[Array, "rows"]:
    """Sum of the tokens' rewards over the root of their number: no response wins by being long."""
    counted = rows.response_mask & (rows.tokens != END_TOKEN)
    total = jnp.where(counted, chain.token_rewards[rows.tokens], 0.0).sum(-1)
    return total / jnp.sqrt(counted.sum(-1))


def votes(key: Array, reward_margin: Float[Array, "pairs"], num_votes: int) -> Int[Array, "pairs"]:
    """Votes for the first response, each of Bradley and Terry's probability, given that they do not tie.

    References: Bradley and Terry 1952; as the raters of Chen et al. 2024, arXiv:2405.19534, sec. 3.2.
    """
    counts = np.arange(num_votes + 1)
    ways = np.log(comb(num_votes, counts), dtype=np.float32)
    ways = jnp.where(2 * counts == num_votes, -jnp.inf, ways)
    log_first, log_second = jax.nn.log_sigmoid(reward_margin), jax.nn.log_sigmoid(-reward_margin)
    logps = ways + counts * log_first[:, None] + (num_votes - counts) * log_second[:, None]
    return jax.random.categorical(key, logps)


def _choose(first_wins: Bool[Array, "pairs"], first: TokenRows, second: TokenRows) -> TokenRows:
    return jax.tree.map(lambda a, b: jnp.where(first_wins[:, None], a, b), first, second)


def voted_pairs(key: Array, chain: World, num_pairs: int, config: VotesConfig) -> VotedPairs:
    """Prompts, two responses each, votes; the majority's choice is `chosen`. No reference yet."""
    start_key, prompt_key, response_key, vote_key = jax.random.split(key, 4)
    start = jax.random.randint(start_key, (num_pairs,), 1, config.vocab)
    prompts = walks(prompt_key, chain, start, config.prompt_length)
    both = responses(response_key, chain, jnp.concatenate([prompts, prompts]), config)
    first = jax.tree.map(lambda x: x[:num_pairs], both)
    second = jax.tree.map(lambda x: x[num_pairs:], both)
    difference = rewards(chain, first) - rewards(chain, second)
    for_first = votes(vote_key, difference, config.num_votes)
    first_wins = 2 * for_first > config.num_votes
    most = jnp.where(first_wins, for_first, config.num_votes - for_first)
    pairs = TokenPairs(_choose(first_wins, first, second), _choose(~first_wins, first, second))
    return VotedPairs(pairs, most, config.num_votes - most, jnp.where(first_wins, difference, -difference))


def take(data: VotedPairs, begin: int, end: int) -> VotedPairs:
    """Pairs `begin` to `end`."""
    return jax.tree.map(lambda x: x[begin:end], data)


def with_reference(data: VotedPairs, reference: PairLogps) -> VotedPairs:
    """The same pairs, with what the frozen reference thinks of them."""
    return data._replace(pairs=data.pairs._replace(reference=reference))
