"""Can preferring No over Never make the policy say Yes? Free features, one prompt. (Razin et al. 2025)

    python -m experiments run likelihood_displacement/yes_no_never --preset toy --out DIR

Four seconds on two cores. Long unembeddings (scale 2): P(No) rises from .262 to .3, then falls to .001
while P(Yes) goes to .995; at scale 1 P(No) goes to 1. Frozen features or an SFT term prevent it.
The claim after table 13 cannot hold: in this unembedding No and Never lie nearly on one line.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.likelihood_displacement.claims import claim
from jaxpref import losses, train
from jaxpref.data import synthetic_polarity
from jaxpref.data.synthetic_polarity import YES_NO_NEVER
from jaxpref.policies import unconstrained_features as ufm
from jaxpref.policies.unconstrained_features import PrefixPairs, UnconstrainedFeatures
from jaxpref.probes import likelihood
from jaxpref.results import RunWriter
from jaxpref.theory import likelihood as theory

YES, NO, NEVER = (YES_NO_NEVER.index(name) for name in ("Yes", "No", "Never"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """One way of training: which pair, at which scale, and what is held fast."""

    rejected: int = NEVER  # the chosen answer is always No
    scale: float = 2.0  # of the unembedding; the hidden state is shorter by it
    learn_hidden: float = 1.0  # 0 freezes
    learn_unembedding: float = 1.0
    sft_weight: float = 0.0  # of -log p(chosen) beside the DPO loss


CONDITIONS = {
    "scale 1": Condition(scale=1.0),
    "scale 1.2": Condition(scale=1.2),
    "scale 2": Condition(),
    "No over Yes": Condition(rejected=YES),
    "frozen features": Condition(learn_hidden=0.0),
    "frozen features, scale 5": Condition(learn_hidden=0.0, scale=5.0),
    "frozen unembedding": Condition(learn_unembedding=0.0),
    "SFT 0.01": Condition(sft_weight=0.01),
    "SFT 0.03": Condition(sft_weight=0.03),
    "SFT 0.1": Condition(sft_weight=0.1),
}
# What the study's specification computed in float64, at steps counted in updates: condition, answer,
# step, probability, and half a unit of the last digit given.
ANCHORS = (
    ("scale 1", NO, 10, 0.546, 5e-4), ("scale 1", NO, 300, 1.000, 5e-4),
    ("scale 2", NO, 0, 0.262, 5e-4), ("scale 2", NO, 10, 0.305, 5e-4), ("scale 2", NO, 50, 0.033, 5e-4),
    ("scale 2", NO, 100, 0.001, 5e-4), ("scale 2", YES, 10, 0.169, 5e-4),
    ("scale 2", YES, 50, 0.895, 5e-4), ("scale 2", YES, 100, 0.995, 5e-4),
    ("scale 1.2", NO, 10, 0.409, 5e-4), ("scale 1.2", NO, 50, 0.398, 5e-4),
    ("scale 1.2", NO, 100, 0.876, 5e-4), ("scale 1.2", NO, 300, 1.0, 5e-2),
    ("No over Yes", NEVER, 300, 0.999, 5e-4),
    ("SFT 0.01", YES, 300, 0.82, 5e-3), ("SFT 0.03", NO, 300, 0.965, 5e-4),
    ("SFT 0.1", NO, 300, 0.996, 5e-4),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_draws: int = 17  # draw 0 has the exact hidden state, the others perturbed ones
    perturbation: float = 0.05  # standard deviation added to each hidden entry, before the scale
    beta: float = 0.1
    learning_rate: float = 0.5  # at scale 1; divided by scale^2
    num_steps: int = 300
    record_every: int = 10  # steps
    seed: int = 0

    def __post_init__(self):
        for name in ("beta", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.num_draws < 3:
            raise ValueError(f"num_draws must be at least 3, of which one is exact; got {self.num_draws}")
        if self.perturbation < 0:
            raise ValueError(f"perturbation is a standard deviation, at least 0; got {self.perturbation}")
        if self.record_every < 1 or self.num_steps % self.record_every:
            raise ValueError(f"record_every must divide num_steps={self.num_steps}; got {self.record_every}")


PRESETS = {"smoke": Config(num_draws=3), "toy": Config()}
SECONDS = {"smoke": 3.0, "toy": 4.0}


_claim = functools.partial(claim, artefact="S2", unit="draws")


CLAIMS = (
    _claim("the exact toy repeats the numbers computed beforehand", "specification S2",
           "largest difference in half units of the last digit", "anchor_error", "<=", 1.0, reduce="max"),
    _claim("preferring No over Never lowers P(No) although the loss falls", "definition 1, section 4.2",
           "final change of log p(No), nats", "no_over_never_change", "<", 0.0),
    _claim("the loss never rises while that happens", "definition 1",
           "largest rise of the loss between records, nats", "largest_loss_rise", "<=", 0.0, reduce="max"),
    _claim("the mass goes to the opposite answer: catastrophic", "section 4.2, theorem 5",
           "final P(Yes), No over Never", "catastrophic_yes", ">", 0.5),
    _claim("a dissimilar pair displaces benignly: the mass goes to Never", "section 4.2",
           "final P(Never), No over Yes", "benign_never", ">", 0.5),
    _claim("a long hidden state outweighs the alignment: no displacement at scale 1", "theorem 4",
           "final change of log p(No), nats", "scale_1_change", ">", 0.0, control=True),
    _claim("with fixed features the chosen answer never falls", "proposition 3 (v4)",
           "largest fall of log p(No), nats",
           "frozen_features_drop", "<=", 1e-12, reduce="max", control=True),
    _claim("moving hidden states alone displace", "section 4.2",
           "final P(Yes), unembedding frozen", "frozen_unembedding_yes", ">", 0.5),
    _claim("an SFT term of weight 0.1 prevents displacement without a dip", "proposition 1",
           "largest fall of P(No)", "sft_drop", "<=", 1e-3, reduce="max"),
    _claim("theorem 4's rate foretells every step's rise or fall", "theorem 4",
           "share of recorded steps whose sign of change it foretells", "sign_agreement", ">", 0.95,
           reduce="min"),
    _claim("the part of W_No - W_Never that is orthogonal to W_No outweighs the part along it", "table 13",
           "orthogonal less projected norm, scale 2", "orthogonal_excess", ">", 0.0, reduce="min"),
)  # fmt: skip


class Setting(NamedTuple):
    """A condition as numbers that vmap, one entry a condition."""

    rejected: Array
    scale: Array
    learn_hidden: Array
    learn_unembedding: Array
    sft_weight: Array


def _settings() -> Setting:
    columns = zip(*(dataclasses.astuple(condition) for condition in CONDITIONS.values()), strict=True)
    return Setting(*(jnp.array(column) for column in columns))


def _optimizer(setting: Setting, learning_rate: float) -> optax.GradientTransformation:
    """Plain gradient descent with a rate for each parameter block; a rate of 0 freezes."""
    rate = learning_rate / setting.scale**2
    blocks = {"w": optax.sgd(rate * setting.learn_unembedding), "h": optax.sgd(rate * setting.learn_hidden)}
    return optax.multi_transform(blocks, UnconstrainedFeatures("w", "h"))  # type: ignore[arg-type]


def _objective(loss_fn):
    """The pair objective, and with it every answer's probability and what drives the chosen one."""
    pairs = train.pair_objective(ufm.pair_logps, loss_fn)

    def objective(params, batch: PrefixPairs):
        loss, metrics = pairs(params, batch)
        chosen, rejected = batch.chosen.tokens[0, 0], batch.rejected.tokens[0, 0]
        rate = theory.chosen_rate(params.unembedding, params.hidden[0], chosen, rejected)
        drivers = {f"rate/{name}": value for name, value in rate._asdict().items()}
        table = ufm.response_logps(params, jnp.zeros(1, int))[0]
        return loss, metrics | drivers | {"logps/answers": table}

    return objective


