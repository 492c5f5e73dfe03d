"""From what was measured of a window of pairs to the rows of the run's tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jaxpref.data import pair_set
from jaxpref.data.pair_set import PairSet
from jaxpref.data.tokenizer import Tokenizer
from jaxpref.losses.weights import GradientWeights
from jaxpref.probes.gradients import GradientGeometry
from jaxpref.results import Arrays
from jaxpref.scoring import edits
from jaxpref.scoring.forward import SIMILARITIES
from jaxpref.scoring.geometry import PRODUCTS
from jaxpref.theory import gradients as conditions

RESPONSES = ("chosen", "rejected")
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A window of pairs, in the order of the file."""

    pairs: PairSet
    window: range
    token_logps: np.ndarray  # pair after pair: chosen, rejected response; nats
    similarities: Columns  # [pairs]
    products: Columns  # [pairs, ..., 3]; empty without gradients

    @property
    def part(self) -> slice:
        """Where the window stands in the arrays of the pair set."""
        return slice(self.window.start, self.window.stop)

    @property
    def counts(self) -> np.ndarray:
        """Tokens of chosen and rejected responses, [pairs, 2]."""
        return self.pairs.lengths[self.part] - self.pairs.starts[self.part, None]


def collect(pairs: PairSet, window: range, forward: Sequence[Arrays], geometry: Sequence[Arrays]) -> Measured:
    """Batches of a window, put in the order of the file."""
    empty = Measured(pairs=pairs, window=window, token_logps=np.zeros(0), similarities={}, products={})
    similarities = {name: _in_order(window, forward, name) for name in SIMILARITIES}
    names = [name for name in (geometry[0] if geometry else {}) if name != "pairs"]
    products = {name: _in_order(window, geometry, name) for name in names}
    tokens = _tokens_in_order(empty.counts.sum(1), window, forward)
    return dataclasses.replace(empty, token_logps=tokens, similarities=similarities, products=products)


def _in_order(window: range, parts: Sequence[Arrays], name: str) -> np.ndarray:
    ordered = np.empty((len(window), *parts[0][name].shape[1:]), parts[0][name].dtype)
    for part in parts:
        ordered[part["pairs"] - window.start] = part[name]
    return ordered


def _tokens_in_order(counts: np.ndarray, window: range, parts: Sequence[Arrays]) -> np.ndarray:
    ends = np.cumsum(counts)
    ordered = np.empty(ends[-1], np.float64)
    for part in parts:
        begin = 0
        for pair in part["pairs"] - window.start:
            values = part["token_logps"][begin : begin + counts[pair]]
            ordered[ends[pair] - counts[pair] : ends[pair]] = values
            begin += counts[pair]
    return ordered


def pair_columns(measured: Measured) -> dict[str, Any]:
    """Columns of `pairs.parquet`: a row a pair."""
    pairs, part = measured.pairs, measured.part
    named: dict[str, Any] = {
        "id": pairs.ids[part], "line": pairs.lines[part], "merged": pairs.merged[part],
        "truncated": pairs.truncated[part], "weight": pairs.weights[part],
    }  # fmt: skip
    for name, values in zip(pair_set.COLUMNS, pairs.columns.T, strict=True):
        if np.isfinite(values).any():
            named[name] = values[part]
    return named | _responses(measured) | _texts(measured) | measured.similarities | _geometry(measured)


def _responses(measured: Measured) -> Columns:
    """Sums over tokens, and what is said of them."""
    counts = measured.counts
    begins = np.cumsum(counts.ravel()) - counts.ravel()
    sums = np.add.reduceat(measured.token_logps, begins).reshape(-1, 2)
    means = sums / counts
    table = lambda stem, values: dict(zip((f"{stem}/{r}" for r in RESPONSES), values.T, strict=True))
    margin, mean_margin = sums[:, 0] - sums[:, 1], means[:, 0] - means[:, 1]
    return {
        **table("tokens", counts.astype(np.int64)), **table("logps", sums), "logps/margin": margin,
        **table("mean_logps", means), "ranking/correct": margin >= 0,
        "ranking/correct_normalized": mean_margin >= 0,
        "length_difference": (counts[:, 1] - counts[:, 0]).astype(np.int64),
    }  # fmt: skip


def _texts(measured: Measured) -> Columns:
    _, responses = measured.pairs.groups(measured.window)
    return {"edit_distance": np.array([edits.normalized(*both) for both in responses])}


def _geometry(measured: Measured) -> Columns:
    """The products, and what they foretell of a small step of a loss that weighs both alike (DPO)."""
    products = measured.products
    if not products:
        return {}
    geometry = GradientGeometry(*map(jnp.asarray, np.moveaxis(products["total"], -1, 0)))
    alike = GradientWeights(jnp.ones_like(geometry.inner), jnp.ones_like(geometry.inner))
    found = {
        **{name: getattr(geometry, name) for name in PRODUCTS}, "cos": geometry.cosine,
        "chosen_falls": conditions.chosen_falls(geometry, alike),
        "rejected_rises": conditions.rejected_rises(geometry, alike), "entangled": geometry.entangled,
    }  # fmt: skip
    columns = {f"grads/{name}": np.asarray(values) for name, values in found.items()}
    for name, table in products.items():
        if name.startswith("groups/"):
            group = name.removeprefix("groups/")
            columns |= {f"grads/{of}/{group}": table[:, i] for i, of in enumerate(PRODUCTS)}
    return columns


def token_columns(measured: Measured, tokenizer: Tokenizer) -> dict[str, Any]:
    """Columns of `tokens.parquet`: a row a response token."""
    pairs, counts = measured.pairs, measured.counts
    each, starts = counts.ravel(), np.repeat(pairs.starts[measured.part], 2)
    inside = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    _, responses = pairs.groups(measured.window)
    tokens = np.concatenate([ids for both in responses for ids in both])
    kinds, of_kind = np.unique(tokens, return_inverse=True)
    texts = pa.array([tokenizer.token(int(token)) for token in kinds], pa.string())
    which = np.tile([0, 1], len(counts))
    return {
        "pair": np.repeat(np.asarray(measured.window), counts.sum(1)),
        "response": pa.array(RESPONSES).take(pa.array(np.repeat(which, each))),
        "position": np.repeat(starts, each) + inside,
        "token": tokens,
        "text": texts.take(pa.array(of_kind)),
        "logps": measured.token_logps,
    }


def layer_columns(measured: Measured) -> Columns:
    """Columns of `layers.parquet`: a row a pair and layer."""
    table = measured.products["layers"]
    number, layers, _ = table.shape
    columns = {
        "pair": np.repeat(np.asarray(measured.window), layers),
        "layer": np.tile(np.arange(layers), number),
    }
    return columns | {name: table[..., i].ravel() for i, name in enumerate(PRODUCTS)}


def as_table(columns: Mapping[str, Any]) -> pa.Table:
    """Whole numbers of 64 bits, and floats; what is not a number is null."""
    return pa.table({name: _array(values) for name, values in columns.items()})


def _array(values: Any) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "if":
        values = values.astype({"i": np.int64, "f": np.float64}[values.dtype.kind])
    return pa.array(values, from_pandas=True)
