"""Does pushing bad responses down pay off the reference's peak? One token. (Tajwar et al. 2024)

    python -m experiments run mode_seeking/bandit_1d --preset toy --out results/bandit_1d

Half a minute on two cores. Offline on R1 IPO reaches .7 and best-of-n .33, on R2 both .95; with more
prompts the best responses' log-ratio falls below zero on R1. On-policy, with each sample used 15 times,
REINFORCE reaches .9 in 16 collections.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref import bandit_runs
from jaxpref.data import bandits
from jaxpref.losses.sampled_table import bind_sampled
from jaxpref.results import Arrays, ClaimSpec, RunWriter
from jaxpref.toys import contextual_bandit

REWARDS = tuple(bandits.PEAKS)
# Offline learning rates: the release scripts' for best-of-n and IPO, and their like for the others' kind.
OFFLINE_RATES = {
    "best_of_n": 1e-2, "best_of_n_negative": 1e-2, "rwr": 1e-2, "dpo_all_pairs": 3e-3, "ipo_all_pairs": 3e-3,
}  # fmt: skip
ONLINE_METRICS = ("loss", "reward/eval", "reward/collected")
ONLINE = ("best_of_n", "rwr", "reinforce", "ppo_clip", "dpo_all_pairs", "ipo_all_pairs")
ONE_TOKEN_BEST_OF_10 = 0.314  # mean R1 of the best of ten reference draws: offline best-of-n's ceiling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 5
    num_samples: int = 10  # responses a prompt
    offline_prompts: int = 50
    offline_steps: int = 200
    prompt_counts: tuple[int, ...] = (5, 10, 20, 50, 100, 200)  # of the sweep with IPO
    online_prompts: int = 10
    online_rate: float = 1e-3
    online_reuse: int = 15  # gradient steps a collection
    online_collections: int = 32
    beta: float = 0.1  # of DPO
    target_gap: float = 10.0  # of IPO, nats
    min_reward_gap: float = 0.2  # IPO's pairs differ by more, offline
    record_every: int = 10  # steps, offline; on-policy every collection is recorded
    seed: int = 0

    def __post_init__(self):
        for name in (
            "num_seeds",
            "offline_prompts",
            "offline_steps",
            "online_prompts",
            "online_reuse",
            "record_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, the best and another; got {self.num_samples}")
        if self.online_collections < 16:
            raise ValueError(f"online_collections must be at least 16; got {self.online_collections}")
        if len(self.prompt_counts) < 2 or min(self.prompt_counts) < 1:
            raise ValueError(f"prompt_counts must be two or more positive numbers; got {self.prompt_counts}")
        for name in ("online_rate", "beta", "target_gap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.offline_steps % self.record_every:
            raise ValueError(
                f"record_every must divide offline_steps={self.offline_steps}; got {self.record_every}"
            )


PRESETS = {
    "smoke": Config(
        num_seeds=2, offline_prompts=4, offline_steps=4, prompt_counts=(2, 3), online_reuse=2,
        online_collections=16, online_prompts=2, record_every=1,
    ),
    "toy": Config(),
}  # fmt: skip
SECONDS = {"smoke": 12.0, "toy": 100.0}

PAPER = "arXiv:2404.14367, section 5.2"
CLAIMS = (
    ClaimSpec(
        claim="offline on R1, IPO's negative gradient reaches a higher reward than best-of-n",
        paper=PAPER, artefact="B4", statistic="final reward, IPO less best-of-n", relation=">=",
        threshold=0.29,
        metric="summary/R1_ipo_lead",
    ),
    ClaimSpec(
        claim="offline on R2, where reward and reference overlap, both do alike", control=True,
        paper=PAPER, artefact="B4", statistic="final reward, absolute difference", relation="<",
        threshold=0.05,
        metric="summary/R2_difference",
    ),
    ClaimSpec(
        claim="offline best-of-n stays at the mean best of ten draws from the reference",
        paper=PAPER, artefact="B4", statistic="distance of the final R1 reward from .314", relation="<=",
        threshold=0.05, metric="summary/R1_ceiling_distance",
    ),
    ClaimSpec(
        claim="with few prompts IPO raises the best responses' log-probability (R1)",
        paper="arXiv:2404.14367, figure 16", artefact="B5", relation=">", threshold=0.0,
        statistic="final log-ratio of the best responses, fewest prompts, nats", metric="summary/R1_best_few",
    ),
    ClaimSpec(
        claim="with many prompts IPO lowers the best responses' log-probability too (R1)",
        paper="arXiv:2404.14367, figure 16", artefact="B5", relation="<", threshold=0.0,
        statistic="final log-ratio of the best responses, most prompts, nats", metric="summary/R1_best_many",
    ),
    ClaimSpec(
        claim="IPO lowers the other responses at every number of prompts (R1)", reduce="max",
        paper="arXiv:2404.14367, figure 16", artefact="B5", relation="<", threshold=0.0,
        statistic="largest final log-ratio of the other responses, nats", metric="summary/R1_rest_highest",
    ),
    ClaimSpec(
        claim="the implicit margin grows at every number of prompts (R1)", reduce="min",
        paper="arXiv:2404.14367, figure 16", artefact="B5", relation=">", threshold=4.0,
        statistic="least final margin of best over other responses, nats", metric="summary/R1_margin_least",
    ),
    ClaimSpec(
        claim="where the peaks overlap (R2) the best responses rise at every number of prompts", control=True,
        paper="arXiv:2404.14367, figure 16", artefact="B5", relation=">", threshold=0.0,
        statistic="least over the sweep of the best responses' final log-ratio, nats",
        metric="summary/R2_best_least",
    ),
    ClaimSpec(
        claim="reusing on-policy samples learns more from as many samples, for every method (R1)",
        paper="arXiv:2404.14367, section 5.1", artefact="B4", relation=">=", threshold=0.4,
        statistic="reward after 16 collections, T = 15 less T = 1, least over the methods",
        metric="summary/R1_reuse_gain",
    ),
)  # fmt: skip


def bound_loss(method: str, config: Config):
    hyperparameters = {
        "dpo_all_pairs": {"beta": config.beta},
        "ipo_all_pairs": {"target_gap": config.target_gap, "min_reward_gap": config.min_reward_gap},
    }
    return bind_sampled(method, **hyperparameters.get(method, {}))


@functools.partial(jax.jit, static_argnames="num_prompts")
def starts(keys: Array, num_prompts: int):
    """A pretrained policy with its contexts for every seed, once for each reward."""
    start = functools.partial(contextual_bandit.start, num_prompts=num_prompts)
    return bandit_runs.tile(jax.vmap(start)(keys), len(REWARDS))


def reward_tables() -> Array:
    return jnp.stack([bandits.reward(name).table for name in REWARDS])


def make_runner(config: Config, num_steps: int, every: int, methods: tuple[str, ...]):
    """`runner(starts, method, rate, keys, reuse) -> records`, compiled once for each number of prompts."""
    sweep = contextual_bandit.make_sweep(
        [bound_loss(method, config) for method in methods], num_samples=config.num_samples,
        num_steps=num_steps, eval_every=every,
    )  # fmt: skip

    def runner(start, method: str, rate: float, keys: Array, reuse: int = bandit_runs.OFFLINE) -> Arrays:
        settings = bandit_runs.grid(
            method=methods.index(method), learning_rate=rate, rewards=reward_tables(), keys=keys, reuse=reuse
        )
        return bandit_runs.recorded(sweep(settings, start), num_rewards=len(REWARDS), every=every)

    return runner


def store(writer: RunWriter, records: Arrays, every: int, **labels) -> None:
    steps = [every * record for record in range(records["loss"].shape[-1])]
    for index, reward in enumerate(REWARDS):
        writer.write_curves(
            {name: values[index] for name, values in records.items()}, steps, reward=reward, **labels
        )


def run_offline(config: Config, writer: RunWriter, keys: tuple[Array, Array]) -> None:
    """Every offline method on one batch from the reference."""
    runner = make_runner(config, config.offline_steps, config.record_every, tuple(OFFLINE_RATES))
    start, final = starts(keys[0], config.offline_prompts), {}
    for method, rate in OFFLINE_RATES.items():
        records = runner(start, method, rate, keys[1])
        store(writer, records, config.record_every, part="offline", method=method, learning_rate=rate)
        final[method] = records["reward/eval"][..., -1]
    lead = final["ipo_all_pairs"] - final["best_of_n"]
    writer.write_summary(
        {
            "summary/R1_ipo_lead": lead[0],
            "summary/R2_difference": np.abs(lead[1]),
            "summary/R1_ceiling_distance": np.abs(final["best_of_n"][0] - ONE_TOKEN_BEST_OF_10),
        }
    )


def run_prompt_sweep(config: Config, writer: RunWriter, keys: tuple[Array, Array]) -> None:
    """IPO with more and more prompts: what becomes of the best responses' log-ratio."""
    runner = make_runner(config, config.offline_steps, config.record_every, ("ipo_all_pairs",))
    best, rest = [], []
    for num_prompts in config.prompt_counts:
        rate = OFFLINE_RATES["ipo_all_pairs"]
        records = runner(starts(keys[0], num_prompts), "ipo_all_pairs", rate, keys[1])
        store(writer, records, config.record_every, part="prompts", num_prompts=num_prompts)
        best.append(records["logratios/best"][..., -1])
        rest.append(records["logratios/rest"][..., -1])
        writer.progress(0.3 + 0.04 * len(best), f"{num_prompts} prompts")
    write_sweep_summary(writer, np.stack(best), np.stack(rest))


