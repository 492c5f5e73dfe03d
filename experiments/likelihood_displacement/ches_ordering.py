"""Does CHES tell beforehand which pairs will displace their chosen responses? (Razin et al. 2025, figure 2)

    python -m experiments run likelihood_displacement/ches_ordering --preset toy --out DIR

A minute on two cores. Subsets at five percentiles of each similarity measure are trained on one by
one. The higher the CHES, the less log p(chosen) gains, but the bare length difference orders nearly as
well, and where all lengths are equal CHES orders nothing: on this toy it is a measure of length.
"""

import dataclasses
import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import PyTree
from scipy.stats import spearmanr

from experiments.likelihood_displacement.claims import claim
from jaxpref import losses, train, trees
from jaxpref.data import synthetic_topics as topics
from jaxpref.data.synthetic_topics import TopicTask
from jaxpref.pairs import PairLengths, PairLogps, TokenPairs, TokenRows
from jaxpref.policies import transformer
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import alignment, likelihood
from jaxpref.results import RunWriter
from jaxpref.theory import likelihood as theory

CHES, LN_CHES, EDIT, LAST_HIDDEN, LENGTH = range(5)
MEASURES = ("ches", "ln_ches", "edit_similarity", "last_hidden_inner", "length_difference")
PERCENTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
TASK = TopicTask()


class Arm(NamedTuple):
    """From which model, on which pairs, at which learning rate."""

    sft_first: bool
    matched_lengths: bool
    learning_rate: float


ARMS = {
    "base": Arm(False, False, 1e-4),
    "SFT first": Arm(True, False, 3e-4),
    "matched lengths": Arm(True, True, 3e-4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 3  # languages, models, pairs
    dim: int = 64
    mlp_dim: int = 128
    pretrain_steps: int = 250
    pretrain_batch: int = 32
    pretrain_learning_rate: float = 3e-3  # Adam, warmed up and decayed
    sft_epochs: int = 6
    sft_learning_rate: float = 1e-3
    num_pairs: int = 1000
    subset_size: int = 128
    batch_size: int = 32
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "dim", "mlp_dim", "pretrain_steps", "pretrain_batch", "sft_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("pretrain_learning_rate", "sft_learning_rate", "beta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if not 1 <= self.subset_size <= self.num_pairs:
            raise ValueError(
                f"subset_size must be in [1, num_pairs={self.num_pairs}]; got {self.subset_size}"
            )
        if self.batch_size < 1 or self.subset_size % self.batch_size:
            raise ValueError(f"batch_size must divide subset_size={self.subset_size}; got {self.batch_size}")


PRESETS = {
    "smoke": Config(
        num_seeds=2, dim=16, mlp_dim=16, pretrain_steps=3, pretrain_batch=8, sft_epochs=1, num_pairs=24,
        subset_size=8, batch_size=4,
    ),
    "toy": Config(),
}  # fmt: skip
SECONDS = {"smoke": 12.0, "toy": 110.0}


_claim = functools.partial(claim, artefact="S4")


ORDER = "Spearman correlation of percentile and mean change of log p(chosen), worst seed"
LOWEST = ORDER.replace("worst", "lowest")
CLAIMS = (
    *(_claim(f"the higher the CHES, the less log p(chosen) gains: {arm}", "section 5, figure 2", ORDER,
             f"spearman/ches/{arm}", "<=", -0.9, reduce="max") for arm in ARMS),
    _claim("the pairs of lowest CHES raise log p(chosen)", "section 5, figure 2",
           "mean change at percentile 0, SFT first, nats", "change_lowest_ches", ">", 0.0),
    _claim("the pairs of highest CHES lower log p(chosen)", "section 5, figure 2",
           "mean change at percentile 100, SFT first, nats", "change_highest_ches", "<", 0.0),
    _claim("edit distance does not order displacement", "section 5, figure 2", LOWEST,
           "spearman/edit_similarity/SFT first", ">", -0.9, reduce="min", control=True),
    _claim("the last hidden states do not order displacement", "section 5, figure 2",
           LOWEST, "spearman/last_hidden_inner/SFT first", ">", -0.9, reduce="min",
           control=True),
    _claim("CHES orders displacement better than the bare length difference", "our check of section 5",
           "Spearman correlation of CHES less that of the length difference, SFT first",
           "spearman_ches_less_length", "<", 0.0),
    _claim("raw CHES is mostly a matter of length", "section 5",
           "Spearman correlation of CHES and rejected less chosen length", "ches_length_spearman", ">", 0.5),
    _claim("states of two responses mostly point the same way", "section 5",
           "share of positive inner products of hidden states", "positive_states", ">", 0.5),
    _claim("the coefficients that CHES takes to be 1 are mostly positive", "appendix G.2",
           "share of positive alpha", "positive_alpha", ">", 0.5),
    _claim("the ten pairs of highest CHES have the longer rejected response", "table 14",
           "mean rejected less chosen length, tokens", "length_difference_top_ches", ">", 0.0),
    _claim("the ten pairs of lowest CHES have the longer chosen response", "table 15",
           "mean rejected less chosen length, tokens", "length_difference_bottom_ches", "<", 0.0),
    _claim("the loss falls on every subset, as the definition of displacement asks", "definition 1",
           "largest change of a subset's mean loss, nats", "loss_change", "<", 0.0, reduce="max"),
    _claim("CHES of a response with itself is 0", "definition 2",
           "largest |CHES(y, y)|", "ches_of_itself", "<=", 1e-6, reduce="max"),
)  # fmt: skip


def _policy(config: Config) -> TransformerConfig:
    return TransformerConfig(
        vocab=TASK.vocab, dim=config.dim, layers=2, heads=4, kv_heads=4, head_dim=max(config.dim // 4, 2),
        mlp_dim=config.mlp_dim, tied=False,
    )  # fmt: skip


def _fit_rows(params: PyTree, rows: TokenRows, optimizer, config: Config) -> tuple[PyTree, Array]:
    """Maximum likelihood on rows with a leading axis of steps; also each step's loss, nats per token."""
    objective = train.row_objective(functools.partial(transformer.row_token_logps, config=_policy(config)))
    state = train.init_state(params, optimizer)
    state, metrics = train.fit(train.make_step(objective, optimizer), state, rows)
    return state.params, metrics["loss"]


def pretrain(key: Array, transitions: Array, config: Config) -> tuple[PyTree, Array]:
    """A language model of fresh topic responses, and its loss at each step."""
    init_key, data_key = jax.random.split(key)
    steps, peak = config.pretrain_steps, config.pretrain_learning_rate
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 10, 1), steps))
    of_step = lambda key: topics.responses(key, TASK, transitions, config.pretrain_batch)
    batches = jax.vmap(of_step)(jax.random.split(data_key, steps))
    return _fit_rows(transformer.init(init_key, _policy(config)), batches, optimizer, config)


