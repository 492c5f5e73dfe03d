"""Which families there are, by the `model_type` of their `config.json`."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import llama
from jaxpref.policies.families.slots import CheckpointError, Weights

FAMILIES: dict[str, ModuleType] = {"llama": llama}


def config_of(values: Mapping[str, Any]) -> TransformerConfig:
    """The decoder that `config.json` describes. Raises `CheckpointError`, naming key, rule and value."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"model_type must be {', '.join(FAMILIES)}; got {kind!r}")
    try:
        return FAMILIES[kind].config_of(values)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"no config of {kind}: {error}") from error


def config_json(config: TransformerConfig) -> dict[str, Any]:
    """The `config.json` with which transformers reads this model."""
    return FAMILIES[config.family].config_json(config)


def weights_of(config: TransformerConfig) -> Weights:
    """Every tensor of a checkpoint of this config: its name, its shape, and where it goes."""
    return FAMILIES[config.family].weights(config)
