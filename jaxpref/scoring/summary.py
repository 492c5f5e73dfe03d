"""What a run says of all pairs together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Weighted means over pairs that a run records: the metric, and the column of pairs.parquet it is made of.
METRICS = {
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
    "logps/margin": "logps/margin",
    "ranking/accuracy": "ranking/correct",
    "ranking/accuracy_normalized": "ranking/correct_normalized",
    "ches/mean": "ches",
    "ches/ln_mean": "ln_ches",
    "last_hidden_inner": "last_hidden_inner",
    "edit_distance": "edit_distance",
    "length_difference": "length_difference",
    "grads/inner": "grads/inner",
    "grads/chosen_sq_norm": "grads/chosen_sq_norm",
    "grads/rejected_sq_norm": "grads/rejected_sq_norm",
    "grads/cos": "grads/cos",
    "grads/chosen_falls": "grads/chosen_falls",
    "grads/rejected_rises": "grads/rejected_rises",
    "entanglement/frac": "grads/entangled",
}


class Means:
    """Means over pairs, weighted by the file's `weight`, of tables that come one after another."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._sums: dict[str, float] = {}

    def add(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        """A window of pairs."""
        weight = np.asarray(columns["weight"], np.float64)
        self._weight += float(weight.sum())
        for metric, column in METRICS.items():
            if column in columns:
                values = np.asarray(columns[column], np.float64)
                self._sums[metric] = self._sums.get(metric, 0.0) + float(weight @ values)

    def summary(self) -> dict[str, float]:
        """By metric."""
        return {metric: value / self._weight for metric, value in self._sums.items()}
