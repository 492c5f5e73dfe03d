"""Similarities over packed rows are those over separate ones, whose states they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import PackedRows, PairLengths, TokenRows
from jaxpref.probes import likelihood, packed

SIZES = [(2, 3, 2), (1, 1, 4), (4, 2, 1)]  # tokens of prompt, chosen, rejected
STARTS, LENGTH, WIDEST = (0, 7, 14), 14, 4  # of each group; of the two packed rows; of the longest response


def separate_rows() -> tuple[TokenRows, np.ndarray]:
    """Chosen rows above rejected ones; states of padding are not numbers."""
    rng = np.random.default_rng(0)
    tokens, hidden = rng.integers(0, 3, (6, 8)), rng.normal(size=(6, 8, 5)).astype(np.float32)
    mask = np.zeros((6, 8), bool)
    for pair, (prompt, *responses) in enumerate(SIZES):
        tokens[pair + 3, :prompt], hidden[pair + 3, :prompt] = tokens[pair, :prompt], hidden[pair, :prompt]
        for which, size in enumerate(responses):
            mask[pair + 3 * which, prompt : prompt + size] = True
    return TokenRows(jnp.asarray(tokens), jnp.asarray(mask)), hidden


def packed_rows(separate: TokenRows, states: np.ndarray) -> tuple[PackedRows, np.ndarray]:
    """The same pairs, two of them in one row, token by token; states of padding are not numbers."""
    flat = {name: np.full(2 * LENGTH, -1) for name in ("tokens", "positions", "groups", "sources")}
    flat["branches"] = np.zeros(2 * LENGTH, int)
    hidden, slots = np.full((2 * LENGTH, 5), np.nan, np.float32), np.full((3, 3, WIDEST), -1)
    for group, (start, (prompt, *responses)) in enumerate(zip(STARTS, SIZES, strict=True)):
        place = start
        for branch, size in enumerate((prompt, *responses)):
            row, first = group + 3 * (branch == 2), prompt * (branch > 0)
            for i in range(size):
                flat["tokens"][place] = separate.tokens[row, first + i]
                hidden[place], slots[group, branch, i] = states[row, first + i], place
                flat["positions"][place], flat["groups"][place] = first + i, start == 7
                flat["branches"][place] = branch
                if branch:
                    before = place - 1 if i else start + prompt - 1
                    flat["sources"][place] = before % LENGTH
                place += 1
    shaped = {name: jnp.asarray(x.reshape(2, LENGTH)) for name, x in flat.items()}
    return PackedRows(slots=jnp.asarray(slots), **shaped), hidden.reshape(2, LENGTH, 5)


@pytest.fixture(scope="module")
def both():
    separate, states = separate_rows()
    rows, hidden = packed_rows(separate, states)
    return separate, jnp.asarray(states), rows, jnp.asarray(hidden)


def test_ches_of_packed_rows_is_that_of_separate_ones(both):
    separate, states, rows, hidden = both
    sums = jnp.split(likelihood.response_hidden_sums(states, separate), 2)
    sizes = np.array(SIZES)
    expected = likelihood.ches(*sums, PairLengths(jnp.asarray(sizes[:, 1]), jnp.asarray(sizes[:, 2])))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), packed.ches(hidden, rows), expected
    )


def test_last_states_and_edit_distances_are_those_of_separate_rows(both):
    separate, states, rows, hidden = both
    last = jnp.stack(jnp.split(likelihood.last_hidden(states, separate), 2), axis=1)
    np.testing.assert_array_equal(packed.last_hidden(hidden, rows), last)
    expected = likelihood.last_hidden_inner(last[:, 0], last[:, 1])
    np.testing.assert_array_equal(packed.last_hidden_inner(hidden, rows), expected)
    halves = [jax.tree.map(lambda x, h=half: x[h], separate) for half in (slice(3), slice(3, 6))]
    np.testing.assert_array_equal(packed.edit_distance(rows), likelihood.edit_distance(*halves))


def test_half_precision_states_are_summed_in_float32(both):
    *_, rows, hidden = both
    sums = packed.hidden_sums(jnp.full_like(hidden, 30_000.0, dtype=jnp.float16), rows)
    assert sums.dtype == jnp.float32
    np.testing.assert_array_equal(sums[..., 0], 30_000.0 * np.array(SIZES)[:, 1:])
