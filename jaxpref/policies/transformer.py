"""A decoder-only transformer as Llama has it: RMSNorm, RoPE, grouped heads, SwiGLU, layers scanned.

The toys' small model and SmolLM2 are this one code path at different sizes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PyTree

from jaxpref import logps
from jaxpref.pairs import PairLogps, PairTokenLogps, TokenPairs, TokenRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a Llama-like decoder; the field names in brackets are Hugging Face's."""

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
    remat: bool = False  # recompute each layer in the backward pass: less memory, a third more time

    def __post_init__(self):
        for name in ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads={self.heads}; got {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, RoPE turns pairs; got {self.head_dim}")


def tiny(vocab: int, *, dim: int = 64, layers: int = 2, heads: int = 4, tied: bool = True):
    """The toys' size: a head of 16, an MLP of four times the width."""
    return TransformerConfig(
        vocab=vocab, dim=dim, layers=layers, heads=heads, kv_heads=heads, head_dim=dim // heads,
        mlp_dim=4 * dim, tied=tied,
    )  # fmt: skip


def rope(x: Float[Array, "rows length heads head_dim"], theta: float, start: int | Array = 0):
    """Rotary positions, the half-split convention: feature i turns with feature i + head_dim / 2."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half) / half)
    angle = (start + jnp.arange(x.shape[1]))[:, None, None] * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nn.Module):
    """Causal attention; with a `position`, of one token that follows what the cache remembers."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "rows length dim"], position: Array | None = None):
        c, start = self.config, 0 if position is None else position
        rows = x.reshape(-1, c.dim)  # a matrix: for 3-D inputs XLA on CPUs copies before each weight gradient
        dense = lambda heads, name: nn.DenseGeneral((heads, c.head_dim), use_bias=False, name=name)
        project = lambda heads, name: dense(heads, name)(rows).reshape(*x.shape[:2], heads, c.head_dim)
        turned = lambda heads, name: rope(project(heads, name), c.rope_theta, start)
        query, key, value = turned(c.heads, "q"), turned(c.kv_heads, "k"), project(c.kv_heads, "v")
        mixed = self._mix(query, key, value, position)
        merged = mixed.reshape(-1, c.heads, c.head_dim)
        return nn.DenseGeneral(c.dim, axis=(-2, -1), use_bias=False, name="o")(merged).reshape(x.shape)

    def _mix(self, query: Array, key: Array, value: Array, position: Array | None) -> Array:
        if position is None:
            return jax.nn.dot_product_attention(query, key, value, is_causal=True)
        key, value = self._remember("key", key, position), self._remember("value", value, position)
        seen = (jnp.arange(key.shape[1]) <= position)[None, None, None]
        return jax.nn.dot_product_attention(query, key, value, mask=seen)

    def _remember(self, name: str, new: Array, position: Array) -> Array:
        """All positions' keys or values so far, the new one put in its place."""
        cache: Any = self.variable("cache", name, lambda: None)
        cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, position, axis=1)
        return cache.value


class Mlp(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "rows length dim"]) -> Float[Array, "rows length dim"]:
        dense = lambda features, name: nn.Dense(features, use_bias=False, name=name)
        rows = x.reshape(-1, self.config.dim)  # a matrix, as in `Attention`
        gated = nn.silu(dense(self.config.mlp_dim, "gate")(rows)) * dense(self.config.mlp_dim, "up")(rows)
        return dense(self.config.dim, "down")(gated).reshape(x.shape)


class Layer(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "rows length dim"], position: Array | None):
        norm = lambda name: nn.RMSNorm(epsilon=self.config.norm_eps, name=name)
        x = x + Attention(self.config, name="attention")(norm("attention_norm")(x), position)
        x = x + Mlp(self.config, name="mlp")(norm("mlp_norm")(x))
        return x, None


class Decoder(nn.Module):
    """Tokens to hidden states after the final norm, the vectors that the unembedding multiplies."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "rows length"], position: Array | None = None):
        c = self.config
        scale = nn.initializers.normal(c.dim**-0.5)  # at 0.02 the norms of the gradients explode
        embedding = self.param("embedding", scale, (c.vocab, c.dim))
        if not c.tied:
            self.param("unembedding", scale, (c.vocab, c.dim))
        layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
        scanned = nn.scan(
            layer, variable_axes={"params": 0, "cache": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
            length=c.layers,
        )  # fmt: skip
        x, _ = scanned(c, name="layers")(embedding[tokens], position)
        return nn.RMSNorm(epsilon=c.norm_eps, name="final_norm")(x)


def init(key: Array, config: TransformerConfig) -> PyTree:
    """Random parameters; every layer's arrays are stacked on a leading axis of `layers`."""
    return Decoder(config).init(key, jnp.zeros((1, 1), int))["params"]


