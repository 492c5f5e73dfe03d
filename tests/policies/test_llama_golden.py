"""The transformer against transformers' Llama, through logits that `golden/make_llama.py` stored."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import families, transformer

GOLDEN = Path(__file__).parent / "golden"
spec = importlib.util.spec_from_file_location("make_llama", GOLDEN / "make_llama.py")
make_llama = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_llama)


def recipe(name: str):
    """Config, weights and stored logits of a case."""
    config = families.config_of(make_llama.CASES[name] | {"model_type": "llama"})
    weights = make_llama.weights(families.expected_shapes(config))
    return config, weights, np.load(GOLDEN / "llama.npz")[name]


@pytest.mark.parametrize("name", make_llama.CASES)
def test_logits_of_random_llamas_equal_transformers(name):
    config, weights, expected = recipe(name)
    shapes = {key: array.shape for key, array in weights.items()}
    params = families.to_params(families.Tensors(shapes, weights.__getitem__), config)
    ours = transformer.logits(params, jnp.array(make_llama.TOKENS), config=config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_recomputing_layers_changes_no_gradient():
    config, weights, _ = recipe("tied_grouped")
    shapes = {key: array.shape for key, array in weights.items()}
    params = families.to_params(families.Tensors(shapes, weights.__getitem__), config)
    tokens = jnp.array(make_llama.TOKENS)
    gradient = lambda config: jax.grad(lambda p: transformer.logits(p, tokens, config=config).sum())(params)
    kept, again = gradient(config), gradient(dataclasses.replace(config, remat="full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), kept, again)


def test_next_token_logits_are_the_row_of_all_logits():
    config, weights, expected = recipe("tied_grouped")
    shapes = {key: array.shape for key, array in weights.items()}
    params = families.to_params(families.Tensors(shapes, weights.__getitem__), config)
    tokens, positions = jnp.array(make_llama.TOKENS), jnp.array([2, 6])
    ours = transformer.next_token_logits(params, tokens, positions, config=config)
    np.testing.assert_allclose(ours, expected[[0, 1], [2, 6]], rtol=0, atol=1e-4)