def fine_tune(key: Array, params: PyTree, chosen: TokenRows, config: Config) -> PyTree:
    """Some epochs of maximum likelihood on the chosen responses."""
    steps = config.sft_epochs * (config.num_pairs // config.batch_size)
    order = train.batch_indices(key, config.num_pairs, config.batch_size, steps)
    batches = jax.tree.map(lambda x: x[order], chosen)
    return _fit_rows(params, batches, optax.adam(config.sft_learning_rate), config)[0]


class Scores(NamedTuple):
    """Every similarity measure of every pair, larger is more alike, and what the claims ask beside."""

    by_measure: Array  # [measures, pairs]
    positive_states: Array
    positive_alpha: Array
    ches_of_itself: Array


def score(params: PyTree, pairs: TokenPairs, config: Config) -> Scores:
    """The measures under the model before preference training."""
    policy = _policy(config)
    hidden = [transformer.hidden(params, rows.tokens, config=policy) for rows in pairs[:2]]
    sums = [likelihood.response_hidden_sums(*both) for both in zip(hidden, pairs[:2], strict=True)]
    last = [likelihood.last_hidden(*both) for both in zip(hidden, pairs[:2], strict=True)]
    similarity = likelihood.ches(sums[0], sums[1], pairs.lengths)
    itself = PairLengths(pairs.lengths.chosen, pairs.lengths.chosen)
    columns = (
        *similarity, likelihood.edit_similarity(pairs.chosen, pairs.rejected),
        likelihood.last_hidden_inner(*last), likelihood.length_difference(pairs.lengths),
    )  # fmt: skip
    shares = positive_shares(params, hidden, pairs, config)
    same = jnp.max(jnp.abs(likelihood.ches(sums[0], sums[0], itself).ches))
    return Scores(jnp.stack([column.astype(jnp.float32) for column in columns]), *shares, same)


def positive_shares(params: PyTree, hidden, pairs: TokenPairs, config: Config) -> tuple[Array, Array]:
    """Shares of positive inner products of hidden states and of residuals, over some of the pairs."""
    unembedding, few = transformer.unembedding(params, config=_policy(config)), config.subset_size
    both = [
        theory.Response(h[:few, :-1], rows.tokens[:few, 1:], rows.response_mask[:few, 1:])
        for h, rows in zip(hidden, pairs[:2], strict=True)
    ]
    masks = [response.mask for response in both]
    residuals = [jax.vmap(theory.residuals, (None, 0))(unembedding, response) for response in both]
    share = alignment.positive_share
    return share(*(response.hidden for response in both), *masks), share(*residuals, *masks)


class Changes(NamedTuple):
    """What training on one subset did to it."""

    chosen: Array  # mean change of log p(chosen), nats
    per_token: Array  # the same per token of the chosen responses, nats
    rejected: Array  # mean change of log p(rejected), nats
    loss: Array  # mean change of the loss, nats
    length_difference: Array  # mean, tokens


def train_subset(params: PyTree, subset: TokenPairs, learning_rate: float, config: Config) -> Changes:
    """One epoch of DPO, then the change of log p(chosen) on the same pairs."""
    policy = _policy(config)
    pair_logps = functools.partial(transformer.pair_logps, config=policy)
    loss_fn, optimizer = losses.bind("dpo", beta=config.beta), train.torch_rmsprop(learning_rate)
    step = train.make_train_step(pair_logps, loss_fn, optimizer)
    batches = jax.tree.map(lambda x: x.reshape(-1, config.batch_size, *x.shape[1:]), subset)
    state, _ = train.fit(step, train.init_state(params, optimizer), batches)
    now, start = pair_logps(state.params, subset), cast(PairLogps, subset.reference)
    chosen, rejected = likelihood.displacement(now, start)
    loss = jnp.mean(loss_fn(now, subset) - loss_fn(start, subset))
    per_token = jnp.sum(chosen) / jnp.sum(subset.lengths.chosen)
    difference = jnp.mean(likelihood.length_difference(subset.lengths))
    return Changes(jnp.mean(chosen), per_token, jnp.mean(rejected), loss, difference)


def train_subsets(key: Array, params: PyTree, pairs: TokenPairs, scores: Array, rate: float, config: Config):
    """`Changes` for every measure and percentile, [measures, percentiles]; pairs in random order."""
    pairs = pairs._replace(reference=transformer.pair_logps(params, pairs, config=_policy(config)))

    def one(setting: tuple[Array, Array]) -> Changes:
        members = topics.percentile_subset(*setting, config.subset_size)
        index = jax.random.permutation(key, members)  # one key: equal subsets give equal changes
        return train_subset(params, jax.tree.map(lambda x: x[index], pairs), rate, config)

    grid = (len(scores), len(PERCENTILES))
    values = jnp.repeat(scores, grid[1], axis=0)
    changes = jax.lax.map(one, (values, jnp.tile(jnp.array(PERCENTILES), grid[0])))
    return jax.tree.map(lambda x: x.reshape(grid), changes)


class ArmResult(NamedTuple):
    scores: Scores
    changes: Changes  # [measures, percentiles] each
    lengths: PairLengths
    kind: Array


def run_arm(key: Array, params: PyTree, transitions: Array, arm: Arm, config: Config) -> ArmResult:
    """Pairs of one data set, scored and trained on subset by subset; the arm's fields may be traced."""
    pair_key, sft_key, order_key = jax.random.split(key, 3)
    made = topics.pairs(pair_key, TASK, transitions, config.num_pairs, matched_lengths=arm.matched_lengths)
    tune = lambda params: fine_tune(sft_key, params, made.pairs.chosen, config)
    params = jax.lax.cond(arm.sft_first, tune, lambda params: params, params)
    scores = score(params, made.pairs, config)
    changes = train_subsets(order_key, params, made.pairs, scores.by_measure, arm.learning_rate, config)
    return ArmResult(scores, changes, made.pairs.lengths, made.kind)


def _spearman(first: np.ndarray | Array, second: np.ndarray | Array) -> float:
    """Rounded, for five points give tenths: -0.9 must not miss -0.9 by a rounding error."""
    return round(float(spearmanr(first, second).statistic), 9)


def order_summary(name: str, result: ArmResult) -> dict[str, float]:
    """How well each measure orders displacement in one arm; -1 is what is claimed of CHES."""
    return {
        f"summary/spearman/{measure}/{name}": _spearman(np.array(PERCENTILES), result.changes.chosen[i])
        for i, measure in enumerate(MEASURES)
    }


def base_summary(result: ArmResult) -> dict[str, float]:
    """What is claimed of the scores themselves, under the base model."""
    scores, lengths = result.scores, result.scores.by_measure[LENGTH]
    order = np.argsort(scores.by_measure[CHES])
    return {
        "summary/ches_length_spearman": _spearman(scores.by_measure[CHES], lengths),
        "summary/positive_states": float(scores.positive_states),
        "summary/positive_alpha": float(scores.positive_alpha),
        "summary/length_difference_top_ches": float(lengths[order[-10:]].mean()),
        "summary/length_difference_bottom_ches": float(lengths[order[:10]].mean()),
    }


def summarize(results: dict[str, ArmResult]) -> dict[str, float]:
    """The claims' statistics of one seed."""
    summary: dict[str, float] = {}
    for name, result in results.items():
        summary |= order_summary(name, result)
    spearman = lambda measure: summary[f"summary/spearman/{measure}/SFT first"]
    ches = results["SFT first"].changes.chosen[CHES]
    return summary | base_summary(results["base"]) | {
        "summary/change_lowest_ches": float(ches[0]),
        "summary/change_highest_ches": float(ches[-1]),
        "summary/spearman_ches_less_length": spearman("ches") - spearman("length_difference"),
        "summary/loss_change": max(float(result.changes.loss.max()) for result in results.values()),
        "summary/ches_of_itself": max(float(result.scores.ches_of_itself) for result in results.values()),
    }  # fmt: skip


def write_changes(writer: RunWriter, seed: int, name: str, changes: Changes) -> None:
    """A line for each measure and percentile."""
    for i, measure in enumerate(MEASURES):
        for j, percentile in enumerate(PERCENTILES):
            line = {
                "logps/chosen_delta": changes.chosen[i, j], "logps/rejected_delta": changes.rejected[i, j],
                "logps/chosen_delta_per_token": changes.per_token[i, j], "loss_delta": changes.loss[i, j],
                "length_difference": changes.length_difference[i, j],
            }  # fmt: skip
            writer.write(line, seed=seed, arm=name, measure=measure, percentile=percentile)


def pair_columns(seed: int, name: str, result: ArmResult) -> dict[str, np.ndarray]:
    """Every pair's scores and lengths."""
    num = len(result.kind)
    columns = dict(zip(MEASURES, result.scores.by_measure.astype(np.float32), strict=True))
    labels = {"seed": np.full(num, seed), "arm": np.full(num, name)}
    kind = {"kind": np.array(topics.KINDS)[result.kind]}
    return labels | columns | kind | {
        "chosen_length": result.lengths.chosen, "rejected_length": result.lengths.rejected,
    }  # fmt: skip


def _arm_results(key: Array, config: Config, writer: RunWriter, seed: int, program) -> dict[str, ArmResult]:
    """Everything of one seed: its language, its model, and the arms, each a part of the run."""
    language_key, pretrain_key, arm_key = jax.random.split(key, 3)
    transitions = TASK.transitions(language_key)
    train_lm = functools.partial(pretrain, config=config)
    arrays = writer.part(
        f"pretrained {seed}", lambda: trees.to_arrays(jax.jit(train_lm)(pretrain_key, transitions))
    )
    params, loss = trees.from_arrays(arrays, jax.eval_shape(train_lm, pretrain_key, transitions))
    entropy = float(-jnp.mean(jnp.sum(jnp.exp(transitions) * transitions, axis=-1)))
    writer.note(**{f"pretrain_{seed}": {"last_loss": float(loss[-10:].mean()), "word_entropy": entropy}})
    results = {}
    for index, (name, arm) in enumerate(ARMS.items()):
        writer.progress((seed + (index + 1) / 4) / config.num_seeds, f"seed {seed}, {name}")
        arrays = writer.part(
            f"{seed} {name}", lambda arm=arm: trees.to_arrays(program(arm_key, params, transitions, arm))
        )
        like = jax.eval_shape(program, arm_key, params, transitions, arm)
        results[name] = trees.from_arrays(arrays, like)
    return results


def run(config: Config, writer: RunWriter) -> None:
    program = jax.jit(functools.partial(run_arm, config=config))
    tables = []
    for seed, key in enumerate(jax.random.split(jax.random.key(config.seed), config.num_seeds)):
        writer.progress(seed / config.num_seeds, f"seed {seed}, pretraining")
        results = _arm_results(key, config, writer, seed, program)
        for name, result in results.items():
            write_changes(writer, seed, name, result.changes)
            tables.append(pair_columns(seed, name, result))
        writer.write(summarize(results), seed=seed)
    writer.table({name: np.concatenate([table[name] for table in tables]) for name in tables[0]})
