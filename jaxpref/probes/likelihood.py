"""How log-probabilities moved, who gained what the chosen response lost, and what foretells it.

All similarity measures are oriented so that larger means more alike, hence more displacement expected:
Razin et al. 2025, arXiv:2410.08847, definitions 1 to 3 and section 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref import logps
from jaxpref.logps import wide
from jaxpref.pairs import PairLengths, PairLogps, TokenRows


class TopGainers(NamedTuple):
    """Responses (or tokens) that gained most, best first."""

    ids: Int[Array, "*prompts k"]
    gains: Float[Array, "*prompts k"]  # of probability


class Drop(NamedTuple):
    """The largest fall between any two steps of a trajectory."""

    size: Float[Array, "*runs"]
    before: Int[Array, "*runs"]  # step of the high point
    after: Int[Array, "*runs"]  # step of the low point


class Similarity(NamedTuple):
    """Centered hidden embedding similarity of each pair, summed and length-normalized."""

    ches: Float[Array, "pairs"]
    ln_ches: Float[Array, "pairs"]


def displacement(now: PairLogps, start: PairLogps) -> PairLogps:
    """Change of both `logps` since `start`, [pairs], nats; negative is displaced."""
    return PairLogps(now.chosen - start.chosen, now.rejected - start.rejected)


def fraction_chosen_down(now: PairLogps, start: PairLogps) -> Float[Array, ""]:
    """Share of pairs whose chosen response is less likely than at the start."""
    return jnp.mean(wide(displacement(now, start).chosen < 0))


def mass_change(
    start: Float[Array, "*prompts responses"], now: Float[Array, "*prompts responses"]
) -> Float[Array, "*prompts responses"]:
    """Where the mass went: change of probability of every response; sums to 0.

    Args:
      start, now: log-probabilities of all responses, nats.
    """
    return jnp.exp(now) - jnp.exp(start)


def top_gainers(
    start: Float[Array, "*prompts responses"], now: Float[Array, "*prompts responses"], k: int
) -> TopGainers:
    """The k responses whose probability grew most; arguments as for `mass_change`."""
    gains, ids = jax.lax.top_k(mass_change(start, now), k)
    return TopGainers(ids, gains)


def max_drop(trajectory: Float[Array, "*runs steps"]) -> Drop:
    """max over t < t' of value(t) - value(t'), with the two steps; 0 at (0, 0) if it never falls.

    The chosen probability often rises first and may recover, so start minus end misses displacement
    (section 3 of the paper reports this maximum).
    """
    fall = jax.lax.cummax(trajectory, axis=trajectory.ndim - 1) - trajectory
    after = jnp.argmax(fall, axis=-1)
    earlier = jnp.arange(trajectory.shape[-1]) <= after[..., None]
    before = jnp.argmax(jnp.where(earlier, trajectory, -jnp.inf), axis=-1)
    return Drop(jnp.max(fall, axis=-1), jnp.where(after == 0, 0, before), after)


def response_hidden_sums(
    hidden: Float[Array, "rows length dim"], rows: TokenRows
) -> Float[Array, "rows dim"]:
    """Sum of the hidden states that predict a response, in float32.

    From the last prompt position to the one before the last response token: the state after the end token
    is left out, as |y| states for |y| tokens with the end token counted. Half precision overflows here.
    """
    return jnp.einsum("rld,rl->rd", wide(hidden), wide(logps.predicting_mask(rows)), precision="highest")


def ches(
    chosen_hidden_sum: Float[Array, "pairs dim"],
    rejected_hidden_sum: Float[Array, "pairs dim"],
    lengths: PairLengths,
) -> Similarity:
    """CHES = <S+, S-> - |S+|^2 and its length-normalized form, both asymmetric in the pair.

    With S the sum of a response's hidden states and n its length, lnCHES = <S+, S->/(n+ n-) - |S+|^2/n+^2.

    Args:
      chosen_hidden_sum, rejected_hidden_sum: as from `response_hidden_sums`, under the policy at the start.
      lengths: response tokens, the end token counted.

    References: Razin et al. 2025, arXiv:2410.08847, definitions 2 and 3.
    """
    chosen, rejected = wide(chosen_hidden_sum), wide(rejected_hidden_sum)
    chosen_mean, rejected_mean = chosen / lengths.chosen[:, None], rejected / lengths.rejected[:, None]
    score = lambda w, l: jnp.sum(w * (l - w), axis=-1)  # <w, l> - |w|^2 without its cancellation
    return Similarity(score(chosen, rejected), score(chosen_mean, rejected_mean))


def last_hidden(hidden: Float[Array, "rows length dim"], rows: TokenRows) -> Float[Array, "rows dim"]:
    """The last state that predicts a response token, which is the one after the last word before the end.

    Responses end in their end token, whose own state says nothing; without one, this is a token early.
    """
    mask = logps.predicting_mask(rows)
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return wide(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


def last_hidden_inner(
    chosen_last: Float[Array, "pairs dim"], rejected_last: Float[Array, "pairs dim"]
) -> Float[Array, "pairs"]:
    """Baseline: inner product of the two responses' `last_hidden` states."""
    return jnp.sum(wide(chosen_last) * wide(rejected_last), axis=-1)


def length_difference(lengths: PairLengths) -> Int[Array, "pairs"]:
    """Rejected less chosen length, tokens: the control, since raw CHES grows with it."""
    return lengths.rejected - lengths.chosen


def edit_similarity(chosen: TokenRows, rejected: TokenRows) -> Float[Array, "pairs"]:
    """Baseline: minus the normalized `edit_distance`."""
    return -edit_distance(chosen, rejected)


def edit_distance(chosen: TokenRows, rejected: TokenRows) -> Float[Array, "pairs"]:
    """Levenshtein distance of the two responses' tokens over the longer one's length, in [0, 1]."""
    first, second = compact(chosen), compact(rejected)
    distance = jax.vmap(_levenshtein)(first.tokens, first.mask, second.tokens, second.mask)
    longer = jnp.maximum(first.mask.sum(-1), second.mask.sum(-1))
    return distance / jnp.maximum(longer, 1)


class Compact(NamedTuple):
    """Responses without their prompts, moved to the left; `mask` is False behind them."""

    tokens: Int[Array, "rows length"]
    mask: Bool[Array, "rows length"]


def compact(rows: TokenRows) -> Compact:
    """Responses moved to the front of their rows."""
    length = rows.tokens.shape[1]
    start = jnp.argmax(rows.response_mask, axis=1)
    columns = (start[:, None] + jnp.arange(length)) % length
    take = lambda x: jnp.take_along_axis(x, columns, axis=1)
    return Compact(take(rows.tokens), take(rows.response_mask))


def _levenshtein(first: Array, first_mask: Array, second: Array, second_mask: Array) -> Array:
    """Row by row of the usual table; insertions along a row are a running minimum."""
    columns = jnp.arange(second.size + 1)

    def next_row(row: Array, token: tuple[Array, Array]):
        symbol, alive = token
        substituted = row[:-1] + (second != symbol)
        reached = jnp.concatenate([row[:1] + 1, jnp.minimum(row[1:] + 1, substituted)])
        inserted = jax.lax.cummin(reached - columns) + columns
        return jnp.where(alive, inserted, row), None

    last_row, _ = jax.lax.scan(next_row, columns, (first, first_mask))
    return last_row[second_mask.sum()]
