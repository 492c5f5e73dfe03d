import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.losses import remedies
from jaxpref.pairs import PairLogps, PairTokenLogps, TokenPairs, TokenRows
from jaxpref.policies import log_linear
from jaxpref.probes import gradients as probes
from jaxpref.theory import gradients as theory


def entangled_problem():
    """One weight vector and pairs whose features are nearly parallel: plain DPO lowers the chosen."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 1, 6)) + 0.2 * rng.normal(size=(8, 5, 6))
    features[:, 2:] = 0.0
    features[:, 0] *= 0.5
    batch = log_linear.FeaturePairs(jnp.asarray(features), jnp.zeros(8, int), jnp.ones(8, int))
    params = log_linear.LogLinearParams(jnp.zeros(6))
    return params, batch._replace(reference=log_linear.pair_logps(params, batch))


def pair_norms(geometry) -> PairLogps:
    return PairLogps(jnp.sqrt(geometry.chosen_sq_norm), jnp.sqrt(geometry.rejected_sq_norm))


def test_normalized_gradients_move_each_pair_as_predicted(x64):
    params, batch = entangled_problem()
    geometry = probes.gradient_geometry(log_linear.pair_logps, params, batch)
    assert jnp.any(geometry.entangled)
    for pair in range(8):
        one, own = jax.tree.map(lambda x, i=pair: x[i : i + 1], (batch, geometry))
        loss = lambda params, one=one, own=own: remedies.normalized_gradient_loss(
            log_linear.pair_logps(params, one), one.reference, pair_norms(own), beta=0.1
        )[0]
        step = jax.tree.map(jnp.negative, jax.grad(loss)(params))
        change = probes.directional(log_linear.pair_logps, params, step, one)
        predicted = theory.normalized_change(own, jnp.full(1, 0.05))  # beta sigma(0)
        np.testing.assert_allclose(change, predicted, rtol=1e-4)  # the floor under the norms
        assert change.chosen > 0 > change.rejected


def test_the_scaled_form_keeps_the_size_of_dpos_weights(x64):
    policy, reference, norms = (
        PairLogps(*jnp.exp(jax.random.normal(jax.random.key(i), (2, 9)))) for i in range(3)
    )
    scaled = losses.gradient_weights(
        remedies.scaled_normalized_gradient_loss, policy, reference, norms, beta=0.3
    )
    dpo = losses.gradient_weights(losses.dpo_loss, policy, reference, beta=0.3)
    np.testing.assert_allclose(scaled.chosen * scaled.rejected, dpo.chosen * dpo.rejected, rtol=1e-4)
    np.testing.assert_allclose(scaled.chosen / scaled.rejected, norms.rejected / norms.chosen, rtol=1e-4)


def test_a_vanishing_gradient_norm_keeps_the_loss_finite():
    zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
    weights = losses.gradient_weights(remedies.normalized_gradient_loss, zero, zero, zero, beta=0.1)
    assert jnp.all(jnp.isfinite(jnp.stack(weights)))


def rows(prompt: list[int], responses: list[list[int]], length: int = 9) -> TokenRows:
    """Rows of one prompt; padding of zeros."""
    full = [prompt + response + [0] * (length - len(prompt) - len(response)) for response in responses]
    where = np.arange(length)
    ends = np.array([[len(prompt) + len(response)] for response in responses])
    return TokenRows(jnp.asarray(full), jnp.asarray((where >= len(prompt)) & (where < ends)))


def masked_tokens(rows: TokenRows, mask) -> list[list[int]]:
    return [list(np.asarray(t)[np.asarray(m)]) for t, m in zip(rows.tokens, mask, strict=True)]


def lcs_length(a, b) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + lcs_length(a[:-1], b[:-1])
    return max(lcs_length(a[:-1], b), lcs_length(a, b[:-1]))


def test_a_shared_suffix_is_masked_and_the_contrast_kept():
    chosen, rejected = rows([7, 8], [[1, 4, 5, 6]]), rows([7, 8], [[2, 4, 5, 6]])
    masks = remedies.difference_masks(TokenPairs(chosen, rejected))
    assert masked_tokens(chosen, masks.chosen) == [[1]]
    assert masked_tokens(rejected, masks.rejected) == [[2]]


@pytest.fixture(scope="module")
def random_masks():
    """Sixty random pairs of three symbols, and their masks."""
    rng = np.random.default_rng(0)
    draw = lambda: [list(rng.integers(1, 4, rng.integers(1, 8))) for _ in range(60)]
    batch = TokenPairs(rows([9], draw()), rows([9, 9], draw()))
    return batch, remedies.difference_masks(batch)


def test_what_is_masked_out_is_a_longest_common_subsequence(random_masks):
    batch, masks = random_masks
    shared = [
        masked_tokens(side, side.response_mask & ~mask)
        for side, mask in ((batch.chosen, masks.chosen), (batch.rejected, masks.rejected))
    ]
    assert shared[0] == shared[1]
    sides = (masked_tokens(side, side.response_mask) for side in (batch.chosen, batch.rejected))
    expected = [lcs_length(a, b) for a, b in zip(*sides, strict=True)]
    assert [len(common) for common in shared[0]] == expected


def test_prompt_and_padding_are_never_kept(random_masks):
    batch, masks = random_masks
    assert not jnp.any(masks.chosen & ~batch.chosen.response_mask)
    assert not jnp.any(masks.rejected & ~batch.rejected.response_mask)


def test_equal_responses_leave_nothing():
    same = rows([7], [[1, 2, 3]])
    masks = remedies.difference_masks(TokenPairs(same, same))
    assert not jnp.any(masks.chosen | masks.rejected)


def test_keep_sums_the_kept_tokens():
    logps, every = -jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3), bool)
    mask = jnp.array([[True, False, True], [False, False, False]])
    kept = remedies.keep(PairTokenLogps(logps, logps, every, every), remedies.PairMasks(mask, every))
    np.testing.assert_array_equal(kept.chosen, [-2, 0])
    np.testing.assert_array_equal(kept.rejected, [-3, -12])
