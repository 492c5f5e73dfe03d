"""What a probed step tells of its pairs: means for metrics.jsonl, and a table of the pairs themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax import Array
from jaxtyping import Float, PyTree

from jaxpref import cache
from jaxpref.data.pair_set import PairSet
from jaxpref.logps import TokenStatistics
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import PackedRows, TokenRows
from jaxpref.probes import backward, likelihood
from jaxpref.probes.backward import Probed
from jaxpref.probes.gradients import GradientGeometry
from jaxpref.probes.likelihood import Similarity
from jaxpref.theory import gradients as conditions
from jaxpref.trainer.objective import Batch, Objective, Outputs, Pairs, PairTable, Sums, tables, weighted_sum

FOLDER = "probes"  # in a run's folder: a table a probed step
# (trained, frozen, rows, asked, slopes of the rows) -> gradients and geometry, and what came with the slopes
Probe = Callable[..., tuple[Probed, Any]]


class Probes(NamedTuple):
    """Of the pairs of a piece, under the policy before the update."""

    geometry: GradientGeometry  # [pairs], over all trained parameters
    layers: GradientGeometry  # [pairs, layers]
    groups: Mapping[str, GradientGeometry]  # [pairs] each: q, k, ..., norms, embedding
    similarity: Similarity
    weights: GradientWeights | None  # in the step's loss; None where tokens of a response differ in it


def probed(
    probe: Probe | None,
    objective: Objective,
    trained: PyTree,
    frozen: PyTree,
    batch: Batch,
    slopes_of: Callable[[Outputs], tuple[PairTable, Any]],
) -> tuple[PyTree, Probes, Any]:
    """The gradient of a loss of these pairs, what its backward pass tells of each, and the loss's results.

    Args:
      batch: of separate rows, pair i in rows i and pairs + i.
      slopes_of: from the policy's outputs to the loss's derivative by each of its log-probabilities.
    """
    assert probe is not None, "a run that probes has a probe"
    rows = batch.rows

    def row_slopes(measured: TokenStatistics):
        slope, aux = slopes_of(tables(measured, rows))
        return (_by_row(slope) if objective.of_sums else _by_token(slope, rows)), (slope, aux)

    token_rows = TokenRows(rows.tokens, rows.branches > 0)
    found, (slope, aux) = probe(trained, frozen, token_rows, rows.sources >= 0, row_slopes)
    return found.grads, _probes(found, batch.pairs, slope if objective.of_sums else None), aux


def _by_row(slope: PairTable) -> Float[Array, "rows"]:
    """Every token of a response has the same: the first's is that of the whole response."""
    chosen, rejected, _ = slope
    return jnp.concatenate([chosen[:, 0], rejected[:, 0]])


def _by_token(slope: PairTable, rows: PackedRows) -> Float[Array, "rows length"]:
    chosen, rejected, prompt = slope
    tables = jnp.stack([jnp.broadcast_to(prompt[:, None], chosen.shape), chosen, rejected], axis=1)
    places = jnp.where(rows.slots >= 0, rows.slots, rows.tokens.size)
    flat = jnp.zeros(rows.tokens.size, tables.dtype).at[places].add(tables, mode="drop")
    return jnp.where(rows.sources >= 0, flat.reshape(rows.tokens.shape), 0.0)


def _probes(found: Probed, pairs: Pairs, slope: PairTable | None) -> Probes:
    chosen, rejected = jnp.split(found.hidden_sums, 2)
    return Probes(
        geometry=backward.total(found.geometry),
        layers=jax.tree.map(jnp.transpose, backward.by_layer(found.geometry)),
        groups=backward.by_group(found.geometry),
        similarity=likelihood.ches(chosen, rejected, pairs.lengths),
        weights=None if slope is None else GradientWeights(-slope[0][:, 0], slope[1][:, 0]),
    )


def metric_sums(probes: Probes, weights: Array) -> Sums:
    """Means over pairs by what the quantities are called everywhere, as sums that add up over pieces."""
    return {name: weighted_sum(values, weights) for name, values in _columns(probes).items()}


def _columns(probes: Probes) -> dict[str, Array]:
    geometry = probes.geometry
    return {
        "grads/inner": geometry.inner,
        "grads/chosen_sq_norm": geometry.chosen_sq_norm,
        "grads/rejected_sq_norm": geometry.rejected_sq_norm,
        "grads/cos": geometry.cosine,
        "entanglement/frac": geometry.entangled,
        "ches/mean": probes.similarity.ches,
        "ches/ln_mean": probes.similarity.ln_ches,
        **_foretold(probes),
        **{f"grads/inner/{name}": part.inner for name, part in probes.groups.items()},
    }


def _foretold(probes: Probes) -> dict[str, Array]:
    """What a small step on each pair alone would do, by the loss's own weights."""
    if probes.weights is None:
        return {}
    falls = conditions.chosen_falls(probes.geometry, probes.weights)
    rises = conditions.rejected_rises(probes.geometry, probes.weights)
    wide = probes.geometry.inner.dtype
    return {"grads/chosen_falls": falls.astype(wide), "grads/rejected_rises": rises.astype(wide)}


def table(pair_set: PairSet, parts: Sequence[np.ndarray], found: Sequence[Probes]) -> pa.Table:
    """A row a pair of a step whose pieces hold these parts; of layers, lists."""
    pieces = [dict(_pair_columns(probes)) for probes in found]
    arrays: dict[str, Any] = {"id": [pair_set.ids[i] for part in parts for i in part.tolist()]}
    for name in pieces[0]:
        kept = [np.asarray(piece[name])[: len(part)] for piece, part in zip(pieces, parts, strict=True)]
        arrays[name] = list(np.concatenate(kept)) if kept[0].ndim > 1 else np.concatenate(kept)
    return pa.table(arrays)


def _pair_columns(probes: Probes) -> Iterator[tuple[str, Array]]:
    renamed = {"ches/mean": "ches", "ches/ln_mean": "ln_ches", "entanglement/frac": "grads/entangled"}
    yield from ((renamed.get(name, name), values) for name, values in _columns(probes).items())
    if probes.weights is not None:
        yield from zip(("loss/chosen_weight", "loss/rejected_weight"), probes.weights)
    for name, values in probes.layers._asdict().items():
        yield f"layers/{name}", values
    for group, geometry in probes.groups.items():
        yield f"grads/chosen_sq_norm/{group}", geometry.chosen_sq_norm
        yield f"grads/rejected_sq_norm/{group}", geometry.rejected_sq_norm


def write(folder: Path, step: int, found: pa.Table) -> None:
    """Whole or not at all; a step that is taken again after a crash writes the same file again."""
    place = folder / FOLDER / f"step-{step:08d}.parquet"
    place.parent.mkdir(exist_ok=True)
    with cache.written_whole(place) as aside:
        pq.write_table(found, aside, compression="zstd")
