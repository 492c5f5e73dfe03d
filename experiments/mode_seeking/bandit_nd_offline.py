"""Does pushing bad responses down pay off the reference's peak? Nine tokens. (Tajwar et al. 2024)

    python -m experiments run mode_seeking/bandit_nd_offline --preset toy --out results/bandit_nd_offline

A minute on two cores. One batch of 10 prompts with 10 responses each, used for 100 steps.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import bandit_runs
from jaxpref.data import bandits
from jaxpref.losses.sampled_table import bind_sampled
from jaxpref.results import Arrays, ClaimSpec, RunWriter
from jaxpref.toys import sequence_bandit

REWARDS = tuple(bandits.PEAKS)
METHODS = ("best_of_n", "best_of_n_negative", "rwr", "dpo_all_pairs", "ipo_all_pairs")
BEST_OF_10 = {"R1": 0.141, "R2": 0.573}  # mean reward of the best of ten reference responses, specification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 3
    num_prompts: int = 10
    num_samples: int = 10  # responses a prompt
    num_steps: int = 100
    learning_rate: float = 1e-3  # one for all methods, the specification's
    beta: float = 0.1  # of DPO
    target_gap: float = 10.0  # of IPO, nats
    eval_prompts: int = 100
    record_every: int = 5  # steps
    pretrain_steps: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "num_prompts", "num_steps", "eval_prompts", "record_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, the best and another; got {self.num_samples}")
        if self.num_steps % self.record_every:
            raise ValueError(f"record_every must divide num_steps={self.num_steps}; got {self.record_every}")
        for name in ("learning_rate", "beta", "target_gap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(
        num_seeds=2, num_prompts=2, num_samples=3, num_steps=2, eval_prompts=4, record_every=1,
        pretrain_steps=2,
    ),
    "toy": Config(),
}  # fmt: skip
SECONDS = {"smoke": 12.0, "toy": 87.0}

PAPER = "arXiv:2404.14367, section 5.2"
CLAIMS = (
    ClaimSpec(
        claim="offline on R1, IPO's negative gradient reaches several times best-of-n's reward",
        paper=PAPER, artefact="B3", statistic="final reward, IPO over best-of-n", relation=">=",
        threshold=2.5,
        metric="summary/R1_ipo_over_best_of_n",
    ),
    ClaimSpec(
        claim="offline on R2 the gain is small", control=True,
        paper=PAPER, artefact="B3", statistic="final reward, IPO over best-of-n", relation="<=",
        threshold=1.7,
        metric="summary/R2_ipo_over_best_of_n",
    ),
    *(
        ClaimSpec(
            claim=f"offline best-of-n stays below the mean best of ten reference responses ({reward})",
            paper=PAPER, artefact="B3", statistic=f"final reward less {BEST_OF_10[reward]}", relation="<=",
            threshold=0.04, metric=f"summary/{reward}_best_of_n_excess",
        )
        for reward in REWARDS
    ),
    ClaimSpec(
        claim="offline on R1, IPO reaches a higher reward than best-of-n",
        paper=PAPER, artefact="B3", statistic="final reward, IPO less best-of-n", relation=">", threshold=0.0,
        metric="summary/R1_ipo_lead",
    ),
)  # fmt: skip


def bound_losses(config: Config) -> list:
    hyperparameters = {
        "dpo_all_pairs": {"beta": config.beta},
        "ipo_all_pairs": {"target_gap": config.target_gap},
    }
    return [bind_sampled(name, **hyperparameters.get(name, {})) for name in METHODS]


def make_runner(config: Config, references, keys):
    """`runner(method) -> records [rewards, seeds, records]`; all methods share one compiled sweep."""
    sweep = sequence_bandit.make_sweep(
        bound_losses(config), num_prompts=config.num_prompts, num_samples=config.num_samples,
        eval_prompts=config.eval_prompts, num_steps=config.num_steps, eval_every=config.record_every,
    )  # fmt: skip
    tables = jnp.stack([bandits.reward(name).table for name in REWARDS])

    def runner(method: str) -> Arrays:
        settings = bandit_runs.grid(
            method=METHODS.index(method), learning_rate=config.learning_rate, rewards=tables, keys=keys
        )
        metrics = sweep(settings, bandit_runs.tile(references, len(REWARDS)))
        return bandit_runs.recorded(metrics, num_rewards=len(REWARDS), every=config.record_every)

    return runner


def write_summary(writer: RunWriter, final: dict[str, np.ndarray]) -> None:
    """Of the final rewards [rewards, seeds] by method."""
    best, ipo = final["best_of_n"], final["ipo_all_pairs"]
    for index, reward in enumerate(REWARDS):
        writer.write_summary(
            {
                f"summary/{reward}_ipo_over_best_of_n": ipo[index] / best[index],
                f"summary/{reward}_best_of_n_excess": best[index] - BEST_OF_10[reward],
                f"summary/{reward}_ipo_lead": ipo[index] - best[index],
            }
        )


def run(config: Config, writer: RunWriter) -> None:
    """A reference a seed, then every method on one batch of its responses."""
    pretrain_key, run_key = jax.random.split(jax.random.key(config.seed))
    references = sequence_bandit.references(
        jax.random.split(pretrain_key, config.num_seeds), num_steps=config.pretrain_steps
    )
    runner = make_runner(config, references, jax.random.split(run_key, config.num_seeds))
    steps, final, started = range(0, config.num_steps + 1, config.record_every), {}, time.perf_counter()
    for index, method in enumerate(METHODS):
        writer.progress((1 + index) / (1 + len(METHODS)), method)
        records = writer.part(method, lambda method=method: runner(method))
        final[method] = records["reward/eval"][..., -1]
        for place, reward in enumerate(REWARDS):
            curves = {name: values[place] for name, values in records.items()}
            writer.write_curves(curves, steps, method=method, reward=reward)
    write_summary(writer, final)
    writer.note(train_seconds=round(time.perf_counter() - started, 1))
