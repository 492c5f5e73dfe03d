"""What gradient entanglement predicts, for any margin loss, to first order in the learning rate.

A loss enters through its gradient weights d_w = -dloss/dlogp(chosen) and d_l = +dloss/dlogp(rejected), as
`losses.gradient_weights` returns them (`weights.chosen`, `weights.rejected`, [pairs]); the policy enters
through the gradient geometry. Signs are strict: a response that does not move has neither fallen nor risen.

References: Yuan et al. 2024, arXiv:2410.13828; equations 3 to 5 and condition 1 are the DPO case.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import PairLogps
from jaxpref.probes.gradients import BatchGradientProducts, GradientGeometry, TokenGradientProducts

CASES = {1: "ideal", 2: "both fall", 3: "both rise", 4: "reversed"}


def predicted_change(geometry: GradientGeometry, weights: GradientWeights) -> PairLogps:
    """Change of both `logps` per unit learning rate when this pair alone takes one gradient step.

    chosen: d_w n_w - d_l <g_w, g_l>; rejected: d_w <g_w, g_l> - d_l n_l; [pairs], nats.
    """
    return PairLogps(
        weights.chosen * geometry.chosen_sq_norm - weights.rejected * geometry.inner,
        weights.chosen * geometry.inner - weights.rejected * geometry.rejected_sq_norm,
    )


def predicted_batch_change(products: BatchGradientProducts, weights: GradientWeights) -> PairLogps:
    """Change of both `logps` of every pair per unit learning rate for one step on the mean of the batch.

    chosen of pair i: mean over j of d_w^j <g_w^i, g_w^j> - d_l^j <g_w^i, g_l^j>. The paper's condition
    keeps j = i alone; the others can outweigh it.
    """
    pairs = weights.chosen.shape[0]
    mean = lambda products, weights: jnp.sum(products * weights, axis=1) / pairs
    return PairLogps(
        mean(products.chosen_chosen, weights.chosen) - mean(products.chosen_rejected, weights.rejected),
        mean(products.chosen_rejected.T, weights.chosen) - mean(products.rejected_rejected, weights.rejected),
    )


def chosen_falls(geometry: GradientGeometry, weights: GradientWeights) -> Bool[Array, "*pairs"]:
    """d_w n_w < d_l <g_w, g_l>: the step lowers the chosen response."""
    return predicted_change(geometry, weights).chosen < 0


def rejected_rises(geometry: GradientGeometry, weights: GradientWeights) -> Bool[Array, "*pairs"]:
    """d_w <g_w, g_l> > d_l n_l: the step raises the rejected response."""
    return predicted_change(geometry, weights).rejected > 0


def both_fall(geometry: GradientGeometry, weights: GradientWeights) -> Bool[Array, "*pairs"]:
    """Case 2: the step lowers the chosen response and does not raise the rejected one."""
    return chosen_falls(geometry, weights) & ~rejected_rises(geometry, weights)


def both_rise(geometry: GradientGeometry, weights: GradientWeights) -> Bool[Array, "*pairs"]:
    """Case 3: the step raises the rejected response and does not lower the chosen one."""
    return rejected_rises(geometry, weights) & ~chosen_falls(geometry, weights)


def case(geometry: GradientGeometry, weights: GradientWeights) -> Int[Array, "*pairs"]:
    """1 ideal, 2 both fall, 3 both rise, 4 reversed (Yuan et al. 2024, table 1).

    Case 4 would break Cauchy-Schwarz while both weights are positive; it needs a loss past its target.
    """
    falls, rises = chosen_falls(geometry, weights), rejected_rises(geometry, weights)
    return 1 + falls.astype(int) + 2 * rises.astype(int)


def inner_bound(geometry: GradientGeometry, weights: GradientWeights) -> Float[Array, "*pairs"]:
    """The largest inner product that is still case 1, for positive weights.

    min((d_w / d_l) n_w, (d_l / d_w) n_l); for DPO, whose weights are equal, the smaller squared norm.
    """
    ratio = weights.chosen / weights.rejected
    return jnp.minimum(ratio * geometry.chosen_sq_norm, geometry.rejected_sq_norm / ratio)


def kappa(geometry: GradientGeometry, weights: GradientWeights) -> Float[Array, "*pairs"]:
    """d_w |g_w| / (d_l |g_l|), the one number by which losses differ in the phase diagram."""
    norms = jnp.sqrt(geometry.chosen_sq_norm) / jnp.sqrt(geometry.rejected_sq_norm)
    return weights.chosen / weights.rejected * norms


def case_of_kappa(kappa: Float[Array, "*pairs"], cosine: Float[Array, "*pairs"]) -> Int[Array, "*pairs"]:
    """The phase diagram: case 2 below kappa = cosine, case 3 above kappa = 1 / cosine, else case 1."""
    return 1 + (kappa < cosine).astype(int) + 2 * (kappa * cosine > 1).astype(int)


def normalized_change(geometry: GradientGeometry, strength: Float[Array, "*pairs"]) -> PairLogps:
    """Change per unit learning rate under pairwise normalized gradients: never case 2 or 3.

    chosen: S |g_w| (1 - cosine) >= 0; rejected: -S |g_l| (1 - cosine) <= 0. The guarantee is for a pair by
    itself; in a batch shared directions may add up (section 5 of the paper outlines the design).

    Args:
      strength: S, the loss's own weight of the pair, beta sigma(-beta h) for DPO.
    """
    apart = strength * (1 - geometry.cosine)
    return PairLogps(apart * jnp.sqrt(geometry.chosen_sq_norm), -apart * jnp.sqrt(geometry.rejected_sq_norm))


def masked_inner(
    products: TokenGradientProducts,
    chosen_mask: Float[Array, "chosen_tokens"],
    rejected_mask: Float[Array, "rejected_tokens"],
) -> Float[Array, ""]:
    """The inner product that is left when only masked-in tokens enter the loss; weights in [0, 1]."""
    return jnp.einsum("i,ij,j->", chosen_mask, products.inner, rejected_mask)


# Where entanglement comes from: residuals e_y - p(. | context) against features.


def last_layer_geometry(
    chosen_residuals: Float[Array, "chosen_tokens vocab"],
    chosen_hidden: Float[Array, "chosen_tokens dim"],
    rejected_residuals: Float[Array, "rejected_tokens vocab"],
    rejected_hidden: Float[Array, "rejected_tokens dim"],
) -> GradientGeometry:
    """Geometry of one pair when only the unembedding learns: products of residual and hidden Grams.

    <g_w, g_l> = sum over s, t of <r_s, r_t> <h_s, h_t>: no backward pass is needed.
    """
    chosen = (chosen_residuals, chosen_hidden)
    rejected = (rejected_residuals, rejected_hidden)
    product = lambda a, b: jnp.sum((a[0] @ b[0].T) * (a[1] @ b[1].T))
    return GradientGeometry(product(chosen, rejected), product(chosen, chosen), product(rejected, rejected))


def shared_logits_geometry(
    chosen_residuals: Float[Array, "*pairs tokens vocab"],
    rejected_residuals: Float[Array, "*pairs tokens vocab"],
) -> GradientGeometry:
    """Geometry when every position owns a logit vector that both responses share: only s = t counts."""
    product = lambda a, b: jnp.sum(a * b, axis=(-2, -1))
    return GradientGeometry(
        product(chosen_residuals, rejected_residuals),
        product(chosen_residuals, chosen_residuals),
        product(rejected_residuals, rejected_residuals),
    )


def single_token_geometry(
    probabilities: Float[Array, "*pairs vocab"],
    chosen: Int[Array, "*pairs"],
    rejected: Int[Array, "*pairs"],
    feature_sq_norm: Float[Array, "*pairs"] | float = 1.0,
) -> GradientGeometry:
    """Geometry of two one-token responses behind the same context: always case 1 for DPO.

    <g_w, g_l> = |h|^2 (|p|^2 - p_w - p_l), n_w = |h|^2 (1 - 2 p_w + |p|^2), n_l likewise. A table of
    logits has |h| = 1.
    """
    purity = jnp.sum(probabilities**2, axis=-1)
    at = lambda ids: jnp.take_along_axis(probabilities, ids[..., None], axis=-1)[..., 0]
    p_w, p_l = at(chosen), at(rejected)
    products = (purity - p_w - p_l, 1 - 2 * p_w + purity, 1 - 2 * p_l + purity)
    return GradientGeometry(*(feature_sq_norm * x for x in products))


def single_token_change(p_w: Float[Array, "*pairs"], p_l: Float[Array, "*pairs"]) -> PairLogps:
    """Change of both `logps` per unit of learning rate, DPO weight and |h|^2: up, and down."""
    return PairLogps(1 - p_w + p_l, -(1 + p_w - p_l))


def bystander_change(p_w: Float[Array, "*pairs"], p_l: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """The same for every other token: they lose when the chosen one is already the likelier."""
    return p_l - p_w


def suffix_token_change(
    after_chosen: Float[Array, "*tokens"],
    after_rejected: Float[Array, "*tokens"],
    rest_sq_norm: Float[Array, "*tokens"] | float,
) -> PairLogps:
    """What one shared suffix token adds to both changes when both contexts share its logits.

    Both fall where the token is likelier after the chosen beginning. Proportional case: the two
    distributions differ in the token's probability alone, the rest q being spread alike.

    Args:
      after_chosen, after_rejected: a and b, the token's probability behind either beginning.
      rest_sq_norm: |q|^2, 1 / (vocab - 1) if the rest is spread evenly.
    """
    push = (after_chosen - after_rejected) * (1 + rest_sq_norm)
    return PairLogps(-(1 - after_chosen) * push, -(1 - after_rejected) * push)


def suffix_change(
    p_w: Float[Array, ""],
    p_l: Float[Array, ""],
    after_chosen: Float[Array, "tokens"],
    after_rejected: Float[Array, "tokens"],
    rest_sq_norm: Float[Array, "tokens"] | float,
) -> PairLogps:
    """Change of two responses that differ in one token and end in the same suffix of [tokens]."""
    single = single_token_change(p_w, p_l)
    suffix = suffix_token_change(after_chosen, after_rejected, rest_sq_norm)
    return PairLogps(single.chosen + suffix.chosen.sum(), single.rejected + suffix.rejected.sum())


def critical_suffix_length(
    p_w: Float[Array, "*pairs"],
    p_l: Float[Array, "*pairs"],
    after_chosen: Float[Array, "*pairs"],
    after_rejected: Float[Array, "*pairs"],
    rest_sq_norm: Float[Array, "*pairs"] | float,
) -> Float[Array, "*pairs"]:
    """Suffix length past which the chosen response falls, tokens; infinite where the suffix lifts it."""
    rise = single_token_change(p_w, p_l).chosen
    fall = -suffix_token_change(after_chosen, after_rejected, rest_sq_norm).chosen
    return jnp.where(fall > 0, rise / jnp.where(fall > 0, fall, 1.0), jnp.inf)
