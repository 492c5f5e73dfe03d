"""What does a negative gradient add to a step, and what can best-of-n reach? (Tajwar et al. 2024)

    python -m experiments run mode_seeking/negative_gradient_theory --out results/negative_gradient_theory

Fifteen seconds on two cores. On a table the margin always gains; on the transformer the first-order
prediction of the gain is within 5 % of the step. Iterated best-of-10 on one token: .314, .915, .9987, 1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from jaxpref import logps
from jaxpref.data import bandits
from jaxpref.pairs import PairLogps, TokenPairs
from jaxpref.policies import rollouts, transformer
from jaxpref.probes import divergence, gradients
from jaxpref.probes.gradients import GradientGeometry
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.theory import divergence as theory
from jaxpref.toys import sequence_bandit

CONCENTRATIONS = (0.05, 0.2, 1.0)  # of the Dirichlet distributions that stand for policies
ITERATED_BEST_OF_10 = (0.314, 0.915, 0.9987, 1.0)  # mean R1 of one token, specification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 5
    num_policies: int = 2000  # random tables a seed and concentration, a pair each
    num_bins: int = 100
    num_pairs: int = 16  # of the transformer, a seed
    learning_rate: float = 1e-4  # of the transformer's plain gradient step
    pretrain_steps: int = 100
    largest_n: int = 64  # of the best-of-n divergence
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "num_policies", "num_pairs", "pretrain_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("num_bins", "largest_n"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2; got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")


PRESETS = {
    "smoke": Config(num_seeds=2, num_policies=20, num_pairs=2, pretrain_steps=2, largest_n=4),
    "toy": Config(),
}
SECONDS = {"smoke": 9.0, "toy": 40.0}

LEMMA = "arXiv:2404.14367, lemma 6.2"
_claim = functools.partial(ClaimSpec, reduce="max")
CLAIMS = (
    _claim(
        claim="on a table, pushing the rejected response down always adds to the margin",
        paper=LEMMA, artefact="A3", statistic="least gain, per learning rate and weight", relation=">",
        threshold=0.0, reduce="min", metric="summary/tabular_margin_gain",
    ),
    _claim(
        claim="on a table it helps the chosen response exactly when p_w + p_l > sum p^2",
        paper=LEMMA, artefact="A3", statistic="pairs where the signs differ", relation="<=", threshold=0.0,
        metric="summary/tabular_sign_mismatches",
    ),
    _claim(
        claim="pairs drawn from the policy meet that condition more often than uniform pairs",
        paper="specification 2.2", artefact="A3", relation=">", threshold=0.0, reduce="mean",
        statistic="share of on-policy less share of uniform pairs, least over the concentrations",
        metric="summary/on_policy_share_lead",
    ),
    _claim(
        claim="on the transformer the first-order gain is that of a small step",
        paper=LEMMA, artefact="A3", relation="<=", threshold=0.05,
        statistic="largest difference, over learning rate times squared norm of the larger gradient",
        metric="summary/transformer_prediction_error",
    ),
    _claim(
        claim="the best of n bests of n is the best of n^2", paper="specification 2.1", artefact="A4",
        statistic="largest difference of probabilities, float64", relation="<=", threshold=1e-12,
        metric="summary/best_of_n_composition_error",
    ),
    _claim(
        claim="best-of-n moves at most log n - (n - 1) / n from its policy", paper="specification 2.1",
        artefact="A4", statistic="largest excess of the divergence, nats", relation="<=", threshold=1e-9,
        metric="summary/best_of_n_kl_excess",
    ),
    _claim(
        claim="iterated on its own samples, best-of-10 passes the ceiling of the offline one (one token, R1)",
        paper="specification 2.1", artefact="A4", relation=">", threshold=0.0, unit="runs", reduce="min",
        statistic="mean reward after two rounds less that after one, the offline ceiling",
        metric="summary/iterated_reward_gain",
    ),
    _claim(
        claim="its rewards after 1 to 4 rounds are the specification's printed .314, .915, .9987, 1",
        paper="specification 2.1", artefact="A4", relation="<=", threshold=5e-4, unit="runs",
        statistic="largest difference", metric="summary/iterated_reward_error",
    ),
)  # fmt: skip


def tabular_geometry(p: Array, chosen: Array, rejected: Array) -> GradientGeometry:
    """Gradients of both log-probabilities on the logits by autodiff, one pair [bins]."""
    score = lambda response: jax.grad(lambda z: jax.nn.log_softmax(z)[response])(jnp.log(p))
    g_w, g_l = score(chosen), score(rejected)
    return GradientGeometry(g_w @ g_l, g_w @ g_w, g_l @ g_l)


def random_policies(key: Array, concentration: float, config: Config) -> Array:
    """Dirichlet distributions, no bin empty, [policies, bins]."""
    shape = (config.num_policies, config.num_bins)
    gammas = jax.random.loggamma(key, concentration, shape)
    return jnp.exp(logps.log_softmax(jnp.maximum(gammas, gammas.max(-1, keepdims=True) - 600.0)))


def different_pairs(key: Array, p: Array, uniform: bool) -> tuple[Array, Array]:
    """Two different responses of each policy, from the policy itself or uniformly, by Gumbel top-2."""
    scores = jnp.zeros_like(p) if uniform else jnp.log(p)
    _, top = jax.lax.top_k(scores + jax.random.gumbel(key, p.shape, p.dtype), 2)
    flip = jax.random.bernoulli(jax.random.fold_in(key, 1), shape=(len(p),))
    return jnp.where(flip, top[:, 1], top[:, 0]), jnp.where(flip, top[:, 0], top[:, 1])


def tabular_checks(key: Array, concentration: float, uniform: bool, config: Config) -> dict[str, Array]:
    """Lemma 6.2 on random tables."""
    policy_key, pair_key = jax.random.split(key)
    p = random_policies(policy_key, concentration, config)
    chosen, rejected = different_pairs(pair_key, p, uniform)
    gain = theory.negative_gradient_gain(jax.vmap(tabular_geometry)(p, chosen, rejected))
    helps = theory.negative_gradient_helps_chosen(p, chosen, rejected)
    clear = jnp.abs(gain.chosen) > 1e-12  # a tie of rounding is no sign
    return {
        "gain": gain.margin.min(),
        "mismatches": jnp.sum(clear & (helps != (gain.chosen > 0))),
        "share": helps.mean(),
    }


def run_tabular(keys: Array, config: Config, writer: RunWriter) -> None:
    """Every concentration, pairs on-policy and uniform."""
    found = {}
    for concentration in CONCENTRATIONS:
        for uniform in (False, True):
            check = functools.partial(
                tabular_checks, concentration=concentration, uniform=uniform, config=config
            )
            checks = jax.device_get(jax.jit(lambda keys, check=check: jax.lax.map(check, keys))(keys))
            found[concentration, uniform] = checks
            labels = {"concentration": concentration, "pairs": "uniform" if uniform else "on-policy"}
            for seed, share in enumerate(checks["share"]):
                writer.write({"condition/share": share}, seed=seed, **labels)
    leads = [found[c, False]["share"] - found[c, True]["share"] for c in CONCENTRATIONS]
    writer.write_summary(
        {
            "summary/tabular_margin_gain": np.min([c["gain"] for c in found.values()], axis=0),
            "summary/tabular_sign_mismatches": np.max([c["mismatches"] for c in found.values()], axis=0),
            "summary/on_policy_share_lead": np.min(leads, axis=0),
        }
    )


def response_pairs(params: PyTree, key: Array, num_pairs: int) -> TokenPairs:
    """Two responses of the policy to each of `num_pairs` prompts; which is chosen does not matter here."""
    prompt_key, sample_key = jax.random.split(key)
    prompts = bandits.token_prompts(prompt_key, num_pairs)
    responses = sequence_bandit.POLICY.sample(params, sample_key, prompts, 2)
    chosen, rejected = (rollouts.response_rows(prompts, responses[:, i : i + 1]) for i in (0, 1))
    return TokenPairs(chosen, rejected)


def step_gain(params: PyTree, pair: TokenPairs, learning_rate: float) -> PairLogps:
    """What the negative term adds to one plain gradient step on this pair, measured, per learning rate."""
    pair_logps = functools.partial(transformer.pair_logps, config=sequence_bandit.MODEL)
    pair = jax.tree.map(lambda x: x[None], pair)
    ascent = lambda sign: jax.grad(
        lambda params: (lambda p: p.chosen - sign * p.rejected)(pair_logps(params, pair)).sum()
    )(params)  # fmt: skip
    moved = lambda sign: jax.tree.map(lambda x, g: x + learning_rate * g, params, ascent(sign))
    with_push, without = pair_logps(moved(1.0), pair), pair_logps(moved(0.0), pair)
    return jax.tree.map(lambda x, y: (x - y)[0] / learning_rate, with_push, without)


def transformer_gains(
    params: PyTree, key: Array, config: Config
) -> tuple[PairLogps, PairLogps, GradientGeometry]:
    """Measured and predicted gains of a seed's pairs, per learning rate, [pairs]."""
    pairs = response_pairs(params, key, config.num_pairs)
    pair_logps = functools.partial(transformer.pair_logps, config=sequence_bandit.MODEL)
    geometry = gradients.gradient_geometry(pair_logps, params, pairs)
    measured = jax.lax.map(lambda pair: step_gain(params, pair, config.learning_rate), pairs)
    return measured, theory.negative_gradient_gain(geometry), geometry


