"""Every family: logits that transformers gave (`golden/make_families.py`), caches, windows, bad configs."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import families, transformer
from jaxpref.policies.families import CheckpointError

GOLDEN = Path(__file__).parent / "golden"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN / "make_families.py")
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)
TOKENS = jnp.array(make_families.TOKENS)
MODEL_TYPES = {"GPTNeoX": "gpt_neox", "Gemma3": "gemma3_text"}
BIGRAMS = ("mistral", "gemma2", "gemma3", "gpt2", "pythia")  # a family for each thing that a cache may break


@functools.cache
def recipe(name: str):
    """Config and parameters of a case."""
    kind, values = make_families.CASES[name]
    config = families.config_of({"model_type": MODEL_TYPES.get(kind, kind.lower()), **values})
    weights = make_families.weights(name, families.expected_shapes(config))
    shapes = {key: array.shape for key, array in weights.items()}
    return config, families.to_params(families.Tensors(shapes, weights.__getitem__), config)


@functools.partial(jax.jit, static_argnames="config")
def logits(params, tokens, mask=None, *, config):
    return transformer.logits(params, tokens, config=config, mask=mask)


@pytest.mark.parametrize("name", make_families.CASES)
def test_logits_of_random_models_equal_transformers(name):
    config, params = recipe(name)
    expected = np.load(GOLDEN / "families.npz")[name]
    np.testing.assert_allclose(logits(params, TOKENS, config=config), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", make_families.CASES)
def test_config_json_is_read_back(name):
    config, _ = recipe(name)
    assert families.config_of(families.config_json(config)) == config


@pytest.mark.parametrize("name", make_families.CASES)
def test_tensors_are_written_as_they_were_read(name):
    config, params = recipe(name)
    weights = make_families.weights(name, families.expected_shapes(config))
    written = dict(families.from_params(params, config))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), written, weights)


@pytest.mark.parametrize("name", make_families.CASES)
def test_random_parameters_are_those_that_a_checkpoint_has(name):
    config, params = recipe(name)
    made = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    jax.tree.map(lambda a, b: a.shape == b.shape or pytest.fail(f"{a.shape} {b.shape}"), made, params)


@pytest.mark.parametrize("name", BIGRAMS)
def test_prefill_and_decode_of_left_padded_rows_are_the_full_forward(name):
    config, params = recipe(name)
    mask = jnp.arange(13) >= jnp.array([[0], [3]])
    expected = logits(params, TOKENS, mask, config=config)
    prefill = jax.jit(functools.partial(transformer.prefill, config=config, length=13))
    decode = jax.jit(functools.partial(transformer.decode, config=config))
    scores, cache = prefill(params, TOKENS[:, :7], mask[:, :7])
    np.testing.assert_allclose(scores, expected[:, 6], rtol=0, atol=1e-5)
    for slot in range(7, 13):
        scores, cache = decode(params, cache, TOKENS[:, slot], jnp.asarray(slot))
        np.testing.assert_allclose(scores, expected[:, slot], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BIGRAMS)
def test_left_padding_changes_nothing(name):
    config, params = recipe(name)
    mask = jnp.arange(13) >= jnp.array([[4], [4]])
    padded = logits(params, TOKENS, mask, config=config)[:, 4:]
    alone = logits(params, TOKENS[:, 4:], config=config)
    np.testing.assert_allclose(padded, alone, rtol=0, atol=2e-5)


def test_a_token_beyond_every_window_is_not_seen():
    config, params = recipe("mistral")  # 3 layers of 5 tokens: a token sees 4 + 4 + 4 back
    changed = TOKENS.at[:, 0].set((TOKENS[:, 0] + 1) % config.vocab)
    first, second = (np.asarray(logits(params, t, config=config)) for t in (TOKENS, changed))
    assert not np.allclose(first[:, 12], second[:, 12], atol=1e-6)  # 12 back, just in sight
    config = dataclasses.replace(config, window=4)
    first, second = (np.asarray(logits(params, t, config=config)) for t in (TOKENS, changed))
    np.testing.assert_array_equal(first[:, 10:], second[:, 10:])
    assert not np.allclose(first[:, 9], second[:, 9], atol=1e-6)


@pytest.mark.parametrize("name", ["gemma2", "pythia"])
def test_bfloat16_products_are_close_to_float32(name):
    config, params = recipe(name)
    exact = np.asarray(logits(params, TOKENS, config=config))
    half = logits(params, TOKENS, config=dataclasses.replace(config, dtype="bfloat16"))
    assert half.dtype == jnp.float32
    assert np.sqrt(np.mean((half - exact) ** 2)) < 0.05 * np.std(exact)


@pytest.mark.parametrize("name", ["gemma2", "olmo"])
def test_gradients_of_many_rows_at_once_are_those_of_each(name):
    """XLA's CPU compiler once made a wrong backward pass of a norm out of 32 vmapped rows."""
    config, params = recipe(name)
    params = jax.tree.map(lambda x: x[:1], params) | {k: v for k, v in params.items() if k != "layers"}
    config = dataclasses.replace(config, layers=1, local_layers=config.local_layers[:1])
    tokens = jax.random.randint(jax.random.key(0), (32, 5), 0, config.vocab)
    weight = jax.random.normal(jax.random.key(1), (32, 5, config.vocab))
    loss = lambda params, t, w: (logits(params, t[None], config=config)[0] * w).sum()
    together = jax.jacrev(lambda p: (logits(p, tokens, config=config) * weight).sum((1, 2)))(params)
    for row in (0, 31):
        alone = jax.grad(loss)(params, tokens[row], weight[row])
        apart = jax.tree.map(lambda a, b: float(np.abs(a[row] - b).max() / np.abs(b).max()), together, alone)  # noqa: B023
        assert max(jax.tree.leaves(apart)) < 1e-4


