"""Pairs in the order of a column, best first, and the file of those that are kept.

Best is what training on displaces least: where larger means more alike, the least comes first. CHES and
lnCHES foretell that the chosen response falls; the paper trains on the pairs of the lowest lnCHES, which does
not grow with the length of the rejected response.

References: Razin et al. 2025, arXiv:2410.08847, section 6.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxpref import cache
from jaxpref.data import excerpt, files, pair_set
from jaxpref.scoring import geometry
from jaxpref.scoring.geometry import PRODUCTS
from jaxpref.scoring.prepare import Prepared

# Of these the least is best; of all others the largest.
LEAST_FIRST = (
    "ches", "ln_ches", "last_hidden_inner", "length_difference", "grads/inner", "grads/cos",
    "grads/chosen_falls", "grads/rejected_rises", "grads/entangled",
)  # fmt: skip
ALWAYS = (
    "line", "merged", "truncated", "weight", "tokens/chosen", "tokens/rejected", "logps/chosen",
    "logps/rejected", "logps/margin", "mean_logps/chosen", "mean_logps/rejected", "ranking/correct",
    "ranking/correct_normalized", "length_difference", "edit_distance", "ches", "ln_ches",
    "last_hidden_inner",
)  # fmt: skip
OF_GRADIENTS = tuple(
    f"grads/{name}" for name in (*PRODUCTS, "cos", "chosen_falls", "rejected_rises", "entangled")
)


def check(prepared: Prepared) -> None:
    """Raises ValueError where pairs.parquet will have no column `rank`, or `keep_out` cannot be written."""
    config = prepared.config
    if config.rank is not None:
        _check_column(config.rank, prepared)
    if config.keep_out is not None:
        excerpt.check(prepared.path, config.keep_out)


def _check_column(rank: str, prepared: Prepared) -> None:
    pairs, gradients = prepared.pairs, prepared.config.gradients
    if rank.startswith("grads/") and not gradients:
        raise ValueError(f"rank must be a column that comes without gradients; got {rank!r}")
    given = [name for name, x in zip(pair_set.COLUMNS, pairs.columns.T, strict=True) if np.isfinite(x).any()]
    names = [*ALWAYS, *given, *OF_GRADIENTS * gradients]
    if gradients and rank not in names:
        groups = geometry.groups_of(prepared.model.params, prepared.model.config)
        names += [f"grads/{of}/{group}" for of in PRODUCTS for group in groups]
    if rank not in names:
        raise ValueError(f"rank must be one of {', '.join(names)}; got {rank!r}")


def order(values: Sequence[float] | np.ndarray, *, least_first: bool) -> np.ndarray:
    """Pairs from the best to the worst; equal ones as in the file, those without a number last."""
    numbers = np.asarray(values, np.float64)
    return np.argsort(numbers if least_first else -numbers, kind="stable")


def least_first(column: str) -> bool:
    """Whether the least is best; products of a kind of parameters lie as those of all."""
    return "/".join(column.split("/")[:2]) in LEAST_FIRST


def rank(prepared: Prepared) -> pa.Table:
    """Rank from 1, id, line, column and value of a finished run's pairs, best first."""
    column = prepared.config.rank
    assert column is not None
    names = list(dict.fromkeys(["id", "line", column]))
    stored = pq.read_table(prepared.config.out / "pairs.parquet", columns=names)
    values = stored[column].cast(pa.float64()).to_numpy()
    places = order(values, least_first=least_first(column))
    return pa.table(
        {
            "rank": pa.array(np.arange(1, len(places) + 1)),
            "id": stored["id"].take(pa.array(places)),
            "line": stored["line"].take(pa.array(places)),
            "column": pa.array([column] * len(places)),
            "value": pa.array(values[places], from_pandas=True),
        }
    )


def write(prepared: Prepared, ranked: pa.Table) -> None:
    """Writes `ranked.parquet` and `ranked.jsonl` into the run's folder, and the pairs that are kept."""
    config = prepared.config
    _store(ranked, config.out)
    if config.keep is not None and config.keep_out is not None:
        lines = ranked["line"].to_numpy()[: kept(config.keep, len(ranked))]
        excerpt.copy(prepared.path, config.keep_out, np.sort(lines))


def kept(share: float, pairs: int) -> int:
    """How many pairs are that share; at least one."""
    return max(1, round(share * pairs))


def _store(ranked: pa.Table, folder: Path) -> None:
    with cache.written_whole(folder / "ranked.parquet") as aside:
        pq.write_table(ranked, aside, compression="zstd")
    with cache.written_whole(folder / "ranked.jsonl") as aside, aside.open("w", encoding="utf-8") as file:
        for batch in ranked.to_batches(max_chunksize=files.ROWS_AT_ONCE):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
