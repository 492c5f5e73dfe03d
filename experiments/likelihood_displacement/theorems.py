"""Do the closed forms for how fast each response gains or loses hold? (Razin et al. 2025, theorems 4 to 9)

    python -m experiments run likelihood_displacement/theorems --preset toy --out DIR

Nine seconds on two cores, nearly all of it compilation. Random unconstrained-features problems in
float64: every theorem and proposition agrees with automatic differentiation to about 1e-12 nats.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref import losses
from jaxpref.data import synthetic_prefixes
from jaxpref.pairs import PairLogps
from jaxpref.policies import unconstrained_features as ufm
from jaxpref.policies.unconstrained_features import PrefixPairs, PrefixRows
from jaxpref.probes import flow, gradients
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.theory import likelihood as theory

LOSSES = ("dpo", "ipo")  # draws take turns
BOUND = tuple(losses.bind(name) for name in LOSSES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_draws: int = 256  # independent random problems
    vocab: int = 7
    dim: int = 5
    lengths: tuple[int, int, int] = (4, 3, 5)  # of the chosen, the rejected and a third response
    num_pairs: int = 4  # of the theorems about several prompts
    sft_weight: float = 0.3
    chosen_weight: float = 1.5  # a and b of the re-weighted loss
    rejected_weight: float = 0.5
    seed: int = 0

    def __post_init__(self):
        for name in ("num_draws", "dim", "num_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.vocab < 4:
            raise ValueError(f"vocab must be at least 4, for bystanders to have an order; got {self.vocab}")
        if len(self.lengths) != 3 or min(self.lengths) < 1:
            raise ValueError(f"lengths must be three numbers of at least 1; got {self.lengths}")
        for name in ("sft_weight", "chosen_weight", "rejected_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {"smoke": Config(num_draws=4), "toy": Config()}
SECONDS = {"smoke": 8.0, "toy": 11.0}

PAPER = "Razin et al. 2025, arXiv:2410.08847, "
IDENTITIES = {
    "thm4": ("the chosen token's rate is theorem 4's", "theorem 4"),
    "thm5": ("every other token's rate is theorem 5's", "theorem 5"),
    "thm6": ("a long chosen response's rate is theorem 6's", "theorem 6"),
    "thm7": ("a long bystander's rate is theorem 7's", "theorem 7"),
    "thm8_9": ("with several prompts every token's rate is theorems 8 and 9's", "theorems 8, 9"),
    "prop1": ("an SFT term adds its weight times the chosen gradient's squared norm", "proposition 1"),
    "prop2": ("unequal weights on the two responses add what proposition 2 says", "proposition 2"),
    "prop3": ("with fixed features the rate is (1 - p+ + p-) |h|^2", "proposition 3 of v4"),
}


def _identity(name: str, sentence: str, where: str) -> ClaimSpec:
    return ClaimSpec(
        claim=sentence, paper=PAPER + where, artefact="S1",
        statistic="largest absolute difference from automatic differentiation, nats per unit of time",
        metric=f"summary/{name}_error", relation="<=", threshold=1e-9, reduce="max", unit="draws",
    )  # fmt: skip


CLAIMS = (
    *(_identity(name, *text) for name, text in IDENTITIES.items()),
    ClaimSpec(
        claim="bystanders gain in the order of <W_z, W_chosen - W_rejected>", paper=PAPER + "theorem 5",
        artefact="S1", statistic="1 if the two orders of the bystanders differ", relation="<=", threshold=0.0,
        metric="summary/order_differs", reduce="max", unit="draws",
    ),
    ClaimSpec(
        claim="<W_z, W_chosen> alone does not give that order", paper=PAPER + "section 4.2", artefact="S1",
        statistic="share of problems in which the two orders differ", relation=">", threshold=0.5,
        metric="summary/chosen_order_differs", control=True, unit="draws",
    ),
    ClaimSpec(
        claim="the loss's slope belongs in theorem 5, not its value as some prints have it",
        paper=PAPER + "theorem 5, erratum", artefact="S1", relation=">", threshold=1e-3,
        statistic="smallest error of the printed form, nats per unit of time", reduce="min",
        metric="summary/misprint_error", control=True, unit="draws",
    ),
)  # fmt: skip


class Comparison(NamedTuple):
    """Rates, nats per unit of time."""

    predicted: Array
    measured: Array


def _mean_loss(loss_fn, batch: PrefixPairs):
    return lambda params: jnp.mean(loss_fn(ufm.pair_logps(params, batch), batch))


def _push(loss_fn, params, batch: PrefixPairs) -> Array:
    """-ell'(margin) of each pair."""
    return losses.gradient_weights(loss_fn, ufm.pair_logps(params, batch), batch).chosen


