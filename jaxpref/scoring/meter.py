"""How far a run is, and how fast it goes."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpref.data.packing import Report
from jaxpref.data.pair_set import PairSet
from jaxpref.scoring.batches import PackedBatch, SeparateBatch

GRADIENT_COST = 4  # forward passes that a pass forward, again and back is worth
Batch = PackedBatch | SeparateBatch


class Meter:
    """Counts batches as they are done; what an interrupted run had stored is progress, but no speed."""

    def __init__(self, pairs: PairSet, tell: Callable[[float, str], None], *, gradients: bool):
        self._pairs, self._tell = pairs, tell
        rows, prompts = int(pairs.lengths.sum()), int(pairs.starts.sum())
        self._total = rows - prompts + GRADIENT_COST * rows * gradients
        self._done = self._fresh = self._places = 0
        self._packed: Report | None = None
        self._started = time.perf_counter()

    def add(self, batch: Batch, *, fresh: bool) -> None:
        """A batch is done; `fresh` if it was computed just now."""
        cost, places = self._cost(batch)
        self._done += cost
        self._fresh += cost * fresh
        self._places += places * fresh
        self._tell(self._done / self._total, self._speed())

    def _cost(self, batch: Batch) -> tuple[int, int]:
        """Of the batch's tokens; and places that were computed, padding among them."""
        rows = int(self._pairs.lengths[batch.pairs].sum())
        prompts = int(self._pairs.starts[batch.pairs].sum())
        if isinstance(batch, SeparateBatch):
            return GRADIENT_COST * rows, 2 * batch.size * batch.length
        places = batch.shape.rows * batch.shape.length
        report = Report(computed=places, tokens=rows - prompts, shared=prompts)
        self._packed = report if self._packed is None else self._packed + report
        return rows - prompts, places

    def _speed(self) -> str:
        pairs, tokens = self._rates()
        return f"{pairs:.3g} pairs/s, {tokens:.3g} tokens/s"

    def _rates(self) -> tuple[float, float]:
        """Pairs and places a second, wall clock, compilation among it."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return self._fresh / self._total * len(self._pairs) / seconds, self._places / seconds

    def notes(self) -> dict[str, Any]:
        """For config.json: the speed of what was computed in this session, and how full rows were."""
        pairs, tokens = self._rates()
        assert self._packed is not None
        shares = {"padding_share": self._packed.padding_share, "shared_share": self._packed.shared_share}
        return {
            "throughput": {"pairs_per_second": pairs, "tokens_per_second": tokens},
            "packing": vars(self._packed) | {name: float(np.round(x, 4)) for name, x in shares.items()},
        }
