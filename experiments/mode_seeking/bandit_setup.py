"""Where are the reference and the rewards, and does the policy start there? (Tajwar et al. 2024)

    python -m experiments run mode_seeking/bandit_setup --preset toy --out results/bandit_setup

Ten seconds on two cores. Mean rewards .039 (R1) and .377 (R2) under the reference; the transformer's tokens
follow it within a total variation of .03.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref.data import bandits
from jaxpref.probes import divergence
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.toys import sequence_bandit

REFERENCE_REWARD = {"R1": 0.0390, "R2": 0.3772}  # a token's, specification 3.1
POLICY_REWARD = {"R1": (0.036, 0.01), "R2": (0.38, 0.03)}  # of the pretrained transformer, and how close


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 5
    pretrain_steps: int = 100
    num_prompts: int = 100
    num_samples: int = 20  # responses a prompt
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "pretrain_steps", "num_prompts", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(num_seeds=2, pretrain_steps=2, num_prompts=4, num_samples=2),
    "toy": Config(),
}
SECONDS = {"smoke": 5.0, "toy": 13.0}

_claim = functools.partial(ClaimSpec, artefact="B0", relation="<=", reduce="max")
SETUP = "arXiv:2404.14367, figure 3 and released code"
CLAIMS = (
    *(
        _claim(
            claim=f"the reference's mean {reward} is {value}", paper=SETUP, threshold=5e-5, unit="runs",
            statistic="difference", metric=f"summary/{reward}_reference_error",
        )
        for reward, value in REFERENCE_REWARD.items()
    ),
    _claim(
        claim="the pretrained transformer's tokens follow the reference histogram", paper=SETUP,
        threshold=0.05, statistic="total variation of the marginal of 9 x 2000 tokens",
        metric="summary/total_variation",
    ),
    *(
        _claim(
            claim=f"its mean {reward} is {value}, give or take {tolerance}", paper=SETUP, threshold=tolerance,
            statistic="absolute difference", metric=f"summary/{reward}_policy_error",
        )
        for reward, (value, tolerance) in POLICY_REWARD.items()
    ),
)  # fmt: skip


def seed_statistics(key: Array, config: Config) -> dict[str, Array]:
    """Pretrains one transformer; its token histogram and mean rewards."""
    pretrain_key, draw_key = jax.random.split(key)
    params = sequence_bandit.pretrain(pretrain_key, num_steps=config.pretrain_steps)
    responses = sequence_bandit.draw(params, draw_key, config.num_prompts, config.num_samples)
    rewards = {name: bandits.reward(name)(responses).mean() for name in bandits.PEAKS}
    return {"histogram": sequence_bandit.histogram(responses)} | rewards


def write_reference(writer: RunWriter, reference: Array) -> None:
    """How far the exact histogram's mean rewards are from the specification's."""
    errors = {
        f"summary/{name}_reference_error": abs(float(reference @ bandits.reward(name).table) - value)
        for name, value in REFERENCE_REWARD.items()
    }
    writer.write_summary(errors)


def run(config: Config, writer: RunWriter) -> None:
    """The exact histogram, then a transformer a seed."""
    reference = bandits.reference_probabilities()
    write_reference(writer, reference)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    found = jax.device_get(
        jax.jit(lambda keys: jax.lax.map(lambda k: seed_statistics(k, config), keys))(keys)
    )
    variation = jax.vmap(divergence.total_variation, (None, 0))(
        jnp.log(reference), jnp.log(found["histogram"])
    )
    errors = {
        f"summary/{name}_policy_error": np.abs(found[name] - value)
        for name, (value, _) in POLICY_REWARD.items()
    }
    writer.write_summary({"summary/total_variation": variation} | errors)
    tables = {name: bandits.reward(name).table for name in bandits.PEAKS}
    policies = {f"policy_{seed}": histogram for seed, histogram in enumerate(found["histogram"])}
    writer.table({"bin": np.arange(len(reference)), "reference": reference} | tables | policies, name="bins")