def write_sweep_summary(writer: RunWriter, best: np.ndarray, rest: np.ndarray) -> None:
    """Of log-ratios [prompt counts, rewards, seeds]."""
    writer.write_summary(
        {
            "summary/R1_best_few": best[0, 0],
            "summary/R1_best_many": best[-1, 0],
            "summary/R1_rest_highest": rest[:, 0].max(0),
            "summary/R1_margin_least": (best - rest)[:, 0].min(0),
            "summary/R2_best_least": best[:, 1].min(0),
        }
    )


def run_online(config: Config, writer: RunWriter, keys: tuple[Array, Array]) -> None:
    """Every method on its own samples, each used once or `online_reuse` times."""
    start, gains = starts(keys[0], config.online_prompts), []
    runners = {
        reuse: make_runner(config, config.online_collections * reuse, reuse, ONLINE)
        for reuse in (1, config.online_reuse)
    }
    for method in ONLINE:
        rewards = {}
        for reuse, runner in runners.items():
            records = runner(start, method, config.online_rate, keys[1], reuse)
            kept = {name: records[name] for name in ONLINE_METRICS}
            store(writer, kept, reuse, part="online", method=method, reuse=reuse)
            rewards[reuse] = records["reward/eval"][0, :, 16]  # R1 after 16 collections
        gains.append(rewards[config.online_reuse] - rewards[1])
        writer.progress(0.55 + 0.07 * len(gains), method)
    writer.write_summary({"summary/R1_reuse_gain": np.min(gains, axis=0)})


def run(config: Config, writer: RunWriter) -> None:
    """Offline methods, IPO against the number of prompts, on-policy methods."""
    context_key, run_key = jax.random.split(jax.random.key(config.seed))
    keys = (jax.random.split(context_key, config.num_seeds), jax.random.split(run_key, config.num_seeds))
    run_offline(config, writer, keys)
    writer.progress(0.3, "number of prompts")
    run_prompt_sweep(config, writer, keys)
    run_online(config, writer, keys)
