"""Which pairs are computed together: little padding, few shapes, never more tokens than asked for.

Pairs are sorted within windows of the file, so that neither the plan nor the results of a whole file are held
at once. A plan depends on lengths alone: an interrupted run finds the same batches again.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jaxpref.data.packing import Shape
from jaxpref.data.pair_set import PairSet
from jaxpref.data.tokenization import bucket_length

Item = TypeVar("Item")
COMPILATION = 1024  # tokens that are computed in the time that another program takes to compile
WINDOW = 4096  # pairs
# Tokens of a row that several pairs share, the largest that the budget allows; one pair may need more. In
# longer rows attention costs more, in shorter ones there is more padding.
ROWS = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Pairs that share rows, their prompts computed once."""

    shape: Shape
    groups: int  # of the table of slots
    rows: tuple[tuple[int, ...], ...]  # which pairs each row holds

    @property
    def pairs(self) -> np.ndarray:
        """In order of the file."""
        return np.array(sorted(pair for row in self.rows for pair in row), np.int64)


@dataclasses.dataclass(frozen=True)
class SeparateBatch:
    """Pairs with a row for each response."""

    length: int
    size: int  # pairs that are computed, of which the last may repeat the first
    pairs: np.ndarray  # [at most size]


def windows(number: int) -> Iterator[range]:
    """All pairs, some at a time."""
    return (range(start, min(start + WINDOW, number)) for start in range(0, number, WINDOW))


def packed(pairs: PairSet, window: range, batch_tokens: int) -> list[PackedBatch]:
    """The window's pairs in rows of few lengths, those of a batch alike; the longest first."""
    lengths = tokens_of(pairs, window)
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for size, row in fill(lengths, _least(lengths, batch_tokens)):
        by_length.setdefault(size, []).append(tuple(window[i] for i in row))
    return [batch for size, rows in by_length.items() for batch in _of_rows(size, rows, batch_tokens)]


def tokens_of(pairs: PairSet, window: range) -> np.ndarray:
    """Tokens of each pair, its prompt counted once."""
    part = slice(window.start, window.stop)
    return pairs.lengths[part].sum(1) - pairs.starts[part]


def _least(lengths: np.ndarray, batch_tokens: int) -> int:
    """Tokens of the shortest row; where one batch holds all pairs, what leaves the least padding."""
    if lengths.sum() > batch_tokens:
        return max(size for size in ROWS if size <= batch_tokens)
    sizes = [bucket_length(int(lengths.max()))]
    while sizes[-1] < lengths.sum():
        sizes.append(bucket_length(sizes[-1] + 1))
    return min(sizes, key=lambda size: size * _power(len(fill(lengths, size))))


def fill(lengths: Sequence[int] | np.ndarray, least: int) -> list[tuple[int, list[int]]]:
    """Rows by best fit, the longest first, each as long as its longest needs: short ones fill long rows.

    Args:
      lengths: tokens of each pair.
      least: tokens of the shortest row.

    Returns:
      Tokens of each row, and which pairs it holds.
    """
    rows: list[tuple[int, list[int]]] = []
    room: list[tuple[int, int]] = []  # of each row and which; sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens = int(lengths[i])
        place = bisect.bisect_left(room, (tokens, -1))
        if place == len(room):
            rows.append((bucket_length(max(tokens, least)), []))
            left, row = rows[-1][0], len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row][1].append(i)
        bisect.insort(room, (left - tokens, row))
    return rows


def _of_rows(length: int, rows: list[tuple[int, ...]], batch_tokens: int) -> list[PackedBatch]:
    parts = list(_chunks(rows, max(1, batch_tokens // length), length))
    groups = _power(max(sum(map(len, part)) for _, part in parts))
    return [PackedBatch(Shape(size, length), groups, tuple(part)) for size, part in parts]


def separate(pairs: PairSet, window: range, batch_tokens: int) -> list[SeparateBatch]:
    """The window's pairs in rows of their own, padded to few lengths; the longest first."""
    longer = {i: int(pairs.lengths[i].max()) for i in window}
    members = sorted(window, key=lambda i: -longer[i])
    by_length: dict[int, list[int]] = {}
    length = bucket_length(longer[members[0]])
    for place, i in enumerate(members):
        shorter = bucket_length(longer[i])
        if 2 * (length - shorter) * (len(members) - place) > COMPILATION:
            length = shorter
        by_length.setdefault(length, []).append(i)
    return [
        SeparateBatch(length, size, np.array(part))
        for length, members in by_length.items()
        for size, part in _chunks(members, max(1, batch_tokens // (2 * length)), 2 * length)
    ]


def _chunks(items: Sequence[Item], size: int, tokens: int) -> Iterable[tuple[int, Sequence[Item]]]:
    """Pieces of one size; the last, smaller one with the size that it is computed at.

    Args:
      tokens: of each item.
    """
    for start in range(0, len(items), size):
        piece = items[start : start + size]
        few = start == 0 or (size - len(piece)) * tokens > COMPILATION
        yield (min(size, _power(len(piece))) if few else size), piece


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
