"""A tiny transformer, pretrained and briefly fine-tuned on synthetic sentiment: where DPO starts.

Deliberately half-trained, as in Yuan et al. 2024 (arXiv:2410.13828): after fine-tuning to the end the
suffix is certain and its gradient gone. One pretrained model serves all suffix lengths, as one GPT-2
does in the paper, because what stands behind a token cannot change it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PyTree

from jaxpref import train
from jaxpref.data import synthetic_sentiment as sentiment
from jaxpref.pairs import TokenPairs, TokenRows
from jaxpref.policies import transformer

MODEL = transformer.tiny(sentiment.VOCAB)
pair_logps = functools.partial(transformer.pair_logps, config=MODEL)
token_logps = functools.partial(transformer.token_logps, config=MODEL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model before DPO is made; Adam throughout, the pretraining rate decays as a cosine."""

    flipped: float = 0.3  # share of pretraining rows with the other class's label
    right_if_matching: float  # probability of a right suffix token behind the right label
    right_if_flipped: float  # the same behind the wrong label
    pretrain_steps: int
    pretrain_rate: float
    pretrain_batch: int = 32
    tune_steps: int
    tune_rate: float
    tune_batch: int = 32

    def __post_init__(self):
        for name in ("flipped", "right_if_matching", "right_if_flipped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, in [0, 1]; got {getattr(self, name)}")
        for name in ("pretrain_steps", "pretrain_batch", "tune_steps", "tune_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")

    @property
    def noise(self) -> sentiment.Noise:
        return sentiment.Noise(self.flipped, self.right_if_matching, self.right_if_flipped)


INDEPENDENT = Recipe(  # toy A: the suffix says nothing about the label
    right_if_matching=0.3, right_if_flipped=0.3,
    pretrain_steps=400, pretrain_rate=1e-3, tune_steps=5, tune_rate=1e-4,
)  # fmt: skip
EXPECTED = Recipe(  # toy B: the suffix is likelier behind the right label
    right_if_matching=0.5, right_if_flipped=0.1,
    pretrain_steps=400, pretrain_rate=2e-3, tune_steps=2, tune_rate=3e-5,
)  # fmt: skip


def shrunk(recipe: Recipe) -> Recipe:
    """The same recipe in a moment: hardly trained, for tests of what is built on it."""
    return dataclasses.replace(recipe, pretrain_steps=4, pretrain_batch=4, tune_steps=1, tune_batch=4)


class Keys(NamedTuple):
    """The randomness of a study on these models, by use."""

    pretrain: Array
    tune: Array
    train: Array
    held_out: Array


def keys(seed: int) -> Keys:
    """All keys of a run from its seed; the same seed gives every question the same pretrained models."""
    return Keys(*jax.random.split(jax.random.key(seed), 4))


def pretrained(recipe: Recipe, key: Array, num_seeds: int) -> PyTree:
    """Parameters of `num_seeds` pretrained models, leading axis seeds; computed once a process."""
    return _pretrained(recipe, tuple(jax.random.key_data(key).tolist()), num_seeds)


@functools.lru_cache(maxsize=4)
def _pretrained(recipe: Recipe, key_data: tuple[int, ...], num_seeds: int) -> PyTree:
    key = jax.random.wrap_key_data(jnp.array(key_data, jnp.uint32))
    return _pretrain_all(
        jax.random.split(key, num_seeds), recipe.noise, recipe.pretrain_rate,
        steps=recipe.pretrain_steps, batch=recipe.pretrain_batch,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("steps", "batch"))
def _pretrain_all(keys: Array, noise: sentiment.Noise, rate: Array, *, steps: int, batch: int) -> PyTree:
    """Recipes of the same size share this program. Seed after seed: on a CPU faster than as one batch."""
    return jax.lax.map(lambda key: pretrain(key, noise, rate, steps=steps, batch=batch), keys)


def pretrain(key: Array, noise: sentiment.Noise, rate: Array, *, steps: int, batch: int) -> PyTree:
    """One model, from scratch, on noisy answers."""
    init_key, data_key = jax.random.split(key)
    draw = lambda key: sentiment.noisy_rows(key, batch, noise)
    batches = jax.vmap(draw)(jax.random.split(data_key, steps))
    decayed = lambda step: rate * optax.cosine_decay_schedule(1.0, steps)(step)
    return _maximize_likelihood(transformer.init(init_key, MODEL), batches, optax.adam(decayed))


def starts(recipe: Recipe, keys: Keys, num_seeds: int, slots: int) -> PyTree:
    """Start and reference of DPO, leading axis seeds: tuned on right answers with `slots` suffix tokens."""
    params = pretrained(recipe, keys.pretrain, num_seeds)
    tune_keys = jax.random.split(keys.tune, num_seeds)
    return _tune_all(
        params, tune_keys, slots, recipe.tune_rate, steps=recipe.tune_steps, batch=recipe.tune_batch
    )


@functools.partial(jax.jit, static_argnames=("steps", "batch"))
def _tune_all(params: PyTree, keys: Array, slots: Array, rate: Array, *, steps: int, batch: int) -> PyTree:
    one_seed = lambda seed: tune(seed[0], seed[1], slots, rate, steps=steps, batch=batch)
    return jax.lax.map(one_seed, (params, keys))


def tune(params: PyTree, key: Array, slots: Array, rate: Array, *, steps: int, batch: int) -> PyTree:
    """One model, fine-tuned on right answers."""
    draw = lambda key: sentiment.right_rows(key, batch, slots)
    batches = jax.vmap(draw)(jax.random.split(key, steps))
    return _maximize_likelihood(params, batches, optax.adam(rate))


def with_reference(params: PyTree, batch: TokenPairs) -> TokenPairs:
    """The batch with its log-probabilities under `params` as the reference's."""
    return batch._replace(reference=pair_logps(params, batch))


def fresh_pairs(params: PyTree, key: Array, num: int, slots: Array, num_steps: int) -> TokenPairs:
    """New pairs for each of `num_steps` steps, `params` being the reference; leading axis steps."""
    draw = lambda key: with_reference(params, sentiment.pairs(key, num, slots))
    return jax.lax.map(draw, jax.random.split(key, num_steps))


def mean_parts(params: PyTree, batch: TokenPairs) -> dict[str, Array]:
    """Mean log-probability of both responses, and of their label and suffix, nats."""
    tokens = token_logps(params, batch)
    parts = {}
    for name, side in (("chosen", tokens.chosen), ("rejected", tokens.rejected)):
        label, suffix = side[:, sentiment.PROMPT], side[:, sentiment.PROMPT + 1 :].sum(-1)
        parts[f"logps/{name}"] = jnp.mean(label + suffix)
        parts[f"logps/{name}_label"], parts[f"logps/{name}_suffix"] = jnp.mean(label), jnp.mean(suffix)
    return parts


def _maximize_likelihood(params: PyTree, batches: TokenRows, optimizer: optax.GradientTransformation):
    token_logps = functools.partial(transformer.row_token_logps, config=MODEL)
    step = train.make_step(train.row_objective(token_logps), optimizer)
    return train.fit(step, train.init_state(params, optimizer), batches)[0].params
