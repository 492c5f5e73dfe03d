"""Why the chosen response can lose probability: rates under gradient flow on unconstrained features.

The parameters are the unembedding W [vocab, dim] and a free hidden state for every prefix. The loss is
ell(margin); every rate below is d/dt log-probability divided by -ell'(margin) > 0, in nats per unit of
time and slope, unless a slope is an argument. One pair; `jax.vmap` gives many.

References: Razin et al. 2025, arXiv:2410.08847, section 4 and its appendix; theorem numbers are v1's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref import logps


class ChosenRate(NamedTuple):
    """What drives the chosen response of a one-token pair; the rate is their sum."""

    norms: Float[Array, ""]  # m: unembedding and hidden norms, never negative
    alignment: Float[Array, ""]  # how alike the two responses are: pushes down when positive
    bystanders: Float[Array, ""]  # other tokens aligned with the difference

    @property
    def total(self) -> Float[Array, ""]:
        return self.norms + self.alignment + self.bystanders


class Split(NamedTuple):
    """Norms of the parts of W[chosen] - W[rejected] along W[chosen] and orthogonal to it."""

    projection: Float[Array, ""]
    orthogonal: Float[Array, ""]


class Response(NamedTuple):
    """A response on unconstrained features: the state before each of its tokens, first the prompt's."""

    hidden: Float[Array, "tokens dim"]
    tokens: Int[Array, "tokens"]
    mask: Bool[Array, "tokens"]


def probabilities(unembedding: Float[Array, "vocab dim"], hidden: Float[Array, "*prompts dim"]):
    """Next-token probabilities, [*prompts, vocab]."""
    return jnp.exp(logps.log_softmax(hidden @ unembedding.T))


# One pair of one-token responses.


def chosen_rate(
    unembedding: Float[Array, "vocab dim"],
    hidden: Float[Array, "dim"],
    chosen: Int[Array, ""],
    rejected: Int[Array, ""],
) -> ChosenRate:
    """Rate of the chosen token, theorem 4: norms raise it, similar unembeddings lower it."""
    p = probabilities(unembedding, hidden)
    w, l = unembedding[chosen], unembedding[rejected]
    apart = 1 - p[chosen] + p[rejected]
    others = p.at[chosen].set(0.0).at[rejected].set(0.0)
    norms = (1 - p[chosen]) * w @ w + p[rejected] * l @ l + apart * hidden @ hidden
    return ChosenRate(norms, -apart * w @ l, -others @ unembedding @ (w - l))


def token_rates(
    unembedding: Float[Array, "vocab dim"],
    hidden: Float[Array, "dim"],
    chosen: Int[Array, ""],
    rejected: Int[Array, ""],
) -> Float[Array, "vocab"]:
    """Rate of every token, theorem 5: bystanders gain in the order of <W_z, W_chosen - W_rejected>.

    The theorem is about the others; for the two compared tokens |h|^2 is added or taken away.
    """
    p = probabilities(unembedding, hidden)
    scores = gain_scores(unembedding, chosen, rejected)
    sq_norm = hidden @ hidden
    common = (p[rejected] - p[chosen]) * sq_norm - p @ scores
    return (scores + common).at[chosen].add(sq_norm).at[rejected].add(-sq_norm)


def gain_scores(
    unembedding: Float[Array, "vocab dim"], chosen: Int[Array, ""], rejected: Int[Array, ""]
) -> Float[Array, "vocab"]:
    """<W_z, W_chosen - W_rejected>: their order is the order in which bystanders gain."""
    return unembedding @ (unembedding[chosen] - unembedding[rejected])


def fixed_features_rate(
    unembedding: Float[Array, "vocab dim"],
    hidden: Float[Array, "dim"],
    chosen: Int[Array, ""],
    rejected: Int[Array, ""],
) -> Float[Array, ""]:
    """Rate of the chosen token when only W learns: positive, so displacement needs moving features."""
    p = probabilities(unembedding, hidden)
    return (1 - p[chosen] + p[rejected]) * hidden @ hidden


def fixed_unembedding_rate(
    unembedding: Float[Array, "vocab dim"],
    hidden: Float[Array, "dim"],
    chosen: Int[Array, ""],
    rejected: Int[Array, ""],
) -> Float[Array, ""]:
    """Rate of the chosen token when only the hidden state learns: <W_chosen - mean W, difference>."""
    mean = probabilities(unembedding, hidden) @ unembedding
    return (unembedding[chosen] - mean) @ (unembedding[chosen] - unembedding[rejected])


def unembedding_split(
    unembedding: Float[Array, "vocab dim"], chosen: Int[Array, ""], rejected: Int[Array, ""]
) -> Split:
    """Table 13: where the orthogonal part is the larger, winners may have nothing to do with the chosen."""
    w, l = unembedding[chosen], unembedding[rejected]
    length = jnp.linalg.norm(w)
    along = w @ l / length
    return Split(jnp.abs(length - along), jnp.linalg.norm(l - along / length * w))


# One pair of responses of many tokens that differ in the first.


def residuals(unembedding: Float[Array, "vocab dim"], response: Response) -> Float[Array, "tokens vocab"]:
    """e_token - softmax(W h) before each token, 0 where masked."""
    one_hot = jax.nn.one_hot(response.tokens, unembedding.shape[0], dtype=unembedding.dtype)
    return jnp.where(response.mask[:, None], one_hot - probabilities(unembedding, response.hidden), 0.0)


