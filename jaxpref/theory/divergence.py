"""What gradient steps and best-of-n do to a distribution over finitely many responses.

Distributions are log-probabilities, nats, over the last axis, in the order (target, policy); p is the
policy's probability and q the target's. Steps are taken on softmax logits.

References: Tajwar et al. 2024, arXiv:2404.14367, lemmas 6.1, 6.2 and theorem 6.5; the exact conditions
and the bystander law are derived, not quoted.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref import logps
from jaxpref.pairs import PairLogps
from jaxpref.probes import divergence
from jaxpref.probes.gradients import GradientGeometry

# Gradients of both divergences on the logits.


def forward_kl_gradient(
    target: Float[Array, "*rows bins"], policy: Float[Array, "*rows bins"]
) -> Float[Array, "*rows bins"]:
    """d KL(target, policy) / d logits = p - q."""
    return jnp.exp(policy) - jnp.exp(target)


def reverse_kl_gradient(
    target: Float[Array, "*rows bins"], policy: Float[Array, "*rows bins"]
) -> Float[Array, "*rows bins"]:
    """d KL(policy, target) / d logits = p (log(p / q) - KL): small wherever p is, good bins included."""
    return jnp.exp(policy) * (policy - target - divergence.reverse_kl(target, policy)[..., None])


Gradient = Callable[[Array, Array], Array]


def logit_descent(
    gradient: Gradient,
    target: Float[Array, "bins"],
    start: Float[Array, "bins"],
    *,
    learning_rate: float | Float[Array, ""],
    num_steps: int,
) -> Float[Array, "steps bins"]:
    """Log-probabilities before and after each of `num_steps` steps, [num_steps + 1, bins].

    Args:
      gradient: `forward_kl_gradient` or `reverse_kl_gradient`.
      start: log-probabilities (or logits) at step 0.
    """

    def step(policy: Array, _):
        after = logps.log_softmax(policy - learning_rate * gradient(target, policy))
        return after, after

    first = logps.log_softmax(start)
    _, later = jax.lax.scan(step, first, None, length=num_steps)
    return jnp.concatenate([first[None], later])


def gap_change(
    gradient: Gradient,
    target: Float[Array, "bins"],
    policy: Float[Array, "bins"],
    first: Int[Array, ""],
    second: Int[Array, ""],
) -> Float[Array, ""]:
    """Change of log p(first) - log p(second) per unit learning rate in one step; exact for any step size.

    delta^f = (q1 - p1) - (q2 - p2); delta^r = p1 (K - log(p1 / q1)) - p2 (K - log(p2 / q2)).
    """
    push = -gradient(target, policy)
    return push[first] - push[second]


def logarithmic_mean(x: Float[Array, "*rows"], y: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """(x - y) / (log x - log y), x itself where they are equal; both positive."""
    same = x == y
    return jnp.where(same, x, (x - y) / jnp.where(same, 1.0, jnp.log(x) - jnp.log(y)))


def identric_mean(x: Float[Array, "*rows"], y: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """(x^x / y^y)^(1 / (x - y)) / e, x itself where they are equal; both positive."""
    same = x == y
    power = (x * jnp.log(x) - y * jnp.log(y)) / jnp.where(same, 1.0, x - y)
    return jnp.where(same, x, jnp.exp(power - 1))


def reverse_widens_faster(
    p: Float[Array, "*rows"], q_first: Float[Array, "*rows"], q_second: Float[Array, "*rows"]
) -> Bool[Array, "*rows"]:
    """Condition 1, p1 = p2 = p and q1 > q2: delta^r > delta^f exactly where p > logarithmic mean of q1, q2.

    Reverse KL is the more aggressive on better bins, but only on those that the policy already holds.
    """
    return p > logarithmic_mean(q_first, q_second)


def reverse_keeps_subset(
    p_first: Float[Array, "*rows"],
    p_second: Float[Array, "*rows"],
    q: Float[Array, "*rows"],
    reverse_kl: Float[Array, "*rows"],
) -> Bool[Array, "*rows"]:
    """Condition 2, q1 = q2 = q and p1 > p2: delta^r > delta^f exactly where q e^K > identric mean of p1, p2.

    Of two equally good bins, reverse KL favours the one that the policy happens to hold.
    """
    return q * jnp.exp(reverse_kl) > identric_mean(p_first, p_second)


def reverse_drops_faster(
    p_first: Float[Array, "*rows"],
    p_second: Float[Array, "*rows"],
    q: Float[Array, "*rows"],
    reverse_kl: Float[Array, "*rows"],
) -> Bool[Array, "*rows"]:
    """Condition 3, the same bins: delta^r < delta^f exactly where q e^K < identric mean of p1, p2."""
    return q * jnp.exp(reverse_kl) < identric_mean(p_first, p_second)


# The regularized optimum.


def regularized_optimum(
    reference: Float[Array, "*rows bins"], rewards: Float[Array, "*rows bins"], *, beta: float | Array
) -> Float[Array, "*rows bins"]:
    """Log-probabilities of pi* proportional to reference e^{r / beta}, the best of reward - beta KL."""
    return logps.log_softmax(reference + rewards / beta)


def regularized_value(
    reference: Float[Array, "*rows bins"], rewards: Float[Array, "*rows bins"], *, beta: float
) -> Float[Array, "*rows"]:
    """beta log Z, the largest value of the regularized reward."""
    return beta * jax.nn.logsumexp(logps.wide(reference + rewards / beta), axis=-1)


def regularized_reward(
    policy: Float[Array, "*rows bins"],
    reference: Float[Array, "*rows bins"],
    rewards: Float[Array, "*rows bins"],
    *,
    beta: float,
) -> Float[Array, "*rows"]:
    """E[r] - beta KL(policy, reference); by lemma 6.1 beta log Z - beta KL(policy, pi*)."""
    mean_reward = jnp.sum(jnp.exp(policy) * rewards, axis=-1)
    return mean_reward - beta * divergence.reverse_kl(reference, policy)


# Best of n.


def best_of_n(
    policy: Float[Array, "bins"], rewards: Float[Array, "bins"], n: int | Array
) -> Float[Array, "bins"]:
    """Log-probabilities of the best of n independent draws, exactly; equal rewards share as the policy does.

    F(r)^n - F(r-)^n, F the cumulative probability of the reward. Fitted k times in a row it is the best of
    n^k, so that on-policy best-of-n has no ceiling, and offline it has.
    """
    p = jnp.exp(policy)
    equal = rewards[:, None] == rewards
    level = jnp.sum(p * equal, axis=1)  # probability of this very reward
    up_to = jnp.sum(p * (rewards <= rewards[:, None]), axis=1)
    missed = n * jnp.log1p(-jnp.minimum(level / up_to, 1.0))  # log chance that none of n is in the level
    best = policy - jnp.log(level) + n * jnp.log(up_to) + jnp.log(-jnp.expm1(missed))
    return jnp.where(level > 0, best, -jnp.inf)  # an empty level, or one that underflows, is 0 / 0


def best_of_n_kl_bound(n: int | Array) -> Array:
    """log n - (n - 1) / n, nats: the most that the best of n can differ from its policy."""
    return jnp.log(n) - (n - 1) / n


def ipo_all_pairs_optimum(num_responses: int, beta: float) -> Float[Array, "responses"]:
    """Log-ratios, worst response first, at which IPO over all pairs of a prompt is least; mean 0, nats.

    (2 k - N - 1) beta / N for rank k: neighbours 2 beta / N apart, though each pair's target is beta.
    """
    rank = jnp.arange(1, num_responses + 1)
    return beta * (2 * rank - num_responses - 1) / num_responses


# Contrastive steps on a table of logits.


def negative_gradient_gain(geometry: GradientGeometry) -> PairLogps:
    """Lemma 6.2: what pushing the rejected response down adds to both, per learning rate and weight.

    -<g_w, g_l> on the chosen and -|g_l|^2 on the rejected response; the margin gains |g_l|^2 - <g_w, g_l>,
    which on a table of logits is 1 + p_w - p_l > 0 always.
    """
    return PairLogps(-geometry.inner, -geometry.rejected_sq_norm)


def negative_gradient_helps_chosen(
    probabilities: Float[Array, "*pairs bins"], chosen: Int[Array, "*pairs"], rejected: Int[Array, "*pairs"]
) -> Bool[Array, "*pairs"]:
    """Condition 6.3 on a table: p_w + p_l >= sum p^2. Pairs drawn from the policy satisfy it on average."""
    return logps.gather(probabilities, chosen) + logps.gather(probabilities, rejected) >= jnp.sum(
        probabilities**2, axis=-1
    )


def pair_step(
    policy: Float[Array, "bins"], chosen: Int[Array, ""], rejected: Int[Array, ""], size: float | Array
) -> Float[Array, "bins"]:
    """A contrastive step on a table, exactly: the chosen logit rises by `size`, the rejected one falls."""
    return logps.log_softmax(policy.at[chosen].add(size).at[rejected].add(-size))


def bystanders_gain(
    p_w: Float[Array, "*pairs"], p_l: Float[Array, "*pairs"], size: float | Array
) -> Bool[Array, "*pairs"]:
    """Whether all other responses gain in `pair_step`, by one common factor: p_w < p_l e^{-size}."""
    return p_w < p_l * jnp.exp(-size)


def push_down_step(
    policy: Float[Array, "bins"], rejected: Int[Array, ""], size: float | Array
) -> Float[Array, "bins"]:
    """A step against one response alone: the others' logits rise in proportion to their probability."""
    gradient = -jnp.exp(policy).at[rejected].add(-1.0)
    return logps.log_softmax(policy - size * gradient)


# The bandit law: one unigram softmax shared by all positions and prompts.


def tilted_logratio(
    reference: Float[Array, "bins"], scores: Float[Array, "bins"], counts: Float[Array, "*responses bins"],
    strength: float | Array,
) -> Float[Array, "*responses"]:  # fmt: skip
    """Log-ratio of a response with these token counts once the policy is reference e^{s m}; nats.

    s m.n - T log E_ref[e^{s m}]: it rises until the policy's own mean score reaches the response's, then
    must fall, so a policy that moves past its best data lowers them.
    """
    tilt = strength * scores
    normalizer = jax.nn.logsumexp(reference + tilt)
    return counts @ tilt - jnp.sum(counts, axis=-1) * normalizer
