"""A step's pairs in pieces of few shapes: sorted by length, cut, packed, filled with pairs of weight 0."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxpref.data import order, packing, shapes
from jaxpref.data.pair_set import PairSet, Which
from jaxpref.data.shapes import Shape
from jaxpref.pairs import PackedRows, PairLogps
from jaxpref.trainer.objective import Batch, Pairs

# (prompts, responses, groups=, prompts_too=) -> rows
Pack = Callable[..., PackedRows]


def shared(few: Sequence[Shape] = ()) -> Pack:
    """Both responses share their prompt's computation, in rows of one of these shapes if one holds them."""

    def pack(prompts: Sequence[np.ndarray], responses: Sequence[Any], **more: Any) -> PackedRows:
        lengths = [
            len(prompt) + sum(map(len, tails)) for prompt, tails in zip(prompts, responses, strict=True)
        ]
        return packing.shared(prompts, responses, shapes.choose_shape(lengths, few), **more)

    return pack


separate: Pack = packing.separate


def few_shapes(pair_set: PairSet, parts: Iterable[np.ndarray]) -> tuple[Shape, ...]:
    """Shapes for pieces that hold these pairs: each is a program to compile."""
    return shapes.choose_shapes([_tokens(pair_set, part) for part in parts])


def epoch(pair_set: PairSet, batch_size: int, size: int, *, seed: int, shuffle: bool) -> Iterator[np.ndarray]:
    """The pairs of each piece of the first epoch."""
    for step in range(order.steps_per_epoch(len(pair_set), batch_size)):
        indices = order.batch_indices(len(pair_set), batch_size, seed=seed, step=step, shuffle=shuffle)
        yield from dealt(pair_set, indices, size)


def dealt(pair_set: PairSet, indices: np.ndarray, size: int) -> list[np.ndarray]:
    """A step's pairs in parts of at most `size` and of about as many tokens."""
    return [indices[pile] for pile in shapes.deal(_tokens(pair_set, indices), size)]


def by_length(pair_set: PairSet, indices: np.ndarray, size: int) -> list[np.ndarray]:
    """The same for rows of a response each: short ones together, so that little is padding."""
    return list(spans(indices[np.argsort(pair_set.lengths[indices].max(-1), kind="stable")], size))


def _tokens(pair_set: PairSet, indices: np.ndarray) -> list[int]:
    """Of each pair, its prompt counted once."""
    return (pair_set.lengths[indices].sum(-1) - pair_set.starts[indices]).tolist()


def cut(
    pair_set: PairSet,
    parts: Iterable[np.ndarray],
    size: int,
    reference: np.ndarray | None,
    *,
    pack: Pack,
    prompts: bool = False,
) -> list[Batch]:
    """The pieces of one step.

    Args:
      pair_set: all pairs.
      parts: those of each piece.
      size: pairs of a piece; smaller parts are filled with pairs of weight 0.
      reference: log-probabilities of both responses, [all pairs, 2], nats.
      pack: how prompts and responses become rows.
      prompts: the policy is to say how likely prompts are, too.
    """
    return [_piece(pair_set, part, size, reference, pack, prompts) for part in parts]


def spans(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive parts of at most `size`."""
    yield from (indices[first : first + size] for first in range(0, len(indices), size))


def _piece(pair_set: PairSet, part: np.ndarray, size: int, reference, pack: Pack, prompts: bool) -> Batch:
    filled = np.concatenate([part, np.repeat(part[:1], size - len(part))])
    weights = np.where(np.arange(size) < len(part), pair_set.weights[filled], 0.0)
    rows = pack(*pair_set.groups(part), groups=size, prompts_too=prompts)
    batch = _batch(rows, weights, pair_set.lengths[filled])
    stored = None if reference is None else PairLogps(*reference[filled].T)
    return batch._replace(pairs=batch.pairs._replace(reference=stored, columns=pair_set.columns[filled]))


def _batch(rows: PackedRows, weights: np.ndarray, row_lengths: np.ndarray) -> Batch:
    """On the host: the compiled programs take the arrays to the device."""
    _, chosen, rejected = np.moveaxis(np.asarray(rows.slots) >= 0, 1, 0)
    host: Any = (chosen, rejected, weights.astype(np.float32), row_lengths.astype(np.int32))
    return Batch(rows, Pairs(*host))


def mismatched(
    pair_set: PairSet, indices: np.ndarray, size: int, max_length: int, *, pack: Pack
) -> list[Batch]:
    """Each prompt of a step with the response of the row before: samples for KTO's estimate of the KL.

    Rows are the chosen ones, then the rejected ones, and responses move on by one row, as in TRL: prompt 1
    gets the last rejected response. Chosen and rejected are no more than two halves here.
    """
    names: tuple[Which, Which] = ("chosen", "rejected")
    sides = [(i, side) for side in names for i in indices.tolist()]
    moved = [_response(pair_set, *sides[n - 1]) for n in range(len(sides))]
    prompts = pair_set.groups(indices)[0]
    responses = [
        [moved[n][: max_length - len(prompt)], moved[n + len(prompts)][: max_length - len(prompt)]]
        for n, prompt in enumerate(prompts)
    ]
    weights = pair_set.weights[indices]
    parts = [slice(first, first + size) for first in range(0, len(prompts), size)]
    return [_mismatched(prompts[part], responses[part], weights[part], size, pack) for part in parts]


def _mismatched(
    prompts: Sequence[np.ndarray],
    responses: Sequence[list[np.ndarray]],
    weights: np.ndarray,
    size: int,
    pack: Pack,
) -> Batch:
    lengths = np.array([[len(p) + len(y) for y in pair] for p, pair in zip(prompts, responses, strict=True)])
    fill = size - len(prompts)
    lengths = np.concatenate([lengths, np.repeat(lengths[:1], fill, axis=0)])
    return _batch(pack(prompts, responses, groups=size), np.pad(weights, (0, fill)), lengths)


def _response(pair_set: PairSet, index: int, side: Which) -> np.ndarray:
    return pair_set.row(index, side)[pair_set.starts[index] :]
