"""Why does a shared suffix pull the chosen response down, in a model that can be solved? (section 4.1)

    python -m experiments run gradient_entanglement/fixture --out DIR

Ten seconds on two cores, float64. One differing token: chosen -1.06 -> -0.02. With 12 shared tokens that
are likelier behind the chosen start: -16.3 -> -20.2; just as likely behind both: -20.9 -> -19.9.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.gradient_entanglement.claims import claim
from jaxpref import losses, train
from jaxpref.data import synthetic_suffix
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import PairLogps
from jaxpref.policies import learnable_logits
from jaxpref.probes import gradients
from jaxpref.results import Arrays, RunWriter
from jaxpref.theory import gradients as theory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    suffix_lengths: tuple[int, ...] = (0, 2, 6, 12, 12, 12)
    gaps: tuple[float, ...] = (0.0, 1.0, 1.0, 1.0, 0.0, -1.0)  # logits, chosen less rejected context
    beta: float = 0.1
    learning_rate: float = 0.5
    num_steps: int = 200
    record_every: int = 4  # steps
    draws: int = 20_000
    draw_vocab: int = 8
    seed: int = 0

    def __post_init__(self):
        if len(self.suffix_lengths) != len(self.gaps):
            raise ValueError(
                f"gaps must be one for each of {len(self.suffix_lengths)} suffixes; got {self.gaps}"
            )
        for name, least in (("num_steps", 1), ("record_every", 1), ("draws", 1), ("draw_vocab", 3)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        for name in ("beta", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {"smoke": Config(draws=100), "toy": Config()}
SECONDS = {"smoke": 6.0, "toy": 6.0}
CHANGE = "change of log p(chosen) over DPO, nats, worst case"
CASES = {"unit": "cases"}
CLAIMS = (
    claim("R6", "a single differing token: the chosen response rises", "section 4.1", CHANGE,
          "chosen_change_single", ">", 0.0, reduce="min", **CASES),
    claim("R6", "12 shared tokens, likelier behind the chosen start: it falls", "section 4.1", CHANGE,
          "chosen_change_longest", "<", 0.0, reduce="max", **CASES),
    claim("R6", "shared tokens as likely or less behind the chosen start: it rises", "section 4.1", CHANGE,
          "chosen_change_unexpected", ">", 0.0, reduce="min", control=True, **CASES),
    claim("R6", "the differing token of the chosen response rises all the same", "section 4.1",
          "least change of its log-probability, nats", "label_change", ">", 0.0, reduce="min", **CASES),
    claim("R6", "the rates of both responses at step 0 are those of the closed form", "section 4.1, derived",
          "largest difference, per unit learning rate and loss weight", "rate_error", "<=", 1e-10,
          reduce="max", **CASES),
    claim("R1", "one differing token is always case 1", "section 4.1",
          "share of random distributions in another case", "single_token_other_case", "<=", 0.0, reduce="max",
          unit="sets of draws"),
    claim("R1", "a shared token, likelier behind the chosen start, falls in both responses", "section 4.1",
          "share of random distributions in which one rises", "shared_token_rises", "<=", 0.0, reduce="max",
          unit="sets of draws"),
    claim("R1", "without the order of the other tokens it may rise", "section 4.1, derived",
          "share of random distributions in which one rises", "shared_token_rises_unordered", ">", 0.0,
          reduce="min", unit="sets of draws", control=True),
)  # fmt: skip


def _train(config: Config, slots: Array, gap: Array) -> dict[str, Array]:
    """DPO on one pair: log-probabilities at every step, and by part at both ends."""
    params, pair = synthetic_suffix.exact_pair(slots, gap, most=max(config.suffix_lengths))
    pair = pair._replace(reference=learnable_logits.pair_logps(params, pair))
    loss_fn, optimizer = losses.bind("dpo", beta=config.beta), optax.sgd(config.learning_rate)
    step = train.make_train_step(learnable_logits.pair_logps, loss_fn, optimizer)
    state, metrics = train.fit_fixed(step, train.init_state(params, optimizer), pair, config.num_steps)
    start, end = (learnable_logits.token_logps(p, pair) for p in (params, state.params))
    curve = lambda name, end: jnp.append(metrics[f"logps/{name}"], end.sum())
    return {
        "logps/chosen": curve("chosen", end.chosen), "logps/rejected": curve("rejected", end.rejected),
        "chosen_label_change": (end.chosen - start.chosen)[0, 0],
        "chosen_suffix_change": (end.chosen - start.chosen)[0, 1:].sum(),
        "rejected_label_change": (end.rejected - start.rejected)[0, 0],
        "rejected_suffix_change": (end.rejected - start.rejected)[0, 1:].sum(),
        "rate_error": _rate_error(config, slots, gap),
    }  # fmt: skip


def _rate_error(config: Config, slots: Array, gap: Array) -> Array:
    """Measured first-order change along grad chosen - grad rejected, against the closed form."""
    most = max(config.suffix_lengths)
    params, pair = synthetic_suffix.exact_pair(slots, gap, most=most)
    ones = GradientWeights(jnp.ones(1), jnp.ones(1))
    direction = gradients.update_direction(learnable_logits.pair_logps, params, pair, ones)
    measured = gradients.directional(learnable_logits.pair_logps, params, direction, pair)
    chances = lambda rows: jax.nn.softmax(params.logits + rows.offsets[0])
    after_chosen, after_rejected = chances(pair.chosen), chances(pair.rejected)
    within = jnp.arange(most) < slots  # a token certain behind both adds nothing
    suffix = lambda after: jnp.where(within, after[1:, 0], 1.0)
    rest = 1 / (synthetic_suffix.VOCAB - 1)
    predicted = theory.suffix_change(
        after_chosen[0, 0], after_chosen[0, 1], suffix(after_chosen), suffix(after_rejected), rest
    )
    off = jax.tree.map(lambda m, p: jnp.abs(m[0] - p), measured, predicted)
    return jnp.maximum(off.chosen, off.rejected)


def _random_cases(config: Config, key: Array) -> dict[str, Array]:
    """Shares of random distributions that break the two statements, and that break the relaxed one."""
    single_key, ordered_key, free_key = jax.random.split(key, 3)
    size = {"draws": config.draws, "vocab": config.draw_vocab}
    chances = jax.random.dirichlet(single_key, jnp.ones(config.draw_vocab), (config.draws,))
    zeros = jnp.zeros(config.draws, int)
    single = theory.single_token_geometry(chances, zeros, zeros + 1)
    ones = GradientWeights(jnp.ones(config.draws), jnp.ones(config.draws))
    rises = lambda key, ordered: jnp.mean(_shared_rises(*synthetic_suffix.suffix_distributions(
        key, **size, ordered=ordered)))  # fmt: skip
    return {
        "single_token_other_case": jnp.mean(theory.case(single, ones) != 1),
        "shared_token_rises": rises(ordered_key, True),
        "shared_token_rises_unordered": rises(free_key, False),
    }


def _shared_rises(after_chosen: Array, after_rejected: Array) -> Array:
    """Whether DPO raises the shared token 0 in either response, to first order."""
    residuals = [jnp.eye(p.shape[-1])[0] - p for p in (after_chosen, after_rejected)]
    geometry = theory.shared_logits_geometry(*(r[:, None] for r in residuals))
    ones = GradientWeights(*(jnp.ones(len(after_chosen)) for _ in range(2)))
    change: PairLogps = theory.predicted_change(geometry, ones)
    return (change.chosen > 1e-12) | (change.rejected > 1e-12)


def _summary(config: Config, seen: Arrays) -> dict[str, np.ndarray]:
    """Statistics of the claims, one value for each case that a claim speaks of."""
    lengths, gaps = np.array(config.suffix_lengths), np.array(config.gaps)
    change = seen["logps/chosen"][:, -1] - seen["logps/chosen"][:, 0]
    longest = lengths == lengths.max()
    return {
        "chosen_change_single": change[lengths == 0],
        "chosen_change_longest": change[longest & (gaps > 0)],
        "chosen_change_unexpected": change[longest & (gaps <= 0)],
        "label_change": seen["chosen_label_change"],
        "rate_error": seen["rate_error"],
    }


def run(config: Config, writer: RunWriter) -> None:
    with jax.enable_x64(True):
        cases = jnp.array(config.suffix_lengths), jnp.array(config.gaps)
        seen = jax.device_get(jax.jit(jax.vmap(functools.partial(_train, config)))(*cases))
        writer.progress(0.5, "random distributions")
        shares = jax.device_get(_random_cases(config, jax.random.key(config.seed)))
    steps = range(0, config.num_steps + 1, config.record_every)
    for case, (slots, gap) in enumerate(zip(config.suffix_lengths, config.gaps, strict=True)):
        curves = {k: v[case : case + 1, :: config.record_every] for k, v in seen.items() if v.ndim > 1}
        writer.write_curves(curves, steps, suffix=slots, gap=gap)
        parts = {k: v[case : case + 1] for k, v in seen.items() if k.endswith("_change")}
        writer.write_summary(parts, suffix=slots, gap=gap)
    for name, values in (_summary(config, seen) | shares).items():
        writer.write_summary({f"summary/{name}": values})
