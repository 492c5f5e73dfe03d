"""Are fresh samples and negative gradients complementary? Nine tokens, on-policy. (Tajwar et al. 2024)

    python -m experiments run mode_seeking/bandit_nd_online --preset toy --out results/bandit_nd_online

Two minutes on two cores. Best-of-n and REINFORCE on data of 1 to 10 minibatches a collection; five
methods with every sample reused ten times, and DPO on the first batch alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref import bandit_runs
from jaxpref.data import bandits
from jaxpref.losses.sampled_table import bind_sampled
from jaxpref.results import Arrays, ClaimSpec, RunWriter
from jaxpref.toys import sequence_bandit

REWARDS = tuple(bandits.PEAKS)
METHODS = ("reinforce", "dpo_all_pairs", "best_of_n", "rwr", "ppo_clip")
STALENESS = {"best_of_n": (1, 2, 5, 10), "reinforce": (1, 10)}  # minibatches a collection, B / M


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 3
    num_prompts: int = 10  # a minibatch
    num_samples: int = 10  # responses a prompt
    learning_rate: float = 1e-3
    stale_steps: int = 100  # of the sweep over B / M
    reuse: int = 10  # gradient steps a collection, T, where methods are compared
    reuse_steps: int = 60
    early_step: int = 15
    beta: float = 0.1  # of DPO
    eval_prompts: int = 100
    record_every: int = 5  # steps
    pretrain_steps: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "num_prompts", "reuse", "eval_prompts", "record_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, the best and another; got {self.num_samples}")
        for name in ("stale_steps", "reuse_steps", "early_step"):
            if getattr(self, name) % self.record_every:
                raise ValueError(f"record_every={self.record_every} must divide {name}={getattr(self, name)}")
        if not 0 < self.early_step <= self.reuse_steps:
            raise ValueError(f"early_step must be in (0, reuse_steps]; got {self.early_step}")
        for name in ("learning_rate", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(
        num_seeds=2, num_prompts=2, num_samples=3, stale_steps=2, reuse=2, reuse_steps=2, early_step=1,
        eval_prompts=4, record_every=1, pretrain_steps=2,
    ),
    "toy": Config(),
}  # fmt: skip
SECONDS = {"smoke": 20.0, "toy": 235.0}

SWEEP, BOTH = "arXiv:2404.14367, figure 4", "arXiv:2404.14367, figure 18"
CLAIMS = (
    *(
        ClaimSpec(
            claim=f"the fresher the data, the higher best-of-n's reward ({reward})",
            paper=SWEEP, artefact="B1", relation=">", threshold=0.0,
            statistic="final reward, B/M = 1 less B/M = 10", metric=f"summary/{reward}_staleness_cost",
        )
        for reward in REWARDS
    ),
    ClaimSpec(
        claim="the seeds' mean reward of best-of-n falls with every step in B/M (R1)", reduce="min",
        paper=SWEEP, artefact="B1", relation=">", threshold=0.0, unit="means over the seeds",
        statistic="least fall of the mean final reward between neighbours in B/M",
        metric="summary/R1_staleness_least_fall",
    ),
    ClaimSpec(
        claim="stale data costs best-of-n at least twice as much where the peaks are disjoint",
        paper=SWEEP, artefact="B1", relation=">=", threshold=0.0,
        statistic="cost of B/M = 10 in final reward, R1 less twice R2",
        metric="summary/staleness_cost_R1_less_twice_R2",
    ),
    ClaimSpec(
        claim="stale data hardly costs REINFORCE anything (R1)", control=True,
        paper="specification B1", artefact="B1", relation="<=", threshold=0.05,
        statistic="final reward, B/M = 1 less B/M = 10", metric="summary/R1_reinforce_staleness_cost",
    ),
    ClaimSpec(
        claim="fresh samples make DPO far better than the same loss on offline data (R1)",
        paper=BOTH, artefact="B6", relation=">=", threshold=0.5,
        statistic="final reward, on-policy DPO less offline DPO", metric="summary/R1_online_gain",
    ),
    ClaimSpec(
        claim="on-policy, methods with a negative gradient lead the others early (R1)",
        paper=BOTH, artefact="B6", relation=">=", threshold=0.15,
        statistic="reward at step 15, worse of REINFORCE and DPO less better of best-of-n and RWR",
        metric="summary/R1_early_lead",
    ),
    ClaimSpec(
        claim="where the peaks overlap (R2) there is no such lead", control=True,
        paper=BOTH, artefact="B6", relation="<", threshold=0.15,
        statistic="reward at step 15, worse of REINFORCE and DPO less better of best-of-n and RWR",
        metric="summary/R2_early_lead",
    ),
)  # fmt: skip


def make_runner(config: Config, num_steps: int, references, keys: Array):
    """`runner(method, minibatches, reuse) -> records [rewards, seeds, records]`, compiled once."""
    losses = [
        bind_sampled(name, **({"beta": config.beta} if name == "dpo_all_pairs" else {})) for name in METHODS
    ]
    sweep = sequence_bandit.make_sweep(
        losses, num_prompts=config.num_prompts, num_samples=config.num_samples,
        eval_prompts=config.eval_prompts, num_steps=num_steps, eval_every=config.record_every,
    )  # fmt: skip
    tables = jnp.stack([bandits.reward(name).table for name in REWARDS])

    def runner(method: str, minibatches: int, reuse: int) -> Arrays:
        settings = bandit_runs.grid(
            method=METHODS.index(method), learning_rate=config.learning_rate, rewards=tables, keys=keys,
            minibatches=minibatches, reuse=reuse,
        )  # fmt: skip
        metrics = sweep(settings, bandit_runs.tile(references, len(REWARDS)))
        return bandit_runs.recorded(metrics, num_rewards=len(REWARDS), every=config.record_every)

    return runner


def store(writer: RunWriter, records: Arrays, config: Config, **labels) -> np.ndarray:
    """Writes the curves; returns the rewards of fresh responses, [rewards, seeds, records]."""
    steps = [config.record_every * record for record in range(records["loss"].shape[-1])]
    for place, reward in enumerate(REWARDS):
        writer.write_curves(
            {name: values[place] for name, values in records.items()}, steps, reward=reward, **labels
        )
    return records["reward/eval"]


def run_staleness(config: Config, writer: RunWriter, runner) -> None:
    """Best-of-n and REINFORCE, every sample used once, on data of more and more minibatches."""
    final = {}
    for method, staleness in STALENESS.items():
        for minibatches in staleness:
            name = f"stale_{method}_{minibatches}"
            records = writer.part(name, lambda m=method, n=minibatches: runner(m, n, 1))
            labels = {"part": "staleness", "method": method, "minibatches": minibatches}
            final[method, minibatches] = store(writer, records, config, **labels)[..., -1]
            writer.progress(0.1 + 0.1 * len(final), name)
    write_staleness_summary(writer, final)


def write_staleness_summary(writer: RunWriter, final: dict[tuple[str, int], np.ndarray]) -> None:
    """Of the final rewards [rewards, seeds]."""
    cost = final["best_of_n", 1] - final["best_of_n", 10]
    means = np.array([final["best_of_n", n][0].mean() for n in STALENESS["best_of_n"]])
    writer.write_summary(
        {
            "summary/R1_staleness_cost": cost[0],
            "summary/R2_staleness_cost": cost[1],
            "summary/staleness_cost_R1_less_twice_R2": cost[0] - 2 * cost[1],
            "summary/R1_reinforce_staleness_cost": (final["reinforce", 1] - final["reinforce", 10])[0],
        }
    )
    writer.write_summary({"summary/R1_staleness_least_fall": (-np.diff(means)).min()})


def run_comparison(config: Config, writer: RunWriter, runner) -> None:
    """Five methods with reuse, and DPO that never collects again."""
    rewards = {}
    for method, reuse in [*((m, config.reuse) for m in METHODS), ("dpo_all_pairs", bandit_runs.OFFLINE)]:
        source = "offline" if reuse == bandit_runs.OFFLINE else "on-policy"
        records = writer.part(f"{source}_{method}", lambda m=method, t=reuse: runner(m, 1, t))
        labels = {"part": "comparison", "method": method, "data": source}
        rewards[method, source] = store(writer, records, config, **labels)
        writer.progress(0.7 + 0.05 * len(rewards), f"{source} {method}")
    write_comparison_summary(writer, rewards, config)


def write_comparison_summary(writer: RunWriter, rewards: dict[tuple[str, str], np.ndarray], config: Config):
    """Of the rewards [rewards, seeds, records]."""
    online = {method: rewards[method, "on-policy"] for method in METHODS}
    gain = online["dpo_all_pairs"] - rewards["dpo_all_pairs", "offline"]
    early = {
        method: values[..., config.early_step // config.record_every] for method, values in online.items()
    }
    contrastive = np.minimum(early["reinforce"], early["dpo_all_pairs"])
    lead = contrastive - np.maximum(early["best_of_n"], early["rwr"])
    writer.write_summary(
        {
            "summary/R1_online_gain": gain[0, :, -1],
            "summary/R1_early_lead": lead[0],
            "summary/R2_early_lead": lead[1],
        }
    )


def run(config: Config, writer: RunWriter) -> None:
    """A reference a seed; the sweep over staleness; the methods side by side."""
    pretrain_key, run_key = jax.random.split(jax.random.key(config.seed))
    references = sequence_bandit.references(
        jax.random.split(pretrain_key, config.num_seeds), num_steps=config.pretrain_steps
    )
    keys = jax.random.split(run_key, config.num_seeds)
    run_staleness(config, writer, make_runner(config, config.stale_steps, references, keys))
    run_comparison(config, writer, make_runner(config, config.reuse_steps, references, keys))
