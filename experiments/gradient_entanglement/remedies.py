"""Do normalized gradients or token masks free the chosen response? (the two designs of section 5)

    python -m experiments run gradient_entanglement/remedies --out DIR

Forty seconds on two cores. Alone, no pair of normalized gradients moves the wrong way. In batches the mask
of differing tokens keeps the suffix where it was, which plain DPO pulls down.
"""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import PyTree

from experiments.gradient_entanglement.claims import claim
from jaxpref import losses, train
from jaxpref.data import synthetic_sentiment as sentiment
from jaxpref.losses import remedies
from jaxpref.pairs import PairLogps, TokenPairs
from jaxpref.probes import gradients
from jaxpref.results import Arrays, RunWriter
from jaxpref.toys import sentiment as toy
from jaxpref.toys.sentiment import Recipe

VARIANTS = ("dpo", "masked", "normalized")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Recipe = toy.EXPECTED
    suffix: int = 6  # tokens
    beta: float = 0.1
    learning_rate: float = 5e-3  # plain gradient descent
    strength: float = 10.0  # times DPO's own weight, for normalized gradients
    num_steps: int = 20
    probe_every: int = 4  # steps
    batch_size: int = 32
    held_out: int = 128
    single_pairs: int = 64  # pairs that are stepped on alone
    single_rate: float = 1e-3
    num_seeds: int = 3
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.suffix <= sentiment.SLOTS:
            raise ValueError(f"suffix must be in [1, {sentiment.SLOTS}]; got {self.suffix}")
        if self.probe_every < 1 or self.num_steps % self.probe_every:
            raise ValueError(f"probe_every must divide num_steps={self.num_steps}; got {self.probe_every}")
        for name in ("beta", "learning_rate", "strength", "batch_size", "held_out", "single_pairs",
                     "single_rate", "num_seeds"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(
        recipe=toy.shrunk(toy.EXPECTED), num_steps=1, probe_every=1, batch_size=2, held_out=4, single_pairs=3,
        num_seeds=2,
    ),
    "toy": Config(),
}  # fmt: skip
SECONDS = {"smoke": 15.0, "toy": 45.0}
CLAIMS = (
    claim("R11", "alone, normalized gradients never lower the chosen nor raise the rejected response",
          "section 5, first design", "share of pairs moved the wrong way by a step of 1e-3",
          "wrong_normalized", "<=", 0.0, reduce="max"),
    claim("R11", "alone, plain DPO lowers some chosen or raises some rejected responses", "condition 1",
          "share of pairs moved the wrong way by a step of 1e-3", "wrong_dpo", ">", 0.0, control=True),
    claim("R11", "with the mask of differing tokens the suffix hardly moves", "section 5, second design",
          "|change of the chosen suffix| relative to plain DPO's", "masked_suffix_share", "<", 0.1),
    claim("R11", "plain DPO lowers the chosen response", "section 4.3",
          "change of mean held-out log p(chosen), nats", "chosen_change_dpo", "<", 0.0, control=True),
    claim("R11", "the mask lets the chosen response rise", "section 5, second design",
          "change of mean held-out log p(chosen), nats", "chosen_change_masked", ">", 0.0),
    claim("R11", "the mask still lowers the rejected response", "section 5, second design",
          "change of mean held-out log p(rejected), nats", "rejected_change_masked", "<", 0.0),
    claim("R11", "in batches normalized gradients raise the chosen response", "section 5, first design",
          "change of mean held-out log p(chosen), nats", "chosen_change_normalized", ">", 0.0),
)  # fmt: skip


def _masked(batch: TokenPairs) -> TokenPairs:
    """The pairs with only their differing tokens as responses: what is masked out enters no sum."""
    masks = remedies.difference_masks(batch)
    cut = lambda rows, mask: rows._replace(response_mask=mask)
    return batch._replace(
        chosen=cut(batch.chosen, masks.chosen), rejected=cut(batch.rejected, masks.rejected)
    )


_masked_all = jax.jit(jax.vmap(_masked))  # the alignment is a scan: slow if run operation by operation


def _norms(params: PyTree, batch: TokenPairs) -> PairLogps:
    """Gradient norms of both responses of each pair; constants of the step."""
    fixed = jax.lax.stop_gradient(params)
    geometry = gradients.gradient_geometry(toy.pair_logps, fixed, batch)
    return PairLogps(jnp.sqrt(geometry.chosen_sq_norm), jnp.sqrt(geometry.rejected_sq_norm))


def _normalized_objective(config: Config, params: PyTree, batch: TokenPairs):
    """Mean surrogate loss of pairwise normalized gradients, as `train.make_step` takes it."""
    policy = toy.pair_logps(params, batch)
    norms, reference = _norms(params, batch), cast(PairLogps, batch.reference)
    loss = remedies.normalized_gradient_loss(policy, reference, norms, beta=config.beta)
    return config.strength * jnp.mean(loss), train.pair_metrics(policy)


