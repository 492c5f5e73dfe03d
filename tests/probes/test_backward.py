"""Gradient geometry out of the training gradient's own backward pass, against per-example gradients."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import TokenRows
from jaxpref.policies import families, transformer
from jaxpref.probes import backward

GOLDEN = Path(__file__).parent.parent / "policies" / "golden" / "make_families.py"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN)
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)
MODEL_TYPES = {"GPTNeoX": "gpt_neox", "Gemma3": "gemma3_text"}
PAIRS, LENGTH, VOCAB = 2, 9, 29
SLOPES = np.array([-1.0, 0.0, 1.0, 2.0])


def rows(seed=0):
    """Pairs with a common prompt, tokens that repeat, and padding of any id."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (2, PAIRS, LENGTH))
    tokens[1, :, :4] = tokens[0, :, :4]
    tokens[:, 0, 5] = tokens[:, 0, 1]
    ends = rng.integers(6, LENGTH + 1, (2, PAIRS, 1))
    mask = (np.arange(LENGTH) >= 4) & (np.arange(LENGTH) < ends)
    return TokenRows(jnp.asarray(tokens.reshape(-1, LENGTH)), jnp.asarray(mask.reshape(-1, LENGTH)))


@functools.cache
def recipe(name):
    """Config and parameters of a family in float64."""
    kind, values = make_families.CASES[name]
    config = families.config_of({"model_type": MODEL_TYPES.get(kind, kind.lower()), **values})
    weights = make_families.weights(name, families.expected_shapes(config))
    shapes = {key: array.shape for key, array in weights.items()}
    return config, families.to_params(families.Tensors(shapes, weights.__getitem__), config)


def slopes_of(statistics):
    """Of a loss of both responses of all pairs: no two alike, one of them 0."""
    return jnp.asarray(SLOPES, statistics.logps.dtype), statistics.logps.sum(1)


def explicit(config, params, rows):
    """Gradient of every row's log-probability."""

    @jax.jit
    def one(params, row):
        logp = lambda params: transformer.row_token_logps(params, row, config=config).sum()
        return jax.value_and_grad(logp)(params)

    single = lambda i: TokenRows(*(x[i : i + 1] for x in rows))
    found = [one(params, single(i)) for i in range(2 * PAIRS)]
    return jax.tree.map(lambda *x: np.stack(x), *found)


def flat(tree):
    return {
        "/".join(k.key for k in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def check(found, jacobian, tolerance, slopes=SLOPES):
    expected, grads = flat(jacobian), flat(found.grads)
    largest = max(np.abs(x).max() for x in expected.values())  # GPT-2's key biases have gradients of rounding
    assert set(grads) == set(expected) == set(found.geometry)
    for path, by_row in expected.items():
        summed = np.einsum("r...,r->...", by_row, slopes)
        np.testing.assert_allclose(grads[path], summed, rtol=0, atol=tolerance * largest, err_msg=path)
        check_products(path, by_row, found.geometry[path], tolerance, largest)


def check_products(path, gradients, geometry, tolerance, largest):
    axes = [PAIRS, gradients.shape[1], -1] if path.startswith("layers/") else [PAIRS, -1]
    chosen, rejected = (side.reshape(axes) for side in np.split(gradients, 2))
    expected = [(chosen * rejected).sum(-1).T, (chosen**2).sum(-1).T, (rejected**2).sum(-1).T]
    allowed = tolerance * (np.maximum(expected[1], expected[2]) + 1e-6 * largest**2)
    for ours, theirs in zip(geometry, expected):
        assert ours.shape == theirs.shape
        assert np.all(np.abs(ours - theirs) <= allowed), path


@pytest.mark.parametrize("name", make_families.CASES)
def test_every_family_has_the_geometry_of_its_explicit_gradients(name):
    config, params = recipe(name)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        step = jax.jit(functools.partial(backward.probed_gradients, slopes_of=slopes_of, config=config))
        found, logps = step(params, rows())
        expected, jacobian = explicit(config, params, rows())
        np.testing.assert_allclose(logps, expected, rtol=1e-10)
        check(found, jacobian, tolerance=1e-10)