def run_transformer(keys: Array, config: Config, writer: RunWriter) -> None:
    """Lemma 6.2 to first order, against what a small step does."""
    references = sequence_bandit.references(keys, num_steps=config.pretrain_steps)
    of_seed = lambda seed: transformer_gains(seed[0], seed[1], config)
    gains = jax.jit(lambda *seeds: jax.lax.map(of_seed, seeds))(references, keys)
    measured, predicted, geometry = jax.device_get(gains)
    scale = np.maximum(geometry.chosen_sq_norm, geometry.rejected_sq_norm)
    chosen, rejected = (m - p for m, p in zip(measured, predicted, strict=True))
    errors = [np.abs(error) / scale for error in (chosen, rejected, chosen - rejected)]
    writer.write_summary({"summary/transformer_prediction_error": np.max(errors, axis=(0, 2))})
    seed = np.repeat(np.arange(config.num_seeds), config.num_pairs)
    columns = {"seed": seed} | {
        f"{kind}_{side}": getattr(gain, side).ravel()
        for kind, gain in (("measured", measured), ("predicted", predicted))
        for side in ("chosen", "rejected")
    }
    writer.table(columns | {name: value.ravel() for name, value in geometry._asdict().items()})


def best_of_n_checks(key: Array, config: Config) -> dict[str, Array]:
    """The operator on one random policy with random rewards."""
    policy_key, reward_key = jax.random.split(key)
    policy = logps.log_softmax(jax.random.normal(policy_key, (config.num_bins,)))
    rewards = jax.random.normal(reward_key, (config.num_bins,))
    twice = theory.best_of_n(theory.best_of_n(policy, rewards, 10), rewards, 10)
    once = theory.best_of_n(policy, rewards, 100)
    n = jnp.arange(1, config.largest_n + 1)
    best = jax.vmap(lambda n: theory.best_of_n(policy, rewards, n))(n)
    excess = jax.vmap(divergence.reverse_kl, (None, 0))(policy, best) - theory.best_of_n_kl_bound(n)
    return {
        "summary/best_of_n_composition_error": jnp.abs(jnp.exp(twice) - jnp.exp(once)).max(),
        "summary/best_of_n_kl_excess": excess.max(),
    }


