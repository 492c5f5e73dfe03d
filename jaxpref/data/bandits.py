"""The didactic bandits' reference histogram, rewards and contexts, computed rather than drawn.

References: Tajwar et al. 2024, arXiv:2404.14367, section 5 and appendix; the released code draws 10 000
values for the histogram, here are the probabilities that they estimate.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxpref.samples import Reward

NUM_BINS = 100
CENTER, SCALE = -0.7, 0.4  # of the Cauchy variable that tanh squashes into [-1, 1]
PEAKS = {"R1": 70.0, "R2": 20.0}  # bin of the largest reward: where the reference has no mass, where it has
WIDTH = 10.0  # bins


def reference_probabilities(num_bins: int = NUM_BINS) -> Float[Array, "bins"]:
    """Probability of each of `num_bins` equal bins of [-1, 1] under tanh(X), X Cauchy(-0.7, 0.4)."""
    edges = jnp.linspace(-1.0, 1.0, num_bins + 1)
    inner = jnp.arctan((jnp.arctanh(edges[1:-1]) - CENTER) / SCALE) / jnp.pi + 0.5
    return jnp.diff(jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)]))


def reward(name: str, num_bins: int = NUM_BINS) -> Reward:
    """exp(-((a - peak) / 10)^2) of bin a: R1 peaks at 70, off the reference's mode, R2 at 20, on it."""
    if name not in PEAKS:
        raise ValueError(f"reward must be one of {', '.join(PEAKS)}; got {name!r}")
    return Reward(jnp.exp(-(((jnp.arange(num_bins) - PEAKS[name]) / WIDTH) ** 2)))


def contexts(key: Array, num_prompts: int, dim: int) -> Float[Array, "prompts dim"]:
    """Prompts of the one-token bandit: uniform in [0, 1]^dim, and without a say in the reward."""
    return jax.random.uniform(key, (num_prompts, dim))


def token_prompts(key: Array, num_prompts: int, num_bins: int = NUM_BINS) -> Int[Array, "prompts 1"]:
    """Prompts of the sequence bandit: one uniform token each."""
    return jax.random.randint(key, (num_prompts, 1), 0, num_bins)
