"""Does one gradient step do what the gradients' inner products predict, alone and in a batch? (condition 1)

    python -m experiments run gradient_entanglement/first_order --out DIR

Half a minute on two cores, float64. A pair's own step follows the prediction up to a learning rate of
1e-2; in a batch the other pairs' gradients decide, and chosen responses fall that would rise alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from experiments.gradient_entanglement.claims import claim
from jaxpref import losses, train
from jaxpref.data import synthetic_sentiment as sentiment
from jaxpref.pairs import PairLogps, TokenPairs
from jaxpref.probes import gradients
from jaxpref.probes.gradients import BatchGradientProducts
from jaxpref.results import Arrays, RunWriter
from jaxpref.theory import gradients as theory
from jaxpref.toys import sentiment as toy
from jaxpref.toys.sentiment import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Recipe = toy.EXPECTED
    suffix_lengths: tuple[int, ...] = (1, 6)
    num_pairs: int = 64  # the batch; each is also stepped on alone
    rates: tuple[float, ...] = (1e-5, 1e-4, 5e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # plain gradient descent
    trusted_rate: float = 1e-2  # up to here the prediction is claimed to hold
    small_rate: float = 1e-3  # and half of it: where signs and the order of the error are looked at
    beta: float = 0.1
    num_seeds: int = 3
    seed: int = 0

    def __post_init__(self):
        for name in ("small_rate", "trusted_rate"):
            if getattr(self, name) not in self.rates:
                raise ValueError(f"{name} must be one of rates={self.rates}; got {getattr(self, name)}")
        if self.small_rate / 2 not in self.rates:
            raise ValueError(f"rates must hold half of small_rate={self.small_rate}; got {self.rates}")
        if max(self.suffix_lengths) > sentiment.SLOTS or min(self.suffix_lengths) < 0:
            raise ValueError(f"suffix_lengths must be in [0, {sentiment.SLOTS}]; got {self.suffix_lengths}")
        for name in ("num_pairs", "num_seeds"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(recipe=toy.shrunk(toy.EXPECTED), num_pairs=3, num_seeds=2, suffix_lengths=(1,)),
    "toy": Config(),
}
SECONDS = {"smoke": 12.0, "toy": 45.0}
CLAIMS = (
    claim("R3", "a pair's own step moves both responses as predicted", "equations 3 to 5",
          "least correlation of predicted and actual change over pairs, rates up to 1e-2",
          "correlation_least",
          ">", 0.999, reduce="min"),
    claim("R3", "the error is of second order: it halves with the learning rate", "equations 3 to 5",
          "|ratio of relative errors at 1e-3 and 5e-4, less 2|, worst", "halving_error", "<=", 0.2,
          reduce="max"),
    claim("R3", "the signs of a pair's own step are predicted right", "condition 1",
          "share of right signs at learning rate 1e-3, both responses", "signs_right_own", ">=", 0.95),
    claim("R10", "the sum over the batch is the derivative along the batch gradient", "section 3.1, derived",
          "largest difference relative to the largest change", "batch_sum_error", "<=", 1e-5, reduce="max"),
    claim("R10", "the batch prediction is right about a batch step", "section 3.1, derived",
          "relative error of the mean chosen change at 1e-3, worst suffix", "batch_mean_error", "<=", 0.003,
          reduce="max"),
    claim("R10", "in a batch, chosen responses fall that would rise alone", "section 3.1, derived",
          "share falling in a batch step at 1e-3 among those in case 1 alone, one suffix token",
          "falls_in_batch_share", ">", 0.5),
    claim("R10", "a pair's own prediction is worse at the signs of a batch step than the batch's", "derived",
          "share of right signs of the chosen change at 1e-3, batch less own", "signs_batch_less_own",
          ">", 0.0,          control=True),
)  # fmt: skip


class Steps(NamedTuple):
    """Changes of log-probabilities per pair, nats; predicted ones per unit learning rate."""

    own_predicted: PairLogps  # [pairs]
    own_actual: PairLogps  # [rates, pairs]
    batch_predicted: PairLogps  # along the batch gradient, [pairs]
    batch_summed: PairLogps  # as the sum over all cross-pair products, [pairs]
    batch_actual: PairLogps  # [rates, pairs]
    case: Array  # of each pair alone


def _descent(loss_fn, params: PyTree, batch: TokenPairs) -> PyTree:
    """Minus the gradient of the mean loss: what gradient descent follows, from the train step's objective."""
    objective = train.pair_objective(toy.pair_logps, loss_fn)
    grads, _ = jax.grad(objective, has_aux=True)(params, batch)
    return jax.tree.map(jnp.negative, grads)


