"""The old place of what `jaxpref.policies.families` holds; to go when nothing imports it."""

from jaxpref.policies.families import (
    CheckpointError,
    Slot,
    Tensors,
    check_shapes,
    expected_shapes,
    from_params,
    to_params,
)
from jaxpref.policies.families.keys import positive, size

__all__ = [
    "CheckpointError", "Slot", "Tensors", "check_shapes", "expected_shapes", "from_params", "layer_name",
    "positive", "size", "to_params",
]  # fmt: skip


def layer_name(layer: int, name: str) -> str:
    """Llama's name of a tensor of a layer."""
    return f"model.layers.{layer}.{name}"
