"""Where TRL 1.16 is wrong or surprising: what it does, and what is done here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("trl", reason="parity extra not installed")
import torch
import trl
import trl_losses
import trl_runs
from bound_losses import ours

from jaxpref import losses
from jaxpref.policies import checkpoints, transformer

pytestmark = pytest.mark.parity


def halves(given: trl_losses.Prescribed) -> list[trl_losses.Prescribed]:
    """The same pairs in two micro-batches."""
    pairs = len(given.mask) // 2
    parts = np.split(np.arange(pairs), [pairs // 3])
    return [trl_losses.Prescribed(*(x[np.r_[part, part + pairs]] for x in given)) for part in parts]


def of_logps(chosen: float, rejected: float, reference: float = 0.0) -> trl_losses.Prescribed:
    """One pair of responses of one token."""
    column = lambda *values: np.array(values, np.float32)[:, None]
    mask = np.ones((2, 1), bool)
    return trl_losses.Prescribed(
        column(chosen, rejected), column(reference, reference), mask, np.zeros((2, 1), np.float32)
    )


@pytest.mark.parametrize("name", ["sft", "aot", "aot_unpaired"])
def test_losses_of_the_batch_change_with_the_micro_batches_of_trl(name):
    given = trl_losses.prescribe(num_pairs=9)
    whole = trl_losses.dpo(given, [name]).loss
    parts = [trl_losses.dpo(part, [name]).loss for part in halves(given)]
    shares = [len(part.mask) / len(given.mask) for part in halves(given)]
    assert abs(np.dot(shares, parts) - whole) > 1e-4 * abs(whole)
    assert losses.get(name).batchwise  # so that the trainer puts micro-batches together first
    np.testing.assert_allclose(ours(given, name).loss, whole, rtol=1e-5)


def test_the_orpo_gradient_of_trl_is_nan_at_log_probability_zero():
    given = of_logps(0.0, -2.0)
    assert np.isnan(trl_losses.orpo(given).grads).any()
    mine = ours(given, "orpo")
    assert np.isfinite(mine.loss) and np.isfinite(mine.grads).all()


def test_label_smoothing_does_nothing_to_the_sigmoid_loss_of_trl_and_is_refused_here():
    given = trl_losses.prescribe()
    smoothed, plain = (trl_losses.dpo(given, ["sigmoid"], label_smoothing=eps).loss for eps in (0.3, 0.0))
    assert smoothed == plain
    with pytest.raises(ValueError, match=r"loss_args of trl:sigmoid are beta; got label_smoothing=0.3"):
        ours(given, "sigmoid", loss_args=("label_smoothing=0.3",))


def test_discopop_is_nan_in_trl_where_the_margin_is_far_below_zero():
    given = of_logps(-1000.0, -1.0)
    assert np.isnan(trl_losses.dpo(given, ["discopop"]).loss)
    np.testing.assert_allclose(ours(given, "discopop").loss, 0.1 * 999, rtol=1e-5)  # the logistic part


def test_the_alpha_divergence_of_trl_stops_pushing_where_its_exponent_is_cut():
    given = of_logps(-170.0, -1.0)
    values = dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5)
    theirs, mine = (
        trl_losses.dpo(given, ["sigmoid"], **values),
        ours(given, "sigmoid", divergence="alpha_divergence"),
    )
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-5)
    assert theirs.grads[0] == 0 and mine.grads[0] < -1e30


def test_the_forward_kl_of_trl_overflows():
    given = of_logps(-90.0, -1.0)
    theirs = trl_losses.dpo(given, ["sigmoid"], f_divergence_type="forward_kl")
    mine = ours(given, "sigmoid", divergence="forward_kl")
    assert np.isinf(theirs.loss)
    assert np.isfinite(mine.loss) and np.isfinite(mine.grads).all() and mine.grads[0] < 0


@pytest.mark.parametrize("name", ["hinge", "sft"])
def test_wpo_of_a_hinge_or_of_sft_cannot_be_differentiated_in_trl(name):
    given = trl_losses.prescribe()
    with pytest.raises(RuntimeError, match=r"in-?place|single memory location"):
        trl_losses.dpo(given, [name], use_weighting=True)
    assert np.isfinite(ours(given, name, wpo=True).grads).all()


def test_alphapo_rewards_of_summed_log_probabilities_overflow_in_trl():
    given = of_logps(-120.0, -110.0)
    theirs = trl_losses.cpo(given, "sigmoid", alpha=0.05)
    mine = ours(given, "cpo", loss_args=("alpha=0.05",))
    assert not np.isfinite(theirs.grads).all()  # exp(-120) is 0 in float32
    rewards = (1 - np.exp(0.05 * np.array([120.0, 110.0]))) / 0.05
    expected = np.logaddexp(0, -0.1 * (rewards[0] - rewards[1])) + 120
    np.testing.assert_allclose(mine.loss, expected, rtol=1e-5)
    assert np.isfinite(mine.grads).all()


def test_exo_has_no_usable_default_smoothing_in_trl(tmp_path):
    given = trl_losses.prescribe()
    assert trl.DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True).label_smoothing == 0.0
    assert not np.isfinite(trl_losses.dpo(given, ["exo_pair"], label_smoothing=0.0).loss)
    theirs = trl_losses.dpo(given, ["exo_pair"], label_smoothing=1e-3)
    np.testing.assert_allclose(ours(given, "exo_pair").loss, theirs.loss, rtol=1e-5)


def test_likelihood_in_wpo_belongs_to_its_own_pair_here():
    """In TRL sft is one number for the batch: each pair's weight would scale all pairs' likelihood."""
    given = trl_losses.prescribe(num_pairs=2)
    weightless = given._replace(log_sum_sq=np.zeros_like(given.log_sum_sq))
    pushed = ours(weightless, "sft", wpo=True).grads
    logps = torch.tensor(given.policy)
    means = (logps * torch.tensor(given.mask)).sum(-1) / torch.tensor(given.mask.sum(-1))
    weights = torch.exp(means[:2] + means[2:]).numpy()
    expected = -weights[:, None] * given.mask[:2] / given.mask[:2].sum()
    np.testing.assert_allclose(pushed[:2], expected, rtol=1e-5)


def test_an_end_token_that_is_padding_too_keeps_its_input_embedding_in_torch(tmp_path):
    """`pad_token_id` of config.json is the embedding's `padding_idx`, whose row gets no gradient: an end
    token amid a conversation, or before a template's line end, is not trained there. Here it is."""
    trl_runs.write_inputs(tmp_path)
    model, tokens = trl_runs.make_model(1), np.array([[5, 1, 7, 3]])
    mine = checkpoints.load(tmp_path / "model")
    scores = lambda params: transformer.logits(params, jnp.asarray(tokens), config=mine.config)
    grads = np.asarray(jax.grad(lambda params: jnp.sum(scores(params) ** 2))(mine.params)["embedding"])
    assert not _embedding_gradient(model, tokens, padding=1)[1].any() and grads[1].any()
    np.testing.assert_allclose(grads, _embedding_gradient(model, tokens, padding=None), atol=1e-4)


def _embedding_gradient(model: torch.nn.Module, tokens: np.ndarray, padding: int | None) -> np.ndarray:
    table = model.get_input_embeddings()
    table.padding_idx, table.weight.grad = padding, None
    model(input_ids=torch.tensor(tokens)).logits.pow(2).sum().backward()
    return table.weight.grad.numpy()
