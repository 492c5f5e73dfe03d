"""What may be put around a loss: other divergences, shorter responses, weights of pairs."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxpref.losses.hyperparameters import Scalar
from jaxpref.losses.quantities import LARGEST_EXPONENT, capped, logratios
from jaxpref.losses.table import get
from jaxpref.pairs import PairLogps, PairTokenLogps

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
# Losses of the difference of two log-ratios, whose place the scores of another divergence can take; sft has
# no log-ratio and is left as it is.
TAKE_DIVERGENCE = (
    "dpo", "cdpo", "rdpo", "ipo", "ipo_mean", "dpo_hinge", "exo_pair", "r_dpo_len", "sigmoid_norm",
    "discopop", "sft",
)  # fmt: skip
REFUSE_WPO = ("aot", "aot_unpaired")  # their losses belong to ranks, not to pairs


def divergence_scores(
    policy: PairLogps, reference: PairLogps, *, kind: Divergence, alpha: Scalar = 0.5
) -> PairLogps:
    """f'(policy / reference) of both responses: what stands for log-ratios where f is not the reverse KL's.

    `loss(scores, zeros)` is then the f-DPO loss. With a the log-ratio: a for `reverse_kl`, 1 - e^-a for
    `forward_kl`, log 2 + log sigma(a) for `js_divergence`, (e^((alpha - 1) a) - 1) / (alpha - 1) for
    `alpha_divergence`, which is the reverse KL at alpha = 1 and the forward KL at 0.

    Args:
      policy: under the policy in training, [pairs], nats.
      reference: under the frozen reference, [pairs], nats.
      kind: the divergence that the policy is kept near the reference with.
      alpha: of `alpha_divergence` alone.

    Returns:
      Scores, [pairs]. Exponents end at 80, with the slope that they have there: TRL ends those of `alpha`
      there too, but with slope 0, and those of `forward_kl` nowhere.

    References: Wang et al. 2023, arXiv:2309.16240, table 1; TRL `f_divergence_type`.
    """
    ratio = logratios(policy, reference)
    return PairLogps(_score(ratio.chosen, kind, alpha), _score(ratio.rejected, kind, alpha))


def _score(ratio: Array, kind: Divergence, alpha: Scalar) -> Array:
    if kind == "forward_kl":
        return _power_score(ratio, 0.0)
    if kind == "js_divergence":
        return jnp.log(2.0) + jax.nn.log_sigmoid(ratio)
    return ratio if kind == "reverse_kl" else _power_score(ratio, alpha)


def _power_score(ratio: Array, alpha: Scalar) -> Array:
    near_one = jnp.abs(jnp.asarray(alpha) - 1.0) < 1e-6  # the limit; TRL's bound
    power = jnp.where(near_one, 1.0, alpha - 1.0)
    score = jnp.expm1(capped(power * ratio, LARGEST_EXPONENT)) / power
    return jnp.where(near_one, ratio, score)


def check_divergence(kind: str, keys: Sequence[str]) -> None:
    """Raises ValueError where a loss is no function of the difference of log-ratios and `kind` needs one."""
    refused = [key for key in keys if key not in TAKE_DIVERGENCE]
    if kind != "reverse_kl" and refused:
        choices = ", ".join(TAKE_DIVERGENCE)
        raise ValueError(f"divergence {kind!r} is for the losses {choices}; got {', '.join(refused)}")


def length_desensitized(tokens: PairTokenLogps, *, alpha: Scalar) -> PairLogps:
    """Log-probabilities in which tokens beyond the shorter response's length count alpha times (LD-DPO).

    Args:
      tokens: token log-probabilities of one policy, [pairs, tokens], nats.
      alpha: weight of the tail, in [0, 1]; 1 is the plain sum, 0 cuts both to one length.

    Returns:
      [pairs], nats. The reference is to be treated alike, or its margin would not meet the policy's.

    References: Liu et al. 2024, arXiv:2409.06411; TRL `ld_alpha` since 0.29, which treats both alike.
    """
    shared = jnp.minimum(tokens.chosen_mask.sum(-1), tokens.rejected_mask.sum(-1))
    weigh = lambda mask: jnp.where(jnp.cumsum(mask, axis=-1) <= shared[:, None], 1.0, alpha)
    total = lambda logps, mask: _masked_sum(logps * weigh(mask), mask)
    return PairLogps(total(tokens.chosen, tokens.chosen_mask), total(tokens.rejected, tokens.rejected_mask))


def check_length_desensitized(keys: Sequence[str]) -> None:
    """Raises ValueError where no loss has a reference: LD-DPO changes log-ratios, and nothing else."""
    if not any("reference" in get(key).needs for key in keys):
        raise ValueError(f"ld_alpha is for losses with a reference; got {', '.join(keys)} alone")


def wpo_weights(tokens: PairTokenLogps, log_sum_sq: PairLogps) -> Float[Array, "pairs"]:
    """How likely both responses are under the policy itself, against what it would sample: WPO's weights.

    W = W_w W_l, W_y = exp(mean over tokens of log p_t - log sum_v p_t(v)^2): 1 for a uniform policy.

    Args:
      tokens: token log-probabilities under the policy in training, [pairs, tokens], nats.
      log_sum_sq: mean over response tokens of the log of the summed squared probabilities of the
        vocabulary, [pairs], nats.

    Returns:
      Weight of each pair's loss, [pairs], a constant of the optimization, not bounded by 1: as in TRL since
      0.29; the authors and TRL before cut it at 1.

    References: Zhou et al. 2024, arXiv:2406.11827, eq. 2; TRL `use_weighting`.
    """
    chosen = _masked_mean(tokens.chosen, tokens.chosen_mask) - log_sum_sq.chosen
    rejected = _masked_mean(tokens.rejected, tokens.rejected_mask) - log_sum_sq.rejected
    return jax.lax.stop_gradient(jnp.exp(chosen + rejected))


def check_wpo(keys: Sequence[str]) -> None:
    """Raises ValueError where a loss does not belong to single pairs, which WPO weighs."""
    if refused := [key for key in keys if key in REFUSE_WPO]:
        raise ValueError(f"wpo weighs pairs, but {', '.join(refused)} compares ranks: use another loss")


def _masked_sum(values: Float[Array, "pairs tokens"], mask: Bool[Array, "pairs tokens"]) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1)


def _masked_mean(values: Float[Array, "pairs tokens"], mask: Bool[Array, "pairs tokens"]) -> Array:
    return _masked_sum(values, mask) / jnp.maximum(mask.sum(-1), 1)
