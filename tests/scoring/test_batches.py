"""Plans: every pair once, rows that hold their pairs, few shapes, a budget that is kept."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxpref.data.pair_set import PairSet
from jaxpref.data.tokenization import Report
from jaxpref.scoring import batches

TOKENS = st.tuples(st.integers(1, 300), st.integers(1, 400), st.integers(1, 400))
SIZES = st.lists(TOKENS, min_size=1, max_size=40)
BUDGET = st.sampled_from([64, 500, 2048, 10_000])


def pair_set(sizes):
    """Tokens of prompt, chosen and rejected response; a plan looks at nothing else."""
    prompts, chosen, rejected = np.array(sizes).T
    lengths = np.stack([prompts + chosen, prompts + rejected], axis=1)
    none = {field.name: prompts for field in dataclasses.fields(PairSet)}
    report = Report(
        pairs=len(sizes), truncated=0, dropped={}, merged=0, duplicates=0, tied=0, indistinct=0, empty=0
    )
    known = {"starts": prompts, "lengths": lengths, "ids": (), "sha256": "", "bad": (), "report": report}
    return PairSet(**(none | known))


@given(SIZES, BUDGET)
def test_packed_rows_hold_every_pair_once_within_the_budget(sizes, budget):
    plan = batches.packed(pair_set(sizes), range(len(sizes)), budget)
    tokens = [sum(size) for size in sizes]
    rows = [(row, batch.shape) for batch in plan for row in batch.rows]
    assert sorted(pair for row, _ in rows for pair in row) == list(range(len(sizes)))
    for row, shape in rows:
        assert sum(tokens[pair] for pair in row) <= shape.length
    for batch in plan:
        assert len(batch.rows) <= batch.shape.rows and len(batch.pairs) <= batch.groups
        assert batch.shape.rows == 1 or batch.shape.rows * batch.shape.length <= budget


@given(SIZES, BUDGET)
def test_separate_rows_hold_every_pair_once_within_the_budget(sizes, budget):
    pairs = pair_set(sizes)
    plan = batches.separate(pairs, range(len(sizes)), budget)
    assert sorted(np.concatenate([batch.pairs for batch in plan])) == list(range(len(sizes)))
    for batch in plan:
        assert pairs.lengths[batch.pairs].max() <= batch.length and len(batch.pairs) <= batch.size
        assert batch.size == 1 or 2 * batch.size * batch.length <= budget


def test_many_pairs_take_few_shapes_and_little_padding():
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 150, (2000, 3))
    packed = batches.packed(pair_set(sizes), range(2000), 2048)
    assert len({(batch.shape, batch.groups) for batch in packed}) <= 3
    assert sum(batch.shape.rows * batch.shape.length for batch in packed) < 1.08 * sizes.sum()
    separate = batches.separate(pair_set(sizes), range(2000), 2048)
    assert len({(batch.length, batch.size) for batch in separate}) <= 10


def test_few_pairs_are_one_batch_with_little_padding():
    sizes = [(20, 30, 30), (20, 20, 20), (10, 60, 20), (40, 40, 40)]  # 80, 60, 90, 120 tokens
    (batch,) = batches.packed(pair_set(sizes), range(4), 2048)
    assert batch.shape.rows * batch.shape.length == 384


def test_windows_are_all_pairs_in_order(monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 3)
    assert [list(window) for window in batches.windows(7)] == [[0, 1, 2], [3, 4, 5], [6]]