def train_one(setting: Setting, noise: Array, config: Config) -> train.Metrics:
    """The trajectory of one condition from one hidden state, `num_steps` + 1 records before each update."""
    start = synthetic_polarity.yes_no_never(setting.scale)
    params = start._replace(hidden=start.hidden + noise / setting.scale)
    answer = lambda token: ufm.one_token(jnp.zeros(1, int), jnp.asarray(token)[None])
    batch = PrefixPairs(answer(NO), answer(setting.rejected))
    batch = batch._replace(reference=ufm.pair_logps(params, batch))
    loss_fn = losses.bind("rpo_reg", beta=config.beta, eta=setting.sft_weight / config.beta)
    optimizer = _optimizer(setting, config.learning_rate)
    step = train.make_step(_objective(loss_fn), optimizer)
    _, metrics = train.fit_fixed(step, train.init_state(params, optimizer), batch, config.num_steps + 1)
    return metrics


def train_all(config: Config) -> dict[str, np.ndarray]:
    """Every condition from every hidden state: [conditions, draws, steps, ...]."""
    noise = config.perturbation * jax.random.normal(jax.random.key(config.seed), (config.num_draws, 1, 3))
    noise = noise.at[0].set(0.0)
    of_draws = jax.vmap(lambda setting, noise: train_one(setting, noise, config), in_axes=(None, 0))
    return jax.device_get(jax.jit(jax.vmap(of_draws, in_axes=(0, None)))(_settings(), noise))


