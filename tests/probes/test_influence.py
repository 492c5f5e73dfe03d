"""Directional derivatives of packed pairs against finite differences, reverse mode and real updates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref.data import packing
from jaxpref.pairs import PairLogps, TokenPairs, TokenRows
from jaxpref.policies import lora, transformer
from jaxpref.probes import likelihood
from jaxpref.probes.influence import influence, influence_metrics

# With a cap, attention is in float64 where its input is.
CONFIG = dataclasses.replace(transformer.tiny(37, dim=16, layers=2), attention_cap=9.0, logit_cap=4.0)
SIZES = [(3, 2, 4), (1, 5, 1), (6, 3, 3)]


def responses():
    rng = np.random.default_rng(0)
    drawn = [[rng.integers(0, 37, size) for size in sizes] for sizes in SIZES]
    return [d[0] for d in drawn], [d[1:] for d in drawn]


def separate_pairs() -> TokenPairs:
    """The same pairs, each response in a row of its own behind its prompt."""
    sides = []
    for which in (0, 1):
        tokens, mask = np.zeros((3, 12), int), np.zeros((3, 12), bool)
        for row, (prompt, tails) in enumerate(zip(*responses(), strict=True)):
            ids = np.concatenate([prompt, tails[which]])
            tokens[row, : len(ids)], mask[row, len(prompt) : len(ids)] = ids, True
        sides.append(TokenRows(jnp.asarray(tokens), jnp.asarray(mask)))
    return TokenPairs(*sides)


def model(dtype=np.float32):
    """Parameters, and a direction."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), CONFIG))
    draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), dtype)
    return jax.tree.map(draw, shapes), jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def rows():
    return jax.tree.map(jnp.asarray, packing.shared(*responses(), packing.Shape(2, 24)))


@pytest.fixture(scope="module")
def plain():
    """Gradients of each pair's two log-probabilities over separate rows, by reverse mode."""
    policy = functools.partial(transformer.pair_logps, config=CONFIG)
    return jax.jit(jax.jacrev(policy))(model()[0], separate_pairs())


measured = jax.jit(influence, static_argnames="config")


def along(jacobian, direction) -> np.ndarray:
    inner = lambda j, d: np.asarray(j, np.float64).reshape(3, -1) @ np.asarray(d, np.float64).ravel()
    return sum(jax.tree.leaves(jax.tree.map(inner, jacobian, direction)))


def test_influence_is_the_gradients_product_with_the_direction(rows, plain):
    params, direction = model()
    found = measured(params, direction, rows, config=CONFIG).change
    for change, jacobian in zip(found, plain, strict=True):
        expected = along(jacobian, direction)
        np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_influence_is_the_central_difference_in_float64():
    with jax.enable_x64(True):
        rows = jax.tree.map(jnp.asarray, packing.shared(*responses(), packing.Shape(2, 24)))
        params, direction = model(jnp.float64)
        found = measured(params, direction, rows, config=CONFIG)
        policy = jax.jit(functools.partial(transformer.pair_logps, config=CONFIG))
        at = lambda step: policy(optax.tree.add_scale(params, step, direction), separate_pairs())
        low, middle, high, found = jax.device_get((*map(at, (-1e-4, 0.0, 1e-4)), found))
    for which in ("chosen", "rejected"):
        difference = (getattr(high, which) - getattr(low, which)) / 2e-4
        np.testing.assert_allclose(getattr(found.logps, which), getattr(middle, which), rtol=1e-12)
        np.testing.assert_allclose(getattr(found.change, which), difference, rtol=1e-6, atol=1e-6)


def test_a_clipped_adam_update_is_foretold(rows, plain):
    params, _ = model()
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-4))
    grads = jax.tree.map(lambda x: x[0], plain.chosen)
    updates, _ = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(params), params))(grads)
    before, predicted = measured(params, updates, rows, config=CONFIG)
    after = measured(optax.apply_updates(params, updates), updates, rows, config=CONFIG).logps
    actual = likelihood.displacement(after, before)
    np.testing.assert_allclose(predicted, actual, rtol=0.05, atol=2e-4)
    metrics = influence_metrics(predicted, actual)
    assert metrics["influence/signs_right"] == 1.0
    np.testing.assert_allclose(metrics["influence/rejected_predicted"], np.mean(predicted.rejected))


def test_bfloat16_predicts_within_its_own_error(rows, plain):
    params, direction = model()
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    found = measured(params, direction, rows, config=half).change
    for change, jacobian in zip(found, plain, strict=True):
        assert change.dtype == jnp.float32
        expected = along(jacobian, direction)
        assert np.abs(change - expected).max() < 0.05 * np.abs(expected).max()


def test_adapters_alone_are_moved(rows, plain):
    params, _ = model()
    settings = lora.LoraConfig(rank=2, targets=("q", "down"))
    adapters = lora.init(jax.random.key(2), params, settings)
    direction = jax.tree.map(jnp.ones_like, adapters)  # b starts at 0: the step moves a b by scale * a 1
    combine = lambda adapters: lora.attach(params, adapters, settings)
    found = jax.jit(functools.partial(influence, config=CONFIG, combine=combine))(adapters, direction, rows)
    kernels = optax.tree.zeros_like(params)
    for part, name in (("attention", "q"), ("mlp", "down")):
        one = adapters["layers"][part][name]
        kernels["layers"][part][name]["kernel"] = settings.scale * one["a"] @ jnp.ones_like(one["b"])
    expected = along(plain.chosen, kernels)
    np.testing.assert_allclose(found.change.chosen, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_pairs_without_weight_do_not_count():
    predicted, actual = PairLogps(*jnp.eye(2)), PairLogps(*-jnp.eye(2))
    metrics = influence_metrics(predicted, actual, jnp.array([1.0, 0.0]))
    assert metrics["influence/chosen_predicted"] == 1 and metrics["influence/chosen_actual"] == -1
    assert metrics["influence/signs_right"] == 0.5


def test_the_memory_is_that_of_a_pass_forward():
    rows = jax.tree.map(jnp.asarray, packing.shared(*responses(), packing.Shape(2, 24)))

    def temporary(layers: int) -> int:
        config = transformer.tiny(37, dim=16, layers=layers)
        params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
        compiled = jax.jit(influence, static_argnames="config").lower(params, params, rows, config=config)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < 1.1 * temporary(2)  # of a backward pass it would grow with the layers