def test_rows_longer_than_the_learned_positions_are_refused():
    config, params = recipe("gpt2")
    with pytest.raises(ValueError, match="length must be at most max_length=17 tokens; got 18"):
        transformer.logits(params, jnp.zeros((1, 18), int), config=config)


REFUSED = [
    ("llama3", {"model_type": "mamba"}, "model_type must be llama, .*; got 'mamba'"),
    ("llama3", {"model_type": "gemma3"}, "model_type must be llama, .*; got 'gemma3'"),
    ("llama3", {"hidden_act": "xielu"}, "hidden_act must be silu, .*; got 'xielu'"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be .*; got 'yarn'"),
    (
        "llama3",
        {"rope_parameters": {"rope_type": "linear"}},
        "factor must be a finite number above 0; got None",
    ),
    (
        "llama3",
        {"rope_parameters": make_families.LLAMA3 | {"high_freq_factor": 1.0}},
        "must be above low_freq",
    ),
    (
        "llama3",
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor must be 1.0; got 0.5",
    ),
    ("llama3", {"attention_bias": "yes"}, "attention_bias must be true or false; got 'yes'"),
    ("mistral", {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers must be at most 16384; got 2147483647"),
    ("mistral", {"sliding_window": 0}, "sliding_window must be a whole number of 1 to .*; got 0"),
    ("gemma2", {"layer_types": ["chunked"] * 3}, "layer_types must be .* for each of 3 layers; got"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be False; got True"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "must be False; got True"),
    ("gpt2", {"n_embd": 34}, "n_embd must be a multiple of n_head=3; got 34"),
    ("pythia", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "rope_share must leave an even number"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_a_config_that_we_cannot_follow_names_key_rule_and_value(name, change, message):
    kind, values = make_families.CASES[name]
    with pytest.raises(CheckpointError, match=message):
        families.config_of({"model_type": MODEL_TYPES.get(kind, kind.lower()), **values, **change})


def test_older_spellings_mean_the_same():
    values = make_families.CASES["llama3"][1]
    table = dict(values["rope_parameters"])
    old = {**values, "rope_theta": table.pop("rope_theta"), "rope_scaling": table, "model_type": "llama"}
    del old["rope_parameters"]
    assert families.config_of(old) == recipe("llama3")[0]


def test_old_names_and_buffers_of_files_are_known():
    gpt2, pythia = (families.weights_of(recipe(name)[0]) for name in ("gpt2", "pythia"))
    assert gpt2.canonical("h.0.attn.c_attn.bias") == "transformer.h.0.attn.c_attn.bias"
    assert gpt2.canonical("h.0.attn.bias") is None
    assert pythia.canonical("gpt_neox.layers.0.attention.masked_bias") is None
    assert pythia.canonical("gpt_neox.layers.0.attention.dense.bias") is not None
