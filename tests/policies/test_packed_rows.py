"""Shared and packed rows give each response what it has in a row of its own, for every family."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import logps
from jaxpref.data import packing
from jaxpref.logps import TokenStatistics
from jaxpref.policies import families, transformer

GOLDEN = Path(__file__).parent / "golden"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN / "make_families.py")
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)
MODEL_TYPES = {"GPTNeoX": "gpt_neox", "Gemma3": "gemma3_text"}
# Prompt, then responses: prompts longer than every window, of one token, equal responses, a lone token.
LENGTHS = ((7, 4, 6), (1, 3, 1), (5, 2, 2, 3), (6, 5))
SAME = ("llama_linear_biases", "qwen2", "gpt_neox_serial", "gpt2_untied")  # as another case, to attention
FAMILIES = [name for name in make_families.CASES if name not in SAME]
LONGEST = 13
SHAPE = packing.Shape(12, 24)  # longer than GPT-2's 17 positions, which no response comes to


@functools.cache
def recipe(name: str):
    """Config and parameters of a case."""
    kind, values = make_families.CASES[name]
    config = families.config_of({"model_type": MODEL_TYPES.get(kind, kind.lower()), **values})
    weights = make_families.weights(name, families.expected_shapes(config))
    shapes = {key: array.shape for key, array in weights.items()}
    return config, families.to_params(families.Tensors(shapes, weights.__getitem__), config)


def groups_of(seed=0):
    rng = np.random.default_rng(seed)
    pieces = [[rng.integers(0, 29, size).astype(np.int32) for size in group] for group in LENGTHS]
    pieces[2][2] = pieces[2][1]
    return [piece[0] for piece in pieces], [piece[1:] for piece in pieces]


def table(values, slots):
    """[groups, responses, tokens], 0 where there is none."""
    return jnp.where(slots[:, 1:] >= 0, values.reshape(-1)[slots[:, 1:]], 0)


@functools.partial(jax.jit, static_argnames="config")
def packed(params, rows, weights, *, config):
    """Tables of all statistics, and the gradient of the weighted log-probabilities."""

    def loss(params):
        measured = transformer.statistics(params, rows, config=config)
        tables = jax.tree.map(lambda x: table(x, rows.slots), measured)
        return (weights * tables.logps).sum(), tables

    return jax.value_and_grad(loss, has_aux=True)(params)


@functools.partial(jax.jit, static_argnames="config")
def plain(params, rows, *, config):
    """The same tables without a layout: each row on its own, through whole logits."""
    scores = transformer.logits(params, rows.tokens[:, :LONGEST], config=config)
    before = jnp.pad(scores, ((0, 0), (1, 24 - LONGEST), (0, 0)))[:, :24]
    measured = of_logits(before.reshape(-1, scores.shape[-1]), rows.tokens.reshape(-1))
    return jax.tree.map(lambda x: table(x, rows.slots), measured)


def of_logits(logits, targets):
    every = jax.nn.log_softmax(logits)
    return TokenStatistics(
        jnp.take_along_axis(every, targets[:, None], 1)[:, 0], -(jnp.exp(every) * every).sum(-1),
        logits.argmax(-1) == targets, logits.mean(-1), jax.nn.logsumexp(2 * every, -1),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def statistics(params, rows, *, config):
    return transformer.statistics(params, rows, config=config)


def close(actual, expected):
    """To 1e-5 of each array's scale, or of a hundredth of the largest's: some are 0 but for rounding."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    scale = lambda x: max(float(np.abs(x).max()), 0.01 * largest)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale(b))
    jax.tree.map(
        same, *(jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (actual, expected))
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_shared_packed_rows_are_separate_rows_in_values_and_gradients(name):
    config, params = recipe(name)
    groups, weights = groups_of(), np.random.default_rng(1).standard_normal((4, 3, 24)).astype(np.float32)
    alone, together = packing.separate(*groups, SHAPE), packing.shared(*groups, SHAPE)
    (_, tables), grads = packed(params, alone, weights, config=config)
    (_, shared_tables), shared_grads = packed(params, together, weights, config=config)
    close(tables, plain(params, alone, config=config))
    close(shared_tables, tables)
    close(shared_grads, grads)


def test_blocks_of_attention_change_nothing():
    """Rows of several blocks, soft cap, windows shorter than a prompt; plain attention over separate rows."""
    config, params = recipe("gemma2")
    prompts, responses = (8 * part for part in groups_of())
    weights = np.random.default_rng(1).standard_normal((32, 3, 24)).astype(np.float32)
    alone = packing.separate(prompts, responses, packing.Shape(96, 24))
    together = packing.shared(prompts, responses, packing.Shape(3, 160))
    plainly, by_blocks = (dataclasses.replace(config, attention=way) for way in ("plain", "blocks"))
    (_, expected), grads = packed(params, alone, weights, config=plainly)
    longer = np.pad(weights, ((0, 0), (0, 0), (0, 160 - 24)))
    (_, tables), block_grads = packed(params, together, longer, config=by_blocks)
    close(jax.tree.map(lambda x: x[..., :24], tables), expected)
    close(block_grads, grads)


def test_no_other_response_and_no_other_group_changes_a_response():
    """The first response of group 2 gets other tokens: it alone feels it."""
    config, params = recipe("gemma2")
    prompts, responses = groups_of()
    weights = jnp.ones((4, 3, 24))
    (_, before), _ = packed(params, packing.shared(prompts, responses, SHAPE), weights, config=config)
    responses[2][0] = (responses[2][0] + 1) % 29
    (_, after), _ = packed(params, packing.shared(prompts, responses, SHAPE), weights, config=config)
    same = np.ones((4, 3), bool)
    same[2, 0] = False
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[same], new[same])
    assert not np.allclose(before.logps[2, 0], after.logps[2, 0])


