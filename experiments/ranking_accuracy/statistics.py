"""What the scores of fixed pairs along a training say about ranking: curves, profile, summary.

Everything is a function of eight numbers a pair and evaluation: the two log-probabilities under policy
and reference, the two lengths, the votes. Run in float64: past beta c = 17 losses that differ are one
number in float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref.losses import dpo_loss, ratio_ablation_loss
from jaxpref.pairs import PairLengths, PairLogps
from jaxpref.probes import ranking
from jaxpref.theory import ranking as theory

BETAS = (1e-6, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 1e6)  # of idealized accuracy
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
GAP_EDGES = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, float("inf"))  # bins of c, nats
GAP_CENTERS = (1.0, 3.5, 7.5, 15.0, 30.0)  # of the bounded bins
TIE = 1e-6  # margins this small are ties and decide nothing, nats


class Scored(NamedTuple):
    """Fixed pairs of one seed, scored again and again."""

    policy: PairLogps  # [evaluations, pairs], nats
    reference: PairLogps  # [pairs], nats
    lengths: PairLengths  # [pairs]
    vote_share: Array  # [pairs], of raters who took the chosen side


def double(scored: Scored) -> Scored:
    """The same in float64."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), scored)._replace(lengths=scored.lengths)


def evaluation(policy: PairLogps, scored: Scored, beta: float) -> dict[str, Array]:
    """Metrics of one evaluation, means over the pairs and over each category's present members."""
    margin, gap = ranking.log_ratios(policy, scored.reference)
    loss, reward_margin = dpo_loss(policy, scored.reference, beta=beta), beta * (margin + gap)
    category = ranking.category(margin, gap)
    by_category = {
        "share": ranking.category_shares(category),
        "loss": ranking.category_means(loss, category),
        "margins": ranking.category_means(reward_margin, category),
    }
    return {
        "loss": jnp.mean(loss),
        "rewards/margins": jnp.mean(reward_margin),
        "rewards/accuracies": ranking.reward_accuracy(policy, scored.reference),
        "ranking/accuracy": ranking.ranking_accuracy(policy),
        "ranking/normalized_accuracy": ranking.normalized_ranking_accuracy(policy, scored.lengths),
        "ranking/reference_accuracy": ranking.reference_accuracy(gap),
        "ranking/flip_rate": ranking.flip_rate(margin, gap),
        "ranking/exact_ties": ranking.exact_ties(margin),
        "logps/chosen": jnp.mean(policy.chosen),
        "logps/rejected": jnp.mean(policy.rejected),
    } | {f"category/{what}_{name}": means[i] for what, means in by_category.items()
         for i, name in enumerate(ranking.CATEGORIES)}  # fmt: skip


def curves(scored: Scored, beta: float) -> dict[str, Array]:
    """Metrics of every evaluation, [evaluations] each."""
    return jax.vmap(lambda policy: evaluation(policy, scored, beta))(scored.policy)


def idealized_curve(scored: Scored) -> Array:
    """Idealized ranking accuracy at each of `BETAS`."""
    gap = -scored.reference.margin
    at = lambda beta: theory.idealized_accuracy(gap, scored.vote_share, beta=beta)
    return jax.vmap(at)(jnp.array(BETAS))


def threshold_violations(policy: PairLogps, scored: Scored, beta: float) -> Array:
    """Share of pairs and gammas for which loss <= tau(c) is not the same as being ranked right."""
    margin, gap = ranking.log_ratios(policy, scored.reference)

    def disagree(gamma: Array) -> Array:
        loss = ratio_ablation_loss(policy, scored.reference, beta=beta, alpha=gamma)
        low_enough = loss <= theory.flip_threshold(gap, beta=beta, gamma=gamma)
        return (low_enough != (margin >= 0)) & (jnp.abs(margin) > TIE)

    return jnp.mean(jax.vmap(disagree)(jnp.array(GAMMAS)))


