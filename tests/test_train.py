"""The train step against PyTorch's update rules, written out, and against itself in other shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import losses, train
from jaxpref.pairs import IndexPairs, PairLogps, TokenPairs, TokenRows
from jaxpref.policies import tabular, transformer

LM = transformer.tiny(11, dim=8, layers=1, heads=2)


def batch(num_pairs: int = 6) -> IndexPairs:
    keys = jax.random.split(jax.random.key(0), 2)
    prompts = jax.random.randint(keys[0], (num_pairs,), 0, 3)
    chosen = jax.random.randint(keys[1], (num_pairs,), 0, 4)
    return IndexPairs(prompts, chosen, (chosen + 1) % 5)


def sigmoid_loss(policy: PairLogps, batch: IndexPairs):
    return -jax.nn.log_sigmoid(policy.margin)


def start(optimizer: optax.GradientTransformation) -> train.TrainState:
    return train.init_state(tabular.init(jax.random.key(1), num_prompts=3, num_responses=5), optimizer)


def test_one_sgd_step_is_the_gradient_of_the_mean_loss_by_hand():
    optimizer = optax.sgd(0.5)
    state = start(optimizer)
    step = train.make_train_step(tabular.pair_logps, sigmoid_loss, optimizer)
    after, metrics = step(state, batch())
    logits = np.asarray(state.params.logits, np.float64)
    gradient = np.zeros_like(logits)
    for x, w, l in np.stack(batch()[:3], axis=1):
        margin = logits[x, w] - logits[x, l]  # the normalizer cancels in a margin
        push = -1 / (1 + np.exp(margin)) / 6
        gradient[x, w] += push
        gradient[x, l] -= push
    np.testing.assert_allclose(after.params.logits, logits - 0.5 * gradient, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    assert int(after.step) == 1


def test_metrics_are_those_before_the_update():
    optimizer = optax.sgd(10.0)
    state = start(optimizer)
    _, metrics = train.make_train_step(tabular.pair_logps, sigmoid_loss, optimizer)(state, batch())
    before = tabular.pair_logps(state.params, batch())
    np.testing.assert_allclose(metrics["logps/chosen"], before.chosen.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["ranking/accuracy"], np.mean(np.asarray(before.margin) >= 0))


def test_a_scan_of_steps_is_the_steps_one_by_one():
    optimizer = optax.adam(0.1)
    step = train.make_train_step(tabular.pair_logps, sigmoid_loss, optimizer)
    scanned, metrics = train.fit_fixed(step, start(optimizer), batch(), 4)
    state = start(optimizer)
    for _ in range(4):
        state, _ = step(state, batch())
    np.testing.assert_allclose(scanned.params.logits, state.params.logits, atol=1e-6)
    assert metrics["loss"].shape == (4,)


def test_seeds_are_an_axis_like_any_other():
    optimizer = optax.sgd(0.1)
    step = train.make_train_step(tabular.pair_logps, sigmoid_loss, optimizer)
    init = functools.partial(tabular.init, num_prompts=3, num_responses=5)

    def run(key):
        return train.fit_fixed(step, train.init_state(init(key), optimizer), batch(), 3)[0].params.logits

    keys = jax.random.split(jax.random.key(3), 2)
    np.testing.assert_allclose(jax.vmap(run)(keys)[1], run(keys[1]), atol=1e-6)


def test_rmsprop_is_torchs_recursion():
    """v <- 0.99 v + 0.01 g^2; w <- w - lr g / (sqrt(v) + 1e-8), from v = 0 (torch.optim.RMSprop)."""
    optimizer = train.torch_rmsprop(0.01)
    params, state = jnp.array([1.0, -2.0]), optimizer.init(jnp.zeros(2))
    expected, v = np.array([1.0, -2.0]), np.zeros(2)
    for g in np.array([[0.3, -1.0], [0.1, 2.0], [-0.5, 0.0]]):
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        v = 0.99 * v + 0.01 * g**2
        expected -= 0.01 * g / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_an_epoch_sees_every_example_once():
    steps = train.batch_indices(jax.random.key(0), 12, 4, 6)
    for epoch in np.asarray(steps).reshape(2, 12):
        assert sorted(epoch) == list(range(12))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at most num_examples=3; got 4"):
        train.batch_indices(jax.random.key(0), 3, 4, 1)


@pytest.mark.parametrize("name", ["dpo", "simpo", "slic_hf", "rpo_iter", "unlikelihood"])
def test_a_step_along_the_gradient_lowers_the_loss_whatever_it_needs(name):
    """A reference, lengths, nothing, both, tokens: each kind of loss through the transformer."""
    tokens = jax.random.randint(jax.random.key(2), (3, 5), 0, 11)
    mask = jnp.broadcast_to(jnp.arange(5) > 1, tokens.shape)
    pairs = TokenPairs(TokenRows(tokens, mask), TokenRows((tokens + 1) % 11, mask))
    params = transformer.init(jax.random.key(0), LM)
    reference = jax.tree.map(lambda x: x - 0.3, transformer.pair_logps(params, pairs, config=LM))
    pairs = pairs._replace(reference=reference)
    policy = transformer.token_logps if "tokens" in losses.get(name).needs else transformer.pair_logps
    optimizer = optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.01))
    step = train.make_train_step(functools.partial(policy, config=LM), losses.bind(name), optimizer)
    _, metrics = jax.jit(lambda s: train.fit_fixed(step, s, pairs, 2))(train.init_state(params, optimizer))
    assert metrics["grad_norm"][0] > 0 and metrics["loss"][1] < metrics["loss"][0]
