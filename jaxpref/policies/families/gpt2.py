"""GPT-2: learned positions, LayerNorms, a bias everywhere, and matrices stored [in, out] as ours are."""

from typing import Any

from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import common, keys
from jaxpref.policies.families.common import Family
from jaxpref.policies.families.keys import Values
from jaxpref.policies.families.slots import SIDE_BY_SIDE, CheckpointError, Slot, Weights, norm

REQUIRED = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
STEMS = ("h.", "wte.", "wpe.", "ln_f.")  # of files that hold the model without its head


def config_of(values: Values) -> TransformerConfig:
    keys.must_be(values, REQUIRED)
    heads, dim = keys.size(values, "n_head"), keys.size(values, "n_embd")
    if dim % heads:
        raise CheckpointError(f"n_embd must be a multiple of n_head={heads}; got {dim}")
    return TransformerConfig(
        family="gpt2",
        vocab=keys.size(values, "vocab_size"),
        dim=dim,
        layers=keys.size(values, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=keys.size(values, "n_inner", 4 * dim),
        norm_eps=keys.positive(values, "layer_norm_epsilon", 1e-5),
        tied=keys.flag(values, "tie_word_embeddings", True),
        positions="learned",
        max_length=keys.size(values, "n_positions", 1024),
        norm="layer",
        gated=False,
        activation=keys.choice(values, "activation_function", common.ACTIVATIONS, "gelu_new"),
        biases=("q", "k", "v", "o", "up", "down"),
    )


def config_json(c: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab, "n_embd": c.dim,
        "n_layer": c.layers, "n_head": c.heads, "n_inner": c.mlp_dim, "n_positions": c.max_length,
        "layer_norm_epsilon": c.norm_eps, "tie_word_embeddings": c.tied,
        "activation_function": common.NAMES_OF_ACTIVATIONS[c.activation],
    }  # fmt: skip


def weights(c: TransformerConfig) -> Weights:
    return Weights(
        model_slots(c),
        layer_slots(c),
        prefix="transformer.h.",
        aliases={stem: f"transformer.{stem}" for stem in STEMS},
        ignored=(".attn.bias", ".attn.masked_bias"),
    )


def model_slots(c: TransformerConfig) -> dict[str, Slot]:
    slots = {
        "transformer.wte.weight": Slot((("embedding",),), (c.vocab, c.dim)),
        "transformer.wpe.weight": Slot((("position_embedding",),), (c.max_length, c.dim)),
        **norm("transformer.ln_f", "final_norm", size=c.dim, bias=True),
    }
    untied = {"lm_head.weight": Slot((("unembedding",),), (c.vocab, c.dim))}
    return slots if c.tied else slots | untied


def layer_slots(c: TransformerConfig) -> dict[str, Slot]:
    paths = lambda leaf: tuple(("attention", name, leaf) for name in ("q", "k", "v"))
    return {
        **norm("ln_1", "attention_norm", size=c.dim, bias=True),
        "attn.c_attn.weight": Slot(paths("kernel"), (c.dim, 3 * c.dim), SIDE_BY_SIDE),
        "attn.c_attn.bias": Slot(paths("bias"), (3 * c.dim,), SIDE_BY_SIDE),
        **_conv("attn.c_proj", "attention", "o", shape=(c.dim, c.dim)),
        **norm("ln_2", "mlp_norm", size=c.dim, bias=True),
        **_conv("mlp.c_fc", "mlp", "up", shape=(c.dim, c.mlp_dim)),
        **_conv("mlp.c_proj", "mlp", "down", shape=(c.mlp_dim, c.dim)),
    }


def _conv(name: str, *path: str, shape: tuple[int, int]) -> dict[str, Slot]:
    """GPT-2's Conv1D: kernel [in, out] and bias."""
    kernel = Slot(((*path, "kernel"),), shape)
    return {f"{name}.weight": kernel, f"{name}.bias": Slot(((*path, "bias"),), shape[1:])}


GPT2 = Family(config_of, config_json, weights)
