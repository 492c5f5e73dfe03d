"""The N-d bandit: a small transformer writes nine tokens, the reward is their mean in a table.

Sizes, reference and pretraining follow the released code of Tajwar et al. 2024, arXiv:2404.14367; the
reward counts the response alone and log-probabilities are shifted as sampling is.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, PyTree

from jaxpref import bandit_runs, pretraining
from jaxpref.bandit_runs import Bandit, Setting
from jaxpref.data import bandits
from jaxpref.losses.sampled_table import SampledLoss
from jaxpref.policies import rollouts, transformer
from jaxpref.samples import Reward
from jaxpref.train import Metrics

MODEL = transformer.tiny(bandits.NUM_BINS, dim=48, layers=3, heads=3, tied=False)
NUM_TOKENS = 9
POLICY = rollouts.sampled_policy(MODEL, NUM_TOKENS)


def pretrain(key: Array, *, num_steps: int = 100, num_prompts: int = 16) -> PyTree:
    """A reference whose tokens follow the histogram, whatever stands before them."""
    init_key, rollout_key = jax.random.split(key)
    return pretraining.fit_rollouts(
        transformer.init(init_key, MODEL), rollout_key, jnp.log(bandits.reference_probabilities()),
        config=MODEL, num_tokens=NUM_TOKENS, num_steps=num_steps, num_prompts=num_prompts,
    )  # fmt: skip


def draw(params: PyTree, key: Array, num_prompts: int, num_samples: int):
    """Responses to fresh random prompts, [prompts, samples, tokens]."""
    prompt_key, sample_key = jax.random.split(key)
    prompts = bandits.token_prompts(prompt_key, num_prompts)
    return POLICY.sample(params, sample_key, prompts, num_samples)


def bandit(reference: PyTree, *, num_prompts: int, num_samples: int, eval_prompts: int) -> Bandit:
    """The bandit around these reference parameters; every minibatch and evaluation has fresh prompts."""

    def evaluate(params: PyTree, reward: Reward, key: Array) -> Array:
        return reward(draw(params, key, eval_prompts, 1)).mean()

    return Bandit(
        POLICY,
        functools.partial(bandits.token_prompts, num_prompts=num_prompts),
        functools.partial(POLICY.logps, reference),
        evaluate,
        num_samples,
    )


def make_sweep(
    loss_fns: Sequence[SampledLoss],
    *,
    num_prompts: int,
    num_samples: int,
    eval_prompts: int,
    num_steps: int,
    eval_every: int,
):
    """Builds `sweep(settings, references) -> metrics [runs, num_steps + 1]`, one program for all settings.

    Every run starts from its reference.
    """

    def one_run(run: tuple[Setting, PyTree]) -> Metrics:
        setting, reference = run
        common = bandit(
            reference, num_prompts=num_prompts, num_samples=num_samples, eval_prompts=eval_prompts
        )
        return bandit_runs.fit(
            common, loss_fns, setting, reference, num_steps=num_steps, eval_every=eval_every
        )

    return jax.jit(lambda settings, references: jax.lax.map(one_run, (settings, references)))


def histogram(responses: Int[Array, "*prompts tokens"]):
    """Share of each token among the responses' tokens, [vocab]."""
    return jnp.bincount(responses.ravel(), length=bandits.NUM_BINS) / responses.size


def references(keys: Array, *, num_steps: int = 100) -> PyTree:
    """A pretrained reference for each key, stacked."""
    pretrained = functools.partial(pretrain, num_steps=num_steps)
    return jax.jit(lambda keys: jax.lax.map(pretrained, keys))(keys)