def sign_violations(policy: PairLogps, scored: Scored, beta: float) -> Array:
    """Pairs of ci with u >= 0 or loss <= log 2, of ic with u < beta c or loss > tau(c); a share."""
    margin, gap = ranking.log_ratios(policy, scored.reference)
    loss, reward_margin = dpo_loss(policy, scored.reference, beta=beta), beta * (margin + gap)
    unlearned, flipped = (ranking.category(margin, gap) == i for i in (1, 2))
    wrong_unlearned = unlearned & ((reward_margin >= 0) | (loss <= jnp.log(2.0)))
    fell_short = (reward_margin < beta * gap) | (loss > theory.flip_threshold(gap, beta=beta))
    return jnp.mean(wrong_unlearned | (flipped & fell_short & (margin > TIE)))


def surely_right_violations(policy: PairLogps, scored: Scored, beta: float) -> Array:
    """Share of pairs that proposition 2.6 calls right and that are ranked wrongly."""
    margin, gap = ranking.log_ratios(policy, scored.reference)
    sure = theory.loss_surely_right(dpo_loss(policy, scored.reference, beta=beta), gap)
    return jnp.mean(sure & (margin < 0))


def identities(scored: Scored, beta: float) -> dict[str, Array]:
    """What must be 0 at every evaluation, the worst of them."""
    worst = lambda violations: jnp.max(jax.vmap(lambda p: violations(p, scored, beta))(scored.policy))
    found = curves(scored, beta)
    share = {name: found[f"category/share_{name}"] for name in ranking.CATEGORIES}
    start = jax.tree.map(lambda x: x[0], scored.policy)
    kept = share["cc"] + share["ci"] - found["ranking/reference_accuracy"]
    return {
        "threshold_violations": worst(threshold_violations),
        "surely_right_violations": worst(surely_right_violations),
        "sign_violations": worst(sign_violations),
        "start_loss_error": jnp.max(jnp.abs(dpo_loss(start, scored.reference, beta=beta) - jnp.log(2.0))),
        "start_changed": share["ci"][0] + share["ic"][0],
        "share_error": jnp.max(jnp.abs(kept)) + jnp.max(jnp.abs(sum(share.values()) - 1)),
    }


def trends(found: dict[str, Array]) -> dict[str, Array]:
    """From the first evaluation after step 0 to the last: what falls and what rises by category."""
    change = lambda what: jnp.array(
        [c[-1] - c[1] for c in (found[f"category/{what}_{n}"] for n in ("cc", "ic", "ii"))]
    )
    return {
        "loss_change": jnp.max(change("loss")),
        "margin_change": jnp.min(change("margins")),
        "most_unlearned": jnp.max(found["category/share_ci"]),
    }


def at_best(policy: PairLogps, scored: Scored, beta: float, key: Array) -> dict[str, Array]:
    """Statistics of the checkpoint of lowest held-out loss."""
    margin, gap = ranking.log_ratios(policy, scored.reference)
    loss, right, misranked = dpo_loss(policy, scored.reference, beta=beta), margin >= 0, gap > 0
    threshold = theory.flip_threshold(gap, beta=beta)
    shuffled = jax.random.permutation(key, threshold)
    still_wrong = misranked & ~right
    reward_accuracy = ranking.reward_accuracy(policy, scored.reference)
    auc_gap, auc_loss = ranking.auc(-gap, right), ranking.auc(-loss, right)
    return {
        "flip_rate": ranking.flip_rate(margin, gap),
        "auc_gap": auc_gap,
        "auc_loss": auc_loss,
        "auc_difference": auc_gap - auc_loss,
        "auc_flipped": ranking.auc(threshold, right, misranked),
        "auc_flipped_loss": ranking.auc(-loss, right, misranked),
        "auc_shuffled_error": jnp.abs(ranking.auc(shuffled, right, misranked) - 0.5),
        "reward_less_ranking": reward_accuracy - ranking.ranking_accuracy(policy),
        "log2_violations": jnp.mean((loss <= jnp.log(2.0)) != right),
        "wrong_but_rewarded": jnp.sum(still_wrong & (loss < jnp.log(2.0))) / jnp.sum(still_wrong),
    }


