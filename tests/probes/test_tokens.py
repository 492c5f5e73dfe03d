"""Products of token gradients against explicit gradients of every token, for what the families differ in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import TokenRows
from jaxpref.policies import transformer
from jaxpref.probes import tokens as probe

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 9, (2, 8)))  # with repetitions, within a row and across
PLACES = jnp.asarray([[4, 5, 6], [4, 6, 7]])
LLAMA = dataclasses.replace(transformer.tiny(11, dim=16, layers=2), attention_cap=9.0)
PARTS = {  # of the families, in as few programs as hold them
    "untied": dataclasses.replace(
        LLAMA, tied=False, kv_heads=2, positions="learned", max_length=13, norm="layer", gated=False,
        parallel=True, activation="gelu_tanh", biases=("q", "k", "v", "o", "up", "down"),
    ),
    "tied": dataclasses.replace(
        LLAMA, norm="rms_plus_one", norms="both", window=3, local_layers=(True, False), local_theta=100.0,
        scaled_embedding=True, logit_cap=3.0, qk_norm="head", rope_share=0.5, clip_qkv=0.5,
    ),
}  # fmt: skip


def model(config, dtype=np.float32):
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(0.3 * draw(size=x.shape), dtype), shapes)


def gradients(params, config) -> dict[str, np.ndarray]:
    """Of each picked token, flat, [tokens, size] by path; [tokens, layers, size] in the layers."""
    mask = jnp.arange(8) >= 1
    rows = TokenRows(TOKENS, jnp.broadcast_to(mask, TOKENS.shape))

    def logps(params):
        every = transformer.row_token_logps(params, rows, config=config)
        return jnp.take_along_axis(every, PLACES, axis=1).reshape(-1)

    paths, _ = jax.tree_util.tree_flatten_with_path(jax.jit(jax.jacrev(logps))(params))
    name = lambda path: "/".join(key.key for key in path)
    keep = lambda path: (6, config.layers, -1) if path[0].key == "layers" else (6, -1)
    return {name(path): np.asarray(leaf, np.float64).reshape(keep(path)) for path, leaf in paths}


def gram(grads: np.ndarray) -> np.ndarray:
    return np.einsum("m...d,n...d->...mn", grads, grads)


@pytest.mark.parametrize("name", PARTS)
def test_products_are_those_of_explicit_gradients_parameter_by_parameter(name):
    config = PARTS[name]
    with jax.enable_x64(True):
        params = model(config, np.float64)
        measure = jax.jit(functools.partial(probe.token_products, config=config))
        found, grads = jax.device_get(measure(params, TOKENS, PLACES)), gradients(params, config)
    assert found.keys() == grads.keys()
    for path, products in found.items():
        expected = gram(grads[path])
        np.testing.assert_allclose(
            products, expected, rtol=0, atol=1e-10 * np.abs(expected).max(), err_msg=path
        )


def test_norms_that_learn_nothing_have_no_products():
    config = dataclasses.replace(LLAMA, norm="plain_layer")
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    measure = functools.partial(probe.token_products, config=config)
    found = jax.eval_shape(measure, params, TOKENS, PLACES)
    assert not any("norm" in path for path in found)
    assert found["layers/mlp/up/kernel"].shape == (2, 6, 6) and found["embedding"].shape == (6, 6)
    assert jax.eval_shape(probe.total, found).shape == (6, 6)


def test_bfloat16_is_within_its_own_error():
    config = dataclasses.replace(LLAMA, layers=1)
    half, params = dataclasses.replace(config, dtype="bfloat16"), model(config)
    expected = sum(gram(x).reshape(-1, 6, 6).sum(0) for x in gradients(params, config).values())
    measure = jax.jit(lambda *args: probe.total(probe.token_products(*args, config=half)))
    found = measure(params, TOKENS, PLACES)
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() < 0.05 * expected.max()