def run_best_of_n(keys: Array, config: Config, writer: RunWriter) -> None:
    """Random policies, then the one-token bandit round by round."""
    checks = jax.jit(lambda keys: jax.lax.map(lambda key: best_of_n_checks(key, config), keys))
    writer.write_summary(jax.device_get(checks(keys)))
    policy, rewards = jnp.log(bandits.reference_probabilities()), bandits.reward("R1").table
    reached = []
    for round_ in range(1 + len(ITERATED_BEST_OF_10)):
        reached.append(float(jnp.exp(policy) @ rewards))
        writer.write({"reward/policy": reached[-1]}, round=round_, problem="R1")
        policy = theory.best_of_n(policy, rewards, 10)
    error = np.abs(np.array(reached[1:]) - ITERATED_BEST_OF_10).max()
    gain = reached[2] - reached[1]
    writer.write_summary({"summary/iterated_reward_error": error, "summary/iterated_reward_gain": gain})


def run(config: Config, writer: RunWriter) -> None:
    """Lemma 6.2 on tables and on the transformer; then best-of-n."""
    table_key, transformer_key, best_key = jax.random.split(jax.random.key(config.seed), 3)
    split = lambda key: jax.random.split(key, config.num_seeds)
    with jax.enable_x64(True):
        run_tabular(split(table_key), config, writer)
        run_best_of_n(split(best_key), config, writer)
    writer.progress(0.4, "transformer")
    run_transformer(split(transformer_key), config, writer)
