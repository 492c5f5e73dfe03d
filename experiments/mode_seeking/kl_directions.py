"""Do forward and reverse KL part ways in the first steps, though both could fit? (Tajwar et al. 2024)

    python -m experiments run mode_seeking/kl_directions --preset toy --out results/kl_directions

Ten seconds on two cores. Three steps on the paper's four bins give its eight bars under the opposite labels;
on 100 bins reverse KL wins on R2 from step 1, on R1 only after forward KL has found the mode.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref.data import bandits
from jaxpref.probes import divergence
from jaxpref.results import ClaimSpec, RunWriter
from jaxpref.theory import divergence as theory

# The paper's figure: where it starts, its target, and its bars as read off the page.
START, TARGET = (0.3, 0.3, 0.1, 0.3), (0.2, 0.1, 0.6, 0.1)
BARS = {"forward": (0.329, 0.225, 0.219, 0.225), "reverse": (0.250, 0.199, 0.349, 0.199)}
# What plain descent on the logits gives after 3 steps of 0.92, from the study's specification.
DESCENT = {"forward": (0.251, 0.202, 0.345, 0.202), "reverse": (0.331, 0.223, 0.223, 0.223)}
GRADIENTS = {"forward": theory.forward_kl_gradient, "reverse": theory.reverse_kl_gradient}
DIVERGENCES = {"forward": divergence.forward_kl, "reverse": divergence.reverse_kl}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    num_seeds: int = 5  # sets of random distributions
    num_draws: int = 10_000  # random distributions a seed, for the conditions
    num_bins: int = 6  # of the random distributions
    bars_learning_rate: float = 0.92
    bars_steps: int = 20
    scan_steps: int = 100  # bars are sought in all steps up to this
    scan_rates: int = 120  # and at this many learning rates in (0, 6]
    flow_learning_rate: float = 5.0  # on 100 bins
    flow_steps: int = 200
    temperature: float = 0.1  # of the target, reference e^{reward / temperature}
    seed: int = 0

    def __post_init__(self):
        for name in ("num_seeds", "num_draws", "scan_steps", "scan_rates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.num_bins < 3:
            raise ValueError(f"num_bins must be at least 3; got {self.num_bins}")
        if self.bars_steps < 3 or self.flow_steps < 21:
            raise ValueError(
                "bars_steps must be at least 3 and flow_steps at least 21; "
                f"got {self.bars_steps} and {self.flow_steps}"
            )
        for name in ("bars_learning_rate", "flow_learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(num_seeds=2, num_draws=100, scan_steps=5, scan_rates=3, flow_steps=30),
    "toy": Config(),
}
SECONDS = {"smoke": 4.0, "toy": 9.0}

_claim = partial(ClaimSpec, reduce="max", unit="draws")
CLAIMS = (
    _claim(
        claim="the gradients of both divergences on the logits are p - q and p (log(p / q) - KL)",
        paper="arXiv:2404.14367, section 6.2", artefact="A1", relation="<=", threshold=1e-6,
        statistic="largest difference from autodiff, float64", metric="summary/gradient_error",
    ),
    *(
        _claim(
            claim=f"condition {index} of the KL theorem decides exactly which divergence widens the gap more",
            paper="arXiv:2404.14367, theorem 6.5 (exact form derived)", artefact="A1", relation="<=",
            threshold=0.0, statistic="random distributions decided wrongly",
            metric=f"summary/condition_{index}_mismatches",
        )
        for index in (1, 2, 3)
    ),
    *(
        _claim(
            claim=f"three steps of descent on {name} KL give the vector of the specification",
            paper="arXiv:2404.14367, toy figure of section 6", artefact="A1", relation="<=", threshold=1e-3,
            statistic="largest difference over the four bins", metric=f"summary/descent_error_{name}",
        )
        for name in GRADIENTS
    ),
    *(
        _claim(
            claim=f"the figure's bars labelled {name} come from descent on {name} KL, as printed",
            paper="arXiv:2404.14367, toy figure of section 6", artefact="A1", relation="<=", threshold=5e-3,
            statistic="least difference from the bars over all steps and learning rates",
            metric=f"summary/label_error_{name}",
        )
        for name in GRADIENTS
    ),
    *(
        _claim(
            claim=f"the figure's bars labelled {name} come from descent on the other divergence",
            paper="arXiv:2404.14367, toy figure of section 6", artefact="A1", relation="<=", threshold=5e-3,
            statistic="least difference from the bars over all steps and learning rates",
            metric=f"summary/swapped_label_error_{name}", control=True,
        )
        for name in GRADIENTS
    ),
    _claim(
        claim="regularized reward is reverse KL to the regularized optimum",
        paper="arXiv:2404.14367, lemma 6.1", artefact="A2", relation="<=", threshold=1e-9,
        statistic="largest difference from beta log Z - beta KL, float64", metric="summary/lemma_61_error",
    ),
    _claim(
        claim="where reward and reference peaks overlap (R2), reverse KL is ahead at every step",
        paper="arXiv:2404.14367, section 6.2", artefact="A2", relation=">", threshold=0.0, reduce="min",
        statistic="least lead of reverse KL in mean reward, steps 1 to 200", metric="summary/R2_reverse_lead",
    ),
    _claim(
        claim="where the peaks are disjoint (R1), reverse KL is ahead once the mode is found",
        paper="arXiv:2404.14367, section 6.2", artefact="A2", relation=">", threshold=0.0, reduce="min",
        statistic="least lead of reverse KL in mean reward, steps 20 to 200",
        metric="summary/R1_reverse_late_lead",
    ),
    _claim(
        claim="before the mode is found (R1, step 5), forward KL is ahead", control=True,
        paper="arXiv:2404.14367, section 6.2", artefact="A2", relation=">", threshold=0.0, reduce="min",
        statistic="lead of forward KL in mean reward at step 5", metric="summary/R1_forward_early_lead",
    ),
)  # fmt: skip


def dirichlet(key: Array, num: int, bins: int) -> Array:
    """Flat random distributions, log-probabilities [num, bins]."""
    return jnp.log(jax.random.dirichlet(key, jnp.ones(bins), (num,)))


def gradient_error(target: Array, policy: Array) -> Array:
    """Largest difference of both closed-form gradients from autodiff, at logits `policy`."""
    errors = [
        jnp.abs(
            GRADIENTS[name](target, policy)
            - jax.vmap(jax.grad(lambda z, q, kl=kl: kl(q, jax.nn.log_softmax(z))))(policy, target)
        ).max()
        for name, kl in DIVERGENCES.items()
    ]
    return jnp.stack(errors).max()


def with_equal(p: Array) -> Array:
    """The distribution with its first two bins made equal."""
    mean = jnp.log(jnp.exp(p[..., :2]).mean(-1, keepdims=True))
    return jnp.concatenate([mean, mean, p[..., 2:]], axis=-1)


def gaps(target: Array, policy: Array) -> tuple[Array, Array]:
    """Change of log p(0) - log p(1) in one step on either divergence, [draws] each."""
    first, second = jnp.asarray(0), jnp.asarray(1)
    change = lambda gradient: jax.vmap(
        lambda q, p: theory.gap_change(gradient, q, p, first, second)
    )(target, policy)  # fmt: skip
    return change(theory.forward_kl_gradient), change(theory.reverse_kl_gradient)


def condition_mismatches(target: Array, policy: Array) -> dict[str, Array]:
    """How many random draws each exact condition decides against what one step does."""
    q, p = jnp.sort(target)[..., ::-1], jnp.sort(policy)[..., ::-1]  # the first bin has the most
    forward, reverse = gaps(q, with_equal(p))
    p_equal = jnp.exp(with_equal(p)[:, 0])
    first = theory.reverse_widens_faster(p_equal, jnp.exp(q[:, 0]), jnp.exp(q[:, 1])) != (reverse > forward)
    q = with_equal(target)  # here the target is not sorted, so that the equal bins may be good or bad
    forward, reverse = gaps(q, p)
    bins = (jnp.exp(p[:, 0]), jnp.exp(p[:, 1]), jnp.exp(q[:, 0]), divergence.reverse_kl(q, p))
    second = theory.reverse_keeps_subset(*bins) != (reverse > forward)
    third = theory.reverse_drops_faster(*bins) != (reverse < forward)
    return {
        f"summary/condition_{i}_mismatches": jnp.sum(wrong)
        for i, wrong in enumerate((first, second, third), start=1)
    }


def lemma_61_error(reference: Array, policy: Array, rewards: Array, beta: float) -> Array:
    """Largest difference between regularized reward and its reverse-KL form."""
    optimum = theory.regularized_optimum(reference, rewards, beta=beta)
    value = theory.regularized_value(reference, rewards, beta=beta)
    direct = theory.regularized_reward(policy, reference, rewards, beta=beta)
    return jnp.abs(direct - (value - beta * divergence.reverse_kl(optimum, policy))).max()


def random_checks(key: Array, config: Config) -> dict[str, Array]:
    """The identities on one seed's random distributions."""
    target_key, policy_key, reward_key = jax.random.split(key, 3)
    target = dirichlet(target_key, config.num_draws, config.num_bins)
    policy = dirichlet(policy_key, config.num_draws, config.num_bins)
    rewards = jax.random.uniform(reward_key, target.shape)
    return condition_mismatches(target, policy) | {
        "summary/gradient_error": gradient_error(target, policy),
        "summary/lemma_61_error": lemma_61_error(target, policy, rewards, config.temperature),
    }