def _objective(config: Config, normalized: bool):
    if normalized:
        return functools.partial(_normalized_objective, config)
    return train.pair_objective(toy.pair_logps, losses.bind("dpo", beta=config.beta))


@functools.partial(jax.jit, static_argnames=("config", "normalized"))
def _train(start: PyTree, batches: TokenPairs, held_out: TokenPairs, *, config: Config, normalized: bool):
    """One model trained on these batches; mean log-probabilities of held-out pairs at every probe."""
    batches = jax.lax.map(functools.partial(toy.with_reference, start), batches)
    optimizer = optax.sgd(config.learning_rate)
    step = train.make_step(_objective(config, normalized), optimizer)
    _, visited = train.fit_visiting(step, train.init_state(start, optimizer), batches, config.probe_every)
    return jax.lax.map(lambda params: toy.mean_parts(params, held_out), visited)


@functools.partial(jax.jit, static_argnames=("config", "normalized"))
def _alone(start: PyTree, pairs: TokenPairs, *, config: Config, normalized: bool) -> PairLogps:
    """Actual change of each pair after one step on it alone, [pairs], nats."""
    objective = _objective(config, normalized)

    def one_pair(pair: TokenPairs) -> PairLogps:
        pair = toy.with_reference(start, jax.tree.map(lambda x: x[None], pair))
        grads, _ = jax.grad(objective, has_aux=True)(start, pair)
        stepped = jax.tree.map(lambda p, g: p - config.single_rate * g, start, grads)
        after = toy.pair_logps(stepped, pair)
        return jax.tree.map(lambda a, b: (a - b)[0], after, pair.reference)

    return jax.lax.map(one_pair, pairs)


def _one_seed(config: Config, start: PyTree, key: Array) -> dict[str, Arrays]:
    train_key, held_out_key = jax.random.split(key)
    draw = lambda key: sentiment.pairs(key, config.batch_size, config.suffix)
    batches = jax.vmap(draw)(jax.random.split(train_key, config.num_steps))
    held_out = sentiment.pairs(held_out_key, config.held_out, config.suffix)
    few = jax.tree.map(lambda x: x[: config.single_pairs], held_out)
    seen = {}
    for variant in VARIANTS:
        normalized = variant == "normalized"
        given = _masked_all(batches) if variant == "masked" else batches
        seen[variant] = _train(start, given, held_out, config=config, normalized=normalized)
        if variant != "masked":
            change = _alone(start, few, config=config, normalized=normalized)
            seen[variant] |= {f"alone/{side}": value for side, value in change._asdict().items()}
    return jax.device_get(seen)


def _run_all(config: Config) -> Arrays:
    """All variants of all seeds, `variant/quantity` to [seeds, ...]."""
    keys = toy.keys(config.seed)
    starts = toy.starts(config.recipe, keys, config.num_seeds, config.suffix)
    train_keys = jax.random.split(keys.train, config.num_seeds)
    start = lambda s: jax.tree.map(lambda x: x[s], starts)
    seeds = [_one_seed(config, start(s), train_keys[s]) for s in range(config.num_seeds)]
    return {
        f"{variant}/{name}": np.stack([seed[variant][name] for seed in seeds])
        for variant in VARIANTS
        for name in seeds[0][variant]
    }


def _summary(seen: Arrays) -> Arrays:
    change = lambda name: seen[name][:, -1] - seen[name][:, 0]
    wrong = lambda v: np.mean((seen[f"{v}/alone/chosen"] < 0) | (seen[f"{v}/alone/rejected"] > 0), axis=-1)
    suffix = {v: np.abs(change(f"{v}/logps/chosen_suffix")) for v in ("dpo", "masked")}
    summary = {f"chosen_change_{v}": change(f"{v}/logps/chosen") for v in VARIANTS}
    summary |= {f"rejected_change_{v}": change(f"{v}/logps/rejected") for v in VARIANTS}
    summary |= {f"wrong_{v}": wrong(v) for v in ("dpo", "normalized")}
    summary["masked_suffix_share"] = suffix["masked"] / suffix["dpo"]
    return {f"summary/{name}": values for name, values in summary.items()}


def run(config: Config, writer: RunWriter) -> None:
    seen = writer.part("variants", functools.partial(_run_all, config))
    steps = range(0, config.num_steps + 1, config.probe_every)
    for variant in VARIANTS:
        prefix = f"{variant}/logps/"
        curves = {name.removeprefix(f"{variant}/"): v for name, v in seen.items() if name.startswith(prefix)}
        writer.write_curves(curves, steps, variant=variant)
    alone = {name: seen[name] for name in seen if "/alone/" in name}
    table = {name.replace("/alone/", "_"): values.ravel() for name, values in alone.items()}
    seed = np.repeat(np.arange(config.num_seeds), config.single_pairs)
    writer.table(table | {"seed": seed}, name="alone")
    writer.write_summary(_summary(seen))
