"""Temperature, top-k and top-p against a reference in NumPy's float64 that sorts and counts in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import next_token
from jaxpref.policies.next_token import Filters


def reference(logits, filters):
    """Probabilities of one row, and how near top-p came to another choice."""
    scores = logits.astype(np.float64) / filters.temperature
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: filters.top_k]
    weights = np.exp(scores[order] - scores.max())
    kept, mass, nearest = [], 0.0, 1.0
    for token, share in zip(order, weights / weights.sum(), strict=True):
        nearest = min(nearest, abs(mass - filters.top_p)) if filters.top_p < 1 else 1.0
        if filters.top_p == 1 or mass < filters.top_p:
            kept.append(token)
        mass += share
    probabilities = np.zeros(len(scores))
    probabilities[kept] = np.exp(scores[kept] - scores.max())
    return probabilities / probabilities.sum(), nearest


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.013])
@pytest.mark.parametrize("top_k", [None, 1, 4, 19, 40])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_filtered_probabilities_are_those_of_a_slow_reference(temperature, top_k, top_p):
    filters = Filters(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = 3 * np.random.default_rng(0).standard_normal((50, 19)).astype(np.float32)
    measured = np.exp(next_token.filtered_logps(jnp.asarray(logits), filters))
    expected, nearest = zip(*(reference(row, filters) for row in logits))
    clear = np.array(nearest) > 1e-5  # from rounding
    assert clear.sum() > 45
    np.testing.assert_allclose(measured[clear], np.stack(expected)[clear], atol=1e-5)


@pytest.mark.parametrize("filters", [Filters(top_k=2), Filters(top_p=0.55), Filters(top_k=3, top_p=0.6)])
def test_of_tied_tokens_the_lowest_ids_are_kept(filters):
    logits = jnp.array([[0.0, 1.0, 1.0, 0.0, 1.0], [7.0, 7.0, 7.0, 7.0, 7.0]])[:, :5]
    logits = logits.at[0, 0].set(-9.0).at[0, 3].set(-9.0).at[1, 3:].set(-9.0)
    kept = np.isfinite(next_token.filtered_logps(logits, filters))
    np.testing.assert_array_equal(kept, [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def test_the_smallest_set_stops_at_the_token_that_reaches_top_p_exactly():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]))
    for top_p, number in [(0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1e-9, 1)]:
        kept = np.isfinite(next_token.filtered_logps(logits, Filters(top_p=top_p)))
        assert kept.sum() == number, top_p


def test_top_p_counts_the_probabilities_that_top_k_leaves():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))  # of two: 0.57 and 0.43
    kept = lambda **filters: int(np.isfinite(next_token.filtered_logps(logits, Filters(**filters))).sum())
    assert kept(top_p=0.55) == 2 and kept(top_p=0.55, top_k=2) == 1


def test_top_p_counts_the_probabilities_after_the_temperature():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))  # squared: 0.53, 0.3, ...
    kept = lambda **filters: int(np.isfinite(next_token.filtered_logps(logits, Filters(**filters))).sum())
    assert kept(top_p=0.5) == 2 and kept(top_p=0.5, temperature=0.5) == 1


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-12])
def test_no_temperature_is_the_first_of_the_best_tokens_for_certain(temperature):
    logits = jnp.array([[1.0, 3.0, -jnp.inf, 3.0], [2e4, -2e4, 0.0, 1e4]])
    filters = Filters(temperature=temperature, top_k=1)
    drawn = next_token.draw(jax.random.split(jax.random.key(0), 2), logits, filters)
    np.testing.assert_array_equal(drawn.tokens, [1, 0])
    np.testing.assert_array_equal(drawn.drawn_logps, [0.0, 0.0])
    np.testing.assert_allclose(drawn.logps, [-np.log(2 + np.exp(-2.0)), 0.0], rtol=1e-6)


@pytest.mark.slow
def test_tokens_far_below_the_best_are_drawn_as_often_as_they_should():
    """A tail of a million tokens, each 16.3 nats below the best, holds a twelfth: of 60 draws five."""
    tail, rows = 1_000_000, 60
    logits = jnp.zeros(tail + 1).at[0].set(16.3)
    draw = jax.jit(lambda key: next_token.draw(key[None], logits[None]).tokens[0])
    drawn = np.asarray(jax.lax.map(draw, jax.random.split(jax.random.key(1), rows)))
    assert 1 <= (drawn > 0).sum() <= 13


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_logits_that_are_no_numbers_leave_nan(bad):
    logits = jnp.zeros((2, 5)).at[1, 3].set(bad)
    for filters in (Filters(), Filters(temperature=0.0), Filters(top_k=2), Filters(top_p=0.5)):
        drawn = next_token.draw(jax.random.split(jax.random.key(0), 2), logits, filters)
        np.testing.assert_array_equal(np.isnan(drawn.logps), [False, True])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("temperature", -0.1, "temperature must be finite and at least 0; got -0.1"),
     ("temperature", float("nan"), "temperature must be finite and at least 0; got nan"),
     ("temperature", float("inf"), "temperature must be finite and at least 0; got inf"),
     ("top_k", 0, "top_k must be at least 1, or None for all tokens; got 0"),
     ("top_p", 0.0, r"top_p must be in \(0, 1\]; got 0.0"),
     ("top_p", 1.1, r"top_p must be in \(0, 1\]; got 1.1"),
     ("top_p", float("nan"), r"top_p must be in \(0, 1\]; got nan")],
)  # fmt: skip
def test_a_filter_out_of_range_names_field_rule_and_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        Filters(**{field: value})