def coefficients(
    unembedding: Float[Array, "vocab dim"], first: Response, second: Response
) -> Float[Array, "first_tokens second_tokens"]:
    """alpha (and beta): inner products of two responses' residuals, in [-2, 2], mostly positive.

    Setting all of them to 1 gives CHES.
    """
    return residuals(unembedding, first) @ residuals(unembedding, second).T


def _weighted_gram(unembedding: Array, first: Response, second: Response) -> Array:
    """Sum of coefficients times inner products of hidden states: the unembedding's part of <grad, grad>."""
    return jnp.sum(coefficients(unembedding, first, second) * (first.hidden @ second.hidden.T))


def response_rate(
    unembedding: Float[Array, "vocab dim"], chosen: Response, rejected: Response
) -> Float[Array, ""]:
    """Rate of the chosen response, theorem 6; the first tokens must differ."""
    hidden, w, l = chosen.hidden[0], chosen.tokens[0], rejected.tokens[0]
    first_token = chosen_rate(unembedding, hidden, w, l)
    p = probabilities(unembedding, hidden)
    # |h|^2 belongs to the sums over alpha here, not to the first token's norms
    norms = first_token.norms - (1 - p[w] + p[l]) * hidden @ hidden
    later = jnp.sum((residuals(unembedding, chosen)[1:] @ unembedding) ** 2)
    return (
        norms + later + first_token.alignment + first_token.bystanders
        - _weighted_gram(unembedding, chosen, rejected) + _weighted_gram(unembedding, chosen, chosen)
    )  # fmt: skip


def other_response_rate(
    unembedding: Float[Array, "vocab dim"], other: Response, chosen: Response, rejected: Response
) -> Float[Array, ""]:
    """Rate of a response that begins with neither's first token, theorem 7."""
    scores = gain_scores(unembedding, chosen.tokens[0], rejected.tokens[0])
    mean = probabilities(unembedding, chosen.hidden[0]) @ scores
    return (
        scores[other.tokens[0]] - mean
        - _weighted_gram(unembedding, other, rejected) + _weighted_gram(unembedding, other, chosen)
    )  # fmt: skip


# Several prompts, one-token responses: only the unembedding is shared.


def batch_token_rates(
    unembedding: Float[Array, "vocab dim"],
    hidden: Float[Array, "pairs dim"],
    chosen: Int[Array, "pairs"],
    rejected: Int[Array, "pairs"],
    slopes: Float[Array, "pairs"],
) -> Float[Array, "pairs vocab"]:
    """Rate of every token behind every prompt when all pairs train together, theorems 8 and 9.

    Another pair pulls this prompt's mass towards its own chosen token in proportion to <h, h'>.

    Args:
      hidden: of each pair's prompt; the prompts are distinct.
      slopes: ell'(margin) of each pair, negative; the loss is the mean over pairs.
    """
    rate = jax.vmap(token_rates, in_axes=(None, 0, 0, 0))(unembedding, hidden, chosen, rejected)
    pull = interactions(unembedding, hidden, chosen, rejected)
    pairs = hidden.shape[0]
    others = jnp.where(jnp.eye(pairs, dtype=bool)[..., None], 0.0, pull)
    return (-slopes[:, None] * rate - jnp.einsum("j,ijv->iv", slopes, others)) / pairs


def interactions(
    unembedding: Float[Array, "vocab dim"],
    hidden: Float[Array, "pairs dim"],
    chosen: Int[Array, "pairs"],
    rejected: Int[Array, "pairs"],
) -> Float[Array, "pairs pairs vocab"]:
    """What pair j does to token z behind prompt i, per slope of j: a <h_i, h_j>, a in [-2, 2].

    a = 1[z = chosen_j] - 1[z = rejected_j] + p_i(rejected_j) - p_i(chosen_j).
    """
    p = probabilities(unembedding, hidden)
    one_hot = lambda ids: jax.nn.one_hot(ids, unembedding.shape[0], dtype=unembedding.dtype)
    level = p[:, rejected] - p[:, chosen]  # [pairs i, pairs j]
    coefficient = (one_hot(chosen) - one_hot(rejected))[None] + level[..., None]
    return coefficient * (hidden @ hidden.T)[..., None]


# Remedies.


def sft_rate(
    rate: Float[Array, "*pairs"], chosen_sq_norm: Float[Array, "*pairs"], weight: float
) -> Float[Array, "*pairs"]:
    """Rate with `-weight * logp(chosen)` added to the loss, proposition 1: lifted by weight |grad|^2.

    Args:
      rate: of the loss without the term, its slope multiplied in.
      chosen_sq_norm: squared norm of the gradient of the chosen `logps`.
    """
    return rate + weight * chosen_sq_norm


def reweighted_rate(
    rate: Float[Array, "*pairs"],
    chosen_sq_norm: Float[Array, "*pairs"],
    *,
    slope: Float[Array, "*pairs"],
    weighted_slope: Float[Array, "*pairs"],
    chosen_weight: float,
    rejected_weight: float,
) -> Float[Array, "*pairs"]:
    """Rate under ell(a logp(chosen) - b logp(rejected)), proposition 2: lifted when a > b.

    Args:
      rate: of the unweighted loss, its slope multiplied in.
      slope, weighted_slope: ell' at the plain and at the weighted margin, both negative.
      chosen_weight, rejected_weight: a and b, positive.
    """
    lift = (chosen_weight - rejected_weight) * -weighted_slope * chosen_sq_norm
    return rejected_weight * weighted_slope / slope * rate + lift