def _reference(key: Array, pairs: int) -> PairLogps:
    return PairLogps(*(-3 * jax.random.uniform(k, (pairs,)) for k in jax.random.split(key)))


def _one_token(problem: synthetic_prefixes.PrefixProblem, reference: PairLogps) -> PrefixPairs:
    prompt = jnp.zeros(1, int)
    first = lambda rows: ufm.one_token(prompt, rows.tokens[:, 0])
    return PrefixPairs(first(problem.pair.chosen), first(problem.pair.rejected), reference)


def one_token_rates(loss_fn, params, batch: PrefixPairs) -> tuple[dict[str, Comparison], dict[str, Array]]:
    """Theorems 4 and 5 and fixed features; beside them what the controls need."""
    w, l = batch.chosen.tokens[0, 0], batch.rejected.tokens[0, 0]
    pair = (params.unembedding, params.hidden[0], w, l)
    objective, push = _mean_loss(loss_fn, batch), _push(loss_fn, params, batch)[0]
    table = lambda params: ufm.response_logps(params, jnp.zeros(1, int))[0]
    rates = flow.flow_rates(table, objective, params)
    with_w = lambda unembedding: params._replace(unembedding=unembedding)
    fixed = flow.flow_rates(lambda x: table(with_w(x)), lambda x: objective(with_w(x)), params.unembedding)
    comparisons = {
        "thm4": Comparison(push * theory.chosen_rate(*pair).total, rates[w]),
        "thm5": Comparison(push * theory.token_rates(*pair), rates),
        "prop3": Comparison(push * theory.fixed_features_rate(*pair), fixed[w]),
    }
    return comparisons, _order_and_misprint(pair, rates, push, objective(params))


def _order_and_misprint(pair, rates: Array, push: Array, loss: Array) -> dict[str, Array]:
    """Whether two orders of the bystanders differ; the error of theorem 5 with ell in place of ell'."""
    unembedding, _, w, l = pair
    rank = lambda scores: jnp.argsort(scores.at[w].set(jnp.inf).at[l].set(jnp.inf))
    # one of the two compared tokens enters no order: both stand at the end
    differs = lambda scores: jnp.any(rank(scores)[:-2] != rank(push * rates)[:-2]).astype(rates.dtype)
    return {
        "order_differs": differs(theory.gain_scores(unembedding, w, l)),
        "chosen_order_differs": differs(unembedding @ unembedding[w]),
        "misprint_error": jnp.max(jnp.abs(-loss * theory.token_rates(*pair) - rates)),
    }


def remedy_rates(config: Config, params, batch: PrefixPairs) -> dict[str, Comparison]:
    """Propositions 1 and 2, on DPO."""
    w = batch.chosen.tokens[0, 0]
    beta, a, b = 0.1, config.chosen_weight, config.rejected_weight
    dpo, with_sft = losses.bind("dpo", beta=beta), losses.bind("rpo_reg", beta=beta, eta=config.sft_weight)
    weighted = lambda policy, batch: dpo(PairLogps(a * policy.chosen, b * policy.rejected), batch)
    chosen = lambda params: ufm.response_logps(params, jnp.zeros(1, int))[0, w]
    rate = lambda loss_fn: flow.flow_rates(chosen, _mean_loss(loss_fn, batch), params)
    sq_norm = gradients.gradient_geometry(ufm.pair_logps, params, batch).chosen_sq_norm[0]
    slope = -_push(dpo, params, batch)[0]
    weighted_slope = -_push(weighted, params, batch)[0] / a  # d/d(a logp) of ell at the weighted margin
    reweighted = theory.reweighted_rate(
        rate(dpo), sq_norm, slope=slope, weighted_slope=weighted_slope, chosen_weight=a, rejected_weight=b
    )
    return {
        "prop1": Comparison(theory.sft_rate(rate(dpo), sq_norm, config.sft_weight * beta), rate(with_sft)),
        "prop2": Comparison(reweighted, rate(weighted)),
    }


