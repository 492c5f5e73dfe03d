"""Does the policy give the chosen response the higher probability? Ranking accuracy and its relatives.

Two numbers describe a pair: `margin` m = logp(chosen) - logp(rejected) under the policy, and
`reference_gap` c = ref logp(rejected) - ref logp(chosen). MIND THE SIGN of c: it is positive where the
reference ranks the pair wrongly, and m = -c before any training.

References: Chen et al. 2024, arXiv:2405.19534.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref.losses.quantities import mean_logps
from jaxpref.pairs import PairLengths, PairLogps

TIE_RULES = ("ge", "gt", "band")
CATEGORIES = ("cc", "ci", "ic", "ii")  # reference then policy: correct or incorrect


class LogRatios(NamedTuple):
    """The two numbers of a pair, nats."""

    margin: Float[Array, "pairs"]
    reference_gap: Float[Array, "pairs"]  # positive where the reference is wrong


def log_ratios(policy: PairLogps, reference: PairLogps) -> LogRatios:
    """m and c of each pair."""
    return LogRatios(policy.margin, -reference.margin)


def ranked_right(
    margin: Float[Array, "*pairs"], *, tie_rule: str = "ge", band: float = 0.01
) -> Bool[Array, "*pairs"]:
    """Whether each pair is ranked as labelled.

    Args:
      margin: nats, or nats per token.
      tie_rule: "ge" counts an exact tie as right (definition 2.3); "gt" as wrong, as trainers log it;
        "band" counts any margin up to `band` as a tie and therefore wrong.
      band: half width of the band, in the margin's unit.
    """
    if tie_rule not in TIE_RULES:
        raise ValueError(f"tie_rule must be one of {', '.join(TIE_RULES)}; got {tie_rule!r}")
    if tie_rule == "ge":
        return margin >= 0
    return margin > (band if tie_rule == "band" else 0.0)


def ranked_right_with_ties(
    margin: Float[Array, "*pairs"], vote_share: Float[Array, "*pairs"], *, band: float = 0.01
) -> Bool[Array, "*pairs"]:
    """Definition C.1: a pair whose raters are split evenly is right where the margin is within `band`.

    Args:
      margin: in the unit that the scores are compared in; definition C.1 says probabilities, which for
        whole responses makes everything a tie, so use nats per token.
      vote_share: share of raters who prefer the response labelled chosen.
    """
    tied = jnp.abs(margin) < band
    return jnp.where(vote_share == 0.5, tied, jnp.where(vote_share > 0.5, margin > 0, margin < 0))


def ranking_accuracy(logps: PairLogps, *, tie_rule: str = "ge", band: float = 0.01) -> Float[Array, ""]:
    """Share of pairs ranked as labelled; of the reference's `logps` it is the reference accuracy."""
    return jnp.mean(ranked_right(logps.margin, tie_rule=tie_rule, band=band), dtype=float)


def normalized_ranking_accuracy(
    logps: PairLogps, lengths: PairLengths, *, tie_rule: str = "ge", band: float = 0.01
) -> Float[Array, ""]:
    """Ranking accuracy of log-probabilities per token (equation 15)."""
    return ranking_accuracy(mean_logps(logps, lengths), tie_rule=tie_rule, band=band)


def reference_accuracy(reference_gap: Float[Array, "pairs"], *, tie_rule: str = "ge") -> Float[Array, ""]:
    """Ranking accuracy of the reference: share of pairs with c <= 0 (below 0 under "gt")."""
    return jnp.mean(ranked_right(-reference_gap, tie_rule=tie_rule), dtype=float)


def reward_right(
    margin: Float[Array, "*pairs"], reference_gap: Float[Array, "*pairs"]
) -> Bool[Array, "*pairs"]:
    """m + c > 0: the margin grew past the reference's, equivalently the DPO loss is below log 2."""
    return margin + reference_gap > 0


def reward_accuracy(policy: PairLogps, reference: PairLogps) -> Float[Array, ""]:
    """What trainers log as `rewards/accuracies`. Not ranking accuracy (remark 2.5)."""
    return jnp.mean(reward_right(policy.margin, -reference.margin), dtype=float)


def category(
    margin: Float[Array, "*pairs"], reference_gap: Float[Array, "*pairs"], *, tie_rule: str = "ge"
) -> Int[Array, "*pairs"]:
    """Index into `CATEGORIES`: cc, ci, ic (flipped), ii, the reference's ranking before the policy's."""
    reference_wrong = ~ranked_right(-reference_gap, tie_rule=tie_rule)
    policy_wrong = ~ranked_right(margin, tie_rule=tie_rule)
    return 2 * reference_wrong.astype(int) + policy_wrong.astype(int)


