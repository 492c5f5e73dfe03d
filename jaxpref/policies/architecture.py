"""What a decoder is made of: sizes, and the few choices in which the families differ."""

import dataclasses
from typing import Literal

import numpy as np

CHOICES = {
    "positions": ("rope", "learned"),
    "norm": ("rms", "rms_plus_one", "layer", "plain_layer"),  # plain: nothing is learned
    "norms": ("before", "after", "both"),
    "qk_norm": ("none", "head", "full"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots"),  # nothing; a whole layer; all but its matrix products
    "attention": ("auto", "plain", "blocks", "splash", "cudnn"),
}
DENSE = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are slowed for rows longer than those of pretraining."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0  # llama3 alone: waves longer than length / this are slowed by `factor`
    high_freq_factor: float = 4.0  # llama3 alone: those shorter than length / this are left as they are
    original_length: int = 8192  # llama3 alone, tokens

    def __post_init__(self):
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"high_freq_factor must be above low_freq_factor={self.low_freq_factor}; "
                f"got {self.high_freq_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and kind of a decoder, Llama unless told otherwise; Hugging Face's names are in brackets."""

    vocab: int  # [vocab_size]
    dim: int  # [hidden_size]
    layers: int  # [num_hidden_layers]
    heads: int  # [num_attention_heads]
    kv_heads: int  # [num_key_value_heads]
    head_dim: int  # [head_dim]
    mlp_dim: int  # [intermediate_size]
    rope_theta: float = 10_000.0  # [rope_theta]
    norm_eps: float = 1e-5  # [rms_norm_eps]
    tied: bool = True  # the unembedding is the embedding [tie_word_embeddings]
    family: str = "llama"  # whose names and `config.json` the weights have [model_type]

    positions: str = "rope"
    max_length: int = 0  # tokens; a bound for learned positions alone, 0 unknown [max_position_embeddings]
    rope_share: float = 1.0  # of a head's features that turn [partial_rotary_factor]
    rope_scaling: RopeScaling | None = None
    window: int | None = None  # tokens that a local layer sees, itself among them [sliding_window]
    local_layers: tuple[bool, ...] = ()  # which layers are local; all if empty [layer_types]
    local_theta: float | None = None  # rope_theta of the local layers, unscaled; as the others if None
    norm: str = "rms"
    norms: str = "before"  # where they stand about attention and MLP
    qk_norm: str = "none"  # of queries and keys, each head's or all heads'
    parallel: bool = False  # attention and MLP read the same stream [use_parallel_residual]
    biases: tuple[str, ...] = ()  # dense layers that have one, of q k v o gate up down
    gated: bool = True  # the MLP multiplies its activation with a second projection
    activation: str = "silu"  # [hidden_act]
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(dim)
    query_scalar: float | None = None  # scores are divided by its root; head_dim if None
    attention_cap: float | None = None  # scores are cap * tanh(score / cap)
    logit_cap: float | None = None  # logits as well
    clip_qkv: float | None = None  # largest absolute query, key and value

    dtype: str = "float32"  # of products; norms, softmax and sums stay float32
    remat: str = "none"  # what the backward pass computes again, layer by layer
    attention: str = "auto"  # the program, by platform and shape; all but "plain" know reverse mode alone

    def __post_init__(self):
        for name in ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads={self.heads}; got {self.kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even, RoPE turns pairs; got {self.head_dim}")
        _check_choices(self)
        _check_positions(self)

    @property
    def local(self) -> np.ndarray | None:
        """Which layers are local, bool [layers]; None if no layer could tell."""
        if self.window is None and self.local_theta is None:
            return None
        return np.array(self.local_layers or [True] * self.layers)

    @property
    def reach(self) -> int | None:
        """Tokens of the longest row that has positions; None where they have no end."""
        return self.max_length if self.positions == "learned" else None

    @property
    def rope_dim(self) -> int:
        """Features of a head that turn."""
        return int(self.head_dim * self.rope_share)


def _check_choices(config: TransformerConfig) -> None:
    for name, choices in CHOICES.items():
        if (value := getattr(config, name)) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    if unknown := sorted(set(config.biases) - set(DENSE)):
        raise ValueError(f"biases must be of {', '.join(DENSE)}; got {unknown}")
    if config.attention == "cudnn" and config.attention_cap is not None:
        raise ValueError(f"attention must not be cudnn with a cap; got attention_cap={config.attention_cap}")


def _check_positions(config: TransformerConfig) -> None:
    if config.positions == "learned" and config.max_length < 1:
        raise ValueError(f"max_length must be at least 1 for learned positions; got {config.max_length}")
    if config.window is not None and config.window < 1:
        raise ValueError(f"window must be at least 1; got {config.window}")
    if config.local_layers and len(config.local_layers) != config.layers:
        got = len(config.local_layers)
        raise ValueError(f"local_layers must say it for each of {config.layers} layers; got {got}")
    if config.positions == "rope" and (config.rope_dim < 2 or config.rope_dim % 2):
        raise ValueError(f"rope_share must leave an even number of features; got {config.rope_dim}")


def tiny(vocab: int, *, dim: int = 64, layers: int = 2, heads: int = 4, tied: bool = True):
    """The toys' size: a head of 16, an MLP of four times the width."""
    return TransformerConfig(
        vocab=vocab, dim=dim, layers=layers, heads=heads, kv_heads=heads, head_dim=dim // heads,
        mlp_dim=4 * dim, tied=tied,
    )  # fmt: skip
