"""Edit distances by bits are those of the table."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxpref.pairs import TokenRows
from jaxpref.probes import likelihood
from jaxpref.scoring import edits

TOKENS = st.lists(st.integers(0, 3), max_size=12)


def table(first: list[int], second: list[int]) -> int:
    row = list(range(len(second) + 1))
    for i, token in enumerate(first):
        above, row = row, [i + 1]
        for j, other in enumerate(second):
            row.append(min(row[j] + 1, above[j + 1] + 1, above[j] + (token != other)))
    return row[-1]


@given(TOKENS, TOKENS)
def test_distance_is_that_of_the_table(first, second):
    assert edits.levenshtein(first, second) == table(first, second)


def test_normalized_distance_is_that_of_the_probe():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(0, 9, (2, 90))
    everything = jnp.ones((1, 90), bool)
    rows = [TokenRows(jnp.asarray(tokens[None]), everything) for tokens in (chosen, rejected)]
    (expected,) = likelihood.edit_distance(*rows)
    np.testing.assert_allclose(edits.normalized(chosen, rejected), expected, rtol=1e-6)
    assert edits.normalized(chosen, chosen) == 0 and edits.normalized([1], [2, 3]) == 1
