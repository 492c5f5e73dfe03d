"""The 1-D bandit: a perceptron reads a context that says nothing and answers with one of 100 bins.

Sizes and pretraining follow the released code of Tajwar et al. 2024, arXiv:2404.14367.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from jaxpref import bandit_runs, pretraining
from jaxpref.bandit_runs import Bandit, Setting
from jaxpref.data import bandits
from jaxpref.losses.sampled_table import SampledLoss
from jaxpref.policies import contextual
from jaxpref.policies.contextual import ContextualConfig
from jaxpref.samples import Reward
from jaxpref.train import Metrics

MODEL = ContextualConfig()
POLICY = contextual.sampled_policy(MODEL)
EVAL_PROMPTS = 100


class Start(NamedTuple):
    """Where preference learning starts: the training contexts, and a policy pretrained on them."""

    contexts: Float[Array, "prompts context"]
    eval_contexts: Float[Array, "eval context"]
    params: PyTree


def start(key: Array, *, num_prompts: int, num_steps: int = 100) -> Start:
    """Draws the contexts and brings the policy to the reference histogram on them."""
    train_key, eval_key, init_key = jax.random.split(key, 3)
    contexts = bandits.contexts(train_key, num_prompts, MODEL.context_dim)
    params = pretraining.fit_contextual(
        contextual.init(init_key, MODEL), contexts, jnp.log(bandits.reference_probabilities()),
        config=MODEL, num_steps=num_steps,
    )  # fmt: skip
    return Start(contexts, bandits.contexts(eval_key, EVAL_PROMPTS, MODEL.context_dim), params)


def bandit(begin: Start, *, num_samples: int) -> Bandit:
    """The bandit on these contexts; the reference is the histogram itself, the reward's mean is exact."""
    histogram = jnp.log(bandits.reference_probabilities())

    def evaluate(params: PyTree, reward: Reward, key: Array) -> Array:
        table = contextual.response_logps(params, begin.eval_contexts, config=MODEL)
        return (jnp.exp(table) @ reward.table).mean()

    return Bandit(
        POLICY,
        lambda key: begin.contexts,  # the released code collects on all training prompts, every time
        lambda prompts, responses: histogram[responses].sum(-1),
        evaluate,
        num_samples,
    )


def make_sweep(loss_fns: Sequence[SampledLoss], *, num_samples: int, num_steps: int, eval_every: int):
    """Builds `sweep(settings, starts) -> metrics [runs, num_steps + 1]`, one program for all settings."""

    def one_run(run: tuple[Setting, Start]) -> Metrics:
        setting, begin = run
        common = bandit(begin, num_samples=num_samples)
        return bandit_runs.fit(
            common, loss_fns, setting, begin.params, num_steps=num_steps, eval_every=eval_every
        )

    return jax.jit(lambda settings, starts: jax.lax.map(one_run, (settings, starts)))