def _after(params: PyTree, direction: PyTree, batch: TokenPairs, rates: Array) -> PairLogps:
    """Actual change of the batch's log-probabilities after a step at each rate, [rates, pairs]."""
    moved = lambda rate: jax.tree.map(lambda p, d: p + rate * d, params, direction)
    stepped = jax.lax.map(lambda rate: toy.pair_logps(moved(rate), batch), rates)
    return jax.tree.map(jnp.subtract, stepped, toy.pair_logps(params, batch))


@functools.partial(jax.jit, static_argnames="config")
def _steps(params: PyTree, key: Array, slots: Array, *, config: Config) -> Steps:
    """One model: a step on each pair alone, and one on all of them together."""
    loss_fn, rates = losses.bind("dpo", beta=config.beta), jnp.array(config.rates)
    batch = toy.with_reference(params, sentiment.pairs(key, config.num_pairs, slots))
    products: BatchGradientProducts = gradients.batch_gradient_products(toy.pair_logps, params, batch)
    weights = losses.gradient_weights(loss_fn, toy.pair_logps(params, batch), batch)

    def alone(pair: TokenPairs) -> PairLogps:
        pair = jax.tree.map(lambda x: x[None], pair)
        change = _after(params, _descent(loss_fn, params, pair), pair, rates)
        return jax.tree.map(lambda x: x[:, 0], change)

    together = _descent(loss_fn, params, batch)
    return Steps(
        own_predicted=theory.predicted_change(products.own, weights),
        own_actual=jax.tree.map(jnp.transpose, jax.lax.map(alone, batch)),
        batch_predicted=gradients.directional(toy.pair_logps, params, together, batch),
        batch_summed=theory.predicted_batch_change(products, weights),
        batch_actual=_after(params, together, batch, rates),
        case=theory.case(products.own, weights),
    )


def _run_one(config: Config, slots: int) -> Arrays:
    """All seeds, flattened to arrays [seeds, ...]."""
    keys = toy.keys(config.seed)
    starts = toy.starts(config.recipe, keys, config.num_seeds, slots)
    pair_keys = jax.random.split(keys.held_out, config.num_seeds)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), starts)
        one_seed = lambda s: _steps(jax.tree.map(lambda x: x[s], wide), pair_keys[s], slots, config=config)
        seeds = [jax.device_get(one_seed(s)) for s in range(config.num_seeds)]
    stacked = jax.tree.map(lambda *values: np.stack(values), *seeds)
    flat = {"case": stacked.case}
    for name in Steps._fields[:-1]:
        for side, values in getattr(stacked, name)._asdict().items():
            flat[f"{name}_{side}"] = values
    return flat


SIDES = ("chosen", "rejected")


