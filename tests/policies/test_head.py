"""Log-probabilities without logits are those with logits, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.logps import TokenStatistics
from jaxpref.policies import head
from jaxpref.policies.tiles import Tile

PLACES, VOCAB, DIM = 11, 37, 5
SMALL = Tile(places=4, vocab=16)  # neither fits evenly
SETTINGS = ("cap", "scale")
token_statistics = jax.jit(head.token_statistics, static_argnames=(*SETTINGS, "tile"))
forward = jax.jit(head.forward, static_argnames=(*SETTINGS, "tile", "pull"))


def inputs(dtype=jnp.float32, seed=0):
    """States, matrix, bias, targets, mask; the states of places that do not count are not numbers."""
    keys = jax.random.split(jax.random.key(seed), 5)
    mask = jax.random.bernoulli(keys[4], 0.7, (PLACES,))
    states = 2 * jax.random.normal(keys[0], (PLACES, DIM), dtype)
    targets = jnp.where(mask, jax.random.randint(keys[3], (PLACES,), 0, VOCAB), -5)
    matrix, bias = (
        jax.random.normal(keys[1], (VOCAB, DIM), dtype),
        jax.random.normal(keys[2], (VOCAB,), dtype),
    )
    return jnp.where(mask[:, None], states, jnp.nan), matrix, bias, targets, mask


@functools.partial(jax.jit, static_argnames=SETTINGS)
def plain(states, matrix, bias, targets, mask, *, cap=None, scale=1.0) -> TokenStatistics:
    """With logits, in the dtype of the states' products."""
    logits, targets = (
        plain_logits(states, matrix, bias, mask, cap=cap, scale=scale),
        jnp.where(mask, targets, 0),
    )
    logps = jax.nn.log_softmax(logits)
    found = TokenStatistics(
        jnp.take_along_axis(logps, targets[:, None], 1)[:, 0], -(jnp.exp(logps) * logps).sum(1),
        logits.argmax(1) == targets, logits.mean(1), jax.nn.logsumexp(2 * logps, 1),
    )  # fmt: skip
    return TokenStatistics(*(jnp.where(mask, x, 0).astype(x.dtype) for x in found))