def descend(name: str, target: Array, start: Array, rate: Array | float, num_steps: int) -> Array:
    return theory.logit_descent(GRADIENTS[name], target, start, learning_rate=rate, num_steps=num_steps)


def closest(name: str, bars: tuple[float, ...], config: Config) -> Array:
    """Least, over steps and learning rates, of the largest difference between descent and the bars."""
    rates = 6.0 * jnp.arange(1, config.scan_rates + 1) / config.scan_rates
    target, start = jnp.log(jnp.array(TARGET)), jnp.log(jnp.array(START))
    paths = jax.vmap(lambda rate: descend(name, target, start, rate, config.scan_steps))(rates)
    return jnp.abs(jnp.exp(paths[:, 1:]) - jnp.array(bars)).max(-1).min()


def run_bars(config: Config, writer: RunWriter) -> None:
    """The paper's four bins: the descent, its third step, and whose bars are whose."""
    target, start = jnp.log(jnp.array(TARGET)), jnp.log(jnp.array(START))
    other = {"forward": "reverse", "reverse": "forward"}
    for name in GRADIENTS:
        path = np.exp(descend(name, target, start, config.bars_learning_rate, config.bars_steps))
        curves = {f"probability/{bin}": path[None, :, bin] for bin in range(len(TARGET))}
        writer.write_curves(curves, range(len(path)), divergence=name, problem="bars")
        writer.write_summary(
            {
                f"summary/descent_error_{name}": np.abs(path[3] - np.array(DESCENT[name])).max(),
                f"summary/label_error_{name}": closest(name, BARS[name], config),
                f"summary/swapped_label_error_{name}": closest(other[name], BARS[name], config),
            }
        )


