"""Qwen 2 and 3: biases on q, k and v, or a norm of each head's queries and keys; late windows."""

from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import common, keys
from jaxpref.policies.families.common import ATTENTION, Family, biases
from jaxpref.policies.families.keys import Values


def _shared(values: Values) -> dict[str, Any]:
    fields = common.sizes(values) | common.rope(values)
    if not keys.flag(values, "use_sliding_window", False):
        return fields
    first = _first_local(values)
    return fields | common.windows(values, tuple(i >= first for i in range(keys.layers(values))))


def _first_local(values: Values) -> int:
    first = values.get("max_window_layers", 28)
    return 0 if first == 0 else keys.size(values, "max_window_layers", 28)


def qwen2_config(values: Values) -> TransformerConfig:
    return TransformerConfig(family="qwen2", biases=("q", "k", "v"), **_shared(values))


def qwen3_config(values: Values) -> TransformerConfig:
    with_bias = biases(values, "attention_bias", ATTENTION)
    fields = {"head_dim": 128} if values.get("head_dim") is None else {}
    return TransformerConfig(family="qwen3", biases=with_bias, qk_norm="head", **(_shared(values) | fields))


def _json(c: TransformerConfig, model_type: str, architecture: str) -> dict[str, Any]:
    window = {"use_sliding_window": c.window is not None, **common.windows_json(c)}
    return common.json_of(c, model_type, architecture) | window


def qwen2_json(c: TransformerConfig) -> dict[str, Any]:
    return _json(c, "qwen2", "Qwen2ForCausalLM")


def qwen3_json(c: TransformerConfig) -> dict[str, Any]:
    return _json(c, "qwen3", "Qwen3ForCausalLM") | {"attention_bias": "q" in c.biases}


QWEN2 = Family(qwen2_config, qwen2_json, common.weights)
QWEN3 = Family(qwen3_config, qwen3_json, common.weights)