def idealized(scored: Scored, beta: float, accuracy: Array) -> dict[str, Array]:
    """Shape and limits of idealized accuracy, and its distance from what training reached."""
    gap, share = -scored.reference.margin, scored.vote_share
    curve = idealized_curve(scored)
    at = lambda beta: theory.idealized_accuracy(gap, share, beta=beta)
    median = at(1.0)  # never rising in beta, so the median of the paper's .01, .1, 1, 5, 10 is its middle
    return {
        "idealized_rise": jnp.max(jnp.diff(curve)),
        "idealized_low_error": jnp.abs(curve[0] - jnp.mean(share > 0.5, dtype=float)),
        "idealized_high_error": jnp.abs(curve[-1] - ranking.reference_accuracy(gap)),
        "median_alignment_gap": median - accuracy,
        "alignment_gap": at(beta) - accuracy,
    }


def data_facts(scored: Scored) -> dict[str, Array]:
    """How wrong the reference is, and how much of that is length."""
    gap = -scored.reference.margin
    longer = scored.lengths.chosen - scored.lengths.rejected
    return {
        "median_abs_gap": jnp.median(jnp.abs(gap)),
        "gap_length_correlation": jnp.corrcoef(gap, longer)[0, 1],
        "length_accuracy": jnp.mean(longer < 0),
        "reference_accuracy": ranking.reference_accuracy(gap),
        "unanimous": jnp.mean(scored.vote_share == 1.0),
    }


def profile(policy: PairLogps, scored: Scored) -> Array:
    """Share flipped in each bin of `GAP_EDGES`."""
    return ranking.flip_profile(*ranking.log_ratios(policy, scored.reference), jnp.array(GAP_EDGES))


def half_flip_gap(profile: np.ndarray) -> float:
    """The c at which half of the pairs flip, nats, interpolated between bins; nan if they never cross."""
    falls = np.flatnonzero((profile[:4] >= 0.5) & (profile[1:5] < 0.5))
    if not len(falls):
        return float("nan")
    at = falls[0]
    return float(np.interp(-0.5, -profile[at : at + 2], GAP_CENTERS[at : at + 2]))


def flipping(policy: PairLogps, scored: Scored, beta: float) -> dict[str, Array]:
    """How flipping depends on c at this checkpoint."""
    margin, gap = ranking.log_ratios(policy, scored.reference)
    beyond = beta * gap > 5
    return {
        "profile": profile(policy, scored),
        "flipped_beyond": jnp.sum(beyond & (margin >= 0)) / jnp.maximum(jnp.sum(beyond), 1),
        "largest_flipped": jnp.max(jnp.where(margin >= 0, gap, 0.0)),
    }


def checkpoint(policy: PairLogps, scored: Scored, beta: float) -> dict[str, Array]:
    """Per-pair values at one evaluation, [pairs], nats; what a scatter of loss against c shows."""
    margin, gap = ranking.log_ratios(policy, scored.reference)
    return {
        "reference_gap": gap,
        "margin": margin,
        "loss": dpo_loss(policy, scored.reference, beta=beta),
        "flip_threshold": theory.flip_threshold(gap, beta=beta),
        "category": ranking.category(margin, gap),
    }


def summarize(train: Scored, held_out: Scored, beta: float, key: Array) -> dict[str, Any]:
    """All statistics of one seed."""
    best = jnp.argmin(curves(held_out, beta)["loss"])
    chosen = jax.tree.map(lambda x: x[best], train.policy)
    last = jax.tree.map(lambda x: x[-1], train.policy)
    found = curves(train, beta)
    return {
        "best_evaluation": best, "end_flip_rate": found["ranking/flip_rate"][-1],
        "accuracy": found["ranking/accuracy"][best], "end_accuracy": found["ranking/accuracy"][-1],
        "best_profile": profile(chosen, train), "checkpoint": checkpoint(chosen, train, beta),
    } | (
        identities(train, beta) | trends(found) | at_best(chosen, train, beta, key) | data_facts(train)
        | idealized(train, beta, found["ranking/accuracy"][best]) | flipping(last, train, beta)
    )  # fmt: skip
