"""A transformer as a policy over responses of a fixed number of tokens: the sequence bandit's policy."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from jaxpref import logps
from jaxpref.pairs import TokenRows
from jaxpref.policies import next_token, transformer
from jaxpref.policies.generation import generate
from jaxpref.policies.next_token import Drawn
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.samples import SampledPolicy


def response_rows(
    prompts: Int[Array, "prompts prompt"], responses: Int[Array, "prompts samples tokens"]
) -> TokenRows:
    """A row for each sampled response behind its prompt, samples of one prompt together."""
    num_samples, num_tokens = responses.shape[1:]
    behind = jnp.repeat(prompts, num_samples, axis=0)
    tokens = jnp.concatenate([behind, responses.reshape(-1, num_tokens)], axis=1)
    is_response = jnp.arange(tokens.shape[1]) >= prompts.shape[1]
    return TokenRows(tokens, jnp.broadcast_to(is_response, tokens.shape))


def sample(
    params: PyTree,
    key: Array,
    prompts: Int[Array, "prompts prompt"],
    num_samples: int,
    *,
    config: TransformerConfig,
    num_tokens: int,
) -> Int[Array, "prompts samples tokens"]:
    """Independent responses of `num_tokens` tokens; no token ends one early.

    One key for all rows, so a row's draw depends on its place among them; `sampling.sample` has none of that.
    """
    given = jnp.repeat(prompts, num_samples, axis=0)

    def choose(logits: Array, place: Array) -> Drawn:
        drawn = jax.random.categorical(jax.random.fold_in(key, prompts.shape[1] + place), logits)
        return next_token.scored(drawn, logits, logps.log_softmax(logits))

    drawn, _ = generate(params, given, None, choose, config=config, num_tokens=num_tokens)
    return drawn.tokens.reshape(len(prompts), num_samples, num_tokens)


def token_logps(
    params: PyTree,
    prompts: Int[Array, "prompts prompt"],
    responses: Int[Array, "prompts samples tokens"],
    *,
    config: TransformerConfig,
) -> Float[Array, "prompts samples tokens"]:
    """Log-probability of every token of the sampled responses, nats; the prompt's tokens do not count."""
    rows = response_rows(prompts, responses)
    measured = transformer.row_token_logps(params, rows, config=config)
    return measured[:, prompts.shape[1] :].reshape(responses.shape)


def sampled_policy(config: TransformerConfig, num_tokens: int) -> SampledPolicy:
    """The policy as `jaxpref.online` takes it."""
    return SampledPolicy(
        functools.partial(sample, config=config, num_tokens=num_tokens),
        functools.partial(token_logps, config=config),
    )
