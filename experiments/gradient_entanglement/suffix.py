"""Does a longer shared suffix entangle the gradients and drag the chosen response down? (figures 3 and 4a)

    python -m experiments run gradient_entanglement/suffix --out DIR

A minute on two cores. Without a suffix the cosine is -1 and the chosen log-probability rises; with 6
shared tokens, likelier behind the right label, the cosine is about +0.5 and it falls by a third of a nat.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np
import optax
from jax import Array
from jaxtyping import PyTree

from experiments.gradient_entanglement.claims import claim
from jaxpref import losses, train
from jaxpref.data import synthetic_sentiment as sentiment
from jaxpref.pairs import TokenPairs
from jaxpref.probes import gradients
from jaxpref.results import Arrays, RunWriter
from jaxpref.theory import gradients as theory
from jaxpref.toys import sentiment as toy
from jaxpref.toys.sentiment import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    expected: Recipe = toy.EXPECTED  # the suffix is likelier behind the right label
    expected_rate: float = 1e-5  # Adam
    expected_suffixes: tuple[int, ...] = (0, 1, 3, 6)
    independent: Recipe = toy.INDEPENDENT  # the control: it is not
    independent_rate: float = 2e-5
    independent_suffixes: tuple[int, ...] = (0, 6)
    beta: float = 0.1
    num_steps: int = 40
    probe_every: int = 8  # steps
    batch_size: int = 32
    held_out: int = 128  # pairs whose log-probabilities are followed
    probed: int = 48  # of these, pairs whose gradients are followed
    num_seeds: int = 3
    seed: int = 0

    def __post_init__(self):
        for name in ("expected_suffixes", "independent_suffixes"):
            lengths = getattr(self, name)
            if len(lengths) < 2 or list(lengths) != sorted(set(lengths)) or lengths[0] != 0:
                raise ValueError(f"{name} must start with 0 and increase; got {lengths}")
            if lengths[-1] > sentiment.SLOTS:
                raise ValueError(f"{name} must be at most {sentiment.SLOTS}; got {lengths[-1]}")
        if self.probe_every < 1 or self.num_steps % self.probe_every:
            raise ValueError(f"probe_every must divide num_steps={self.num_steps}; got {self.probe_every}")
        if not 1 <= self.probed <= self.held_out:
            raise ValueError(f"probed must be in [1, held_out={self.held_out}]; got {self.probed}")
        for name in ("beta", "expected_rate", "independent_rate", "batch_size", "num_seeds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(
        expected=toy.shrunk(toy.EXPECTED), independent=toy.shrunk(toy.INDEPENDENT),
        expected_suffixes=(0, 6), num_steps=2, probe_every=1, batch_size=4, held_out=6, probed=4, num_seeds=2,
    ),
    "toy": Config(),
}  # fmt: skip
SECONDS = {"smoke": 10.0, "toy": 70.0}


CHANGE = "change of mean held-out log p(chosen) over DPO, nats"
CLAIMS = (
    claim("R6", "without a suffix DPO raises the chosen response", "section 4.3, figure 3", CHANGE,
          "chosen_change_without_suffix", ">", 0.0),
    claim("R6", "with a long shared suffix DPO lowers the chosen response", "section 4.3, figure 3", CHANGE,
          "chosen_change_longest_suffix", "<", 0.0),
    claim("R6", "the longer the suffix, the lower the chosen response ends", "section 4.3, figure 3",
          "least drop of the change from one suffix length to the next, nats", "chosen_change_least_drop",
          ">", 0.0, reduce="min"),
    claim("R6", "it is the shared suffix of the chosen response that falls", "section 4.1, figure 3",
          "largest change of the suffix part over lengths >= 1, nats", "chosen_suffix_change_largest",
          "<", 0.0, reduce="max"),
    claim("R6", "a suffix as likely behind either label does not pull the chosen response down",
          "section 4.1, the condition on the suffix", CHANGE, "chosen_change_independent", ">", 0.0,
          control=True),
    claim("R7", "a single differing token starts with opposite gradients", "section 4.3, figure 4a",
          "mean cosine at the start of DPO", "cosine_start_without_suffix", "<", -0.9),
    claim("R7", "a long shared suffix turns the cosine positive", "section 4.3, figure 4a",
          "mean cosine at the start of DPO", "cosine_start_longest_suffix", ">", 0.0),
    claim("R7", "the cosine grows with the suffix", "section 4.3, figure 4a",
          "least gain of the starting cosine from one suffix length to the next", "cosine_least_gain",
          ">", 0.0, reduce="min"),
    claim("R7", "without a suffix the gradients stay opposed", "section 4.3, figure 4a",
          "largest mean cosine over DPO", "cosine_largest_without_suffix", "<", 0.0, reduce="max"),
    claim("R1", "no pair is reversed while both weights are positive", "table 1",
          "share of held-out pairs in case 4, all probes", "case4_share", "<=", 0.0, reduce="max"),
    claim("R1", "two numbers, kappa and the cosine, decide the case", "condition 1",
          "share of held-out pairs whose case differs from the phase diagram's", "case_mismatch",
          "<=", 0.0, reduce="max"),
    claim("R1", "DPO's margin never shrinks to first order", "section 3.1, equations 3 to 5",
          "least predicted change of a pair's margin per unit learning rate", "margin_least_change",
          ">=", 0.0, reduce="min"),
    claim("R9", "the rejected gradient is the longer one", "section 3.1.1",
          "median ratio of squared norms, rejected to chosen, at the start, one suffix token",
          "norm_ratio_start", ">", 1.0),
    claim("R9", "and DPO makes it longer still", "section 3.1.1",
          "growth of that median over DPO", "norm_ratio_growth", ">", 0.0),
)  # fmt: skip


def _probe(loss_fn, params: PyTree, batch: TokenPairs, probed: int) -> dict[str, Array]:
    """Log-probabilities of held-out pairs, by part, and the geometry of the first `probed` of them."""
    few = jax.tree.map(lambda x: x[:probed], batch)
    geometry = gradients.gradient_geometry(toy.pair_logps, params, few)
    weights = losses.gradient_weights(loss_fn, toy.pair_logps(params, few), few)
    kappa, case = theory.kappa(geometry, weights), theory.case(geometry, weights)
    predicted = theory.predicted_change(geometry, weights)
    return geometry._asdict() | toy.mean_parts(params, batch) | {
        "cosine": geometry.cosine, "kappa": kappa, "case": case, "margin_change": predicted.margin,
        "mismatch": theory.case_of_kappa(kappa, geometry.cosine) != case,
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def _dpo(starts: PyTree, keys: Array, slots: Array, rate: Array, *, config: Config) -> dict[str, Array]:
    """DPO from each seed's start: what is probed every `probe_every` steps, [seeds, probes, ...]."""
    loss_fn = losses.bind("dpo", beta=config.beta)
    optimizer = optax.adam(rate)
    step = train.make_train_step(toy.pair_logps, loss_fn, optimizer)

    def one_seed(seed: tuple[PyTree, Array]) -> dict[str, Array]:
        start, key = seed
        train_key, held_out_key = jax.random.split(key)
        batches = toy.fresh_pairs(start, train_key, config.batch_size, slots, config.num_steps)
        state = train.init_state(start, optimizer)
        _, visited = train.fit_visiting(step, state, batches, config.probe_every)
        held_out = toy.with_reference(start, sentiment.pairs(held_out_key, config.held_out, slots))
        return jax.lax.map(lambda params: _probe(loss_fn, params, held_out, config.probed), visited)

    return jax.lax.map(one_seed, (starts, keys))  # one after the other: on a CPU faster than as one batch


