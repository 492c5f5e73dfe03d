"""What the hidden states of packed rows tell of each group's responses, without a row for each of them.

Every function takes the states of one forward pass over `PackedRows`; groups are pairs wherever two responses
are spoken of. The numbers are those of `probes.likelihood` over separate rows.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref.logps import wide
from jaxpref.pairs import PackedRows, PairLengths, TokenRows
from jaxpref.probes import likelihood
from jaxpref.probes.likelihood import Similarity


def response_mask(rows: PackedRows) -> Bool[Array, "groups responses tokens"]:
    """True where a response has a token; axis 1 is chosen, rejected, ..."""
    return rows.slots[:, 1:] >= 0


def pair_lengths(rows: PackedRows) -> PairLengths:
    """Response tokens of each pair, the end token counted."""
    return PairLengths(*jnp.moveaxis(response_mask(rows).sum(-1), 1, 0)[:2])


def hidden_sums(
    hidden: Float[Array, "rows length dim"], rows: PackedRows
) -> Float[Array, "groups responses dim"]:
    """`likelihood.response_hidden_sums` of every response: of the states that predict its tokens."""
    states = wide(hidden.reshape(-1, hidden.shape[-1])[_predicting(rows)])
    return jnp.sum(jnp.where(response_mask(rows)[..., None], states, 0), axis=2)


def last_hidden(
    hidden: Float[Array, "rows length dim"], rows: PackedRows
) -> Float[Array, "groups responses dim"]:
    """`likelihood.last_hidden` of every response: the state that predicts its last token."""
    last = jnp.maximum(response_mask(rows).sum(-1, keepdims=True) - 1, 0)
    places = jnp.take_along_axis(_predicting(rows), last, axis=-1)[..., 0]
    return wide(hidden.reshape(-1, hidden.shape[-1])[places])


def ches(hidden: Float[Array, "rows length dim"], rows: PackedRows) -> Similarity:
    """CHES and lnCHES of each pair, as `likelihood.ches` defines them."""
    sums = hidden_sums(hidden, rows)
    return likelihood.ches(sums[:, 0], sums[:, 1], pair_lengths(rows))


def last_hidden_inner(hidden: Float[Array, "rows length dim"], rows: PackedRows) -> Float[Array, "groups"]:
    """Baseline: inner product of the two responses' last states."""
    last = last_hidden(hidden, rows)
    return likelihood.last_hidden_inner(last[:, 0], last[:, 1])


def edit_distance(rows: PackedRows) -> Float[Array, "groups"]:
    """`likelihood.edit_distance` of the two responses of each pair."""
    tokens, mask = rows.tokens.reshape(-1)[jnp.maximum(rows.slots[:, 1:], 0)], response_mask(rows)
    return likelihood.edit_distance(*(TokenRows(tokens[:, i], mask[:, i]) for i in (0, 1)))


def _predicting(rows: PackedRows) -> Int[Array, "groups responses tokens"]:
    """Flat place of the state that predicts each response token; some place where there is no token."""
    places, length = jnp.maximum(rows.slots[:, 1:], 0), rows.tokens.shape[1]
    sources = rows.sources.reshape(-1)[places]
    return places // length * length + jnp.maximum(sources, 0)
