"""How each pair's two gradients lie to each other: in all, layer by layer, and by kind of parameter."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from jaxpref import logps
from jaxpref.data.pair_set import PairSet
from jaxpref.pairs import TokenRows
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import backward
from jaxpref.results import Arrays
from jaxpref.scoring.batches import SeparateBatch

PRODUCTS = ("inner", "chosen_sq_norm", "rejected_sq_norm")  # the last axis of every table


def compute(params: PyTree, pairs: PairSet, batch: SeparateBatch, config: TransformerConfig) -> Arrays:
    """Products of the batch's pairs: `total` [pairs, 3], `layers` [pairs, layers, 3], `groups/NAME`."""
    repeated = np.resize(batch.pairs, batch.size)
    rows = logps.stack_rows(jax.tree.map(jnp.asarray, pairs.batch(repeated, batch.length)))
    found = jax.device_get(_program(config)(params, rows))
    return {name: x[: len(batch.pairs)] for name, x in found.items()} | {"pairs": batch.pairs}


@functools.cache
def _program(config: TransformerConfig) -> Any:
    return jax.jit(functools.partial(measure, config=config))


def measure(params: PyTree, rows: TokenRows, *, config: TransformerConfig) -> dict[str, Array]:
    """Products of pairs whose chosen rows stand above their rejected ones, by table: [pairs, ..., 3].

    The training gradient that comes with them is not returned, and so is not computed.
    """
    nothing = lambda statistics: (jnp.zeros(rows.tokens.shape[0], statistics.logps.dtype), None)
    probed, _ = backward.probed_gradients(params, rows, nothing, config=config)
    table = lambda one: jnp.stack([getattr(one, name) for name in PRODUCTS], axis=-1)
    groups = backward.by_group(probed.geometry)
    return {
        "total": table(backward.total(probed.geometry)),
        "layers": jnp.swapaxes(table(backward.by_layer(probed.geometry)), 0, 1),
        **{f"groups/{name}": table(one) for name, one in groups.items()},
    }


def groups_of(params: PyTree, config: TransformerConfig) -> list[str]:
    """Kinds of parameters, as the products name them; nothing is computed."""
    rows = TokenRows(jnp.zeros((2, 2), int), jnp.ones((2, 2), bool))
    found = jax.eval_shape(lambda params: measure(params, rows, config=config), params)
    return [name.removeprefix("groups/") for name in found if name.startswith("groups/")]
