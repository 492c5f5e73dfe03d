"""How the next token is drawn from the policy's logits: temperature, top-k, top-p, in that order."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from jaxpref import logps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """What turns the policy into the distribution that is drawn from; by default nothing does."""

    temperature: float = 1.0  # 0 is greedy: the first of the most probable tokens
    top_k: int | None = None  # tokens that may be drawn; of tied ones those with the lowest ids
    top_p: float = 1.0  # only the fewest tokens whose probabilities reach this sum may be drawn

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and at least 0; got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for all tokens; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1]; got {self.top_p}")


class Drawn(NamedTuple):
    """Drawn tokens and their log-probabilities, nats; NaN where the logits held NaN or +inf."""

    tokens: Int[Array, "*rows"]
    logps: Float[Array, "*rows"]  # under the policy itself: temperature 1, all tokens
    drawn_logps: Float[Array, "*rows"]  # under the distribution that was drawn from


def draw(keys: Key[Array, "rows"], logits: Float[Array, "rows vocab"], filters: Filters = Filters()) -> Drawn:
    """One token a row, each row with its own key."""
    filtered = filtered_logps(logits, filters)
    if filters.temperature == 0:
        return scored(jnp.argmax(logits, axis=-1), logits, filtered)
    # In the mode "low", JAX's default, a token 16 nats below the best is all but never drawn, and a
    # large vocabulary has very many of those.
    categorical = jax.vmap(lambda key, row: jax.random.categorical(key, row, mode="high"))
    return scored(categorical(keys, filtered), logits, filtered)


def scored(
    tokens: Int[Array, "rows"], logits: Float[Array, "rows vocab"], filtered: Float[Array, "rows vocab"]
) -> Drawn:
    """Tokens with both their log-probabilities; `filtered` are those of the distribution drawn from, nats."""
    return Drawn(tokens, logps.gather(logps.log_softmax(logits), tokens), logps.gather(filtered, tokens))


def filtered_logps(logits: Float[Array, "rows vocab"], filters: Filters) -> Float[Array, "rows vocab"]:
    """Log-probabilities of the distribution that is drawn from, nats; -inf for a token left out.

    The order is that of transformers and vLLM: top-p counts probabilities of what top-k has left, heated.
    """
    logits = logps.wide(logits)
    if filters.temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True) == jnp.arange(logits.shape[-1])
        return jnp.where(best, jnp.zeros_like(logits), -jnp.inf)
    scores = _heated(logits, filters.temperature)
    return logps.log_softmax(jnp.where(_kept(scores, filters), scores, -jnp.inf))


def _heated(logits: Array, temperature: float) -> Array:
    """The best token at 0 whatever the temperature: no overflow, and no 0 / 0 for a subnormal one."""
    below = logits - logits.max(axis=-1, keepdims=True)
    return below / max(temperature, float(jnp.finfo(logits.dtype).tiny))


def _kept(scores: Float[Array, "rows vocab"], filters: Filters) -> Bool[Array, "rows vocab"]:
    vocab = scores.shape[-1]
    number = min(filters.top_k or vocab, vocab)
    if filters.top_p == 1:
        if number == vocab:
            return jnp.ones(scores.shape, bool)
        best = jax.lax.top_k(scores, number)[0]
        return _first(scores, best[:, -1:], jnp.full((len(scores), 1), number))
    best = jax.lax.top_k(scores, number)[0] if number < vocab else jnp.sort(scores, descending=True)
    reached = _reaching(best, filters.top_p)
    return _first(scores, jnp.take_along_axis(best, reached - 1, axis=-1), reached)


def _reaching(best: Float[Array, "rows best"], mass: float) -> Int[Array, "rows 1"]:
    """How many of the descending scores it takes for their probabilities, of these alone, to reach `mass`."""
    probabilities = jax.nn.softmax(best, axis=-1)
    above = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.maximum((above < mass).sum(axis=-1, keepdims=True), 1)


def _first(
    scores: Float[Array, "rows vocab"], least: Float[Array, "rows 1"], number: Int[Array, "rows 1"]
) -> Bool[Array, "rows vocab"]:
    """The `number` best tokens, of which `least` is the last one's score; the lowest ids where tied."""
    above, tied = scores > least, scores == least
    room = number - above.sum(axis=-1, keepdims=True)
    return above | (tied & (jnp.cumsum(tied, axis=-1) <= room))