def run_flow(config: Config, writer: RunWriter) -> None:
    """The 100 bins: mean reward and both divergences along the descent, distributions at a few steps."""
    reference = jnp.log(bandits.reference_probabilities())
    rewards = {}
    for reward in bandits.PEAKS:
        table = bandits.reward(reward).table
        target = theory.regularized_optimum(reference, table, beta=config.temperature)
        for name in GRADIENTS:
            path = descend(name, target, reference, config.flow_learning_rate, config.flow_steps)
            rewards[reward, name] = np.asarray(jnp.exp(path) @ table)
            curves = {
                "reward/policy": rewards[reward, name][None],
                "kl/forward": jax.vmap(divergence.forward_kl, (None, 0))(target, path)[None],
                "kl/reverse": jax.vmap(divergence.reverse_kl, (None, 0))(target, path)[None],
            }
            writer.write_curves(curves, range(len(path)), divergence=name, problem=reward)
            store_distributions(writer, f"flow_{reward}_{name}", target, path)
    write_leads(writer, rewards)


def store_distributions(writer: RunWriter, name: str, target: Array, path: Array) -> None:
    steps = [step for step in (0, 1, 5, 10, 20, 50, 100, 200) if step < len(path)]
    columns = {f"step_{step}": np.exp(path[step]) for step in steps}
    writer.table({"bin": np.arange(len(target)), "target": np.exp(target)} | columns, name=name)


def write_leads(writer: RunWriter, rewards: dict[tuple[str, str], np.ndarray]) -> None:
    lead = {name: rewards[name, "reverse"] - rewards[name, "forward"] for name in bandits.PEAKS}
    writer.write_summary(
        {
            "summary/R2_reverse_lead": lead["R2"][1:].min(),
            "summary/R1_reverse_late_lead": lead["R1"][20:].min(),
            "summary/R1_forward_early_lead": -lead["R1"][5],
        }
    )


def run(config: Config, writer: RunWriter) -> None:
    """Random identities, then the paper's four bins, then the 100 bins."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    with jax.enable_x64(True):
        checks = jax.jit(lambda keys: jax.lax.map(lambda key: random_checks(key, config), keys))(keys)
        writer.write_summary(jax.device_get(checks))
        store_conditions(writer, keys[0], config)
    writer.progress(0.5, "four bins")
    run_bars(config, writer)
    writer.progress(0.8, "100 bins")
    run_flow(config, writer)


def store_conditions(writer: RunWriter, key: Array, config: Config) -> None:
    """What the condition figure shows: both gap changes against the deciding ratio, up to 2 000 draws."""
    target_key, policy_key = jax.random.split(key)
    num = min(config.num_draws, 2000)
    q = with_equal(dirichlet(target_key, num, config.num_bins))
    p = jnp.sort(dirichlet(policy_key, num, config.num_bins))[..., ::-1]
    forward, reverse = gaps(q, p)
    mean = theory.identric_mean(jnp.exp(p[:, 0]), jnp.exp(p[:, 1]))
    ratio = jnp.exp(q[:, 0] + divergence.reverse_kl(q, p)) / mean
    writer.table({"forward": forward, "reverse": reverse, "ratio": ratio}, name="conditions")