def _run_one(config: Config, recipe: Recipe, rate: float, slots: int) -> Mapping[str, Array]:
    keys = toy.keys(config.seed)
    starts = toy.starts(recipe, keys, config.num_seeds, slots)
    return _dpo(starts, jax.random.split(keys.train, config.num_seeds), slots, rate, config=config)


def _curves(seen: Arrays) -> Arrays:
    """Everything a figure follows over the steps, [seeds, probes]."""
    pairs = lambda name, statistic=np.mean, **options: statistic(seen[name], axis=-1, **options)
    curves = {name: seen[name] for name in seen if name.startswith("logps/")}
    curves |= {f"grads/{name}": pairs(name) for name in ("inner", "chosen_sq_norm", "rejected_sq_norm")}
    curves |= {"grads/cos": pairs("cosine"), "grads/cos_median": pairs("cosine", np.median)}
    curves |= {f"grads/cos_q{q}": pairs("cosine", np.percentile, q=q) for q in (25, 75)}
    curves |= {f"entanglement/case{case}": (seen["case"] == case).mean(-1) for case in (1, 2, 3, 4)}
    ratio = seen["rejected_sq_norm"] / seen["chosen_sq_norm"]
    curves["grads/sq_norm_ratio_median"] = np.median(ratio, axis=-1)
    curves["entanglement/mismatch"] = pairs("mismatch")
    curves["entanglement/margin_change_min"] = pairs("margin_change", np.min)
    return curves