def long_rates(loss_fn, params, batch: PrefixPairs, other: PrefixRows) -> dict[str, Comparison]:
    """Theorems 6 and 7."""
    response = lambda rows: theory.Response(params.hidden[rows.prefixes[0]], rows.tokens[0], rows.mask[0])
    push, objective = _push(loss_fn, params, batch)[0], _mean_loss(loss_fn, batch)
    chosen, rejected, third = (response(rows) for rows in (batch.chosen, batch.rejected, other))
    rate = lambda rows: flow.flow_rates(lambda p: ufm.row_token_logps(p, rows).sum(), objective, params)
    w = params.unembedding
    return {
        "thm6": Comparison(push * theory.response_rate(w, chosen, rejected), rate(batch.chosen)),
        "thm7": Comparison(push * theory.other_response_rate(w, third, chosen, rejected), rate(other)),
    }


def batch_rates(loss_fn, params, batch: PrefixPairs) -> dict[str, Comparison]:
    """Theorems 8 and 9: every token behind every prompt, all pairs training together."""
    prompts, w, l = batch.chosen.prefixes[:, 0], batch.chosen.tokens[:, 0], batch.rejected.tokens[:, 0]
    slopes = -_push(loss_fn, params, batch)
    predicted = theory.batch_token_rates(params.unembedding, params.hidden[prompts], w, l, slopes)
    table = lambda params: ufm.response_logps(params, prompts)
    return {"thm8_9": Comparison(predicted, flow.flow_rates(table, _mean_loss(loss_fn, batch), params))}


def compare(key: Array, loss: Array, config: Config) -> tuple[dict[str, Comparison], dict[str, Array]]:
    """All identities on one random problem, under the loss of that index."""
    loss_fn = lambda policy, batch: jnp.stack([fn(policy, batch) for fn in BOUND])[loss]
    pair_key, batch_key, reference_key = jax.random.split(key, 3)
    sizes = {"vocab": config.vocab, "dim": config.dim}
    problem = synthetic_prefixes.one_prompt(pair_key, **sizes, lengths=config.lengths)
    several = synthetic_prefixes.many_prompts(batch_key, **sizes, num_pairs=config.num_pairs)
    reference = _reference(reference_key, config.num_pairs)
    first = jax.tree.map(lambda x: x[:1], reference)
    one_token = _one_token(problem, first)
    comparisons, controls = one_token_rates(loss_fn, problem.params, one_token)
    comparisons |= remedy_rates(config, problem.params, one_token)
    comparisons |= long_rates(loss_fn, problem.params, problem.pair._replace(reference=first), problem.other)
    return comparisons | batch_rates(
        loss_fn, several.params, several.pairs._replace(reference=reference)
    ), controls


def _rows(name: str, loss: np.ndarray, predicted: np.ndarray, measured: np.ndarray) -> dict[str, np.ndarray]:
    """The rates of one identity [draws, ...] as columns."""
    entries = predicted[0].size
    return {
        "identity": np.full(predicted.size, name), "loss": np.repeat(np.array(LOSSES)[loss], entries),
        "draw": np.repeat(np.arange(len(loss)), entries), "predicted": predicted.ravel(),
        "measured": measured.ravel(),
    }  # fmt: skip


def _error(comparison: Comparison) -> np.ndarray:
    """Largest absolute difference of each draw."""
    difference = np.abs(comparison.predicted - comparison.measured)
    return difference.reshape(len(difference), -1).max(axis=1)


def run(config: Config, writer: RunWriter) -> None:
    with jax.enable_x64(True):  # the identities hold to rounding, and rounding is the statistic
        keys = jax.random.split(jax.random.key(config.seed), config.num_draws)
        loss = np.arange(config.num_draws) % len(LOSSES)
        program = jax.jit(jax.vmap(functools.partial(compare, config=config)))
        comparisons, controls = jax.device_get(program(keys, jnp.asarray(loss)))
    writer.write_summary({f"summary/{name}_error": _error(both) for name, both in comparisons.items()})
    writer.write_summary({f"summary/{name}": values for name, values in controls.items()})
    losses_of = {"prop1": 0 * loss, "prop2": 0 * loss}  # the propositions are checked on DPO alone
    tables = [_rows(name, losses_of.get(name, loss), *both) for name, both in comparisons.items()]
    writer.table({name: np.concatenate([table[name] for table in tables]) for name in tables[0]}, "rates")
