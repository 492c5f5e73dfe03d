"""A tensor in a file and the leaves of the parameter tree that it becomes, both ways."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]  # keys from the root of the parameter tree, or from `layers`


class CheckpointError(ValueError):
    """Weights that cannot be loaded: damaged, of an unknown kind, or of another model."""


class Layout(NamedTuple):
    """How a file's tensor becomes our leaves, and the inverse; on NumPy arrays."""

    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


KEPT = Layout(lambda tensor: (tensor,), lambda leaves: leaves[0])
TRANSPOSED = Layout(lambda tensor: (tensor.T,), lambda leaves: leaves[0].T)  # [out, in]; ours: [in, out]
SIDE_BY_SIDE = Layout(lambda tensor: np.split(tensor, 3, axis=-1), lambda leaves: np.concatenate(leaves, -1))


class Slot(NamedTuple):
    """Where a tensor goes, and the shape it has in the file."""

    paths: tuple[Path, ...]  # more than one where the file fuses several
    shape: tuple[int, ...]
    layout: Layout = KEPT

    @property
    def path(self) -> Path:
        """The one leaf of a tensor that is not fused."""
        (path,) = self.paths
        return path


class Weights(NamedTuple):
    """All tensors of a checkpoint: those outside the layers, and those of each layer behind `prefix`0.`."""

    model: Mapping[str, Slot]
    layer: Mapping[str, Slot]  # their paths begin at `layers`, where all layers are stacked
    prefix: str = "model.layers."
    head: str = "lm_head.weight"  # which some files hold although it is tied
    aliases: Mapping[str, str] = {}  # beginnings of names in some files, and what they stand for
    ignored: tuple[str, ...] = ()  # ends of names: buffers that old files hold among the weights

    def layer_name(self, layer: int, name: str) -> str:
        return f"{self.prefix}{layer}.{name}"

    def items(self, layers: int) -> Iterator[tuple[str, Slot]]:
        """Name and slot of every tensor, one by one: a damaged config may ask for 1e9 layers."""
        yield from self.model.items()
        for layer in range(layers):
            yield from ((self.layer_name(layer, name), slot) for name, slot in self.layer.items())

    def canonical(self, name: str) -> str | None:
        """The name by which the tables know a file's tensor; None if it is no weight at all."""
        if name.endswith(self.ignored):
            return None
        for start, meant in self.aliases.items():
            if name.startswith(start):
                return meant + name.removeprefix(start)
        return name


class Tensors(NamedTuple):
    """Weights by Hugging Face name, read one at a time so that no more than one is held twice."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]  # float32


def vector(name: str, *path: str, shape: tuple[int, ...]) -> dict[str, Slot]:
    """A table of one entry: a tensor that is stored as we hold it."""
    return {name: Slot((path,), shape)}


def dense(name: str, *path: str, shape: tuple[int, int], bias: bool = False) -> dict[str, Slot]:
    """The kernel, stored as [out, in], and the bias of a dense layer."""
    kernel = {f"{name}.weight": Slot(((*path, "kernel"),), shape, TRANSPOSED)}
    return kernel | ({f"{name}.bias": Slot(((*path, "bias"),), shape[:1])} if bias else {})


def norm(name: str, *path: str, size: int, bias: bool = False) -> dict[str, Slot]:
    """Scale and, of a LayerNorm, bias."""
    scale = {f"{name}.weight": Slot(((*path, "scale"),), (size,))}
    return scale | ({f"{name}.bias": Slot(((*path, "bias"),), (size,))} if bias else {})
