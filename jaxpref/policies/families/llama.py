"""Llama 2 and 3, and SmolLM2: the plain decoder."""

from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import keys
from jaxpref.policies.families.keys import Values
from jaxpref.policies.families.slots import CheckpointError, Slot, Weights, dense, norm

# What must hold for the decoder to be the model; a key that is absent has the first value.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "rope_scaling": (None,),
}


def config_of(values: Values) -> TransformerConfig:
    """Sizes from the keys of `config.json`."""
    keys.must_be(values, REQUIRED)
    heads, dim = keys.size(values, "num_attention_heads"), keys.size(values, "hidden_size")
    return TransformerConfig(
        vocab=keys.size(values, "vocab_size"),
        dim=dim,
        layers=keys.size(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=keys.size(values, "num_key_value_heads", heads),
        head_dim=keys.size(values, "head_dim", dim // heads),
        mlp_dim=keys.size(values, "intermediate_size"),
        rope_theta=_rope_theta(values),
        norm_eps=keys.positive(values, "rms_norm_eps", 1e-6),
        tied=keys.flag(values, "tie_word_embeddings", False),
    )


def _rope_theta(values: Values) -> float:
    """Older configs have `rope_theta`, those of transformers 5 a table `rope_parameters`."""
    table = keys.table(values, "rope_parameters")
    if (kind := table.get("rope_type", "default")) != "default":
        raise CheckpointError(f"rope_type must be default; got {kind!r}")
    return keys.positive({**values, **table}, "rope_theta", 10_000.0)


def config_json(c: TransformerConfig) -> dict[str, Any]:
    """The inverse of `config_of`."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab,
        "hidden_size": c.dim, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "intermediate_size": c.mlp_dim,
        "rope_theta": c.rope_theta, "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def weights(c: TransformerConfig) -> Weights:
    return Weights(model_slots(c), layer_slots(c))


def model_slots(c: TransformerConfig) -> dict[str, Slot]:
    """The tensors outside the layers."""
    slots = {"model.embed_tokens.weight": Slot((("embedding",),), (c.vocab, c.dim))}
    slots |= norm("model.norm", "final_norm", size=c.dim)
    untied = {"lm_head.weight": Slot((("unembedding",),), (c.vocab, c.dim))}
    return slots if c.tied else slots | untied


def layer_slots(c: TransformerConfig) -> dict[str, Slot]:
    """The tensors of one layer."""
    query, key = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        **norm("input_layernorm", "attention_norm", size=c.dim),
        **dense("self_attn.q_proj", "attention", "q", shape=(query, c.dim)),
        **dense("self_attn.k_proj", "attention", "k", shape=(key, c.dim)),
        **dense("self_attn.v_proj", "attention", "v", shape=(key, c.dim)),
        **dense("self_attn.o_proj", "attention", "o", shape=(c.dim, query)),
        **norm("post_attention_layernorm", "mlp_norm", size=c.dim),
        **dense("mlp.gate_proj", "mlp", "gate", shape=(c.mlp_dim, c.dim)),
        **dense("mlp.up_proj", "mlp", "up", shape=(c.mlp_dim, c.dim)),
        **dense("mlp.down_proj", "mlp", "down", shape=(c.dim, c.mlp_dim)),
    }
