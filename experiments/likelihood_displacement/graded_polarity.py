"""Does a trained transformer move mass to opposite answers when two similar ones are compared? (Razin et al.)

    python -m experiments run likelihood_displacement/graded_polarity --preset toy --out DIR

Half a minute on two cores. Five answers from Never to Absolutely; one prompt at a time is trained with
DPO. At rate 1e-5 No over Never costs P(No) .46, and Maybe and Yes gain; under No over Yes, Never gains.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import PyTree

from experiments.likelihood_displacement.claims import claim
from jaxpref import losses, train, trees
from jaxpref.data.synthetic_polarity import ANSWERS, PolarityTask
from jaxpref.policies import one_token, transformer
from jaxpref.policies.one_token import OneTokenPairs
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import likelihood
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.theory import likelihood as theory

NEVER, NO, MAYBE, YES, ABSOLUTELY = range(len(ANSWERS))


@dataclasses.dataclass(frozen=True)
class Condition:
    """Which answer is preferred over which, and how fast it is learnt."""

    chosen: int
    rejected: int
    learning_rate: float

    @property
    def pair(self) -> str:
        return f"{ANSWERS[self.chosen]} over {ANSWERS[self.rejected]}"


PAIRS = ((NO, NEVER), (YES, ABSOLUTELY), (NO, YES), (YES, NO))
RATES = (1e-5, 1e-4)
CONDITIONS = (*(Condition(w, l, rate) for rate in RATES for w, l in PAIRS), Condition(NO, NEVER, 1e-3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 5  # pretrained transformers, strengths and prompts
    dim: int = 64
    mlp_dim: int = 128
    pretrain_steps: int = 300
    pretrain_batch: int = 128
    pretrain_learning_rate: float = 2e-3  # Adam, warmed up and decayed
    num_candidates: int = 64  # prompts, of which the surest of the chosen answer are trained on
    num_prompts: int = 10  # each trained on by itself
    beta: float = 0.1
    num_steps: int = 100
    record_every: int = 5  # steps
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "dim", "mlp_dim", "pretrain_steps", "pretrain_batch", "num_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("pretrain_learning_rate", "beta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.num_candidates < self.num_prompts:
            raise ValueError(
                f"num_candidates must be at least num_prompts={self.num_prompts}; got {self.num_candidates}"
            )
        if self.record_every < 1 or self.num_steps % self.record_every:
            raise ValueError(f"record_every must divide num_steps={self.num_steps}; got {self.record_every}")


PRESETS = {
    "smoke": Config(
        num_seeds=2, dim=16, mlp_dim=16, pretrain_steps=10, num_candidates=4, num_prompts=2, num_steps=5
    ),
    "toy": Config(),
}
SECONDS = {"smoke": 5.0, "toy": 52.0}
TASK = PolarityTask()


_claim = functools.partial(claim, artefact="S3")


def _pair_claims(rate: float) -> tuple[ClaimSpec, ...]:
    """Similar pairs are displaced, and to the other side; the opposite holds of dissimilar pairs."""
    at, drop = f"at learning rate {rate:g}", "largest fall of P(chosen) between two steps"
    side = "gain of the chosen's far side less that of its near side, during that fall"
    far, near = ("No over Never", "Yes over Absolutely"), ("No over Yes", "Yes over No")
    return (
        *(_claim(f"{pair} displaces its chosen answer {at}", "tables 1, 2", drop,
                 f"drop/{pair}/{rate:g}", ">", 0.2) for pair in far),
        *(_claim(f"{pair} feeds the opposite answers {at}: catastrophic", "tables 1, 4", side,
                 f"far_gain/{pair}/{rate:g}", ">", 0.0) for pair in far),
        *(_claim(f"{pair} feeds answers of its own side {at}: benign", "tables 1, 4", side,
                 f"far_gain/{pair}/{rate:g}", "<", 0.0, control=True) for pair in near),
    )  # fmt: skip


CLAIMS = (
    _claim("pretraining learnt the task", "precondition, ours",
           "cross entropy of the answers less their entropy, nats", "excess_nll", "<", 0.1, reduce="max"),
    _claim("unembeddings form an ordinal chain: neighbours are alike", "specification S3",
           "smallest inner product of neighbouring answers", "neighbours_inner", ">", 0.0, reduce="min"),
    _claim("unembeddings form an ordinal chain: the ends are opposed", "specification S3",
           "inner product of Never and Absolutely", "ends_inner", "<", 0.0, reduce="max"),
    _claim("the loss ends lower than it began in every run", "definition 1",
           "largest final less initial loss, nats", "loss_change", "<", 0.0, reduce="max"),
    *(claim for rate in RATES for claim in _pair_claims(rate)),
    _claim("W_chosen - W_rejected is mostly orthogonal to W_chosen, for No over Never", "table 13",
           "orthogonal less projected norm", "orthogonal_excess/No over Never", ">", 0.0),
    _claim("start less end misses the displacement that happened at learning rate 1e-3", "section 3",
           "largest fall less the fall from start to end", "missed_drop", ">", 0.2),
)  # fmt: skip


def _policy(config: Config) -> TransformerConfig:
    return TransformerConfig(
        vocab=TASK.vocab, dim=config.dim, layers=2, heads=4, kv_heads=4, head_dim=max(config.dim // 4, 2),
        mlp_dim=config.mlp_dim, tied=False,
    )  # fmt: skip


def _pairs(prompts: Array, chosen: Array, rejected: Array) -> OneTokenPairs:
    return OneTokenPairs(prompts, jnp.full(len(prompts), TASK.prompt_length - 1), chosen, rejected)


class Pretrained(NamedTuple):
    params: PyTree
    strengths: Array
    loss: Array  # [steps], nats


def pretrain(key: Array, config: Config) -> Pretrained:
    """Maximum likelihood on fresh prompts with sampled answers."""
    init_key, strength_key, data_key = jax.random.split(key, 3)
    strengths, policy = TASK.strengths(strength_key), _policy(config)
    objective = train.pair_objective(
        functools.partial(one_token.pair_logps, config=policy), losses.bind("sft")
    )
    steps, peak = config.pretrain_steps, config.pretrain_learning_rate
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps))
    state = train.init_state(transformer.init(init_key, policy), optimizer)
    batches = jax.vmap(lambda key: _answered(key, strengths, config))(jax.random.split(data_key, steps))
    state, metrics = train.fit(train.make_step(objective, optimizer), state, batches)
    return Pretrained(state.params, strengths, metrics["loss"])


def _answered(key: Array, strengths: Array, config: Config) -> OneTokenPairs:
    """Prompts with an answer drawn from the task; both sides of the pair hold it."""
    prompt_key, answer_key = jax.random.split(key)
    prompts = TASK.prompts(prompt_key, config.pretrain_batch)
    answers = jax.random.categorical(answer_key, TASK.answer_logps(strengths, prompts))
    return _pairs(prompts, answers, answers)


class Trajectory(NamedTuple):
    """One prompt's training, a value before each update."""

    answer_logps: Array  # [steps, answers], nats
    loss: Array  # [steps], nats


