"""Which tokens entangle the two responses: the contrast, or what they share? (the heat map, figure 4b)

    python -m experiments run gradient_entanglement/tokens --out DIR

Half a minute on two cores. At the start of DPO the contrasting labels' gradients are opposed (-1), those of
the same suffix token aligned (about +0.9), all others nearly orthogonal.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from experiments.gradient_entanglement.claims import claim
from jaxpref.data import synthetic_sentiment as sentiment
from jaxpref.pairs import TokenPairs
from jaxpref.probes import gradients
from jaxpref.results import Arrays, RunWriter
from jaxpref.toys import sentiment as toy
from jaxpref.toys.sentiment import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    expected: Recipe = toy.EXPECTED
    independent: Recipe = toy.INDEPENDENT
    suffix: int = 6  # tokens
    num_pairs: int = 8
    num_seeds: int = 3
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.suffix <= sentiment.SLOTS:
            raise ValueError(f"suffix must be in [1, {sentiment.SLOTS}]; got {self.suffix}")
        for name in ("num_pairs", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(
        expected=toy.shrunk(toy.EXPECTED), independent=toy.shrunk(toy.INDEPENDENT), num_pairs=1, num_seeds=2
    ),
    "toy": Config(),
}
SECONDS = {"smoke": 12.0, "toy": 35.0}
CLAIMS = (
    claim("R8", "the contrasting tokens' gradients are opposed", "section 4.3, figure 4b",
          "mean cosine of the two labels, largest of both toys", "contrast", "<", -0.5),
    claim("R8", "the same suffix token has aligned gradients in both responses", "section 4.3, figure 4b",
          "least mean cosine on the suffix diagonal, both toys", "diagonal_least", ">", 0.5),
    claim("R8", "different tokens are nearly orthogonal", "section 4.3, figure 4b",
          "mean absolute cosine off the diagonal, larger of both toys", "off_diagonal", "<", 0.15),
    claim("R8", "the cells sum to the responses' inner product", "section 4.3",
          "largest difference relative to the product of norms", "sum_error", "<=", 1e-5, reduce="max"),
)  # fmt: skip


def _cells(slots: int, params: PyTree, pair: TokenPairs) -> dict[str, Array]:
    """Products of every two response tokens of one pair, and the responses' own, for comparison."""
    pair = jax.tree.map(lambda x: x[None], pair)
    products = gradients.token_gradient_products(toy.token_logps, params, pair)
    geometry = gradients.gradient_geometry(toy.pair_logps, params, pair)
    response = slice(sentiment.PROMPT, sentiment.PROMPT + 1 + slots)
    norms = jnp.sqrt(geometry.chosen_sq_norm * geometry.rejected_sq_norm)
    return {
        "cosine": products.cosine[response, response], "inner": products.inner[response, response],
        "sum_error": (jnp.abs(products.inner.sum() - geometry.inner) / norms)[0],
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def _heat_maps(params: PyTree, key: Array, *, config: Config) -> dict[str, Array]:
    """Of each of some held-out pairs under one model, [pairs, ...]."""
    pairs = sentiment.pairs(key, config.num_pairs, config.suffix)
    return jax.lax.map(functools.partial(_cells, config.suffix, params), pairs)


def _run_one(config: Config, recipe: Recipe) -> Arrays:
    keys = toy.keys(config.seed)
    starts = toy.starts(recipe, keys, config.num_seeds, config.suffix)
    pair_keys = jax.random.split(keys.held_out, config.num_seeds)
    one_seed = lambda s: _heat_maps(jax.tree.map(lambda x: x[s], starts), pair_keys[s], config=config)
    seeds = [jax.device_get(one_seed(s)) for s in range(config.num_seeds)]
    return {name: np.stack([seed[name] for seed in seeds]) for name in seeds[0]}


def _statistics(seen: Arrays) -> Arrays:
    """Contrast cell, suffix diagonal and the rest of each seed's mean heat map."""
    mean = seen["cosine"].mean(1)
    diagonal = np.diagonal(mean, axis1=1, axis2=2)
    off = ~np.eye(mean.shape[-1], dtype=bool)
    return {
        "contrast": diagonal[:, 0],
        "diagonal_least": diagonal[:, 1:].min(-1),
        "off_diagonal": np.abs(seen["cosine"]).mean(1)[:, off].mean(-1),
        "sum_error": seen["sum_error"].max(-1),
    }


def _table(seen: dict[str, Arrays]) -> Arrays:
    """Every cell of every heat map, a row each."""
    columns: dict[str, list[np.ndarray]] = {}
    for name, arrays in seen.items():
        shape = arrays["cosine"].shape
        places = dict(zip(("seed", "pair", "chosen_token", "rejected_token"), np.indices(shape), strict=True))
        values = places | {"cosine": arrays["cosine"], "inner": arrays["inner"], "toy": np.full(shape, name)}
        for key, value in values.items():
            columns.setdefault(key, []).append(np.ravel(value))
    return {key: np.concatenate(parts) for key, parts in columns.items()}


def run(config: Config, writer: RunWriter) -> None:
    seen = {}
    for index, (name, recipe) in enumerate(
        (("expected", config.expected), ("independent", config.independent))
    ):
        writer.progress(index / 2, f"{name} suffix")
        seen[name] = writer.part(name, functools.partial(_run_one, config, recipe))
    statistics = {name: _statistics(arrays) for name, arrays in seen.items()}
    for name, values in statistics.items():
        writer.write_summary(values, toy=name)
    writer.table(_table(seen), name="tokens")
    worst = {"diagonal_least": np.min}
    both = lambda key: worst.get(key, np.max)([values[key] for values in statistics.values()], axis=0)
    writer.write_summary({f"summary/{key}": both(key) for key in statistics["expected"]})
