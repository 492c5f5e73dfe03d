"""Scores all pairs of a file into a run folder, batch after batch."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jaxpref import results
from jaxpref.provenance import provenance
from jaxpref.results import Arrays, RunWriter
from jaxpref.scoring import batches, forward, geometry, tables
from jaxpref.scoring.meter import Batch, Meter
from jaxpref.scoring.prepare import Prepared
from jaxpref.scoring.summary import Means
from jaxpref.scoring.tables import Measured

Progress = Callable[[float, str], None]


def run(prepared: Prepared, progress: Progress | None = None) -> Path:
    """Scores every pair into the run folder; at once if the folder holds this run already.

    Raises:
      FloatingPointError: a score is not finite, which a mean would hide; names line and id.
    """
    config = prepared.config
    if results.is_finished(config.out, prepared.run):
        return config.out
    writer = RunWriter(config.out, prepared.run, provenance(), progress)
    meter, means = Meter(prepared.pairs, writer.progress, gradients=config.gradients), Means()
    with contextlib.ExitStack() as stack:
        write = _writer(writer, stack)
        for window in batches.windows(len(prepared.pairs)):
            for name, columns in _columns(prepared, _measure(prepared, writer, meter, window)).items():
                write(name, columns)
                if name == "pairs":
                    means.add(columns)
    writer.write(means.summary(), pairs=len(prepared.pairs))
    writer.note(**_notes(prepared), **meter.notes())
    writer.finish()
    return config.out


def _writer(writer: RunWriter, stack: contextlib.ExitStack) -> Callable[[str, Mapping[str, Any]], None]:
    """Adds rows to tables that are opened when the first come, and closed with the stack."""
    opened: dict[str, pq.ParquetWriter] = {}

    def write(name: str, columns: Mapping[str, Any]) -> None:
        table = tables.as_table(columns)
        if name not in opened:
            opened[name] = stack.enter_context(writer.open_table(table.schema, name))
        opened[name].write_table(table)

    return write


def _columns(prepared: Prepared, measured: Measured) -> dict[str, dict[str, Any]]:
    """By table."""
    found = {
        "pairs": tables.pair_columns(measured),
        "tokens": tables.token_columns(measured, prepared.model.tokenizer),
    }
    return found | ({"layers": tables.layer_columns(measured)} if measured.products else {})


def _measure(prepared: Prepared, writer: RunWriter, meter: Meter, window: range) -> Measured:
    """Batch after batch, stored or computed; another budget of tokens makes other batches."""
    pairs, config = prepared.pairs, prepared.config
    packed = batches.packed(pairs, window, config.batch_tokens)
    separate = batches.separate(pairs, window, config.batch_tokens) if config.gradients else []

    def parts(kind: str, members: Sequence[Batch], function: Callable[..., Arrays]) -> list[Arrays]:
        name = f"{kind}-{config.batch_tokens}-{window.start:09d}"
        compute = functools.partial(_part, prepared, writer, meter, function=function)
        return [compute(f"{name}-{number:05d}", batch) for number, batch in enumerate(members)]

    forwards, gradients = parts("logps", packed, forward.compute), parts("grads", separate, geometry.compute)
    return tables.collect(pairs, window, forwards, gradients)


def _part(
    prepared: Prepared,
    writer: RunWriter,
    meter: Meter,
    name: str,
    batch: Batch,
    *,
    function: Callable[..., Arrays],
) -> Arrays:
    computed = []

    def compute() -> Arrays:
        computed.append(batch)
        found = function(prepared.model.params, prepared.pairs, batch, prepared.model.config)
        check_finite(prepared, batch, found)
        return found

    part = writer.part(name, compute)
    meter.add(batch, fresh=bool(computed))
    return part


def check_finite(prepared: Prepared, batch: Batch, found: Arrays) -> None:
    """Raises FloatingPointError, naming the first of the batch's pairs whose numbers are not finite."""
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise FloatingPointError(f"{_culprit(prepared, batch, values)}: {name} is not finite")


def _culprit(prepared: Prepared, batch: Batch, values: np.ndarray) -> str:
    pairs, members = prepared.pairs, batch.pairs
    owners = np.arange(len(members))
    if len(values) != len(members):  # of tokens
        counts = pairs.lengths[members] - pairs.starts[members, None]
        owners = np.repeat(owners, counts.sum(1))
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    pair = int(members[owners[np.argmin(finite)]])
    return f"line {pairs.lines[pair]}, id {pairs.ids[pair]}"


def _notes(prepared: Prepared) -> dict[str, Any]:
    return {
        "pairs_file": prepared.path.name,
        "tokenization": dataclasses.asdict(prepared.pairs.report),
        "bad_lines": [dataclasses.asdict(bad) for bad in prepared.pairs.bad],
        "model": dataclasses.asdict(prepared.model.config),
    }
