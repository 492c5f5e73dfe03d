"""Is the exact optimum of preference learning where theorem 3.1 puts it? (Chen et al. 2024)

    python -m experiments run ranking_accuracy/optimum --preset toy --out results/ranking_accuracy/optimum

Five seconds on two cores. Every pair of six responses, raters of Bradley and Terry, a free table of
logits, float64: DPO on all votes ends within 1e-12 nats of -c + logit(alpha) / beta for every beta; so does
the closed form of regularized reward, to rounding; on majority labels alone DPO has nowhere to end.
"""  # fmt: skip

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxpref import losses, train
from jaxpref.pairs import IndexPairs, PairLogps
from jaxpref.policies import tabular
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.theory import divergence
from jaxpref.theory import ranking as theory

PAPER = "Chen et al. 2024, arXiv:2405.19534, "
LABELS = ("votes", "majority")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_responses: int = 6
    betas: tuple[float, ...] = (0.05, 0.1, 1.0, 5.0)
    reward_scale: float = 1.0  # standard deviation of the true rewards, nats
    reference_scale: float = 2.0  # standard deviation of the reference's logits
    learning_rate: float = 20.0  # over beta^2, the scale of the loss's curvature
    num_steps: int = 4000
    num_recorded: int = 40  # steps
    num_seeds: int = 8
    seed: int = 0

    def __post_init__(self):
        for name, least in (("num_responses", 2), ("num_steps", 2), ("num_recorded", 1), ("num_seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not self.betas or min(self.betas) <= 0:
            raise ValueError(f"betas must be positive and at least one; got {self.betas}")


PRESETS = {"smoke": Config(num_steps=400, num_seeds=2, betas=(0.1, 1.0)), "toy": Config()}
SECONDS = {"smoke": 5.0, "toy": 5.0}

CLAIMS = (
    ClaimSpec(
        claim="DPO on every vote ends at -c + logit(alpha) / beta, whatever beta",
        paper=PAPER + "theorem 3.1, eq. 2", artefact="P3", metric="summary/dpo_gap",
        statistic="largest distance of a margin from the theorem's, over pairs and betas, nats",
        relation="<=", threshold=1e-3, reduce="max",
    ),
    ClaimSpec(
        claim="the optimum of reward less beta KL has the same margins",
        paper=PAPER + "theorem 3.1", artefact="P3", metric="summary/rlhf_gap",
        statistic="largest distance of a margin from the theorem's, over pairs and betas, nats",
        relation="<=", threshold=1e-6, reduce="max",
    ),
    ClaimSpec(
        claim="idealized accuracy is that of the trained table, pair by pair",
        paper=PAPER + "corollary 3.3", artefact="P2", metric="summary/rank_disagreement",
        statistic="largest share of pairs, over betas, that table and formula rank differently",
        relation="<=", threshold=0.0, reduce="max",
    ),
    ClaimSpec(
        claim="with majority labels there is no optimum: reward margins still grow in the second half",
        paper=PAPER + "remark 3.2", artefact="P3", metric="summary/majority_growth",
        statistic="smallest growth of a mean reward margin over the second half of training, nats",
        relation=">=", threshold=0.1, reduce="min", control=True,
    ),
    ClaimSpec(
        claim="with votes it has stopped growing by then",
        paper=PAPER + "theorem 3.1", artefact="P3", metric="summary/votes_growth",
        statistic="largest growth of a mean reward margin over the second half of training, nats",
        relation="<=", threshold=1e-3, reduce="max",
    ),
)  # fmt: skip


class Problem(NamedTuple):
    """All ordered pairs of one prompt's responses, and how the raters split on each."""

    pairs: IndexPairs
    reference_gap: Array  # [pairs], nats
    vote_share: Array  # [pairs], of those who prefer the response called chosen
    start: tabular.TabularParams
    rewards: Array  # [responses], nats


def make_problem(key: Array, config: Config) -> Problem:
    """A random reference and random rewards; labels are both orders of a pair, weighted by their votes."""
    start_key, reward_key = jax.random.split(key)
    start = tabular.init(
        start_key, num_prompts=1, num_responses=config.num_responses, scale=config.reference_scale
    )
    rewards = config.reward_scale * jax.random.normal(reward_key, (config.num_responses,))
    chosen, rejected = jnp.nonzero(~jnp.eye(config.num_responses, dtype=bool), size=num_pairs(config))
    pairs = IndexPairs(jnp.zeros_like(chosen), chosen, rejected)
    reference = tabular.pair_logps(start, pairs)
    pairs = pairs._replace(reference=reference)
    return Problem(
        pairs, -reference.margin, jax.nn.sigmoid(rewards[chosen] - rewards[rejected]), start, rewards
    )


def num_pairs(config: Config) -> int:
    """Ordered pairs of responses."""
    return config.num_responses * (config.num_responses - 1)


def label_weights(problem: Problem, labels: str) -> Array:
    """How much each ordered pair counts: its share of the votes, or whether it has the majority."""
    return problem.vote_share if labels == "votes" else (problem.vote_share > 0.5).astype(float)


def optimize(problem: Problem, beta: Array, config: Config, labels: str) -> tuple[PairLogps, train.Metrics]:
    """Gradient descent on DPO over all ordered pairs; the final log-probabilities and the way there."""
    dpo, weights = losses.bind("dpo", beta=beta), label_weights(problem, labels)
    mean_loss = train.pair_objective(tabular.pair_logps, lambda policy, batch: weights * dpo(policy, batch))
    optimum = theory.idealized_margin(problem.reference_gap, problem.vote_share, beta=beta, eps=0.0)

    def objective(params, batch):
        margin = tabular.pair_logps(params, batch).margin
        reward_margin = theory.reward_margin(margin, problem.reference_gap, beta=beta)
        watched = {
            "summary/gap": jnp.max(jnp.abs(margin - optimum)),
            "rewards/margins": jnp.average(reward_margin, weights=problem.vote_share > 0.5),
        }
        loss, metrics = mean_loss(params, batch)
        return loss, metrics | watched

    optimizer = optax.sgd(config.learning_rate / beta**2)
    state = train.init_state(problem.start, optimizer)
    state, metrics = train.fit_fixed(
        train.make_step(objective, optimizer), state, problem.pairs, config.num_steps
    )
    return tabular.pair_logps(state.params, problem.pairs), metrics


def regularized_gap(problem: Problem, beta: Array) -> Array:
    """Distance of the closed-form optimum of the regularized reward from theorem 3.1, nats."""
    reference = tabular.response_logps(problem.start, jnp.zeros(1, int))[0]
    best = divergence.regularized_optimum(reference, problem.rewards, beta=beta)
    margin = best[problem.pairs.chosen] - best[problem.pairs.rejected]
    optimum = theory.idealized_margin(problem.reference_gap, problem.vote_share, beta=beta, eps=0.0)
    return jnp.max(jnp.abs(margin - optimum))


def measure(key: Array, beta: Array, config: Config) -> dict[str, Array]:
    """One seed at one beta."""
    problem = make_problem(key, config)
    trained, votes = optimize(problem, beta, config, "votes")
    _, majority = optimize(problem, beta, config, "majority")
    ideal = theory.idealized_margin(problem.reference_gap, problem.vote_share, beta=beta, eps=0.0)
    half = config.num_steps // 2
    growth = lambda curve: curve[-1] - curve[half]
    return {
        "dpo_gap": jnp.max(jnp.abs(trained.margin - ideal)),
        "rlhf_gap": regularized_gap(problem, beta),
        "rank_disagreement": jnp.mean((trained.margin > 0) != (ideal > 0)),
        "majority_growth": growth(majority["rewards/margins"]),
        "votes_growth": growth(votes["rewards/margins"]),
        "curves/votes": votes["rewards/margins"], "curves/majority": majority["rewards/margins"],
        "curves/gap": votes["summary/gap"],
        "pairs/margin": trained.margin, "pairs/optimum": ideal, "pairs/reference_gap": problem.reference_gap,
        "pairs/vote_share": problem.vote_share,
    }  # fmt: skip


def run(config: Config, writer: RunWriter) -> None:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
        one_seed = jax.vmap(functools.partial(measure, config=config), in_axes=(None, 0))
        sweep = jax.jit(jax.vmap(one_seed, in_axes=(0, None)))
        found = jax.device_get(sweep(keys, jnp.array(config.betas)))  # [seeds, betas, ...]
    write_curves(config, writer, found)
    write_pairs(config, writer, found)
    worst = {name: found[name].max(axis=1) for name in ("dpo_gap", "rlhf_gap", "rank_disagreement")}
    worst["votes_growth"] = found["votes_growth"].max(axis=1)
    worst["majority_growth"] = found["majority_growth"].min(axis=1)
    writer.write_summary({f"summary/{name}": values for name, values in worst.items()})


def recorded_steps(config: Config) -> list[int]:
    """Steps at which curves are kept: evenly spread in logarithm, half-way and the last among them."""
    spread = np.unique(np.geomspace(1, config.num_steps, config.num_recorded).astype(int) - 1)
    return sorted({*spread.tolist(), config.num_steps // 2})


def write_curves(config: Config, writer: RunWriter, found: dict[str, Array]) -> None:
    """Reward margins and the distance from the optimum on the way there."""
    steps = recorded_steps(config)
    for index, beta in enumerate(config.betas):
        curves = {labels: found[f"curves/{labels}"][:, index][:, steps] for labels in LABELS}
        for labels, curve in curves.items():
            writer.write_curves({"rewards/margins": curve}, steps, beta=beta, labels=labels)
        gap = found["curves/gap"][:, index][:, steps]
        writer.write_curves({"ranking/optimum_gap": gap}, steps, beta=beta, labels="votes")


def write_pairs(config: Config, writer: RunWriter, found: dict[str, Array]) -> None:
    """Trained and predicted margin of every ordered pair."""
    shape = found["pairs/margin"].shape  # seeds, betas, pairs
    seeds, betas, _ = jnp.meshgrid(*map(jnp.arange, shape), indexing="ij")
    columns = {name: found[f"pairs/{name}"] for name in ("margin", "optimum", "reference_gap", "vote_share")}
    columns |= {"seed": seeds, "beta": jnp.array(config.betas)[betas]}
    writer.table({name: values.reshape(-1) for name, values in columns.items()})
