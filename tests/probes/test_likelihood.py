import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import logps
from jaxpref.pairs import PairLengths, PairLogps, TokenRows
from jaxpref.probes import likelihood

from .conftest import make_rows


def test_displacement_is_now_less_start():
    start = PairLogps(jnp.array([-1.0, -2.0]), jnp.array([-3.0, -4.0]))
    now = PairLogps(jnp.array([-1.5, -1.0]), jnp.array([-5.0, -4.0]))
    change = likelihood.displacement(now, start)
    np.testing.assert_array_equal(change, [[-0.5, 1.0], [-2.0, 0.0]])
    assert likelihood.fraction_chosen_down(now, start) == 0.5


def test_mass_that_leaves_arrives_elsewhere():
    start, now = (logps.log_softmax(jax.random.normal(jax.random.key(i), (3, 7))) for i in (0, 1))
    np.testing.assert_allclose(likelihood.mass_change(start, now).sum(-1), 0.0, atol=1e-6)


def test_top_gainers_are_sorted_by_probability_won():
    start, now = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])), jnp.log(jnp.array([0.1, 0.35, 0.2, 0.35]))
    top = likelihood.top_gainers(start, now, 2)
    np.testing.assert_array_equal(top.ids, [3, 1])
    np.testing.assert_allclose(top.gains, [0.25, 0.05], atol=1e-6)


def slow_max_drop(values):
    drops = {(t, u): values[t] - values[u] for u in range(len(values)) for t in range(u)}
    best = max(drops, key=lambda steps: drops[steps])
    return (drops[best], *best) if drops[best] > 0 else (0.0, 0, 0)


def test_max_drop_is_the_largest_over_all_step_pairs():
    trajectories = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    drop = likelihood.max_drop(jnp.asarray(trajectories))
    expected = np.array([slow_max_drop(row) for row in trajectories])
    np.testing.assert_allclose(np.stack(drop, axis=1), expected, rtol=1e-6)


def test_a_rising_trajectory_has_no_drop():
    drop = likelihood.max_drop(jnp.array([0.1, 0.2, 0.2, 0.9]))
    assert tuple(map(float, drop)) == (0.0, 0.0, 0.0)


@pytest.fixture
def rows() -> TokenRows:
    return make_rows(np.random.default_rng(0), [2, 1, 4], [3, 1, 5])


@pytest.fixture
def hidden():
    return jax.random.normal(jax.random.key(0), (3, 9, 4))


def test_hidden_sums_run_from_the_last_prompt_position_to_one_before_the_last_token(rows, hidden):
    sums = likelihood.response_hidden_sums(hidden, rows)
    expected = [hidden[0, 1:4].sum(0), hidden[1, 0:1].sum(0), hidden[2, 3:8].sum(0)]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


def test_half_precision_hidden_states_are_summed_in_float32(rows, hidden):
    large = jnp.full_like(hidden, 30_000.0, dtype=jnp.float16)
    sums = likelihood.response_hidden_sums(large, rows)
    assert sums.dtype == jnp.float32
    np.testing.assert_allclose(sums[:, 0], [90_000, 30_000, 150_000])


def test_last_hidden_is_the_state_before_the_end_token(rows, hidden):
    expected = [hidden[0, 3], hidden[1, 0], hidden[2, 7]]
    np.testing.assert_array_equal(likelihood.last_hidden(hidden, rows), expected)


def test_last_hidden_inner_is_an_inner_product_of_each_pair(rows, hidden):
    last = likelihood.last_hidden(hidden, rows)
    np.testing.assert_allclose(
        likelihood.last_hidden_inner(last, 2 * last), 2 * (np.asarray(last) ** 2).sum(1), rtol=1e-6
    )


def test_ches_is_its_definition():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 5, 4)).astype(np.float32)
    n_w, n_l = rng.integers(1, 9, (2, 5))
    score = likelihood.ches(
        *map(jnp.asarray, (chosen, rejected)), PairLengths(jnp.asarray(n_w), jnp.asarray(n_l))
    )
    inner, square = (chosen * rejected).sum(1), (chosen**2).sum(1)
    np.testing.assert_allclose(score.ches, inner - square, rtol=1e-4)
    np.testing.assert_allclose(score.ln_ches, inner / (n_w * n_l) - square / n_w**2, rtol=1e-4)


def test_a_response_is_not_similar_beyond_itself(rows, hidden):
    sums = likelihood.response_hidden_sums(hidden, rows)
    length = rows.response_mask.sum(1)
    score = likelihood.ches(sums, sums, PairLengths(length, length))
    np.testing.assert_array_equal(score.ches, 0.0)
    np.testing.assert_array_equal(score.ln_ches, 0.0)


def test_equal_lengths_divide_ches_by_their_square(hidden):
    sums, length = hidden.sum(1), jnp.full(3, 7)
    score = likelihood.ches(sums, sums[::-1], PairLengths(length, length))
    np.testing.assert_allclose(score.ln_ches, score.ches / 49, rtol=1e-4)


def test_length_difference_is_positive_where_the_rejected_is_longer():
    lengths = PairLengths(jnp.array([3, 9]), jnp.array([5, 2]))
    np.testing.assert_array_equal(likelihood.length_difference(lengths), [2, -7])


def responses(rows: TokenRows) -> list[list[int]]:
    return [list(np.asarray(t)[np.asarray(m)]) for t, m in zip(rows.tokens, rows.response_mask, strict=True)]


def levenshtein(a, b) -> int:
    """The textbook recursion, table by table."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(replaced, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return table[len(a), len(b)]


def test_edit_distance_is_levenshteins_over_the_longer_response():
    rng = np.random.default_rng(1)
    prompt = rng.integers(1, 4, 40)
    first, second = (make_rows(rng, prompt, rng.integers(1, 6, 40), vocab=3) for _ in range(2))
    couples = list(zip(responses(first), responses(second), strict=True))
    expected = [levenshtein(a, b) / max(len(a), len(b)) for a, b in couples]
    np.testing.assert_allclose(likelihood.edit_distance(first, second), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        likelihood.edit_similarity(first, second), -likelihood.edit_distance(first, second)
    )


def test_compact_moves_responses_to_the_left(rows):
    moved = likelihood.compact(rows)
    np.testing.assert_array_equal(moved.mask.sum(1), rows.response_mask.sum(1))
    assert [
        list(np.asarray(t)[: len(r)]) for t, r in zip(moved.tokens, responses(rows), strict=True)
    ] == responses(rows)