def plain_logits(states, matrix, bias, mask, *, cap, scale):
    wide = jnp.promote_types(states.dtype, jnp.float32)
    logits = jnp.matmul(jnp.where(mask[:, None], states, 0), matrix.T, preferred_element_type=wide)
    logits = scale * (logits if bias is None else logits + bias)
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def close(found, expected, rtol):
    """To `rtol` of the largest value."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        y = np.asarray(y, np.float64)
        np.testing.assert_allclose(
            np.asarray(x, np.float64), y, atol=rtol * max(np.abs(y).max(), 1e-30), rtol=0
        )


def both(function, arrays, weights, tile=SMALL, **settings):
    """Statistics and gradients of a weighted sum of log-probabilities, tiled and plain."""
    states, matrix, bias, targets, mask = arrays

    def value(function, weighed):
        statistics = function(*weighed)
        return jnp.sum(weights * statistics.logps), statistics

    tiled = lambda h, w, b: head.token_statistics(h, w, targets, mask, bias=b, tile=tile, **settings)
    expected = lambda h, w, b: function(h, w, b, targets, mask, **settings)
    grad = lambda f: jax.jit(jax.grad(lambda x: value(f, x), has_aux=True))((states, matrix, bias))
    return grad(tiled), grad(expected)


WEIGHTS = jnp.linspace(-1, 2, PLACES)
CASES = {"plain": {}, "capped": {"cap": 3.0}, "scaled": {"scale": 0.25}, "both": {"cap": 2.0, "scale": 0.5}}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_with_logits(settings):
    close(*both(plain, inputs(), WEIGHTS, **settings), 1e-5)


@pytest.mark.parametrize("tile", [Tile(16, 64), Tile(1, 8)], ids=["one tile", "tiles of one place"])
def test_any_tile_gives_the_same(tile):
    states, matrix, _, targets, mask = inputs(seed=1)
    close(*both(plain, (states, matrix, None, targets, mask), WEIGHTS, tile), 1e-5)


def test_float64_is_float64_throughout():
    with jax.enable_x64(True):
        found, expected = both(plain, inputs(jnp.float64), WEIGHTS, cap=2.0)
        assert all(x.dtype in (jnp.float64, bool) for x in jax.tree.leaves(found))
        close(found, expected, 1e-12)


def test_bfloat16_is_summed_in_float32():
    rounded = inputs(jnp.bfloat16)
    exact = tuple(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in rounded)
    (grads, statistics), _ = both(plain, rounded, WEIGHTS)
    expected = jax.grad(lambda x: jnp.sum(WEIGHTS * plain(*x, *exact[3:]).logps))(exact[:3])
    close(statistics, plain(*exact), 1e-5)
    assert all(x.dtype == jnp.bfloat16 for x in grads)
    close(grads, expected, 2**-7)


def test_a_float32_matrix_under_bfloat16_states_has_a_float32_gradient():
    states, matrix, _, targets, mask = inputs()
    states = states.astype(jnp.bfloat16)
    value = lambda w: (WEIGHTS * head.token_statistics(states, w, targets, mask, tile=SMALL).logps).sum()
    found = jax.jit(jax.grad(value))(matrix)
    rounded = matrix.astype(jnp.bfloat16).astype(jnp.float32)
    exact = jax.grad(
        lambda w: (WEIGHTS * plain(states.astype(jnp.float32), w, None, targets, mask).logps).sum()
    )
    assert found.dtype == jnp.float32
    close(found, exact(rounded), 2**-8)


@pytest.mark.parametrize("counting", [0, 1])
def test_few_places_that_count_or_none(counting):
    states, matrix, bias, targets, _ = inputs()
    mask = (jnp.arange(PLACES) == 6) & bool(counting)
    states = jnp.where(mask[:, None], jnp.ones(DIM), jnp.nan)
    found, expected = both(plain, (states, matrix, bias, jnp.abs(targets), mask), WEIGHTS)
    close(found, expected, 1e-5)


def test_top1_is_the_first_of_those_with_the_largest_logit():
    matrix = jnp.zeros((VOCAB, DIM)).at[jnp.array([9, 20, 36])].set(1.0)  # in three tiles
    targets = jnp.array([9, 20, 36, 0])
    found = token_statistics(jnp.ones((4, DIM)), matrix, targets, jnp.ones(4, bool), tile=SMALL)
    np.testing.assert_array_equal(found.top1, [True, False, False, False])


def test_an_entry_that_a_bias_forbids_has_no_part_in_the_entropy():
    states, matrix, bias, targets, mask = inputs()
    targets = jnp.where(mask, targets % 20, 0)
    found = token_statistics(states, matrix, targets, mask, bias=bias.at[20:].set(-jnp.inf), tile=SMALL)
    expected = plain(states, matrix[:20], bias[:20], targets, mask)
    close((found.logps, found.entropy), (expected.logps, expected.entropy), 1e-5)


def test_a_state_that_is_no_number_is_not_hidden():
    states, matrix, _, targets, mask = inputs()
    found = token_statistics(states, matrix, targets, mask.at[:].set(True), tile=SMALL)
    np.testing.assert_array_equal(jnp.isnan(found.logps), ~mask)


def test_it_stands_under_checkpoint_vmap_and_scan():
    """Rows mapped with a matrix of their own, then scanned, each step remembered by its inputs alone."""
    states, matrix, bias, targets, mask = (jnp.stack([x, x[::-1]]) for x in inputs())

    def total(function, arrays):
        one = jax.checkpoint(lambda h, w, b, t, m: (WEIGHTS * function(h, w, b, t, m).logps).sum())
        mapped = lambda x: jax.vmap(one)(*x, targets, mask).sum()
        return jax.lax.scan(
            lambda sum_, factor: (sum_ + mapped((arrays[0] * factor, *arrays[1:])), None),
            0.0,
            jnp.array([1.0, 0.5]),
        )[0]

    tiled = lambda h, w, b, t, m: head.token_statistics(h, w, t, m, bias=b, tile=SMALL)
    grad = lambda f: jax.jit(jax.grad(lambda x: total(f, x)))((jnp.nan_to_num(states), matrix, bias))
    close(grad(tiled), grad(plain), 1e-5)


def test_the_forward_pass_alone_has_directional_derivatives():
    states, matrix, bias, targets, mask = inputs()
    arrays = jnp.nan_to_num(states), matrix, bias
    tangents = jax.tree.map(jnp.cos, arrays)
    tiled = lambda h, w, b: head.forward(h, w, targets, mask, bias=b, cap=3.0, tile=SMALL).statistics.logps
    expected = lambda h, w, b: plain(h, w, b, targets, mask, cap=3.0).logps
    derivative = lambda f: jax.jit(lambda: jax.jvp(f, arrays, tangents))()
    close(derivative(tiled), derivative(expected), 1e-5)


def test_the_pull_is_the_gradient_by_each_state():
    states, matrix, bias, targets, mask = inputs()
    settings = {"cap": 3.0, "scale": 0.5}
    found = forward(states, matrix, targets, mask, bias=bias, tile=SMALL, pull=True, **settings)
    expected = jax.grad(lambda h: plain(h, matrix, bias, targets, mask, **settings).logps.sum())
    close(found.pull, expected(jnp.nan_to_num(states)), 1e-5)
    logits = plain_logits(states, matrix, bias, mask, **settings)
    close(found.log_norms, jnp.where(mask, jax.nn.logsumexp(logits, 1), 0), 1e-5)


def temporary(vocab, argnums):
    """Bytes that the gradient needs besides arguments and results."""
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((256, 16), (vocab, 16))]
    targets, mask = jnp.zeros(256, int), jnp.ones(256, bool)
    value = lambda h, w: head.token_statistics(h, w, targets, mask, tile=Tile(64, 512)).logps.sum()
    compiled = jax.jit(jax.grad(value, argnums)).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_vocabulary():
    """But for the weights and their gradient, which are arguments and results."""
    assert temporary(2**16, (0, 1)) == temporary(2**13, (0, 1)) < 256 * 2**13 * 4


def test_a_frozen_matrix_has_no_gradient_anywhere():
    assert temporary(2**16, 0) < 2**16 * 16 * 4