def prefer(params: PyTree, prompt: Array, condition: Condition, config: Config) -> Trajectory:
    """DPO on one prompt with RMSProp as the paper's; `num_steps` + 1 records."""
    policy = _policy(config)
    batch = _pairs(prompt[None], jnp.asarray(condition.chosen)[None], jnp.asarray(condition.rejected)[None])
    batch = batch._replace(reference=one_token.pair_logps(params, batch, config=policy))
    response_logps = functools.partial(one_token.response_logps, config=policy)
    objective = train.response_objective(response_logps, losses.bind("dpo", beta=config.beta))
    optimizer = train.torch_rmsprop(condition.learning_rate)
    step = train.make_step(objective, optimizer)
    _, metrics = train.fit_fixed(step, train.init_state(params, optimizer), batch, config.num_steps + 1)
    return Trajectory(metrics["logps/responses"][:, 0, : len(ANSWERS)], metrics["loss"])


def candidates(params: PyTree, prompts: Array, chosen: Array, config: Config) -> Array:
    """The prompts on which the policy is surest of the chosen answer."""
    batch = _pairs(prompts, jnp.zeros(len(prompts), int), jnp.zeros(len(prompts), int))
    table = one_token.response_logps(params, batch, config=_policy(config))
    return prompts[jax.lax.top_k(table[:, chosen], config.num_prompts)[1]]