def hidden(params: PyTree, tokens: Int[Array, "rows length"], *, config: TransformerConfig):
    """Hidden states after the final norm, [rows, length, dim]."""
    return Decoder(config).apply({"params": params}, tokens)


def unembedding(params: PyTree, *, config: TransformerConfig) -> Float[Array, "vocab dim"]:
    """The matrix whose rows score the vocabulary; the embedding itself when they are tied."""
    return params["embedding" if config.tied else "unembedding"]


def logits(params: PyTree, tokens: Int[Array, "rows length"], *, config: TransformerConfig):
    """Unnormalized scores of the next token at every position, [rows, length, vocab]."""
    return hidden(params, tokens, config=config) @ unembedding(params, config=config).T


def next_token_logits(
    params: PyTree,
    tokens: Int[Array, "rows length"],
    positions: Int[Array, "rows"],
    *,
    config: TransformerConfig,
) -> Float[Array, "rows vocab"]:
    """Unnormalized scores of the token after `positions`, one position a row: the head sees no other."""
    states = hidden(params, tokens, config=config)
    last = jnp.take_along_axis(states, positions[:, None, None], axis=1)[:, 0]
    return last @ unembedding(params, config=config).T


def empty_cache(rows: int, length: int, *, config: TransformerConfig) -> PyTree:
    """Keys and values of every layer for rows of up to `length` tokens, none read yet."""
    zeros = jnp.zeros((config.layers, rows, length, config.kv_heads, config.head_dim))
    return {"layers": {"attention": {"key": zeros, "value": zeros}}}


def decode(
    params: PyTree,
    cache: PyTree,
    tokens: Int[Array, "rows"],
    position: Int[Array, ""],
    *,
    config: TransformerConfig,
) -> tuple[Float[Array, "rows vocab"], PyTree]:
    """Scores of the token after `position`, where `tokens` stand, and the cache with them added."""
    variables = {"params": params, "cache": cache}
    states, changed = Decoder(config).apply(variables, tokens[:, None], position, mutable=["cache"])
    return states[:, 0] @ unembedding(params, config=config).T, changed["cache"]


def row_token_logps(params: PyTree, rows: TokenRows, *, config: TransformerConfig):
    """Log-probability of every response token, nats, 0 elsewhere, [rows, length]."""
    return logps.next_token_logps(logits(params, rows.tokens, config=config), rows)


def token_logps(params: PyTree, batch: TokenPairs, *, config: TransformerConfig) -> PairTokenLogps:
    """Log-probability of every token of both responses, one forward pass for both."""
    rows = logps.stack_rows(batch)
    return logps.split_pairs(row_token_logps(params, rows, config=config), rows)


def pair_logps(params: PyTree, batch: TokenPairs, *, config: TransformerConfig) -> PairLogps:
    """Log-probability of both responses of each pair, [pairs], nats."""
    return token_logps(params, batch, config=config).sum()


def sample(
    params: PyTree,
    key: Array,
    prompts: Int[Array, "rows prompt"],
    *,
    config: TransformerConfig,
    num_tokens: int,
    end_token: int | None = None,
    temperature: float = 1.0,
) -> TokenRows:
    """Responses drawn token by token behind prompts of one length.

    A row ends with its first `end_token`, which belongs to the response; what follows is padding. The
    whole row is computed anew for each token: right for toys, wasteful for large models.
    """
    rows, prompt = prompts.shape
    tokens = jnp.pad(prompts, ((0, 0), (0, num_tokens)))
    mask = jnp.zeros(tokens.shape, bool)

    def draw(carry: tuple[Array, Array, Array], position: Array):
        tokens, mask, alive = carry
        scores = logits(params, tokens, config=config)[:, position - 1] / temperature
        token = jax.random.categorical(jax.random.fold_in(key, position), scores)
        tokens = tokens.at[:, position].set(jnp.where(alive, token, tokens[:, position]))
        mask = mask.at[:, position].set(alive)
        return (tokens, mask, _still_alive(alive, token, end_token)), None

    start = (tokens, mask, jnp.ones(rows, bool))
    (tokens, mask, _), _ = jax.lax.scan(draw, start, prompt + jnp.arange(num_tokens))
    return TokenRows(tokens, mask)


def _still_alive(alive: Bool[Array, "rows"], token: Int[Array, "rows"], end_token: int | None):
    return alive if end_token is None else alive & (token != end_token)
