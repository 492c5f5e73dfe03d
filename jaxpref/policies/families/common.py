"""What the families with Llama's names have in common: keys of `config.json`, RoPE, windows, tensors."""

from typing import Any, NamedTuple, Protocol

from jaxpref.policies.architecture import RopeScaling, TransformerConfig
from jaxpref.policies.families import keys
from jaxpref.policies.families.keys import Values
from jaxpref.policies.families.slots import CheckpointError, Slot, Weights, dense, norm

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
NAMES_OF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "relu": "relu", "gelu_tanh": "gelu_pytorch_tanh"}
LOCAL, GLOBAL = "sliding_attention", "full_attention"  # of layer_types
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


class Convert(Protocol):
    def __call__(self, values: Values, /) -> TransformerConfig: ...


class Family(NamedTuple):
    """One family: its `config.json` both ways, and its tensors."""

    config_of: Convert
    config_json: Any  # TransformerConfig -> dict
    weights: Any  # TransformerConfig -> Weights


def sizes(values: Values) -> dict[str, Any]:
    """The fields that every family with Llama's keys has."""
    heads, dim = keys.size(values, "num_attention_heads"), keys.size(values, "hidden_size")
    return {
        "vocab": keys.size(values, "vocab_size"),
        "dim": dim,
        "layers": keys.size(values, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": keys.size(values, "num_key_value_heads", heads),
        "head_dim": keys.size(values, "head_dim", max(1, dim // heads)),
        "mlp_dim": keys.size(values, "intermediate_size"),
        "norm_eps": keys.positive(values, "rms_norm_eps", 1e-6),
        "tied": keys.flag(values, "tie_word_embeddings", False),
        "activation": keys.choice(values, "hidden_act", ACTIVATIONS, "silu"),
        "max_length": keys.size_or_zero(values, "max_position_embeddings"),
    }


def rope(values: Values, *, partial: bool = False) -> dict[str, Any]:
    """`rope_theta` and its scaling, as transformers 4 writes them or, in `rope_parameters`, 5."""
    table = keys.table(values, "rope_parameters") or keys.table(values, "rope_scaling")
    if not partial:
        keys.must_be({**values, **table}, {"partial_rotary_factor": (1.0, None)})
    theta = keys.positive({**values, **table}, "rope_theta", 10_000.0)
    return {"rope_theta": theta, "rope_scaling": _scaling(table, values)}


def _scaling(table: Values, values: Values) -> RopeScaling | None:
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise CheckpointError(f"rope_type must be default, linear or llama3; got {kind!r}")
    factor = keys.positive(table, "factor")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    default = values.get("max_position_embeddings")
    return RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=keys.positive(table, "low_freq_factor"),
        high_freq_factor=keys.positive(table, "high_freq_factor"),
        original_length=keys.size(table, "original_max_position_embeddings", default),
    )


def windows(values: Values, local: tuple[bool, ...]) -> dict[str, Any]:
    """The window, and which layers it holds for: `layer_types` if given, else `local`."""
    if values.get("sliding_window") is None:
        return {}
    if values.get("layer_types") is not None:
        local = _layer_types(values["layer_types"], len(local))
    return {"window": keys.size(values, "sliding_window"), "local_layers": local} if any(local) else {}


def _layer_types(types: Any, layers: int) -> tuple[bool, ...]:
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {LOCAL, GLOBAL}:
        raise CheckpointError(
            f"layer_types must be {LOCAL} or {GLOBAL} for each of {layers} layers; got {types!r:.200}"
        )
    return tuple(kind == LOCAL for kind in types)


def biases(values: Values, key: str, layers: tuple[str, ...], default: bool = False) -> tuple[str, ...]:
    """`layers`, if the flag says that they have one."""
    return layers if keys.flag(values, key, default) else ()


def json_of(c: TransformerConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """What all families with Llama's keys write, in the spelling that transformers 4 and 5 both read."""
    values = {
        "architectures": [architecture], "model_type": model_type, "vocab_size": c.vocab,
        "hidden_size": c.dim, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "intermediate_size": c.mlp_dim,
        "rope_theta": c.rope_theta, "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied,
        "hidden_act": NAMES_OF_ACTIVATIONS[c.activation],
    }  # fmt: skip
    if c.max_length:
        values["max_position_embeddings"] = c.max_length
    return values | ({"rope_scaling": _scaling_json(c.rope_scaling)} if c.rope_scaling else {})


def _scaling_json(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_length,
    }  # fmt: skip


def windows_json(c: TransformerConfig) -> dict[str, Any]:
    """The window and each layer's kind."""
    local = [False] * c.layers if c.window is None else list(c.local_layers or [True] * c.layers)
    return {"sliding_window": c.window, "layer_types": [LOCAL if here else GLOBAL for here in local]}


def weights(c: TransformerConfig) -> Weights:
    """Llama's names."""
    return Weights(model_slots(c), layer_slots(c), ignored=("rotary_emb.inv_freq",))


def model_slots(c: TransformerConfig) -> dict[str, Slot]:
    """The tensors outside the layers."""
    slots = {"model.embed_tokens.weight": Slot((("embedding",),), (c.vocab, c.dim))}
    slots |= {} if c.norm == "plain_layer" else norm("model.norm", "final_norm", size=c.dim)
    untied = {"lm_head.weight": Slot((("unembedding",),), (c.vocab, c.dim))}
    return slots if c.tied else slots | untied


def layer_slots(c: TransformerConfig) -> dict[str, Slot]:
    """The tensors of one layer."""
    query, key = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes = {"q": (query, c.dim), "k": (key, c.dim), "v": (key, c.dim), "o": (c.dim, query)}
    shapes |= {"gate": (c.mlp_dim, c.dim), "up": (c.mlp_dim, c.dim), "down": (c.dim, c.mlp_dim)}
    slots = norm_slots(c)
    for name, shape in shapes.items():
        stem, ours = ("self_attn", "attention") if name in ATTENTION else ("mlp", "mlp")
        slots |= dense(f"{stem}.{name}_proj", ours, name, shape=shape, bias=name in c.biases)
    return slots


def norm_slots(c: TransformerConfig) -> dict[str, Slot]:
    """Norms of one layer; `post_attention_layernorm` stands after attention only where one stands before."""
    if c.norm == "plain_layer":
        return {}
    ours = {
        "before": {"input": "attention_norm", "post_attention": "mlp_norm"},
        "after": {"post_attention": "attention_post_norm", "post_feedforward": "mlp_post_norm"},
        "both": {
            "input": "attention_norm", "post_attention": "attention_post_norm",
            "pre_feedforward": "mlp_norm", "post_feedforward": "mlp_post_norm",
        },
    }[c.norms]  # fmt: skip
    slots: dict[str, Slot] = {}
    for name, path in ours.items():
        slots |= norm(f"{name}_layernorm", path, size=c.dim)
    return slots | _qk_norm_slots(c)


def _qk_norm_slots(c: TransformerConfig) -> dict[str, Slot]:
    if c.qk_norm == "none":
        return {}
    width = {name: 1 if c.qk_norm == "head" else heads for name, heads in (("q", c.heads), ("k", c.kv_heads))}
    slots: dict[str, Slot] = {}
    for name, heads in width.items():
        slots |= norm(f"self_attn.{name}_norm", "attention", f"{name}_norm", size=heads * c.head_dim)
    return slots
