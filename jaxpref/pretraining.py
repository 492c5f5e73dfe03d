"""Bringing a policy to a known distribution before preference learning: the bandits' reference.

Both follow the released code of Tajwar et al. 2024, arXiv:2404.14367: Adam on KL(policy, target).
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, PyTree

from jaxpref import logps, train
from jaxpref.policies import contextual, rollouts, transformer
from jaxpref.policies.contextual import ContextualConfig
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import divergence

_to_each = jax.vmap(divergence.reverse_kl, (None, 0))  # one target, a policy in every row


def fit_contextual(
    params: PyTree,
    contexts: Float[Array, "prompts context"],
    target: Float[Array, "responses"],
    *,
    config: ContextualConfig,
    learning_rate: float = 0.01,
    num_steps: int = 100,
) -> PyTree:
    """Full-batch steps on the mean over contexts of KL(policy, target); target log-probabilities, nats."""

    def objective(params: PyTree, contexts: Array):
        table = contextual.response_logps(params, contexts, config=config)
        return jnp.mean(_to_each(target, table)), {}

    optimizer = optax.adam(learning_rate)
    state = train.init_state(params, optimizer)
    return train.fit_fixed(train.make_step(objective, optimizer), state, contexts, num_steps)[0].params


def fit_rollouts(
    params: PyTree,
    key: Array,
    target: Float[Array, "vocab"],
    *,
    config: TransformerConfig,
    num_tokens: int,
    learning_rate: float = 0.01,
    num_steps: int = 100,
    num_prompts: int = 1,
) -> PyTree:
    """Steps on the summed KL(policy, target) of all next tokens along the policy's own responses.

    Each step draws `num_prompts` random one-token prompts and a response to each; no gradient flows through
    the drawing.
    """
    optimizer = optax.adam(learning_rate)

    def objective(params: PyTree, tokens: Array):
        scores = transformer.logits(params, tokens[:, :-1], config=config)
        return jnp.mean(jax.vmap(_to_each, (None, 0))(target, logps.log_softmax(scores)).sum(-1)), {}

    step = train.make_step(objective, optimizer)

    def roll_and_step(state: train.TrainState, key: Array):
        prompt_key, sample_key = jax.random.split(key)
        prompts = jax.random.randint(prompt_key, (num_prompts, 1), 0, len(target))
        responses = rollouts.sample(
            state.params, sample_key, prompts, 1, config=config, num_tokens=num_tokens
        )
        return step(state, rollouts.response_rows(prompts, responses).tokens)

    keys = jax.random.split(key, num_steps)
    return train.fit(roll_and_step, train.init_state(params, optimizer), keys)[0].params
