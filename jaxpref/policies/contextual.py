"""A multi-layer perceptron from a context vector to a categorical response: the one-token bandit's policy.

References: Tajwar et al. 2024, arXiv:2404.14367, appendix; sizes are the released code's.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from jaxpref import logps
from jaxpref.pairs import IndexPairs, PairLogps
from jaxpref.samples import SampledPolicy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextualConfig:
    """Widths of the perceptron."""

    context_dim: int = 100
    num_responses: int = 100
    first: int = 50  # this layer's output is normalized
    hidden: tuple[int, ...] = (256, 256)
    gain: float = 0.01  # of the Xavier initialization: the policy starts close to uniform

    def __post_init__(self):
        for name in ("context_dim", "num_responses", "first"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.gain > 0:
            raise ValueError(f"gain must be positive; got {self.gain}")


class Perceptron(nn.Module):
    """Contexts to unnormalized scores of every response."""

    config: ContextualConfig

    @nn.compact
    def __call__(self, contexts: Float[Array, "prompts context"]) -> Float[Array, "prompts responses"]:
        c = self.config
        xavier = nn.initializers.variance_scaling(c.gain**2, "fan_avg", "uniform")
        x = nn.Dense(c.first, kernel_init=xavier, name="first")(contexts)
        x = nn.relu(nn.LayerNorm(epsilon=1e-5, name="norm")(x))
        for index, width in enumerate(c.hidden):
            x = nn.relu(nn.Dense(width, kernel_init=xavier, name=f"hidden_{index}")(x))
        return nn.Dense(c.num_responses, kernel_init=xavier, name="head")(x)


def init(key: Array, config: ContextualConfig) -> PyTree:
    """Random parameters, biases zero."""
    return Perceptron(config).init(key, jnp.zeros((1, config.context_dim)))["params"]


def response_logps(params: PyTree, contexts: Float[Array, "prompts context"], *, config: ContextualConfig):
    """Log-probability of every response to each context, [prompts, responses], nats."""
    logits: Any = Perceptron(config).apply({"params": params}, contexts)
    return logps.log_softmax(logits)


def pair_logps(
    params: PyTree, batch: IndexPairs, *, contexts: Float[Array, "prompts context"], config: ContextualConfig
) -> PairLogps:
    """Log-probability of both responses of each pair, nats; `batch.prompts` are rows of `contexts`."""
    table = response_logps(params, contexts[batch.prompts], config=config)
    return logps.finite_pair_logps(table, batch.chosen, batch.rejected)


def sample(
    params: PyTree,
    key: Array,
    contexts: Float[Array, "prompts context"],
    num_samples: int,
    *,
    config: ContextualConfig,
) -> Int[Array, "prompts samples 1"]:
    """Independent one-token responses to each context."""
    table = response_logps(params, contexts, config=config)
    drawn = jax.random.categorical(key, table[:, None], shape=(len(contexts), num_samples))
    return drawn[..., None]


def token_logps(
    params: PyTree,
    contexts: Float[Array, "prompts context"],
    responses: Int[Array, "prompts samples 1"],
    *,
    config: ContextualConfig,
) -> Float[Array, "prompts samples 1"]:
    """Log-probability of the sampled responses, nats."""
    table = response_logps(params, contexts, config=config)
    return jnp.take_along_axis(table, responses[..., 0], axis=1)[..., None]


def sampled_policy(config: ContextualConfig) -> SampledPolicy:
    """The policy as `jaxpref.online` takes it."""
    return SampledPolicy(
        functools.partial(sample, config=config), functools.partial(token_logps, config=config)
    )
