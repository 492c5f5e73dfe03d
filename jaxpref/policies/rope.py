"""Rotary positions, the half-split convention: feature i turns with feature i + width / 2."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxpref.logps import wide
from jaxpref.policies.architecture import RopeScaling, TransformerConfig


def frequencies(config: TransformerConfig, *, local: bool = False) -> np.ndarray:
    """Radians a token by which each pair of features turns, float64 [rope_dim / 2]."""
    theta = config.local_theta if local and config.local_theta else config.rope_theta
    frequency = theta ** (-np.arange(0, config.rope_dim, 2) / config.rope_dim)
    if config.rope_scaling is None or (local and config.local_theta):
        return frequency
    return scaled(frequency, config.rope_scaling)


def scaled(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Slowed: all alike, or as Llama 3.1 does, the long waves fully and those between in proportion."""
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow
    waves = scaling.original_length * frequency / (2 * math.pi)  # in a row of pretraining
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * slow


def turns(positions: Int[Array, "rows length"], frequency: np.ndarray) -> Float[Array, "2 rows length half"]:
    """Cosine and sine of every angle, float32 or wider."""
    angle = positions[..., None] * jnp.asarray(frequency)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def turn(x: Float[Array, "rows length heads head_dim"], turns: Float[Array, "2 some_rows length half"]):
    """Each pair of features turned by its angle; features past the pairs stay as they are."""
    half = turns.shape[-1]
    cos, sin = turns[:, :, :, None].astype(wide(x).dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)
