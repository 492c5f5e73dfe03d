"""What one forward pass over packed rows tells of a batch of pairs."""

import functools
from typing import Any

import jax
from jax import Array
from jaxtyping import PyTree

from jaxpref.data import packing
from jaxpref.data.pair_set import PairSet
from jaxpref.pairs import PackedRows
from jaxpref.policies import transformer
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import packed
from jaxpref.results import Arrays
from jaxpref.scoring.batches import PackedBatch

SIMILARITIES = ("ches", "ln_ches", "last_hidden_inner")


def compute(params: PyTree, pairs: PairSet, batch: PackedBatch, config: TransformerConfig) -> Arrays:
    """The batch's similarities, [pairs], and log-probabilities of all response tokens, pair after pair.

    In the order of the file, the chosen response's tokens before the rejected one's; nats.
    """
    members = batch.pairs
    rows = packed_rows(pairs, batch)
    measured = jax.device_get(_program(config)(params, rows))
    slots: Any = rows.slots
    places = slots[: len(members), 1:].reshape(-1)
    found = {name: measured[name][: len(members)] for name in SIMILARITIES}
    return found | {"pairs": members, "token_logps": measured["logps"].reshape(-1)[places[places >= 0]]}


def packed_rows(pairs: PairSet, batch: PackedBatch) -> PackedRows:
    """The batch's pairs, groups in the order of the file."""
    numbers = {pair: number for number, pair in enumerate(batch.pairs.tolist())}
    plan = [[numbers[pair] for pair in row] for row in batch.rows]
    return packing.shared(*pairs.groups(batch.pairs), batch.shape, groups=batch.groups, plan=plan)


@functools.cache
def _program(config: TransformerConfig) -> Any:
    return jax.jit(functools.partial(measure, config=config))


def measure(params: PyTree, rows: PackedRows, *, config: TransformerConfig) -> dict[str, Array]:
    """Log-probabilities of tokens, [rows, length], nats, 0 outside responses; similarities of [groups]."""
    hidden = transformer.packed_hidden(params, rows, config=config)
    similarity = packed.ches(hidden, rows)
    statistics = transformer.statistics_of(params, hidden, rows, config=config)
    return {
        "logps": statistics.logps, "ches": similarity.ches, "ln_ches": similarity.ln_ches,
        "last_hidden_inner": packed.last_hidden_inner(hidden, rows),
    }  # fmt: skip
