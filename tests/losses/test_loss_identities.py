"""What is known of the losses without their formulas: start values, limits, bounds, and who becomes whom."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.pairs import PairLengths, PairLogps

LOG2 = np.log(2)
BETA, TAU, EPS = 0.4, 0.3, 0.1
LOGIT = np.log((1 - EPS) / EPS)

# At policy == reference: loss, d_w, d_l.
AT_REFERENCE = {
    "dpo": (dict(beta=BETA), LOG2, BETA / 2, BETA / 2),
    "dpop": (dict(beta=BETA), LOG2, BETA / 2, BETA / 2),
    "ratio_ablation": (dict(beta=BETA), LOG2, BETA / 2, BETA / 2),
    "dpo_hinge": (dict(beta=BETA), 1, BETA, BETA),
    "ipo": (dict(tau=TAU), 1 / (4 * TAU**2), 1 / TAU, 1 / TAU),
    "exo_pair": (
        dict(beta=BETA, eps=EPS), -LOG2 - np.log(EPS * (1 - EPS)) / 2, BETA / 4 * LOGIT, BETA / 4 * LOGIT
    ),
    "nca_pair": (dict(beta=BETA), 2 * LOG2, BETA / 4, BETA / 4),
    "bco_pair": (dict(beta=BETA), 2 * LOG2, BETA / 2, BETA / 2),
    "bco": (dict(beta=BETA), 2 * LOG2, BETA / 2, BETA / 2),
    "sppo_hard": (dict(beta=BETA), 1 / (2 * BETA**2), 1 / BETA, 1 / BETA),
    "apo_zero": (dict(beta=BETA), 1, BETA / 4, BETA / 4),
    "apo_down": (dict(beta=BETA), 1, 0, BETA / 4),
    "cdpo": (dict(beta=BETA, eps=EPS), LOG2, BETA * (1 / 2 - EPS), BETA * (1 / 2 - EPS)),
    "rdpo": (dict(beta=BETA, eps=EPS), LOG2, BETA / (2 - 4 * EPS), BETA / (2 - 4 * EPS)),
    "kto": (dict(beta=BETA), 1 / 2 + 1 / 2, BETA / 4, BETA / 4),
    "kto_pair": (dict(beta=BETA), 1 / 2 + 1 / 2, BETA / 4, BETA / 4),
}  # fmt: skip


@pytest.mark.parametrize("key", AT_REFERENCE)
def test_start_value_and_weights_where_the_policy_is_its_reference(key, problem):
    values, *expected = AT_REFERENCE[key]
    loss_fn = losses.get(key).function
    value = loss_fn(problem.policy, problem.policy, **values)
    weights = losses.gradient_weights(loss_fn, problem.policy, problem.policy, **values)
    for measured, number in zip((value, *weights), expected, strict=True):
        np.testing.assert_allclose(measured, number, rtol=1e-12, atol=1e-12)


def test_sigmoid_norm_starts_at_log_two_with_weights_by_length(problem):
    policy, lengths = problem.policy, problem.lengths
    np.testing.assert_allclose(losses.sigmoid_norm_loss(policy, policy, lengths, beta=BETA), LOG2, rtol=1e-12)
    weights = losses.gradient_weights(losses.sigmoid_norm_loss, policy, policy, lengths, beta=BETA)
    np.testing.assert_allclose(weights.chosen * lengths.chosen, BETA / 2)
    np.testing.assert_allclose(weights.rejected * lengths.rejected, BETA / 2)


# Two bound losses that are one; `unit` and `uniform` replace lengths and reference.
SAME = {
    "cdpo without noise is DPO": (("cdpo", dict(beta=BETA, eps=0.0)), ("dpo", dict(beta=BETA))),
    "rdpo without noise is DPO": (("rdpo", dict(beta=BETA, eps=0.0)), ("dpo", dict(beta=BETA))),
    "R-DPO without penalty is DPO": (("r_dpo_len", dict(beta=BETA, alpha=0.0)), ("dpo", dict(beta=BETA))),
    "DPOP without penalty is DPO": (("dpop", dict(beta=BETA, lam=0.0)), ("dpo", dict(beta=BETA))),
    "RPO without likelihood is DPO": (("rpo_reg", dict(beta=BETA, eta=0.0)), ("dpo", dict(beta=BETA))),
    "iterative RPO without likelihood is DPO": (
        ("rpo_iter", dict(beta=BETA, alpha=0.0)), ("dpo", dict(beta=BETA))
    ),
    "the whole reference is DPO": (("ratio_ablation", dict(beta=BETA, alpha=1.0)), ("dpo", dict(beta=BETA))),
    "no reference is CPO without likelihood": (
        ("ratio_ablation", dict(beta=BETA, alpha=0.0)), ("cpo", dict(beta=BETA, alpha=0.0))
    ),
    "the two CPO agree without likelihood": (
        ("cpo_sum", dict(beta=BETA, lam=0.0)), ("cpo", dict(beta=BETA, alpha=0.0))
    ),
    "KTO at K = 0 is APO-zero": (("kto", dict(beta=BETA)), ("apo_zero", dict(beta=BETA))),
    "KTO clamps a negative K": (("kto", dict(beta=BETA, kl=-3.0)), ("kto", dict(beta=BETA))),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_two_losses_are_one(name, problem):
    (key, values), (other, other_values) = SAME[name]
    one, two = losses.bind(key, **values), losses.bind(other, **other_values)
    np.testing.assert_allclose(one(problem.policy, problem), two(problem.policy, problem), rtol=1e-12)


def at_equal_lengths(problem, length):
    lengths = jnp.full(problem.policy.chosen.shape, length)
    return problem._replace(lengths=PairLengths(lengths, lengths))


def test_at_equal_lengths_averaging_only_rescales_beta(problem):
    batch = at_equal_lengths(problem, 4)
    per_token = losses.bind("sigmoid_norm", beta=4 * BETA)(batch.policy, batch)
    np.testing.assert_allclose(per_token, losses.bind("dpo", beta=BETA)(batch.policy, batch), rtol=1e-12)
    simpo = losses.bind("simpo", beta=4 * BETA, gamma=0.0)(batch.policy, batch)
    contrast = losses.bind("cpo", beta=BETA, alpha=0.0)(batch.policy, batch)
    np.testing.assert_allclose(simpo, contrast, rtol=1e-12)


def test_at_length_one_mean_and_summed_forms_agree(problem):
    batch = at_equal_lengths(problem, 1)
    for mean, summed in [("ipo_mean", "ipo"), ("cpo", "cpo_sum")]:
        expected = losses.bind(summed)(batch.policy, batch)
        np.testing.assert_allclose(losses.bind(mean)(batch.policy, batch), expected, rtol=1e-12)


@pytest.mark.parametrize("key", ["simpo", "sigmoid_norm", "ipo_mean", "orpo"])
def test_saying_every_token_twice_changes_nothing(key, problem):
    twice = problem._replace(
        policy=PairLogps(*(2 * x for x in problem.policy)),
        reference=PairLogps(*(2 * x for x in problem.reference)),
        lengths=PairLengths(*(2 * x for x in problem.lengths)),
    )
    loss_fn = losses.bind(key)
    np.testing.assert_allclose(loss_fn(twice.policy, twice), loss_fn(problem.policy, problem), rtol=1e-12)


def swap(pairs):
    return PairLogps(pairs.rejected, pairs.chosen)


def test_robust_dpo_is_unbiased_under_flipped_labels(problem):
    policy, reference = problem.policy, problem.reference
    kept = losses.rdpo_loss(policy, reference, beta=BETA, eps=EPS)
    flipped = losses.rdpo_loss(swap(policy), swap(reference), beta=BETA, eps=EPS)
    clean = losses.dpo_loss(policy, reference, beta=BETA)
    np.testing.assert_allclose((1 - EPS) * kept + EPS * flipped, clean, rtol=1e-11, atol=1e-12)


def test_conservative_dpo_is_the_mean_over_flipped_labels(problem):
    policy, reference = problem.policy, problem.reference
    flipped = losses.dpo_loss(swap(policy), swap(reference), beta=BETA)
    mean = (1 - EPS) * losses.dpo_loss(policy, reference, beta=BETA) + EPS * flipped
    np.testing.assert_allclose(losses.cdpo_loss(policy, reference, beta=BETA, eps=EPS), mean, rtol=1e-12)


def test_bco_bounds_dpo_from_above_for_every_shift_best_at_the_mean_reward(problem):
    policy, reference = problem.policy, problem.reference
    dpo = losses.dpo_loss(policy, reference, beta=BETA)
    shifts = jnp.linspace(-5, 5, 41)
    bounds = jnp.stack([losses.bco_pair_loss(policy, reference, beta=BETA, delta=s) for s in shifts])
    middles = BETA * ((policy.chosen - reference.chosen) + (policy.rejected - reference.rejected)) / 2
    best = jnp.stack([
        losses.bco_pair_loss(*(PairLogps(p.chosen[i : i + 1], p.rejected[i : i + 1]) for p in problem[:2]),
                             beta=BETA, delta=middles[i])[0]
        for i in range(5)
    ])  # fmt: skip
    assert jnp.all(bounds >= dpo)
    assert jnp.all(best <= bounds[:, :5])


def test_hinge_dpo_is_slic_on_reference_normalized_margins(problem):
    policy, reference = problem.policy, problem.reference
    relative = PairLogps(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
    calibration = losses.slic_hf_loss(relative, delta=1 / BETA, lam=0.0)
    hinge = losses.dpo_hinge_loss(policy, reference, beta=BETA)
    np.testing.assert_allclose(hinge, BETA * calibration, rtol=1e-12, atol=1e-12)


def at_margin(h):
    """A pair whose policy margin exceeds the reference's by h."""
    return PairLogps(jnp.array([-9.0 + h]), jnp.array([-9.0])), PairLogps(
        jnp.array([-7.0]), jnp.array([-7.0])
    )


