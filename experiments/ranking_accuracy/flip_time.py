"""How long until DPO flips a pair that the reference ranks wrongly? (after Chen et al. 2024)

    python -m experiments run ranking_accuracy/flip_time --preset toy --out results/ranking_accuracy/flip_time

Four seconds on two cores. Gradient flow on a softmax table, a prompt a pair, float64: the time is
(e^z - 1 + z) / (kappa beta^2) with z = beta c, to 0.2 %. A push that did not fade would need time
proportional to c; at z = 5 that is off by a factor of fifteen.
"""  # fmt: skip

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxpref import losses, train
from jaxpref.pairs import IndexPairs
from jaxpref.policies import tabular
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.theory import ranking as theory

RATE = 2.0  # the flow's rate: squared norm of the margin's gradient by the two logits of a table
CURVE_POINTS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    beta: float = 0.1
    min_gap: float = 1.0  # reference gap c, nats
    max_gap: float = 50.0
    num_pairs: int = 12
    time_step: float = 0.5  # of the flow's Euler steps
    num_steps: int = 17_000  # the largest gap flips after 15,242
    num_seeds: int = 4
    seed: int = 0

    def __post_init__(self):
        for name in ("beta", "min_gap", "time_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.max_gap <= self.min_gap:
            raise ValueError(f"max_gap must be above min_gap={self.min_gap}; got {self.max_gap}")
        for name in ("num_pairs", "num_steps", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


PRESETS = {"smoke": Config(max_gap=10.0, num_steps=400, num_seeds=2), "toy": Config()}
SECONDS = {"smoke": 3.0, "toy": 4.0}

PAPER = "Chen et al. 2024, arXiv:2405.19534, after theorem 4.1 (gradient-flow form derived by us)"
CLAIMS = (
    ClaimSpec(
        claim="a pair flips after (e^z - 1 + z) / (kappa beta^2), z = beta c: exponentially late",
        paper=PAPER, artefact="P16", metric="summary/time_error",
        statistic="largest relative error of the predicted flip time", relation="<=", threshold=0.01,
        reduce="max",
    ),
    ClaimSpec(
        claim="a push of step 0's strength throughout would not predict it",
        paper=PAPER, artefact="P16", metric="summary/constant_push_error",
        statistic="largest relative error of 2 c / (kappa beta)", relation=">=", threshold=0.5,
        reduce="min", control=True,
    ),
)  # fmt: skip


def make_gaps(key: Array, config: Config) -> Array:
    """Reference gaps spread evenly in logarithm, jittered within their cells; the largest is `max_gap`."""
    cell = jnp.arange(config.num_pairs) + jax.random.uniform(key, (config.num_pairs,))
    share = (cell / config.num_pairs).at[-1].set(1.0)
    return config.min_gap * (config.max_gap / config.min_gap) ** share


def flow(gap: Array, config: Config) -> Array:
    """Margins along gradient flow on the DPO loss of each pair, [steps, pairs], nats.

    A prompt has the two responses of its pair, and the reference prefers the rejected one by `gap`.
    """
    params = tabular.TabularParams(jnp.stack([jnp.zeros_like(gap), gap], axis=1))
    pairs = IndexPairs(jnp.arange(len(gap)), jnp.zeros(len(gap), int), jnp.ones(len(gap), int))
    pairs = pairs._replace(reference=tabular.pair_logps(params, pairs))
    mean_loss = train.pair_objective(tabular.pair_logps, losses.bind("dpo", beta=config.beta))

    def objective(params, batch):
        loss, metrics = mean_loss(params, batch)
        return loss * len(gap), metrics | {"margin": tabular.pair_logps(params, batch).margin}

    optimizer = optax.sgd(config.time_step)
    state = train.init_state(params, optimizer)
    return train.fit_fixed(train.make_step(objective, optimizer), state, pairs, config.num_steps)[1]["margin"]


def crossing_time(margin: Array, time_step: float) -> Array:
    """When each margin reaches 0, [pairs], interpolated between steps; infinite if it never does."""
    after = jnp.argmax(margin >= 0, axis=0)
    pairs = jnp.arange(margin.shape[1])
    before, at = margin[after - 1, pairs], margin[after, pairs]
    steps = after - at / (at - before)
    return jnp.where(jnp.any(margin >= 0, axis=0), steps * time_step, jnp.inf)


def measure(key: Array, config: Config) -> dict[str, Array]:
    """One seed: gaps, measured and predicted flip times, thinned trajectories."""
    gap = make_gaps(key, config)
    margin = flow(gap, config)
    return {
        "reference_gap": gap,
        "measured": crossing_time(margin, config.time_step),
        "predicted": theory.time_to_flip(gap, beta=config.beta, rate=RATE),
        "constant_push": gap / (RATE * theory.initial_weight(gap, beta=config.beta)),
        "margin": margin[recorded_steps(config)],
    }


def recorded_steps(config: Config) -> np.ndarray:
    """Steps at which trajectories are kept, evenly spread in logarithm."""
    return np.unique(np.geomspace(1, config.num_steps, CURVE_POINTS).astype(int) - 1)


def run(config: Config, writer: RunWriter) -> None:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
        found = jax.device_get(jax.jit(jax.vmap(functools.partial(measure, config=config)))(keys))
    margin, steps = found.pop("margin"), recorded_steps(config).tolist()
    for pair in range(config.num_pairs):
        writer.write_curves({"logps/margin": margin[:, :, pair]}, steps, pair=pair)
    seeds = np.repeat(np.arange(config.num_seeds), config.num_pairs)
    pairs = np.tile(np.arange(config.num_pairs), config.num_seeds)
    writer.table({"seed": seeds, "pair": pairs} | {k: v.reshape(-1) for k, v in found.items()})
    error = lambda name: np.max(np.abs(found[name] / found["measured"] - 1), axis=1)
    writer.write_summary(
        {"summary/time_error": error("predicted"), "summary/constant_push_error": error("constant_push")}
    )