def _relative_error(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Root mean square over the pairs, relative to that of the actual change."""
    rms = lambda x: np.sqrt(np.mean(x**2, axis=-1))
    return rms(predicted - actual) / rms(actual)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's, over the last axis."""
    centred = [x - x.mean(-1, keepdims=True) for x in (first, second)]
    norm = np.sqrt(np.prod([np.sum(x**2, axis=-1) for x in centred], axis=0))
    return np.sum(centred[0] * centred[1], axis=-1) / norm


def _by_rate(seen: Arrays, config: Config, kind: str) -> Arrays:
    """How good the prediction `kind` (own, batch) is at every rate: [seeds, rates] each."""
    rates = np.array(config.rates)[:, None]
    table = {}
    for side in SIDES:
        predicted, actual = seen[f"{kind}_predicted_{side}"][:, None] * rates, seen[f"{kind}_actual_{side}"]
        table[f"forecast/{kind}_correlation_{side}"] = _correlation(predicted, actual)
        table[f"forecast/{kind}_error_{side}"] = _relative_error(predicted, actual)
        table[f"forecast/{kind}_signs_right_{side}"] = np.mean(np.sign(predicted) == np.sign(actual), axis=-1)
    return table


def _statistics(seen: Arrays, config: Config) -> Arrays:
    """One value a seed, for one suffix length."""
    at = {rate: index for index, rate in enumerate(config.rates)}
    small, half = at[config.small_rate], at[config.small_rate / 2]
    own = _by_rate(seen, config, "own")
    trusted = np.array(config.rates) <= config.trusted_rate
    correlations = [own[f"forecast/own_correlation_{side}"] for side in SIDES]
    ratios = [own[f"forecast/own_error_{side}"] for side in SIDES]
    batch_chosen = seen["batch_actual_chosen"][:, small]
    mean_predicted = config.small_rate * seen["batch_predicted_chosen"].mean(-1)
    signs = lambda kind: np.mean(np.sign(seen[f"{kind}_predicted_chosen"]) == np.sign(batch_chosen), axis=-1)
    alone_ideal = seen["case"] == 1
    return {
        "correlation_least": np.min([c[:, trusted].min(-1) for c in correlations], axis=0),
        "halving_error": np.max([np.abs(r[:, small] / r[:, half] - 2) for r in ratios], axis=0),
        "signs_right_own": np.mean([own[f"forecast/own_signs_right_{s}"][:, small] for s in SIDES], axis=0),
        "batch_sum_error": _sum_error(seen),
        "batch_mean_error": np.abs(mean_predicted / batch_chosen.mean(-1) - 1),
        "falls_in_batch_share": np.sum(alone_ideal & (batch_chosen < 0), axis=-1) / alone_ideal.sum(-1),
        "signs_batch_less_own": signs("batch") - signs("own"),
        "case1_share": alone_ideal.mean(-1),
        "batch_mean_change_rate": batch_chosen.mean(-1) / config.small_rate,
        "own_term_share": np.mean(seen["own_predicted_chosen"], -1) / config.num_pairs
        / seen["batch_predicted_chosen"].mean(-1),
    }  # fmt: skip


def _sum_error(seen: Arrays) -> np.ndarray:
    """Sum over cross-pair products against the derivative along the batch gradient."""
    off = [np.abs(seen[f"batch_summed_{s}"] - seen[f"batch_predicted_{s}"]).max(-1) for s in SIDES]
    size = [np.abs(seen[f"batch_predicted_{s}"]).max(-1) for s in SIDES]
    return np.max(np.array(off) / np.array(size), axis=0)


WORST = {"correlation_least": np.min, "signs_right_own": np.min}
AT_ONE_TOKEN = ("falls_in_batch_share", "signs_batch_less_own")


def _summary(by_suffix: dict[int, Arrays]) -> Arrays:
    """The worst suffix length for each claim; claims about batches speak of the shortest suffix."""
    shortest = by_suffix[min(by_suffix)]
    claimed = {spec.metric.removeprefix("summary/") for spec in CLAIMS}
    summary = {}
    for name in sorted(claimed):
        values = [statistics[name] for statistics in by_suffix.values()]
        worst = WORST.get(name, np.max)(values, axis=0)
        summary[f"summary/{name}"] = shortest[name] if name in AT_ONE_TOKEN else worst
    return summary


def _pair_table(seen: dict[int, Arrays], config: Config) -> Arrays:
    """Every pair's predicted and actual change at the small rate."""
    small = config.rates.index(config.small_rate)
    columns: dict[str, list[np.ndarray]] = {}
    for slots, arrays in seen.items():
        seeds, pairs = arrays["case"].shape
        values = {k: v[:, small] if v.ndim == 3 else v for k, v in arrays.items()}
        values |= {"seed": np.repeat(np.arange(seeds), pairs), "suffix": np.full(seeds * pairs, slots)}
        for name, value in values.items():
            columns.setdefault(name, []).append(np.ravel(value))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def run(config: Config, writer: RunWriter) -> None:
    seen = {}
    for index, slots in enumerate(config.suffix_lengths):
        writer.progress(index / len(config.suffix_lengths), f"suffix of {slots} tokens")
        seen[slots] = writer.part(f"suffix_{slots}", functools.partial(_run_one, config, slots))
    by_suffix = {slots: _statistics(arrays, config) for slots, arrays in seen.items()}
    for slots, arrays in seen.items():
        for index, rate in enumerate(config.rates):
            quality = _by_rate(arrays, config, "own") | _by_rate(arrays, config, "batch")
            at_rate = {name: values[:, index] for name, values in quality.items()}
            writer.write_summary(at_rate, suffix=slots, learning_rate=rate)
        writer.write_summary(by_suffix[slots], suffix=slots)
    writer.table(_pair_table(seen, config))
    writer.write_summary(_summary(by_suffix))
