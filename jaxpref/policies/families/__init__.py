"""The families of decoders: what each calls its tensors, and what its `config.json` says."""

from jaxpref.policies.families.conversion import (
    check_shapes,
    compare_shapes,
    expected_shapes,
    from_params,
    to_params,
)
from jaxpref.policies.families.registry import FAMILIES, config_json, config_of, weights_of
from jaxpref.policies.families.slots import CheckpointError, Slot, Tensors, Weights

__all__ = [
    "FAMILIES", "CheckpointError", "Slot", "Tensors", "Weights", "check_shapes", "compare_shapes",
    "config_json", "config_of",
    "expected_shapes", "from_params", "to_params", "weights_of",
]  # fmt: skip
