"""Trees as flat dictionaries of arrays, the form in which a run folder keeps an intermediate result."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array
from jaxtyping import PyTree


def to_arrays(tree: PyTree) -> dict[str, Array]:
    """Leaves by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_arrays(arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    """The inverse of `to_arrays`, with the structure of `like` (`jax.eval_shape` gives one for nothing)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[jax.tree_util.keystr(path)], like)
