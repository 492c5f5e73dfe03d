"""Packed rows: every token once, where a plain reading of the definition expects it."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxpref.data import packing

LENGTHS = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=12)


def groups_of(lengths):
    """Prompts and responses with ids that occur once."""
    ends = np.cumsum([size for group in lengths for size in group])
    ids = iter(np.split(np.arange(1, ends[-1] + 1, dtype=np.int32), ends[:-1]))
    pieces = [[next(ids) for _ in group] for group in lengths]
    return [piece[0] for piece in pieces], [piece[1:] for piece in pieces]


def check(rows, prompts, responses, prompts_too=False):
    """Every token of every group, from the definition alone."""
    length = rows.tokens.shape[1]
    for n, (prompt, tails) in enumerate(zip(prompts, responses, strict=True)):
        for branch, ids in enumerate([prompt, *tails]):
            slots = rows.slots[n, branch]
            assert (slots[: len(ids)] >= 0).all() and (slots[len(ids) :] == -1).all()
            row, place = np.divmod(slots[: len(ids)], length)
            assert (row == row[0]).all() and (np.diff(place) == 1).all()
            np.testing.assert_array_equal(rows.tokens[row, place], ids)
            start = len(prompt) if branch else 0
            np.testing.assert_array_equal(rows.positions[row, place], start + np.arange(len(ids)))
            assert (rows.branches[row, place] == branch).all()
            before = rows.sources[row, place]
            if branch == 0:
                expected = place - 1 if prompts_too else np.full(len(ids), -1)
                np.testing.assert_array_equal(before, np.where(place == place[0], -1, expected))
                continue
            np.testing.assert_array_equal(before[1:], place[:-1])
            assert rows.tokens[row[0], before[0]] == prompt[-1]
            assert rows.groups[row[0], before[0]] == rows.groups[row[0], place[0]]
            assert rows.branches[row[0], before[0]] == 0


@given(LENGTHS, st.booleans())
def test_shared_rows_hold_every_token_once_and_slots_find_it(lengths, prompts_too):
    prompts, responses = groups_of(lengths)
    rows = packing.shared(prompts, responses, prompts_too=prompts_too)
    check(rows, prompts, responses, prompts_too)
    real = rows.positions >= 0
    assert sorted(rows.tokens[real]) == list(range(1, sum(map(sum, lengths)) + 1))
    assert (rows.groups[~real] == -1).all() and (rows.sources[~real] == -1).all()
    assert len(np.unique(rows.slots[rows.slots >= 0])) == real.sum()
    for row in rows.groups:  # a group is consecutive, and numbers begin at 0 in each row
        changes = row[np.flatnonzero(np.diff(row, prepend=-2))]
        assert [n for n in changes if n >= 0] == list(range(int(row.max()) + 1))


@given(LENGTHS, st.booleans())
def test_separate_rows_are_a_prompt_and_one_response(lengths, prompts_too):
    prompts, responses = groups_of(lengths)
    rows = packing.separate(prompts, responses, prompts_too=prompts_too)
    check(rows, prompts, responses, prompts_too)
    most = max(map(len, responses))
    for n, (prompt, tails) in enumerate(zip(prompts, responses, strict=True)):
        for branch in range(1, most + 1):
            row = (branch - 1) * len(prompts) + n
            expected = np.concatenate([prompt, tails[branch - 1]]) if branch <= len(tails) else []
            np.testing.assert_array_equal(rows.tokens[row, rows.positions[row] >= 0], expected)
            np.testing.assert_array_equal(rows.positions[row, : len(expected)], np.arange(len(expected)))


def test_rows_follow_a_plan_and_a_plan_that_is_none_is_refused():
    prompts, responses = groups_of([[2, 3, 1], [1, 1, 1], [2, 2, 2]])
    shape = packing.Shape(2, 64)
    rows = packing.shared(prompts, responses, shape, plan=[[2, 0], [1]])
    check(rows, prompts, responses)
    np.testing.assert_array_equal(rows.tokens[0, :2], prompts[2])
    np.testing.assert_array_equal(rows.tokens[1, :1], prompts[1])
    for plan, message in [([[0], [1]], "plan must name"), ([[0], [1], [2]], "shape.rows must be at least 3")]:
        with pytest.raises(ValueError, match=message):
            packing.shared(prompts, responses, shape, plan=plan)


def test_repeated_groups_fill_the_table():
    """Shared: at no computation. Separate: each row again, so that row i stays group i's."""
    prompts, responses = groups_of([[3, 4, 5], [2, 1, 6]])
    rows = packing.shared(prompts, responses, groups=4)
    assert rows.slots.shape[0] == 4
    np.testing.assert_array_equal(rows.slots[2:], np.repeat(rows.slots[:1], 2, axis=0))
    alone = packing.separate(prompts, responses, groups=4)
    assert alone.tokens.shape[0] == 8
    check(alone, [*prompts, prompts[0], prompts[0]], [*responses, responses[0], responses[0]])
    with pytest.raises(ValueError, match="groups must be at least the 2 that are given; got 1"):
        packing.shared(prompts, responses, groups=1)


def test_the_report_counts_padding_and_prompts_that_are_not_computed_again():
    prompts, responses = groups_of([[10, 4, 6, 2], [20, 5, 5]])
    counted = packing.report(packing.shared(prompts, responses, packing.Shape(1, 64), groups=5))
    assert counted == packing.Report(computed=64, tokens=52, shared=2 * 10 + 20)
    assert counted.padding_share == pytest.approx(12 / 64) and counted.shared_share == pytest.approx(40 / 92)
    both = counted + packing.report(packing.separate(prompts, responses, packing.Shape(6, 32)))
    assert both == packing.Report(computed=64 + 6 * 32, tokens=52 + 92, shared=40)


@pytest.mark.parametrize(
    ("lengths", "which"), [([[0, 2, 2]], "0"), ([[1, 2, 2], [3, 0, 1]], "1"), ([[4]], "0")]
)
def test_an_empty_prompt_or_response_is_named(lengths, which):
    prompts, responses = groups_of(lengths)
    for make in (packing.shared, packing.separate):
        with pytest.raises(
            ValueError, match=f"group {which} must have a token in its prompt and in each response"
        ):
            make(prompts, responses)


def test_no_group_at_all_is_refused():
    with pytest.raises(ValueError, match="prompts must hold at least one"):
        packing.shared([], [])
