"""Edit distances on the host, many thousand a second."""

from collections.abc import Sequence

import numpy as np


def normalized(chosen: Sequence[int] | np.ndarray, rejected: Sequence[int] | np.ndarray) -> float:
    """Levenshtein distance of two lists of tokens over the longer one's length, in [0, 1]."""
    longer = max(len(chosen), len(rejected))
    return levenshtein(np.asarray(chosen).tolist(), np.asarray(rejected).tolist()) / max(longer, 1)


def levenshtein(first: Sequence[int], second: Sequence[int]) -> int:
    """Insertions, deletions and substitutions that make one of the other.

    A column of the usual table is one integer: bit i says whether entry i is above, or below, the one before.

    References: Myers 1999, doi:10.1145/316542.316550, in the form of Hyyro 2003.
    """
    if not first:
        return len(second)
    where: dict[int, int] = {}
    for i, token in enumerate(first):
        where[token] = where.get(token, 0) | 1 << i
    mask, last, distance = (1 << len(first)) - 1, 1 << (len(first) - 1), len(first)
    up, down = mask, 0  # of the column: rises, falls
    for token in second:
        same = where.get(token, 0) | down
        kept = (((same & up) + up) ^ up) | same
        rises, falls = down | (mask & ~(kept | up)), up & kept  # along the row
        distance += bool(rises & last) - bool(falls & last)
        rises = (rises << 1 | 1) & mask
        up, down = (falls << 1 & mask) | (mask & ~(kept | rises)), rises & kept
    return distance
