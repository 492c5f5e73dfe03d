"""Low-rank adapters: which layers have one, their start, and how they join the policy's parameters.

Hu et al. 2021, arXiv:2106.09685: a dense layer x W becomes x W + scale (x A) B. `attach` puts A and scale B
beside the kernel, where `layers.Dense` finds them, so that every policy function works on adapted parameters
as it stands; the base is the same function of the parameters without them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

ALL_LAYERS = ("q", "k", "v", "o", "gate", "up", "down")
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What the adapters are; the names in brackets are PEFT's."""

    rank: int = 16  # [r]
    alpha: float = 32.0  # [lora_alpha]; the adapter's product is scaled by alpha / rank
    targets: tuple[str, ...] = ALL_LAYERS  # dense layers by their names in the parameter tree
    rslora: bool = False  # scale by alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732 [use_rslora]

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1; got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be a finite number above 0; got {self.alpha}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets must name at least one layer, each once; got {self.targets}")

    @property
    def scale(self) -> float:
        """Factor of the adapter's product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def init(key: Array, params: PyTree, lora: LoraConfig) -> PyTree:
    """Adapters that change nothing yet: `a` as PEFT draws it, `b` zero.

    Args:
      key: a typed key.
      params: the policy's parameters; only the shapes of the kernels [layers, inputs, outputs] are read.
      lora: which layers have an adapter, and of what rank.

    Returns:
      A tree with `{"a": [layers, inputs, rank], "b": [layers, rank, outputs]}`, float32, where `params` has
      the layer. `a` is uniform within 1 / sqrt(inputs): Kaiming's bound for a slope of sqrt(5).

    Raises:
      ValueError: a target that is no dense layer of this policy; the message lists those there are.
    """
    paths = _targets(params, lora)
    adapters: dict[str, Any] = {}
    for path, key_of_one in zip(paths, jax.random.split(key, len(paths)), strict=True):
        put(adapters, path, _init_one(key_of_one, get(params, path)["kernel"].shape, lora.rank))
    return adapters


def _init_one(key: Array, shape: tuple[int, ...], rank: int) -> dict[str, Array]:
    layers, inputs, outputs = shape
    bound = inputs**-0.5
    a = jax.random.uniform(key, (layers, inputs, rank), jnp.float32, -bound, bound)
    return {"a": a, "b": jnp.zeros((layers, rank, outputs), jnp.float32)}


def _targets(params: PyTree, lora: LoraConfig) -> list[Path]:
    dense = {path[-1]: path for path in dense_layers(params)}
    if unknown := [name for name in lora.targets if name not in dense]:
        raise ValueError(f"targets must be of {', '.join(dense)}; got {', '.join(unknown)}")
    return [dense[name] for name in lora.targets]


def dense_layers(tree: PyTree, above: Path = ()) -> Iterator[Path]:
    """The path of every dense layer: a table with a `kernel`."""
    for name, inner in tree.items():
        if isinstance(inner, Mapping):
            yield from [(*above, name)] if "kernel" in inner else dense_layers(inner, (*above, name))


def attach(params: PyTree, adapters: PyTree, lora: LoraConfig) -> PyTree:
    """The parameters with `lora_a` and `lora_b`, the scale in it, beside each adapted kernel.

    Nothing is copied. Differentiate through this call with respect to `adapters` to train them alone. While
    `b` is zero the policy is bit for bit the base.
    """
    beside = lambda dense, one: {**dense, "lora_a": one["a"], "lora_b": lora.scale * one["b"]}
    return _changed(params, adapters, beside)


def merge(params: PyTree, adapters: PyTree, lora: LoraConfig) -> PyTree:
    """Plain parameters of the same function to rounding: every adapted kernel is W + scale A B, float32."""

    def merged(dense: Mapping[str, Array], one: Mapping[str, Array]) -> dict[str, Array]:
        product = jnp.matmul(one["a"], one["b"], precision=jax.lax.Precision.HIGHEST)
        kernel = dense["kernel"].astype(jnp.float32) + lora.scale * product
        return {**dense, "kernel": kernel.astype(dense["kernel"].dtype)}

    return _changed(params, adapters, merged)


def _changed(params: PyTree, adapters: PyTree, change: Callable[..., dict[str, Array]]) -> PyTree:
    """`params` with the dense layers that have an adapter replaced by `change(layer, adapter)`."""
    if adapters.keys() == {"a", "b"}:
        return change(params, adapters)
    return {**params, **{name: _changed(params[name], one, change) for name, one in adapters.items()}}


def get(tree: PyTree, path: Path) -> Any:
    """What stands at `path`."""
    for name in path:
        tree = tree[name]
    return tree


def put(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Puts `value` at `path`, tables on the way made as needed."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
