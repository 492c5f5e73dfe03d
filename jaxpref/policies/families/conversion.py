"""Tensors of a checkpoint to the transformer's parameter tree and back, by the table of their family."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import registry
from jaxpref.policies.families.slots import CheckpointError, Path, Slot, Tensors


def expected_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config must hold."""
    return {name: slot.shape for name, slot in registry.weights_of(config).items(config.layers)}


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: TransformerConfig) -> None:
    """Raises a `CheckpointError` that names the first tensor that is missing, unknown or misshapen."""
    known = set()
    for name, slot in registry.weights_of(config).items(config.layers):
        known.add(name)
        if name not in shapes:
            raise CheckpointError(f"tensor {name} is missing; the config asks for shape {slot.shape}")
        if tuple(shapes[name]) != slot.shape:
            raise CheckpointError(
                f"tensor {name} must have shape {slot.shape} to fit the config; got {shapes[name]}"
            )
    if unknown := sorted(set(shapes) - known):
        raise CheckpointError(
            f"tensor {unknown[0]} is unknown to the {config.family} architecture ({len(unknown)} such)"
        )


def to_params(tensors: Tensors, config: TransformerConfig) -> PyTree:
    """The transformer's parameter tree, float32, layers stacked; shapes are checked before reading."""
    check_shapes(tensors.shapes, config)
    weights = registry.weights_of(config)
    params: dict[str, Any] = {"layers": {}}
    for name, slot in weights.model.items():
        for path, leaf in zip(slot.paths, _leaves(tensors, name, slot), strict=True):
            _put(params, path, jnp.asarray(leaf, jnp.float32))
    for name, slot in weights.layer.items():
        layers = [_leaves(tensors, weights.layer_name(i, name), slot) for i in range(config.layers)]
        for path, leaf in zip(slot.paths, zip(*layers, strict=True), strict=True):
            _put(params["layers"], path, jnp.asarray(np.stack(leaf), jnp.float32))
    return params


def _leaves(tensors: Tensors, name: str, slot: Slot):
    weight = tensors.read(name)
    if not np.isfinite(weight).all():
        raise CheckpointError(f"tensor {name} must be finite; it holds nan or infinity")
    return slot.layout.split(weight)


def from_params(params: PyTree, config: TransformerConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of every tensor, as Hugging Face stores them: the inverse of `to_params`."""
    weights = registry.weights_of(config)
    for name, slot in weights.model.items():
        leaves = [np.asarray(_get(params, path)) for path in slot.paths]
        yield name, np.ascontiguousarray(slot.layout.join(leaves))
    for name, slot in weights.layer.items():
        stacked = [np.asarray(_get(params["layers"], path)) for path in slot.paths]
        for layer in range(config.layers):
            joined = slot.layout.join([leaf[layer] for leaf in stacked])
            yield weights.layer_name(layer, name), np.ascontiguousarray(joined)


def _put(tree: dict[str, Any], path: Path, array: jax.Array) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = array


def _get(tree: PyTree, path: Path) -> jax.Array:
    for key in path:
        tree = tree[key]
    return tree
