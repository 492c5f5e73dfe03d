"""Answers from no to yes: fixed features for five of them, and prompts whose strength decides the answer.

Both stand in for the Persona prompts of Razin et al. 2025 (arXiv:2410.08847, section 3), where answers of
the opposite polarity gain what the chosen answer loses.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxpref.policies.unconstrained_features import UnconstrainedFeatures

YES_NO_NEVER = ("Yes", "No", "Never", "Maybe", "other")
UNEMBEDDING = ((2, 0, 0.3), (-1, 0, 0.3), (-2.5, 0, 0.3), (0.3, 0.6, 0), (0, -1, -1))
HIDDEN = (-0.55, -0.4, 1.6)


def yes_no_never(scale: float | Float[Array, ""] = 1.0) -> UnconstrainedFeatures:
    """One prompt and five one-token answers; the first axis is polarity, No and Never lie on one side.

    Args:
      scale: longer unembeddings and a shorter hidden state by this factor, the same logits. Theorem 4
        weighs the two norms against each other, so it decides whether the chosen answer is displaced.
    """
    return UnconstrainedFeatures(jnp.array(UNEMBEDDING) * scale, jnp.array([HIDDEN]) / scale)


ANSWERS = ("Never", "No", "Maybe", "Yes", "Absolutely")
POSITIONS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolarityTask:
    """Prompts of content tokens with hidden strengths; the answer is the one nearest their mean.

    Tokens 0 to 4 are the `ANSWERS`, the content tokens follow. An answer at position a has logit
    -sharpness (a - score)^2, where score = gain * mean strength of the prompt's tokens.
    """

    content_tokens: int = 40
    prompt_length: int = 6
    max_strength: float = 3.0  # strengths are uniform in +-max_strength
    gain: float = 1.2
    sharpness: float = 2.0

    def __post_init__(self):
        for name in ("content_tokens", "prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("max_strength", "gain", "sharpness"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")

    @property
    def vocab(self) -> int:
        """Answers and content tokens."""
        return len(ANSWERS) + self.content_tokens

    def strengths(self, key: Array) -> Float[Array, "content_tokens"]:
        """The hidden strength of every content token."""
        bound = self.max_strength
        return jax.random.uniform(key, (self.content_tokens,), minval=-bound, maxval=bound)

    def prompts(self, key: Array, num: int) -> Int[Array, "prompts length"]:
        """Content tokens, independent and uniform."""
        return jax.random.randint(key, (num, self.prompt_length), len(ANSWERS), self.vocab)

    def answer_logps(
        self, strengths: Float[Array, "content_tokens"], prompts: Int[Array, "prompts length"]
    ) -> Float[Array, "prompts answers"]:
        """Log-probability of every answer under the task itself, nats."""
        score = self.gain * jnp.mean(strengths[prompts - len(ANSWERS)], axis=-1)
        distance = jnp.array(POSITIONS) - score[:, None]
        return jax.nn.log_softmax(-self.sharpness * distance**2)