def test_padding_may_hold_any_id():
    config, params = recipe("gpt2")
    rows, weights = packing.shared(*groups_of(), SHAPE), jnp.ones((4, 3, 24))
    other = rows._replace(tokens=np.where(rows.positions < 0, 30, rows.tokens))
    first, second = (packed(params, x, weights, config=config) for x in (rows, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    measured = statistics(params, other, config=config)
    assert all((np.asarray(x)[rows.sources < 0] == 0).all() for x in measured)


def test_prompts_are_predicted_where_a_loss_asks_for_whole_rows():
    config, params = recipe("llama3")
    prompts, responses = groups_of()
    rows = packing.shared(prompts, responses, SHAPE, prompts_too=True)
    alone = packing.separate(prompts, responses, SHAPE)
    measured = np.asarray(statistics(params, rows, config=config).logps).reshape(-1)
    scores = jax.jit(functools.partial(transformer.logits, config=config))(params, alone.tokens)
    expected = logps.gather(logps.log_softmax(scores[:, :-1]), jnp.asarray(alone.tokens[:, 1:]))
    for n, prompt in enumerate(prompts):
        found = measured[rows.slots[n, 0, : len(prompt)]]
        assert found[0] == 0
        np.testing.assert_allclose(found[1:], expected[n, : len(prompt) - 1], atol=1e-5)


def test_bfloat16_rows_differ_by_what_bfloat16_rounds():
    config, params = recipe("llama3")
    alone, together = packing.separate(*groups_of(), SHAPE), packing.shared(*groups_of(), SHAPE)
    exact = plain(params, alone, config=config).logps
    half = dataclasses.replace(config, dtype="bfloat16")
    errors = [
        float(np.abs(table(statistics(params, rows, config=half).logps, rows.slots) - exact).max())
        for rows in (alone, together)
    ]
    assert 1e-4 < errors[0] < 0.2
    assert errors[1] < 1.5 * errors[0]
