"""Llama 2 and 3, and SmolLM2: the plain decoder. Mistral: the same with a window."""

from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import common, keys
from jaxpref.policies.families.common import ATTENTION, MLP, Family, biases
from jaxpref.policies.families.keys import Values


def llama_config(values: Values) -> TransformerConfig:
    keys.must_be(values, {"pretraining_tp": (1, None)})
    with_bias = biases(values, "attention_bias", ATTENTION) + biases(values, "mlp_bias", MLP)
    return TransformerConfig(biases=with_bias, **common.sizes(values), **common.rope(values))


def llama_json(c: TransformerConfig) -> dict[str, Any]:
    flags = {"attention_bias": "q" in c.biases, "mlp_bias": "up" in c.biases}
    return common.json_of(c, "llama", "LlamaForCausalLM") | flags


def mistral_config(values: Values) -> TransformerConfig:
    window = common.windows(values, (True,) * keys.layers(values))
    return TransformerConfig(family="mistral", **common.sizes(values), **common.rope(values), **window)


def mistral_json(c: TransformerConfig) -> dict[str, Any]:
    return common.json_of(c, "mistral", "MistralForCausalLM") | {"sliding_window": c.window}


LLAMA = Family(llama_config, llama_json, common.weights)
MISTRAL = Family(mistral_config, mistral_json, common.weights)
