"""OLMo 1, whose LayerNorm learns nothing, and 2, whose norms stand behind attention and MLP."""

from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import common, keys
from jaxpref.policies.families.common import ATTENTION, Family, biases
from jaxpref.policies.families.keys import Values


def _shared(values: Values) -> dict[str, Any]:
    with_bias = {"biases": biases(values, "attention_bias", ATTENTION)}
    return common.sizes(values) | common.rope(values) | with_bias


def olmo_config(values: Values) -> TransformerConfig:
    fields = _shared(values) | {"norm_eps": 1e-5}  # not in the file
    return TransformerConfig(
        family="olmo", norm="plain_layer", clip_qkv=keys.optional(values, "clip_qkv"), **fields
    )


def olmo2_config(values: Values) -> TransformerConfig:
    fields = _shared({"rms_norm_eps": 1e-5, **values})
    return TransformerConfig(family="olmo2", norms="after", qk_norm="full", **fields)


def olmo_json(c: TransformerConfig) -> dict[str, Any]:
    values = common.json_of(c, "olmo", "OlmoForCausalLM")
    values.pop("rms_norm_eps")
    return values | {"attention_bias": "q" in c.biases, "clip_qkv": c.clip_qkv}


def olmo2_json(c: TransformerConfig) -> dict[str, Any]:
    return common.json_of(c, "olmo2", "Olmo2ForCausalLM") | {"attention_bias": "q" in c.biases}


OLMO = Family(olmo_config, olmo_json, common.weights)
OLMO2 = Family(olmo2_config, olmo2_json, common.weights)