@pytest.mark.parametrize(
    ("key", "values", "h"),
    [
        ("ipo", dict(tau=TAU), 1 / (2 * TAU)),
        ("exo_pair", dict(beta=BETA, eps=EPS), LOGIT / BETA),
        ("cdpo", dict(beta=BETA, eps=EPS), LOGIT / BETA),
    ],
)
def test_bounded_margin_losses_rest_at_their_target(key, values, h, x64):
    weights = losses.gradient_weights(losses.get(key).function, *at_margin(h), **values)
    np.testing.assert_allclose([*weights], 0.0, atol=1e-12)
    short = losses.gradient_weights(losses.get(key).function, *at_margin(h - 0.1), **values)
    beyond = losses.gradient_weights(losses.get(key).function, *at_margin(h + 0.1), **values)
    assert short.chosen > 0 > beyond.chosen


def test_exo_and_ipo_are_zero_at_their_target(x64):
    np.testing.assert_allclose(losses.ipo_loss(*at_margin(1 / (2 * TAU)), tau=TAU), 0.0, atol=1e-12)
    exo = losses.exo_pair_loss(*at_margin(LOGIT / BETA), beta=BETA, eps=EPS)
    np.testing.assert_allclose(exo, 0.0, atol=1e-12)


def test_the_mean_of_sft_is_the_token_mean_of_the_batch(problem):
    every_token = problem.tokens.chosen[problem.tokens.chosen_mask]
    mean_loss = jnp.mean(losses.sft_loss(problem.policy, problem.lengths))
    np.testing.assert_allclose(mean_loss, -jnp.mean(every_token), rtol=1e-12)


def test_orpo_sigmoid_is_the_chosen_share_of_the_odds(problem):
    p_w, p_l = (np.exp(np.asarray(x)) for x in (problem.policy.chosen, problem.policy.rejected))
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    np.testing.assert_allclose(np.exp(-losses.odds_loss(problem.policy)), odds_w / (odds_w + odds_l))


def test_odds_never_exceed_likelihood_plus_unlikelihood_of_the_response(problem):
    p_w, p_l = (np.exp(np.asarray(x)) for x in (problem.policy.chosen, problem.policy.rejected))
    assert np.all(losses.odds_loss(problem.policy) <= -np.log(p_w * (1 - p_l)) + 1e-12)


def test_unlikelihood_lets_go_of_what_is_already_unlikely_and_dpo_does_not(x64):
    policy = PairLogps(jnp.array([-30.0]), jnp.array([-30.0]))
    unlikelihood = losses.gradient_weights(losses.ratio_unlikelihood_loss, policy, policy)
    assert unlikelihood.rejected < 1e-13 < losses.gradient_weights(losses.dpo_loss, policy, policy).rejected
