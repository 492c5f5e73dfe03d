"""Which losses lower both responses, which raise both? (table 2, condition 1 and table 1 for 14 losses)

    python -m experiments run gradient_entanglement/loss_table --out DIR

Ten seconds on two cores, float64. The weights of every loss agree with its closed form to 1e-12; one
small step of each loss on each of 256 random pairs lands in the case that kappa and the cosine predict.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.gradient_entanglement.claims import claim
from jaxpref import losses
from jaxpref.data import synthetic_suffix
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import PairLengths, PairLogps
from jaxpref.policies import learnable_logits
from jaxpref.policies.learnable_logits import LearnableLogits, OffsetPairs
from jaxpref.probes import gradients
from jaxpref.probes.gradients import GradientGeometry
from jaxpref.results import Arrays, RunWriter
from jaxpref.theory import gradients as theory
from jaxpref.theory import weights


class Row(NamedTuple):
    """A row of table 2."""

    loss: str  # key of `losses.LOSSES`
    closed_form: Callable[..., GradientWeights]
    hyperparameters: dict[str, float]
    group: str  # what the weights depend on


ROWS = (
    Row("dpo", weights.dpo, {"beta": 0.1}, "equal"),
    Row("r_dpo_len", weights.r_dpo_len, {"beta": 0.1, "alpha": 0.02}, "equal"),
    Row("dpo_hinge", weights.dpo_hinge, {"beta": 0.1}, "equal"),
    Row("ipo", weights.ipo, {"tau": 0.1}, "equal"),
    Row("ipo_mean", weights.ipo_mean, {"tau": 0.1}, "per token"),
    Row("simpo", weights.simpo, {"beta": 2.0, "gamma": 0.5}, "per token"),
    Row("cpo_sum", weights.cpo_sum, {"beta": 0.1, "lam": 0.7}, "chosen held up"),
    Row("slic_hf", weights.slic_hf, {"delta": 1.0, "lam": 0.7}, "chosen held up"),
    Row("rrhf", weights.rrhf, {"lam": 0.7}, "chosen held up"),
    Row("dpop", weights.dpop, {"beta": 0.1, "lam": 50.0}, "chosen held up"),
    Row("orpo", weights.orpo, {"lam": 0.7}, "chosen held up"),
    Row("kto", weights.kto, {"beta": 0.1, "kl": 2.0, "undesirable_weight": 1.3}, "adaptive"),
    Row("sppo_hard", weights.sppo_hard, {"beta": 0.1}, "adaptive"),
    Row("odds", weights.odds, {}, "equal"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_points: int = 512  # random log-probabilities at which weights are compared
    num_pairs: int = 256  # random policies with a pair each, on which a step is taken
    tokens: int = 6
    vocab: int = 8
    step_length: float = 1e-6  # norm of the step on the logits
    least_change: float = 1e-10  # nats; a smaller predicted change has no sign worth comparing
    num_seeds: int = 3
    seed: int = 0

    def __post_init__(self):
        for name in ("num_points", "num_pairs", "tokens", "vocab", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("step_length", "least_change"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {"smoke": Config(num_points=32, num_pairs=16, num_seeds=2), "toy": Config()}
SECONDS = {"smoke": 12.0, "toy": 12.0}
CLAIMS = (
    claim("R2", "the weights of 14 losses are those of the table", "table 2",
          "largest difference of formula and autodiff, relative to the larger of 1 and the weight",
          "weight_error", "<=", 1e-10, reduce="max"),
    claim("R1", "kappa and the cosine tell the case of a step, whatever the loss", "condition 1 and table 1",
          "share of pairs that one small step moves against the prediction", "case_mismatch", "<=", 0.0,
          reduce="max"),
    claim("R1", "no loss whose weights are positive reverses a pair", "table 1",
          "share of pairs with positive weights in case 4, all losses", "case4_positive", "<=", 0.0,
          reduce="max"),
    claim("R1", "past its target IPO does reverse pairs", "condition 1, derived",
          "share of pairs in case 4 among those of negative weights, IPO", "case4_past_target", ">", 0.0,
          control=True),
    claim("R1", "opposed gradients are case 1 for every loss of positive weights", "condition 1",
          "share of such pairs in another case", "opposed_other_case", "<=", 0.0, reduce="max"),
    claim("R1", "the raw margin may shrink while the loss falls, once the weights differ",
          "section 3.3, derived",
          "share of pairs whose margin shrinks, per-token losses", "margin_shrinks_per_token", ">", 0.0,
          control=True),
    claim("R1", "with equal positive weights it never does", "section 3.1",
          "share of pairs whose margin shrinks, DPO", "margin_shrinks_dpo", "<=", 0.0, reduce="max"),
)  # fmt: skip


def _points(key: Array, num: int) -> tuple[PairLogps, PairLogps, PairLengths]:
    """Policy, reference and lengths on both sides of every kink and target of the table."""
    level_key, near_key, lengths_key = jax.random.split(key, 3)
    level = -jax.random.uniform(level_key, (2, num), minval=1.0, maxval=30.0)
    near = 8 * jax.random.normal(near_key, (2, num))
    lengths = PairLengths(*jax.random.randint(lengths_key, (2, num), 1, 20))
    return PairLogps(*level), PairLogps(*jnp.minimum(level + near, -0.1)), lengths


def _weight_error(row: Row, key: Array, num: int) -> Array:
    policy, reference, lengths = _points(key, num)
    batch = OffsetPairsLogps(reference, lengths)
    measured = losses.gradient_weights(losses.bind(row.loss, **row.hyperparameters), policy, batch)
    formula = row.closed_form(policy, reference, lengths, **row.hyperparameters)
    off = jax.tree.map(lambda m, f: jnp.max(jnp.abs(m - f) / jnp.maximum(1.0, jnp.abs(f))), measured, formula)
    return jnp.maximum(*off)


class OffsetPairsLogps(NamedTuple):
    """What a loss reads of a batch."""

    reference: PairLogps
    lengths: PairLengths


def _problems(key: Array, config: Config) -> tuple[LearnableLogits, OffsetPairs]:
    """Random policies, each with one pair; the reference is some nats away from the policy."""
    pair_key, reference_key = jax.random.split(key)
    draw = functools.partial(synthetic_suffix.random_pair, tokens=config.tokens, vocab=config.vocab)
    params, pairs = jax.vmap(draw)(jax.random.split(pair_key, config.num_pairs))
    policy = jax.vmap(learnable_logits.pair_logps)(params, pairs)
    shift = 6 * jax.random.normal(reference_key, (2, *policy.chosen.shape))
    return params, pairs._replace(reference=PairLogps(policy.chosen + shift[0], policy.rejected + shift[1]))


def _geometries(params: LearnableLogits, pairs: OffsetPairs) -> GradientGeometry:
    measure = functools.partial(gradients.gradient_geometry, learnable_logits.pair_logps)
    return jax.tree.map(lambda x: x[:, 0], jax.vmap(measure)(params, pairs))


def _one_step(loss_fn, params: LearnableLogits, pair: OffsetPairs, length: float) -> PairLogps:
    """What really becomes of one pair when its loss takes one gradient step of that length."""
    before = learnable_logits.pair_logps(params, pair)
    grad = jax.grad(lambda p: jnp.sum(loss_fn(learnable_logits.pair_logps(p, pair), pair)))(params).logits
    unit = grad / jnp.maximum(jnp.linalg.norm(grad), 1e-300)
    after = learnable_logits.pair_logps(LearnableLogits(params.logits - length * unit), pair)
    return jax.tree.map(lambda a, b: (a - b)[0], after, before)


def _row_cases(row: Row, problems, geometry: GradientGeometry, config: Config) -> dict[str, Array]:
    """Predicted and actual fate of every pair under one loss, [pairs]."""
    params, pairs = problems
    loss_fn = losses.bind(row.loss, **row.hyperparameters)
    policy = jax.vmap(learnable_logits.pair_logps)(params, pairs)
    weigh = jax.vmap(functools.partial(losses.gradient_weights, loss_fn))
    weight = jax.tree.map(lambda x: x[:, 0], weigh(policy, pairs))
    predicted = theory.predicted_change(geometry, weight)
    step = functools.partial(_one_step, loss_fn, length=config.step_length)
    actual = jax.vmap(step)(params, pairs)
    norm = jnp.sqrt(
        weight.chosen * predicted.chosen - weight.rejected * predicted.rejected
    )  # of the gradient
    scale = config.step_length / jnp.maximum(norm, 1e-300)
    wrong = lambda p, a: (jnp.abs(p * scale) > config.least_change) & (jnp.sign(p) != jnp.sign(a))
    return {
        "chosen_weight": weight.chosen, "rejected_weight": weight.rejected,
        "kappa": theory.kappa(geometry, weight), "cosine": geometry.cosine,
        "case": theory.case(geometry, weight),
        "predicted_chosen": predicted.chosen * scale, "predicted_rejected": predicted.rejected * scale,
        "actual_chosen": actual.chosen, "actual_rejected": actual.rejected,
        "wrong": wrong(predicted.chosen, actual.chosen) | wrong(predicted.rejected, actual.rejected),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def _one_seed(key: Array, *, config: Config) -> dict[str, dict[str, Array]]:
    point_key, problem_key = jax.random.split(key)
    problems = _problems(problem_key, config)
    geometry = _geometries(*problems)
    return {
        row.loss: _row_cases(row, problems, geometry, config)
        | {"weight_error": _weight_error(row, point_key, config.num_points)}
        for row in ROWS
    }


def _shrinks(arrays: Arrays, config: Config) -> np.ndarray:
    """Share of pairs with positive weights whose raw margin shrinks, by seed."""
    change = arrays["actual_chosen"] - arrays["actual_rejected"]
    return np.mean((change < -config.least_change) & _positive(arrays), axis=-1)


def _positive(arrays: Arrays) -> np.ndarray:
    return (arrays["chosen_weight"] > 0) & (arrays["rejected_weight"] > 0)


def _summary(seen: dict[str, Arrays], config: Config) -> Arrays:
    worst = lambda statistic: np.max([statistic(arrays) for arrays in seen.values()], axis=0)
    ipo = seen["ipo"]
    past = ~_positive(ipo)
    opposed = lambda a: np.mean(_positive(a) & (a["cosine"] < 0) & (a["case"] != 1), axis=-1)
    reversed_past = np.sum((ipo["case"] == 4) & past, axis=-1) / np.maximum(past.sum(-1), 1)
    per_token = [row.loss for row in ROWS if row.group == "per token"]
    return {
        "summary/weight_error": worst(lambda a: a["weight_error"]),
        "summary/case_mismatch": worst(lambda a: a["wrong"].mean(-1)),
        "summary/case4_positive": worst(lambda a: np.mean((a["case"] == 4) & _positive(a), axis=-1)),
        "summary/case4_past_target": reversed_past,
        "summary/opposed_other_case": worst(opposed),
        "summary/margin_shrinks_per_token": np.mean([_shrinks(seen[k], config) for k in per_token], axis=0),
        "summary/margin_shrinks_dpo": _shrinks(seen["dpo"], config),
    }


def _write_row(writer: RunWriter, row: Row, arrays: Arrays) -> None:
    shares = {f"entanglement/case{case}": (arrays["case"] == case).mean(-1) for case in (1, 2, 3, 4)}
    both = _positive(arrays)
    median = np.array(
        [np.median(k[b]) if b.any() else np.nan for k, b in zip(arrays["kappa"], both, strict=True)]
    )
    statistics = {"kappa_median": median, "mismatch": arrays["wrong"].mean(-1)}
    writer.write_summary(
        shares | statistics | {"weight_error": arrays["weight_error"]}, loss=row.loss, group=row.group
    )


def _table(seen: dict[str, Arrays]) -> dict[str, Any]:
    """Every pair of the first seed under every loss, for the phase diagram."""
    names = [name for name, values in seen["dpo"].items() if values.ndim > 1]
    table: dict[str, Any] = {n: np.concatenate([arrays[n][0] for arrays in seen.values()]) for n in names}
    table["loss"] = np.repeat(list(seen), len(seen["dpo"]["case"][0]))
    return table


def run(config: Config, writer: RunWriter) -> None:
    seed_keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    with jax.enable_x64(True):
        by_seed = [jax.device_get(_one_seed(key, config=config)) for key in seed_keys]
    seen = jax.tree.map(lambda *values: np.stack(values), *by_seed)
    for row in ROWS:
        _write_row(writer, row, seen[row.loss])
    writer.table(_table(seen))
    writer.write_summary(_summary(seen, config))