def prefer_all(pretrained: Pretrained, key: Array, config: Config) -> Trajectory:
    """Every condition on its prompts: [conditions, prompts, steps, ...]."""
    pool = TASK.prompts(key, config.num_candidates)

    def one_condition(numbers: tuple[Array, Array, Array]) -> Trajectory:
        condition = Condition(*numbers)  # type: ignore[arg-type]  # traced
        prompts = candidates(pretrained.params, pool, numbers[0], config)
        return jax.vmap(lambda prompt: prefer(pretrained.params, prompt, condition, config))(prompts)

    columns = zip(*(dataclasses.astuple(condition) for condition in CONDITIONS), strict=True)
    return jax.lax.map(one_condition, tuple(jnp.array(column) for column in columns))


def excess_nll(pretrained: Pretrained, key: Array, config: Config) -> tuple[Array, Array]:
    """Cross entropy of the answers under the policy, and their entropy, nats, on fresh prompts."""
    prompts = TASK.prompts(key, 1024)
    truth = TASK.answer_logps(pretrained.strengths, prompts)
    batch = _pairs(prompts, prompts[:, 0], prompts[:, 0])
    table = one_token.response_logps(pretrained.params, batch, config=_policy(config))[:, : len(ANSWERS)]
    expected = lambda values: -jnp.mean(jnp.sum(jnp.exp(truth) * values, axis=-1))
    return expected(table), expected(truth)


class Falls(NamedTuple):
    """The largest fall of P(chosen) of every run [seeds, prompts], and where its mass went meanwhile."""

    size: np.ndarray
    before: np.ndarray  # step of the high point
    after: np.ndarray  # step of the low point
    high: np.ndarray  # P(chosen) at the high point
    gains: np.ndarray  # [seeds, prompts, answers] of probability between the two


def falls(probabilities: np.ndarray, chosen: int) -> Falls:
    """From P(answers) of one condition, [seeds, prompts, steps, answers]."""
    drop = likelihood.max_drop(jnp.asarray(probabilities[..., chosen]))
    size, before, after = (np.asarray(value) for value in drop)
    at = lambda step: np.take_along_axis(probabilities, step[..., None, None], axis=2)[:, :, 0]
    return Falls(size, before, after, at(before)[..., chosen], at(after) - at(before))


def far_gain(gains: np.ndarray, chosen: int) -> np.ndarray:
    """What answers of the chosen's far side gained, Maybe included, less those of its near side."""
    below, above = gains[..., :chosen].sum(-1), gains[..., chosen + 1 :].sum(-1)
    return above - below if chosen < MAYBE else below - above


def condition_summary(condition: Condition, fall: Falls, loss: np.ndarray) -> dict[str, np.ndarray]:
    """The claims' statistics of one condition, [seeds]: means over its prompts."""
    label = f"{condition.pair}/{condition.learning_rate:g}"
    return {
        f"summary/drop/{label}": fall.size.mean(1),
        f"summary/far_gain/{label}": far_gain(fall.gains, condition.chosen).mean(1),
        f"summary/monotone_loss/{label}": np.all(np.diff(loss, axis=-1) <= 0, axis=-1).mean(1),
    }


def _runs(condition: Condition, fall: Falls, loss: np.ndarray) -> dict[str, np.ndarray]:
    """A row for each seed and prompt of one condition."""
    seeds, prompts = np.indices(fall.size.shape)
    columns = {
        "seed": seeds, "prompt": prompts, "drop": fall.size, "high": fall.high,
        "step_before": fall.before,
        "step_after": fall.after, "monotone_loss": np.all(np.diff(loss, axis=-1) <= 0, axis=-1),
        **{f"gain/{answer}": fall.gains[..., i] for i, answer in enumerate(ANSWERS)},
    }  # fmt: skip
    rows = {name: values.ravel() for name, values in columns.items()}
    labels = {"pair": condition.pair, "learning_rate": condition.learning_rate}
    return {name: np.full(fall.size.size, value) for name, value in labels.items()} | rows


def splits(unembedding: np.ndarray) -> dict[str, theory.Split]:
    """Table 13 for the four pairs, from the answers' unembeddings [seeds, answers, dim]."""
    split = jax.vmap(theory.unembedding_split, (0, None, None))
    return {
        Condition(w, l, 0.0).pair: split(jnp.asarray(unembedding), jnp.asarray(w), jnp.asarray(l))
        for w, l in PAIRS
    }


