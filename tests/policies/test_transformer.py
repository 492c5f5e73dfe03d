"""The transformer: causal, indifferent to padding and batch order."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import logps
from jaxpref.pairs import TokenPairs, TokenRows
from jaxpref.policies import rope, transformer

CONFIG = transformer.TransformerConfig(
    vocab=23, dim=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_dim=40
)  # fmt: skip
PARAMS = transformer.init(jax.random.key(0), CONFIG)
ROW_LOGPS = jax.jit(functools.partial(transformer.row_token_logps, config=CONFIG))


def rows(num: int = 3, length: int = 9, seed: int = 1) -> TokenRows:
    tokens = jax.random.randint(jax.random.key(seed), (num, length), 0, CONFIG.vocab)
    position = jnp.arange(length)
    return TokenRows(tokens, jnp.broadcast_to((position >= 4) & (position < 8), tokens.shape))


def test_token_logps_are_a_float64_softmax_of_the_logits_one_step_earlier():
    batch = rows()
    scores = np.asarray(transformer.logits(PARAMS, batch.tokens, config=CONFIG), np.float64)
    expected = np.zeros(batch.tokens.shape)
    for row, t in itertools.product(range(3), range(4, 8)):
        before = scores[row, t - 1]
        expected[row, t] = before[batch.tokens[row, t]] - np.log(np.exp(before).sum())
    np.testing.assert_allclose(ROW_LOGPS(PARAMS, batch), expected, atol=2e-6)


def test_the_first_token_of_a_row_is_given_not_predicted():
    batch = rows()._replace(response_mask=jnp.ones((3, 9), bool))
    assert np.all(np.asarray(ROW_LOGPS(PARAMS, batch))[:, 0] == 0)


def test_what_comes_later_changes_nothing_before_it():
    tokens = rows().tokens
    changed = tokens.at[:, 6:].set((tokens[:, 6:] + 1) % CONFIG.vocab)
    first, second = (transformer.hidden(PARAMS, t, config=CONFIG) for t in (tokens, changed))
    np.testing.assert_array_equal(first[:, :6], second[:, :6])
    assert not np.allclose(first[:, 6:], second[:, 6:])


def test_padding_and_its_ids_change_nothing():
    batch = rows()
    padded = TokenRows(*(jnp.pad(x, ((0, 0), (0, 5)), constant_values=v) for x, v in zip(batch, (7, False))))
    np.testing.assert_allclose(ROW_LOGPS(PARAMS, padded)[:, :9], ROW_LOGPS(PARAMS, batch), atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_behind_a_mask_changes_nothing_on_either_side(side):
    tokens, pads = rows().tokens, ((0, 0), (4, 0) if side == "left" else (0, 4))
    mask = jnp.pad(jnp.ones(tokens.shape, bool), pads)
    expected = transformer.logits(PARAMS, tokens, config=CONFIG)
    for padding in (0, 7):
        padded = jnp.pad(tokens, pads, constant_values=padding)
        scores = transformer.logits(PARAMS, padded, config=CONFIG, mask=mask)
        np.testing.assert_allclose(scores[mask].reshape(expected.shape), expected, atol=1e-5)


def test_padding_has_no_part_in_the_gradient():
    tokens = jnp.pad(rows().tokens, ((0, 0), (4, 0)), constant_values=7)
    mask = jnp.arange(13) >= jnp.array([[4], [6], [8]])
    target = jnp.where(mask, 1.0, 0.0)[..., None]
    loss = lambda params: (target * transformer.logits(params, tokens, config=CONFIG, mask=mask)).sum()
    changed = jnp.where(mask, tokens, 3)
    other = lambda params: (target * transformer.logits(params, changed, config=CONFIG, mask=mask)).sum()
    first, second = jax.grad(loss)(PARAMS), jax.grad(other)(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), first, second)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))


def test_the_order_of_the_batch_changes_nothing():
    batch, order = rows(), jnp.array([2, 0, 1])
    shuffled = jax.tree.map(lambda x: x[order], batch)
    np.testing.assert_allclose(ROW_LOGPS(PARAMS, shuffled), ROW_LOGPS(PARAMS, batch)[order], atol=1e-6)


def test_pair_logps_are_both_rows_on_their_own():
    batch = TokenPairs(rows(seed=1), rows(seed=2))
    policy = transformer.pair_logps(PARAMS, batch, config=CONFIG)
    np.testing.assert_allclose(policy.chosen, ROW_LOGPS(PARAMS, batch.chosen).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(policy.rejected, ROW_LOGPS(PARAMS, batch.rejected).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(batch.lengths.chosen, [4, 4, 4])


def test_rope_makes_scores_depend_on_distance_alone():
    """q at t and k at s, equal vectors everywhere: their product may depend on t - s only."""
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (1, 1, 1, 8)), (1, 6, 1, 8))
    turns = rope.turns(jnp.arange(6)[None], 100.0 ** (-np.arange(4) / 4))
    turned = np.asarray(rope.turn(x, turns))[0, :, 0]
    scores = turned @ turned.T
    for distance in range(6):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)


def test_untied_models_have_an_unembedding_of_their_own():
    untied = transformer.init(jax.random.key(0), dataclasses.replace(CONFIG, tied=False))
    assert set(untied) - set(PARAMS) == {"unembedding"}


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_layers_changes_no_gradient(remat):
    batch = rows()

    def loss(params, config):
        return transformer.row_token_logps(params, batch, config=config).sum()

    plain = jax.grad(loss)(PARAMS, CONFIG)
    again = jax.grad(loss)(PARAMS, dataclasses.replace(CONFIG, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, again)


def test_bfloat16_products_are_close_to_float32_and_parameters_stay():
    tokens = rows().tokens
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    scores = transformer.logits(PARAMS, tokens, config=half)
    exact = np.asarray(transformer.logits(PARAMS, tokens, config=CONFIG))
    assert scores.dtype == jnp.float32 and not np.array_equal(scores, exact)
    assert np.abs(scores - exact).max() < 0.03 * np.abs(exact).max()
    grads = jax.grad(lambda p: transformer.logits(p, tokens, config=half).sum())(PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_everything_is_float64_where_the_parameters_are():
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        assert transformer.logits(wide, rows().tokens, config=CONFIG).dtype == jnp.float64


def with_adapter(params, layer: str, scale: float):
    """`params` with an adapter of rank 3 beside one kernel of all layers, and with it merged."""
    kernel = params["layers"]["attention"][layer]["kernel"]
    a = 0.3 * jax.random.normal(jax.random.key(7), (*kernel.shape[:2], 3))
    b = scale * jax.random.normal(jax.random.key(8), (kernel.shape[0], 3, kernel.shape[2]))
    attention = params["layers"]["attention"]
    put = lambda new: {**params, "layers": {**params["layers"], "attention": {**attention, layer: new}}}
    return put({"kernel": kernel, "lora_a": a, "lora_b": b}), put({"kernel": kernel + a @ b})


@pytest.mark.parametrize("layer", ["q", "v", "o"])
def test_an_adapter_beside_a_kernel_is_its_product_added_to_it(layer):
    attached, merged = with_adapter(PARAMS, layer, 0.3)
    first, second, plain = (
        transformer.logits(p, rows().tokens, config=CONFIG) for p in (attached, merged, PARAMS)
    )
    np.testing.assert_allclose(first, second, atol=2e-5)
    assert not np.allclose(first, plain, atol=1e-2)


def test_an_adapter_of_zeros_changes_no_bit():
    attached, _ = with_adapter(PARAMS, "q", 0.0)
    first, second = (transformer.logits(p, rows().tokens, config=CONFIG) for p in (attached, PARAMS))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_and_decode_are_the_full_forward_of_padded_prompts(side):
    """Prompts of 2, 5 and 4 tokens, then four more each."""
    lengths, prompt, more = jnp.array([[2], [5], [4]]), 5, 4
    column = jnp.arange(prompt)
    real = column >= prompt - lengths if side == "left" else column < lengths
    tokens = rows(length=prompt + more).tokens
    mask = jnp.concatenate([real, jnp.ones((3, more), bool)], axis=1)
    expected = [
        np.asarray(transformer.logits(PARAMS, row[keep][None], config=CONFIG)[0, -more - 1 :])
        for row, keep in zip(tokens, mask)
    ]
    scores, cache = transformer.prefill(PARAMS, tokens[:, :prompt], real, config=CONFIG, length=prompt + more)
    seen = [scores]
    for slot in range(prompt, prompt + more):
        scores, cache = transformer.decode(PARAMS, cache, tokens[:, slot], jnp.asarray(slot), config=CONFIG)
        seen.append(scores)
    np.testing.assert_allclose(np.stack(seen, axis=1), expected, atol=1e-5)


def test_the_state_that_predicts_a_token_stands_before_it():
    mask = logps.predicting_mask(rows(num=1))
    np.testing.assert_array_equal(np.flatnonzero(mask[0]), [3, 4, 5, 6])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("kv_heads", 3, "kv_heads must divide heads=4; got 3"), ("head_dim", 5, "head_dim must be even"),
     ("vocab", 0, "vocab must be at least 1; got 0"), ("window", 0, "window must be at least 1; got 0"),
     ("remat", "some", "remat must be one of none, full, dots; got 'some'"),
     ("dtype", "float16", "dtype must be one of float32, bfloat16; got 'float16'"),
     ("local_layers", (True,), "local_layers must say it for each of 2 layers; got 1"),
     ("biases", ("q", "w"), r"biases must be of .*; got \['w'\]"), ("rope_share", 0.5, "must leave an even"),
     ("positions", "learned", "max_length must be at least 1")],
)  # fmt: skip
def test_a_config_out_of_range_names_field_rule_and_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **{field: value})
