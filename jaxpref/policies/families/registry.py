"""Which families there are, by the `model_type` of their `config.json`."""

from collections.abc import Mapping
from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families.common import Family
from jaxpref.policies.families.gemma import GEMMA, GEMMA2, GEMMA3
from jaxpref.policies.families.gpt2 import GPT2
from jaxpref.policies.families.gpt_neox import GPT_NEOX
from jaxpref.policies.families.llama import LLAMA, MISTRAL
from jaxpref.policies.families.olmo import OLMO, OLMO2
from jaxpref.policies.families.qwen import QWEN2, QWEN3
from jaxpref.policies.families.slots import CheckpointError, Weights

FAMILIES: dict[str, Family] = {
    "llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "gemma": GEMMA, "gemma2": GEMMA2,
    "gemma3_text": GEMMA3, "gpt_neox": GPT_NEOX, "gpt2": GPT2, "olmo": OLMO, "olmo2": OLMO2,
}  # fmt: skip


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
