"""Values out of a file's metadata, each checked: an error names key, rule and value."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxpref.policies.families.slots import CheckpointError

LARGEST_SIZE, LARGEST_FLOAT = 2**31 - 1, float(np.finfo(np.float32).max)
MOST_LAYERS = 2**14  # where a list of all layers is made: a damaged file may speak of 1e9
Values = Mapping[str, Any]


def size(values: Values, key: str, default: int | None = None) -> int:
    """A size; null is as good as absent."""
    value: Any = default if values.get(key) is None else values[key]
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise CheckpointError(
            f"{key} must be a whole number of 1 to {LARGEST_SIZE}; got {reprlib.repr(value)}"
        )
    return value


def size_or_zero(values: Values, key: str) -> int:
    """A size, 0 if it is not given."""
    return 0 if values.get(key) is None else size(values, key)


def layers(values: Values) -> int:
    """The number of layers, bounded, for a table of all layers."""
    if (number := size(values, "num_hidden_layers")) > MOST_LAYERS:
        raise CheckpointError(f"num_hidden_layers must be at most {MOST_LAYERS}; got {number}")
    return number


def positive(values: Values, key: str, default: float | None = None) -> float:
    """A constant that float32 can hold; null is as good as absent."""
    value: Any = default if values.get(key) is None else values[key]
    if type(value) not in (int, float) or not 0 < value <= LARGEST_FLOAT:
        raise CheckpointError(f"{key} must be a finite number above 0; got {reprlib.repr(value)}")
    return float(value)


def optional(values: Values, key: str) -> float | None:
    """A constant that may be absent."""
    return None if values.get(key) is None else positive(values, key)


def flag(values: Values, key: str, default: bool) -> bool:
    value: Any = default if values.get(key) is None else values[key]
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} must be true or false; got {reprlib.repr(value)}")
    return value


def choice(values: Values, key: str, choices: Mapping[str, Any], default: str) -> Any:
    """What the value stands for among `choices`."""
    value: Any = default if values.get(key) is None else values[key]
    if not isinstance(value, str) or value not in choices:
        raise CheckpointError(f"{key} must be {', '.join(choices)}; got {reprlib.repr(value)}")
    return choices[value]


def must_be(values: Values, rules: Mapping[str, Iterable[Any]]) -> None:
    """Raises where a key that is present has none of the values that we can follow."""
    for key, allowed in rules.items():
        if key in values and values[key] not in (first := list(allowed)):
            raise CheckpointError(f"{key} must be {first[0]}; got {reprlib.repr(values[key])}")


def table(values: Values, key: str) -> dict[str, Any]:
    """A nested object; empty if absent or null."""
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} must be a table; got {reprlib.repr(value)}")
    return value
