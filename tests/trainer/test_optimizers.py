"""torch.optim's update rules, written out in NumPy; and against torch itself in the extra `parity`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import train
from jaxpref.trainer import optimizers
from jaxpref.trainer.config import Config

START = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "scale": np.array([1.0, 1.5])}
STEPS = 6


def gradients():
    rng = np.random.default_rng(0)
    return [{name: rng.normal(size=value.shape) for name, value in START.items()} for _ in range(STEPS)]


def fitted(config):
    rate = optimizers.schedule(config, STEPS)
    optimizer = optimizers.make_optimizer(config, rate)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in START.items()}
    state = train.init_state(params, optimizer)
    for grads in gradients():
        state = optimizers.apply_gradients(
            state, {k: jnp.asarray(g, jnp.float32) for k, g in grads.items()}, optimizer
        )
    return state.params


def settings(**values):
    return Config(out=Path("x"), learning_rate=0.1, **values)


def clipped(grads, limit=1.0):
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    return {name: g * min(1.0, limit / (norm + 1e-6)) for name, g in grads.items()}


def decay_of(name, weight_decay):
    return weight_decay if name == "kernel" else 0.0


def adamw_by_hand(weight_decay):
    params = {name: value.copy() for name, value in START.items()}
    first, second = ({name: np.zeros_like(v) for name, v in START.items()} for _ in range(2))
    for step, grads in enumerate(gradients()):
        rate, grads = 0.1 * (1 - step / STEPS), clipped(grads)
        for name, g in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            params[name] = params[name] * (1 - rate * decay_of(name, weight_decay)) - rate * m / (
                np.sqrt(v) + 1e-8
            )
    return params


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs_with_decay_of_matrices_alone(weight_decay):
    found = fitted(settings(weight_decay=weight_decay))
    for name, expected in adamw_by_hand(weight_decay).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5)


@pytest.mark.parametrize(
    "chosen",
    [{"weight_decay": 0.1}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "rmsprop"}],
    ids=["adamw", "sgd", "rmsprop"],
)
def test_an_update_writes_over_the_state_and_holds_no_copy_of_it(chosen):
    config = settings(**chosen)
    optimizer = optimizers.make_optimizer(config, optimizers.schedule(config, STEPS))
    params = {"kernel": jnp.ones((128, 64)), "embedding": jnp.ones((96, 64))}
    state = jax.eval_shape(lambda: train.init_state(params, optimizer))
    update = lambda state, grads: (
        optimizers.apply_gradients(state, grads, optimizer),
        optax.tree.norm(grads),
    )
    compiled = jax.jit(update, donate_argnums=0).lower(state, params).compile().memory_analysis()
    matrices = sum(4 * x.size for x in jax.tree.leaves(state) if x.ndim)
    assert compiled.alias_size_in_bytes >= matrices >= 2 * 4 * 64 * (128 + 96)
    assert compiled.temp_size_in_bytes < 4 * 64 * 96 / 2  # half of the smaller matrix


def test_the_first_rmsprop_step_is_ten_times_the_rate_for_torch_does_not_correct_the_bias():
    config = settings(optimizer="rmsprop", max_grad_norm=0.0, schedule="constant")
    optimizer = optimizers.make_optimizer(config, optimizers.schedule(config, 1))
    params = {"kernel": jnp.zeros((2, 2))}
    updates, _ = optimizer.update({"kernel": jnp.full((2, 2), 3.0)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 / np.sqrt(0.01), rtol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_divides_by_the_norm_plus_torchs_epsilon(limit):
    grads = gradients()[0]
    found, _ = optimizers.clip_by_global_norm(limit).update(
        {k: jnp.asarray(g, jnp.float32) for k, g in grads.items()}, optax.EmptyState()
    )
    for name, expected in clipped(grads, limit).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


def test_the_linear_schedule_rises_from_zero_and_falls_to_zero_after_the_last_step():
    rate = optimizers.schedule(settings(warmup_steps=2), 6)
    np.testing.assert_allclose([rate(i) for i in range(7)], [0, 0.05, 0.1, 0.075, 0.05, 0.025, 0], atol=1e-7)


def test_the_cosine_schedule_is_half_way_in_the_middle():
    rate = optimizers.schedule(settings(schedule="cosine"), 10)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0.1, 0.05, 0], atol=1e-7)


def test_a_warm_up_may_be_a_share_of_all_steps():
    given, share = settings(warmup_steps=3), settings(warmup_ratio=0.3)
    rates = [[float(optimizers.schedule(c, 10)(i)) for i in range(10)] for c in (given, share)]
    np.testing.assert_array_equal(*rates)


def test_a_share_of_a_step_of_warm_up_is_a_whole_one_as_in_transformers():
    rate = optimizers.schedule(settings(warmup_ratio=0.25), 10)
    np.testing.assert_allclose([rate(i) for i in range(4)], [0, 0.1 / 3, 0.2 / 3, 0.1], rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("AdamW", {"optimizer": "adamw"}, {}),
        ("SGD", {"optimizer": "sgd"}, {}),
        ("SGD", {"optimizer": "sgd", "momentum": 0.9}, {"momentum": 0.9}),
        ("RMSprop", {"optimizer": "rmsprop"}, {}),
        (
            "RMSprop",
            {"optimizer": "rmsprop", "momentum": 0.5, "rmsprop_decay": 0.9},
            {"momentum": 0.5, "alpha": 0.9},
        ),
    ],
)
def test_optimizers_are_torchs(name, ours, theirs):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in START.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": 0.1},
        {"params": [tensors["scale"]], "weight_decay": 0.0},
    ]
    optimizer = getattr(torch.optim, name)(groups, lr=0.1, **theirs)
    for step, grads in enumerate(gradients()):
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[key])
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / STEPS)
        optimizer.step()
    found = fitted(settings(weight_decay=0.1, **ours))
    for key, tensor in tensors.items():
        np.testing.assert_allclose(found[key], tensor.detach().numpy(), rtol=5e-5, atol=1e-6)
