"""Llama's weights by their Hugging Face names, and the transformer's parameter tree: one table, both ways."""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxpref.policies.transformer import TransformerConfig

LARGEST_SIZE, LARGEST_FLOAT = 2**31 - 1, float(np.finfo(np.float32).max)


class CheckpointError(ValueError):
    """Weights that cannot be loaded: damaged, of an unknown kind, or of another model."""


def size(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size out of a file's metadata; null is as good as absent."""
    value: Any = default if values.get(key) is None else values[key]
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise CheckpointError(
            f"{key} must be a whole number of 1 to {LARGEST_SIZE}; got {reprlib.repr(value)}"
        )
    return value


def positive(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A constant out of a file's metadata that float32 can hold; null is as good as absent."""
    value: Any = default if values.get(key) is None else values[key]
    if type(value) not in (int, float) or not 0 < value <= LARGEST_FLOAT:
        raise CheckpointError(f"{key} must be a finite number above 0; got {reprlib.repr(value)}")
    return float(value)


class Slot(NamedTuple):
    """Where a tensor goes in the parameter tree, and the shape it has in the file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]  # matrices are [out, in], the transpose of a Flax kernel


class Tensors(NamedTuple):
    """Weights by Hugging Face name, read one at a time so that no more than one is held twice."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]  # float32


def model_slots(c: TransformerConfig) -> dict[str, Slot]:
    """The tensors outside the layers."""
    slots = {
        "model.embed_tokens.weight": Slot(("embedding",), (c.vocab, c.dim)),
        "model.norm.weight": Slot(("final_norm", "scale"), (c.dim,)),
    }
    untied = {"lm_head.weight": Slot(("unembedding",), (c.vocab, c.dim))}
    return slots if c.tied else slots | untied


def layer_slots(c: TransformerConfig) -> dict[str, Slot]:
    """The tensors of one layer; in the parameter tree all layers are stacked on a leading axis."""
    query, key = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "input_layernorm.weight": Slot(("attention_norm", "scale"), (c.dim,)),
        "self_attn.q_proj.weight": Slot(("attention", "q", "kernel"), (query, c.dim)),
        "self_attn.k_proj.weight": Slot(("attention", "k", "kernel"), (key, c.dim)),
        "self_attn.v_proj.weight": Slot(("attention", "v", "kernel"), (key, c.dim)),
        "self_attn.o_proj.weight": Slot(("attention", "o", "kernel"), (c.dim, query)),
        "post_attention_layernorm.weight": Slot(("mlp_norm", "scale"), (c.dim,)),
        "mlp.gate_proj.weight": Slot(("mlp", "gate", "kernel"), (c.mlp_dim, c.dim)),
        "mlp.up_proj.weight": Slot(("mlp", "up", "kernel"), (c.mlp_dim, c.dim)),
        "mlp.down_proj.weight": Slot(("mlp", "down", "kernel"), (c.dim, c.mlp_dim)),
    }


def layer_name(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def expected_shapes(c: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config must hold."""
    return dict(_expected_shapes(c))


def _expected_shapes(c: TransformerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((name, slot.shape) for name, slot in model_slots(c).items())
    for layer in range(c.layers):
        yield from ((layer_name(layer, name), slot.shape) for name, slot in layer_slots(c).items())


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: TransformerConfig) -> None:
    """Raises a `CheckpointError` that names the first tensor that is missing, unknown or misshapen."""
    known = set()
    for name, shape in _expected_shapes(config):  # one by one: a damaged config may ask for 1e9 layers
        known.add(name)
        if name not in shapes:
            raise CheckpointError(f"tensor {name} is missing; the config asks for shape {shape}")
        if tuple(shapes[name]) != shape:
            raise CheckpointError(
                f"tensor {name} must have shape {shape} to fit the config; got {shapes[name]}"
            )
    if unknown := sorted(set(shapes) - known):
        raise CheckpointError(
            f"tensor {unknown[0]} is unknown to the Llama architecture ({len(unknown)} such)"
        )


def to_params(tensors: Tensors, config: TransformerConfig) -> PyTree:
    """The transformer's parameter tree, float32, layers stacked; shapes are checked before reading."""
    check_shapes(tensors.shapes, config)
    params: dict[str, Any] = {"layers": {}}
    for name, slot in model_slots(config).items():
        _put(params, slot.path, jnp.asarray(_read_finite(tensors, name), jnp.float32))
    for name, slot in layer_slots(config).items():
        stacked = np.stack([_read_finite(tensors, layer_name(i, name)).T for i in range(config.layers)])
        shape = (config.layers, *kernel_shape(slot, config))
        _put(params["layers"], slot.path, jnp.asarray(stacked.reshape(shape), jnp.float32))
    return params


def _read_finite(tensors: Tensors, name: str) -> np.ndarray:
    weight = tensors.read(name)
    if not np.isfinite(weight).all():
        raise CheckpointError(f"tensor {name} must be finite; it holds nan or infinity")
    return weight


def kernel_shape(slot: Slot, c: TransformerConfig) -> tuple[int, ...]:
    """The shape of one layer's array in the parameter tree: attention kernels have an axis of heads."""
    heads = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
    if slot.path[0] != "attention":
        return slot.shape[::-1]
    return (c.heads, c.head_dim, c.dim) if slot.path[1] == "o" else (c.dim, heads[slot.path[1]], c.head_dim)


def from_params(params: PyTree, config: TransformerConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of every tensor, as Hugging Face stores them: the inverse of `to_params`."""
    for name, slot in model_slots(config).items():
        yield name, np.asarray(_get(params, slot.path))
    for name, slot in layer_slots(config).items():
        for layer, array in enumerate(np.asarray(_get(params["layers"], slot.path))):
            yield layer_name(layer, name), np.ascontiguousarray(array.reshape(slot.shape[::-1]).T)


def _put(tree: dict[str, Any], path: tuple[str, ...], array: jax.Array) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = array


def _get(tree: PyTree, path: tuple[str, ...]) -> jax.Array:
    for key in path:
        tree = tree[key]
    return tree