def category_shares(category: Int[Array, "pairs"]) -> Float[Array, "4"]:
    """Share of pairs in each of `CATEGORIES`."""
    return jnp.mean(category[:, None] == jnp.arange(len(CATEGORIES)), axis=0, dtype=float)


def flip_rate(margin: Float[Array, "pairs"], reference_gap: Float[Array, "pairs"]) -> Float[Array, ""]:
    """Of the pairs that the reference ranks wrongly, the share now right: ic / (ic + ii)."""
    shares = category_shares(category(margin, reference_gap))
    return shares[2] / (shares[2] + shares[3])


def category_means(values: Float[Array, "pairs"], category: Int[Array, "pairs"]) -> Float[Array, "4"]:
    """Mean of a per-pair quantity in each of `CATEGORIES`; NaN where a category is empty."""
    member = category[:, None] == jnp.arange(len(CATEGORIES))
    return values @ member / jnp.sum(member, axis=0)


def flip_profile(
    margin: Float[Array, "pairs"], reference_gap: Float[Array, "pairs"], edges: Float[Array, "edges"]
) -> Float[Array, "bins"]:
    """Share ranked right of the pairs whose c lies in (edges[i], edges[i + 1]]; NaN where there is none.

    Over positive edges, the chance that a pair which the reference ranks wrongly has flipped, given c.
    """
    bins = (reference_gap[:, None] > edges[:-1]) & (reference_gap[:, None] <= edges[1:])
    return jnp.sum(bins & ranked_right(margin)[:, None], axis=0) / jnp.sum(bins, axis=0)


def exact_ties(margin: Float[Array, "pairs"]) -> Int[Array, ""]:
    """Number of pairs with equal log-probabilities; to be reported beside any accuracy."""
    return jnp.sum(margin == 0)


# More than two responses a prompt.


def _agreement(scores: Array, gold_rank: Array, band: float) -> tuple[Array, Array]:
    """For every ordered couple: does the model order it as the annotators; do these tell it apart?"""
    difference = scores[..., :, None] - scores[..., None, :]
    model = jnp.where(jnp.abs(difference) <= band, 0, jnp.sign(difference))
    gold = jnp.sign(gold_rank[..., None, :] - gold_rank[..., :, None])
    return model == gold, gold != 0


def exact_match(
    scores: Float[Array, "*prompts responses"],
    gold_rank: Int[Array, "*prompts responses"],
    *,
    band: float = 0.0,
) -> Bool[Array, "*prompts"]:
    """Whether the whole ranking is the annotators', ties included (definition A.8).

    Args:
      scores: log-probabilities, summed or per token.
      gold_rank: 1 is best; equal ranks are ties, which only scores within `band` match.
    """
    agrees, _ = _agreement(scores, gold_rank, band)
    return jnp.all(agrees, axis=(-2, -1))


def mean_pairwise(
    scores: Float[Array, "*prompts responses"],
    gold_rank: Int[Array, "*prompts responses"],
    *,
    band: float = 0.0,
) -> Float[Array, "*prompts"]:
    """Share of the couples that annotators tell apart which the scores order alike; NaN without any."""
    agrees, apart = _agreement(scores, gold_rank, band)
    return jnp.sum(agrees & apart, axis=(-2, -1)) / jnp.sum(apart, axis=(-2, -1))


def auc(
    scores: Float[Array, "pairs"],
    labels: Bool[Array, "pairs"],
    where: Bool[Array, "pairs"] | None = None,
) -> Float[Array, ""]:
    """Area under the ROC curve: chance that a positive scores above a negative, ties counting half.

    Of the pairs in `where` alone, if given; their scores must be finite. NaN where a class is empty.
    """
    where = jnp.ones_like(labels) if where is None else where
    ranked = jnp.sort(jnp.where(where, scores, -jnp.inf))  # the others stand below and shift all ranks
    below = jnp.searchsorted(ranked, scores, side="left")
    rank = (below + jnp.searchsorted(ranked, scores, side="right") + 1) / 2 - jnp.sum(~where)
    positives, negatives = jnp.sum(labels & where), jnp.sum(~labels & where)
    excess = jnp.sum(jnp.where(labels & where, rank, 0.0)) - positives * (positives + 1) / 2
    return excess / (positives * negatives)
