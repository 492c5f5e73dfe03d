"""The nouns: what a preference pair is to a loss, and what it is to a policy."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


class PairLogps(NamedTuple):
    """Log-probability of both responses of each pair under one policy, in nats."""

    chosen: Float[Array, "pairs"]
    rejected: Float[Array, "pairs"]

    @property
    def margin(self) -> Float[Array, "pairs"]:
        """Chosen less rejected, nats."""
        return self.chosen - self.rejected


class PairTokenLogps(NamedTuple):
    """Log-probability of every token of both responses, in nats; 0 where the mask is False."""

    chosen: Float[Array, "pairs tokens"]
    rejected: Float[Array, "pairs tokens"]
    chosen_mask: Bool[Array, "pairs tokens"]
    rejected_mask: Bool[Array, "pairs tokens"]

    def sum(self) -> PairLogps:
        """The same policy's log-probability of whole responses."""
        return PairLogps(self.chosen.sum(-1), self.rejected.sum(-1))


class PairScores(NamedTuple):
    """What a judge or a reward model gave both responses of each pair: true rewards, not implicit ones."""

    chosen: Float[Array, "pairs"]
    rejected: Float[Array, "pairs"]

    @property
    def margin(self) -> Float[Array, "pairs"]:
        """Chosen less rejected, in the judge's unit."""
        return self.chosen - self.rejected


class PairTokenValues(NamedTuple):
    """A number for every token of both responses, aligned with their log-probabilities."""

    chosen: Float[Array, "pairs tokens"]
    rejected: Float[Array, "pairs tokens"]


class PairLengths(NamedTuple):
    """Number of tokens of both responses of each pair, the end token included."""

    chosen: Int[Array, "pairs"]
    rejected: Int[Array, "pairs"]


class TokenRows(NamedTuple):
    """Rows of tokens: prompt, response, padding, in that order.

    A row may hold no prompt; its first token is then given, not predicted, and cannot be part of the
    response. Padding is whatever follows the last response token; its ids do not matter.
    """

    tokens: Int[Array, "rows length"]
    response_mask: Bool[Array, "rows length"]  # True on response tokens


class TokenPairs(NamedTuple):
    """What a language model reads: both responses of each pair, each behind its prompt."""

    chosen: TokenRows
    rejected: TokenRows
    reference: PairLogps | None = None  # under the frozen reference; None for a loss that needs none

    @property
    def lengths(self) -> PairLengths:
        """Response tokens of each pair."""
        return PairLengths(self.chosen.response_mask.sum(-1), self.rejected.response_mask.sum(-1))


class PackedRows(NamedTuple):
    """Prompts with their responses, any number of groups in a row; `data.packing` makes them.

    A group is a prompt and its responses, one after the other: prompt, chosen, rejected, or more of them.
    Positions go on from the prompt's end in every response, and a response sees its own prompt and itself,
    nothing else. Separate rows are the same noun: each holds a prompt and one response. What is measured of
    `tokens` is aligned with them, and `slots` finds it again for each response.
    """

    tokens: Int[Array, "rows length"]
    positions: Int[Array, "rows length"]  # behind the token's own prompt's first; -1 for padding
    groups: Int[Array, "rows length"]  # number of the group within its row; -1 for padding
    branches: Int[Array, "rows length"]  # 0 in a prompt, 1, 2, ... in the responses; 0 for padding
    sources: Int[
        Array, "rows length"
    ]  # place in the row of the state that predicts the token; -1: none asked
    slots: Int[Array, "groups branches tokens"]  # row * length + place of each token, -1 after the last


class IndexPairs(NamedTuple):
    """What a policy over finitely many responses reads: which prompt, which two responses."""

    prompts: Int[Array, "pairs"]
    chosen: Int[Array, "pairs"]
    rejected: Int[Array, "pairs"]
    reference: PairLogps | None = None

    @property
    def lengths(self) -> PairLengths:
        """One: a response out of a finite list is one token."""
        one = jnp.ones_like(self.chosen)
        return PairLengths(one, one)