def write_geometry(writer: RunWriter, unembedding: np.ndarray) -> None:
    """Inner products of the answers' unembeddings, table 13's splits, and the claims about both."""
    gram = np.einsum("sad,sbd->sab", unembedding, unembedding)
    seed, first, second = (index.ravel() for index in np.indices(gram.shape))
    writer.table({"seed": seed, "first": first, "second": second, "inner": gram.ravel()}, "unembedding_gram")
    for pair, split in (by_pair := splits(unembedding)).items():
        writer.write_summary({f"split/{k}": v for k, v in split._asdict().items()}, pair=pair)
    similar = by_pair["No over Never"]
    writer.write_summary({
        "summary/neighbours_inner": np.diagonal(gram, 1, 1, 2).min(axis=1),
        "summary/ends_inner": gram[:, NEVER, ABSOLUTELY],
        "summary/orthogonal_excess/No over Never": similar.orthogonal - similar.projection,
    })  # fmt: skip


def write_trajectories(writer: RunWriter, trajectory: Trajectory, every: int) -> None:
    """Means over prompts, a curve for each condition and seed."""
    steps = range(0, trajectory.loss.shape[-1], every)
    for index, condition in enumerate(CONDITIONS):
        logps, loss = (np.asarray(x)[:, index, :, ::every].mean(1) for x in trajectory)
        probability = np.exp(np.asarray(trajectory.answer_logps)[:, index, :, ::every]).mean(1)
        curves = {f"logps/{answer}": logps[..., i] for i, answer in enumerate(ANSWERS)}
        curves |= {f"probability/{answer}": probability[..., i] for i, answer in enumerate(ANSWERS)}
        writer.write_curves(
            curves | {"loss": loss}, steps, pair=condition.pair, learning_rate=condition.learning_rate
        )


def write_verdicts(writer: RunWriter, trajectory: Trajectory) -> None:
    """Every run's largest fall as a table, and the statistics of the claims."""
    tables, probabilities, loss = [], np.exp(trajectory.answer_logps), np.asarray(trajectory.loss)
    for index, condition in enumerate(CONDITIONS):
        fall = falls(probabilities[:, index], condition.chosen)
        writer.write_summary(condition_summary(condition, fall, loss[:, index]))
        tables.append(_runs(condition, fall, loss[:, index]))
    writer.table({name: np.concatenate([table[name] for table in tables]) for name in tables[0]}, "runs")
    last = probabilities[:, -1, :, :, NO]  # No over Never at 1e-3
    missed = falls(probabilities[:, -1], NO).size - (last[..., 0] - last[..., -1])
    change = (loss[..., -1] - loss[..., 0]).max(axis=(1, 2))
    writer.write_summary({"summary/missed_drop": missed.mean(1), "summary/loss_change": change})


def _pretrained(config: Config, keys: Array, writer: RunWriter) -> Pretrained:
    program = jax.vmap(functools.partial(pretrain, config=config))
    arrays = writer.part("pretrained", lambda: trees.to_arrays(jax.jit(program)(keys)))
    return trees.from_arrays(arrays, jax.eval_shape(program, keys))


def run(config: Config, writer: RunWriter) -> None:
    pretrain_key, prompt_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    of_seeds = functools.partial(jax.random.split, num=config.num_seeds)
    writer.progress(0.0, "pretraining")
    pretrained = _pretrained(config, of_seeds(pretrain_key), writer)
    writer.progress(0.6, "one prompt at a time")
    program = jax.jit(jax.vmap(functools.partial(prefer_all, config=config)))
    trajectory = jax.device_get(program(pretrained, of_seeds(prompt_key)))
    measure = jax.jit(jax.vmap(functools.partial(excess_nll, config=config)))
    nll, entropy = measure(pretrained, of_seeds(test_key))
    writer.note(answer_nll=nll.tolist(), answer_entropy=entropy.tolist())
    unembedding = np.asarray(pretrained.params["unembedding"])[:, : len(ANSWERS)]
    writer.write_summary({"summary/excess_nll": nll - entropy})
    write_geometry(writer, unembedding)
    write_trajectories(writer, trajectory, config.record_every)
    write_verdicts(writer, trajectory)
