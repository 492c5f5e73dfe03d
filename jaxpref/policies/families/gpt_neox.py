"""GPT-NeoX, as Pythia has it: LayerNorms, a parallel residual, RoPE on a part of each head, fused qkv."""

from typing import Any

import numpy as np

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import common, keys
from jaxpref.policies.families.common import ATTENTION, Family, biases
from jaxpref.policies.families.keys import Values
from jaxpref.policies.families.slots import Layout, Slot, Weights, dense, norm

QKV = ("q", "k", "v")
BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")  # in Pythia's files


def config_of(values: Values) -> TransformerConfig:
    older = {"rope_theta": values["rotary_emb_base"]} if "rotary_emb_base" in values else {}
    fields = common.sizes(values) | common.rope({**older, **values}, partial=True)
    fields |= {
        "norm_eps": keys.positive(values, "layer_norm_eps", 1e-5),
        "activation": keys.choice(values, "hidden_act", common.ACTIVATIONS, "gelu"),
        "rope_share": _share(values),
    }
    return TransformerConfig(
        family="gpt_neox",
        norm="layer",
        gated=False,
        parallel=keys.flag(values, "use_parallel_residual", True),
        biases=(*biases(values, "attention_bias", ATTENTION, default=True), "up", "down"),
        **fields,
    )


def _share(values: Values) -> float:
    table = keys.table(values, "rope_parameters")
    found = {"partial_rotary_factor": values.get("rotary_pct"), **table}
    return keys.positive(found, "partial_rotary_factor", 0.25)


def config_json(c: TransformerConfig) -> dict[str, Any]:
    values = common.json_of(c, "gpt_neox", "GPTNeoXForCausalLM")
    for key in ("num_key_value_heads", "head_dim", "rms_norm_eps"):
        values.pop(key)
    return values | {
        "layer_norm_eps": c.norm_eps, "rotary_pct": c.rope_share, "rotary_emb_base": c.rope_theta,
        "use_parallel_residual": c.parallel, "attention_bias": "q" in c.biases,
    }  # fmt: skip


def weights(c: TransformerConfig) -> Weights:
    return Weights(
        model_slots(c), layer_slots(c), prefix="gpt_neox.layers.", head="embed_out.weight", ignored=BUFFERS
    )


def model_slots(c: TransformerConfig) -> dict[str, Slot]:
    slots = {"gpt_neox.embed_in.weight": Slot((("embedding",),), (c.vocab, c.dim))}
    slots |= norm("gpt_neox.final_layer_norm", "final_norm", size=c.dim, bias=True)
    untied = {"embed_out.weight": Slot((("unembedding",),), (c.vocab, c.dim))}
    return slots if c.tied else slots | untied


def layer_slots(c: TransformerConfig) -> dict[str, Slot]:
    fused = by_head(c.heads)
    paths = lambda leaf: tuple(("attention", name, leaf) for name in QKV)
    name, width = "attention.query_key_value", 3 * c.heads * c.head_dim
    bias = {f"{name}.bias": Slot(paths("bias"), (width,), fused)} if "q" in c.biases else {}
    return {
        **norm("input_layernorm", "attention_norm", size=c.dim, bias=True),
        **norm("post_attention_layernorm", "mlp_norm", size=c.dim, bias=True),
        f"{name}.weight": Slot(paths("kernel"), (width, c.dim), fused),
        **bias,
        **dense("attention.dense", "attention", "o", shape=(c.dim, width // 3), bias="o" in c.biases),
        **dense("mlp.dense_h_to_4h", "mlp", "up", shape=(c.mlp_dim, c.dim), bias=True),
        **dense("mlp.dense_4h_to_h", "mlp", "down", shape=(c.dim, c.mlp_dim), bias=True),
    }


def by_head(heads: int) -> Layout:
    """Rows of q, k and v, head after head: [heads, 3, head_dim] times whatever else there is."""

    def split(tensor: np.ndarray) -> list[np.ndarray]:
        parts = np.moveaxis(tensor.reshape(heads, 3, -1, *tensor.shape[1:]), 1, 0)
        return [part.reshape(-1, *tensor.shape[1:]).T for part in parts]

    def join(leaves: Any) -> np.ndarray:
        rest = leaves[0].shape[:-1]
        return np.stack([leaf.T.reshape(heads, -1, *rest) for leaf in leaves], axis=1).reshape(-1, *rest)

    return Layout(split, join)


GPT_NEOX = Family(config_of, config_json, weights)