def _pair_table(seen: Mapping[tuple[str, int], Arrays]) -> Arrays:
    """Every probed pair at the first and the last probe, for the phase diagram."""
    names = ("inner", "chosen_sq_norm", "rejected_sq_norm", "cosine", "kappa", "case")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "seed", "toy", "suffix", "at")}
    for (recipe, slots), arrays in seen.items():
        seeds, probes, pairs = arrays["case"].shape
        for at, probe in (("start", 0), ("end", probes - 1)):
            for name in names:
                columns[name].append(arrays[name][:, probe].ravel())
            columns["seed"].append(np.repeat(np.arange(seeds), pairs))
            for name, value in (("toy", recipe), ("suffix", slots), ("at", at)):
                columns[name].append(np.full(seeds * pairs, value))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _summary(curves: Mapping[tuple[str, int], Arrays], config: Config) -> Arrays:
    """One value a seed for every claim."""
    expected = [curves["expected", slots] for slots in config.expected_suffixes]
    change = lambda c, name="logps/chosen": c[name][:, -1] - c[name][:, 0]
    changes = np.stack([change(c) for c in expected])
    cosines = np.stack([c["grads/cos"][:, 0] for c in expected])
    ratio = expected[1]["grads/sq_norm_ratio_median"]
    everywhere = lambda name, worst: worst(
        np.stack([worst(c[name], axis=1) for c in curves.values()]), axis=0
    )
    return {
        "summary/chosen_change_without_suffix": changes[0],
        "summary/chosen_change_longest_suffix": changes[-1],
        "summary/chosen_change_least_drop": -np.diff(changes, axis=0).max(axis=0),
        "summary/chosen_suffix_change_largest": np.max(
            [change(c, "logps/chosen_suffix") for c in expected[1:]], axis=0
        ),
        "summary/chosen_change_independent": change(curves["independent", config.independent_suffixes[-1]]),
        "summary/cosine_start_without_suffix": cosines[0],
        "summary/cosine_start_longest_suffix": cosines[-1],
        "summary/cosine_least_gain": np.diff(cosines, axis=0).min(axis=0),
        "summary/cosine_largest_without_suffix": expected[0]["grads/cos"].max(axis=1),
        "summary/case4_share": everywhere("entanglement/case4", np.max),
        "summary/case_mismatch": everywhere("entanglement/mismatch", np.max),
        "summary/margin_least_change": everywhere("entanglement/margin_change_min", np.min),
        "summary/norm_ratio_start": ratio[:, 0],
        "summary/norm_ratio_growth": ratio[:, -1] - ratio[:, 0],
    }


def run(config: Config, writer: RunWriter) -> None:
    plan = [("expected", config.expected, config.expected_rate, k) for k in config.expected_suffixes]
    plan += [
        ("independent", config.independent, config.independent_rate, k) for k in config.independent_suffixes
    ]
    seen = {}
    for index, (name, recipe, rate, slots) in enumerate(plan):
        writer.progress(index / len(plan), f"{name} suffix of {slots} tokens")
        compute = functools.partial(_run_one, config, recipe, rate, slots)
        seen[name, slots] = writer.part(f"{name}_{slots}", compute)
    curves = {key: _curves(arrays) for key, arrays in seen.items()}
    steps = range(0, config.num_steps + 1, config.probe_every)
    for (name, slots), table in curves.items():
        writer.write_curves(table, steps, toy=name, suffix=slots)
    writer.table(_pair_table(seen))
    writer.write_summary(_summary(curves, config))