def anchor_error(probabilities: dict[str, np.ndarray], num_steps: int) -> np.ndarray:
    """Worst disagreement of the exact draw with `ANCHORS`, in half units of the last digit; [1]."""
    errors = [
        abs(probabilities[name][0, step, answer] - value) / half_unit
        for name, answer, step, value, half_unit in ANCHORS
        if step <= num_steps
    ]
    return np.array([max(errors)])


def summarize(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The claims' statistics, [draws] each."""
    names = list(CONDITIONS)
    logps = dict(zip(names, metrics["logps/answers"], strict=True))  # [draws, steps, answers]
    change = lambda name: logps[name][:, -1, NO] - logps[name][:, 0, NO]
    final = lambda name, answer: np.exp(logps[name][:, -1, answer])
    drop = lambda values: np.asarray(likelihood.max_drop(jnp.asarray(values)).size)
    frozen = [drop(logps[name][:, :, NO]) for name in ("frozen features", "frozen features, scale 5")]
    return {
        "no_over_never_change": change("scale 2"),
        "scale_1_change": change("scale 1"),
        "catastrophic_yes": final("scale 2", YES),
        "benign_never": final("No over Yes", NEVER),
        "frozen_unembedding_yes": final("frozen unembedding", YES),
        "frozen_features_drop": np.maximum(*frozen),
        "sft_drop": drop(np.exp(logps["SFT 0.1"][:, :, NO])),
        "largest_loss_rise": np.diff(metrics["loss"], axis=-1).max(axis=(0, 2)),
        "sign_agreement": sign_agreement(metrics, names.index("scale 2")),
    }


def sign_agreement(metrics: dict[str, np.ndarray], condition: int) -> np.ndarray:
    """Share of steps at which log p(chosen) moves the way theorem 4's rate points, [draws]."""
    rate = sum(metrics[f"rate/{part}"][condition] for part in ("norms", "alignment", "bystanders"))
    moved = np.diff(metrics["logps/chosen"][condition], axis=-1)
    return np.mean(np.sign(moved) == np.sign(rate[:, :-1]), axis=-1)


def splits(writer: RunWriter) -> None:
    """Table 13 for the toy's pairs at scale 2: the parts of W_chosen - W_rejected along and off W_chosen."""
    unembedding = synthetic_polarity.yes_no_never(2.0).unembedding
    for rejected in (NEVER, YES):
        split = theory.unembedding_split(unembedding, jnp.asarray(NO), jnp.asarray(rejected))
        pair = f"No over {YES_NO_NEVER[rejected]}"
        writer.write({f"split/{k}": float(v) for k, v in split._asdict().items()}, pair=pair)
        if rejected == NEVER:
            excess = float(split.orthogonal - split.projection)
            writer.write_summary({"summary/orthogonal_excess": [excess]})


def _curves(metrics: dict[str, np.ndarray], condition: int) -> dict[str, np.ndarray]:
    """What is stored of one condition, [draws, steps] each; the rest follows from these."""
    own = {name: values[condition] for name, values in metrics.items()}
    answers = {f"logps/{name}": own["logps/answers"][..., i] for i, name in enumerate(YES_NO_NEVER)}
    kept = {name: own[name] for name in own if name == "loss" or name.startswith("rate/")}
    return {name: np.round(values, 6) for name, values in (answers | kept).items()}


def run(config: Config, writer: RunWriter) -> None:
    with jax.enable_x64(True):  # a fall of 1e-9 would be a fall: the frozen-features claim is exact
        metrics = train_all(config)
        summary = summarize(metrics)
        splits(writer)
    steps = range(0, config.num_steps + 1, config.record_every)
    for index, name in enumerate(CONDITIONS):
        kept = {key: x[:, :: config.record_every] for key, x in _curves(metrics, index).items()}
        writer.write_curves(kept, steps, condition=name)
    probabilities = dict(zip(CONDITIONS, np.exp(metrics["logps/answers"]), strict=True))
    writer.write_summary({"summary/anchor_error": anchor_error(probabilities, config.num_steps)})
    writer.write_summary({f"summary/{name}": values for name, values in summary.items()})
