"""Order: every pair once an epoch, another order every epoch, the same from whatever step one begins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpref.data import order


@given(st.integers(1, 40), st.integers(1, 50), st.integers(-(2**70), 2**70), st.booleans())
def test_an_epoch_sees_every_pair_once_and_its_last_batch_is_what_is_left(pairs, size, seed, shuffle):
    steps = order.steps_per_epoch(pairs, size)
    for first in (0, 3 * steps):
        batches = [
            order.batch_indices(pairs, size, seed=seed, step=first + i, shuffle=shuffle) for i in range(steps)
        ]
        assert sorted(np.concatenate(batches).tolist()) == list(range(pairs))
        assert [len(batch) for batch in batches[:-1]] == [min(size, pairs)] * (steps - 1)


def test_epochs_and_seeds_differ_and_no_shuffle_is_the_files_order():
    epoch = lambda seed, number: order.batch_indices(100, 100, seed=seed, step=number).tolist()
    assert len({tuple(epoch(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4
    assert order.batch_indices(5, 2, seed=0, step=5, shuffle=False).tolist() == [4]


def test_the_order_is_the_one_that_it_always_was():
    expected = np.argsort(np.random.Philox(key=np.array([7, 2], np.uint64)).random_raw(6), kind="stable")
    assert order.batch_indices(6, 6, seed=7, step=2).tolist() == expected.tolist() == [4, 0, 1, 5, 3, 2]


@pytest.mark.parametrize(("arguments", "named"), [((0, 1), "num_pairs"), ((1, 0), "batch_size")])
def test_sizes_below_one_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f"{named} must be at least 1; got 0"):
        order.batch_indices(*arguments, seed=0, step=0)


def test_steps_below_zero_are_refused():
    with pytest.raises(ValueError, match="step must be at least 0; got -1"):
        order.batch_indices(2, 1, seed=0, step=-1)
