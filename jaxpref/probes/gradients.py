"""How the gradients of the chosen and the rejected log-probability lie to each other.

`pair_logps(params, batch) -> PairLogps` is any policy and `batch` any tree with a leading axis of pairs.
All products are sums of squares over every parameter: units of nats squared per parameter unit squared.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from jaxpref.logps import wide
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import PairLogps, PairTokenLogps

PairPolicy = Callable[[PyTree, PyTree], PairLogps]


class GradientGeometry(NamedTuple):
    """Inner product and squared norms of the gradients of both responses' `logps`."""

    inner: Float[Array, "*pairs"]
    chosen_sq_norm: Float[Array, "*pairs"]
    rejected_sq_norm: Float[Array, "*pairs"]

    @property
    def cosine(self) -> Float[Array, "*pairs"]:
        """Cosine of the angle between the two gradients; 0 where one of them vanishes."""
        return _cosine(self.inner, self.chosen_sq_norm, self.rejected_sq_norm)

    @property
    def entangled(self) -> Float[Array, "*pairs"]:
        """1 where a small DPO step moves both responses the same way: inner above a squared norm."""
        return (self.inner > jnp.minimum(self.chosen_sq_norm, self.rejected_sq_norm)).astype(self.inner.dtype)


class BatchGradientProducts(NamedTuple):
    """Inner products of every pair's gradients with every other's; row i, column j."""

    chosen_chosen: Float[Array, "pairs pairs"]
    chosen_rejected: Float[Array, "pairs pairs"]  # chosen of pair i with rejected of pair j
    rejected_rejected: Float[Array, "pairs pairs"]

    @property
    def own(self) -> GradientGeometry:
        """The diagonal: each pair by itself."""
        return GradientGeometry(*map(jnp.diagonal, (self.chosen_rejected, self[0], self[2])))


class TokenGradientProducts(NamedTuple):
    """`inner` split into tokens: row a chosen token, column a rejected one; 0 off the responses."""

    inner: Float[Array, "chosen_tokens rejected_tokens"]
    chosen_sq_norm: Float[Array, "chosen_tokens"]
    rejected_sq_norm: Float[Array, "rejected_tokens"]

    @property
    def cosine(self) -> Float[Array, "chosen_tokens rejected_tokens"]:
        """Cosine of each token's gradient with each other's: the heat map of Yuan et al."""
        return _cosine(self.inner, self.chosen_sq_norm[:, None], self.rejected_sq_norm)


def _cosine(inner: Array, first_sq_norm: Array, second_sq_norm: Array) -> Array:
    norms = jnp.sqrt(first_sq_norm) * jnp.sqrt(second_sq_norm)  # the product of squares would overflow
    return jnp.where(norms > 0, inner / jnp.where(norms > 0, norms, 1.0), 0.0)


def tree_inner(first: PyTree, second: PyTree) -> Array:
    """Inner product of two trees, summed in float32 or wider (a matmul would round to TF32 on GPUs)."""
    products = jax.tree.map(lambda a, b: jnp.sum(wide(a) * wide(b)), first, second)
    return jax.tree.reduce(jnp.add, products)


def gradient_geometry(pair_logps: PairPolicy, params: PyTree, batch: PyTree) -> GradientGeometry:
    """Inner product and squared norms of the gradients of chosen and rejected `logps`, [pairs] each.

    A small gradient step on the margin raises chosen and lowers rejected only while the inner product is
    below both squared norms: Yuan et al. 2024, arXiv:2410.13828, condition 1. Pair after pair, so that no
    more than two gradients of the model's size are alive.
    """

    def one_pair(pair: PyTree) -> GradientGeometry:
        chosen, rejected = _pair_gradients(pair_logps, params, jax.tree.map(lambda x: x[None], pair))
        return GradientGeometry(
            tree_inner(chosen, rejected), tree_inner(chosen, chosen), tree_inner(rejected, rejected)
        )

    return jax.lax.map(one_pair, batch)


def _pair_gradients(pair_logps: PairPolicy, params: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
    """Gradients of the summed chosen and of the summed rejected log-probability: one forward pass."""
    logps, pullback = jax.vjp(lambda params: pair_logps(params, batch), params)
    one, zero = jnp.ones_like(logps.chosen), jnp.zeros_like(logps.chosen)
    return pullback(PairLogps(one, zero))[0], pullback(PairLogps(zero, one))[0]


def batch_gradient_products(pair_logps: PairPolicy, params: PyTree, batch: PyTree) -> BatchGradientProducts:
    """Every cross-pair inner product, for the effect of a batch step on each pair (spec F6).

    Holds two gradients a pair: for toys. `update_direction` with `directional` gives the same prediction
    of one batch step in the memory of one gradient.
    """
    one_pair = lambda pair: _pair_gradients(pair_logps, params, jax.tree.map(lambda x: x[None], pair))
    chosen, rejected = jax.lax.map(one_pair, batch)  # a jacobian of the batch would redo it for every pair
    return BatchGradientProducts(_gram(chosen, chosen), _gram(chosen, rejected), _gram(rejected, rejected))


def _gram(first: PyTree, second: PyTree) -> Array:
    """Inner products of each of the leading entries of one tree with each of the other's."""
    flat = lambda x: wide(x).reshape(x.shape[0], -1)
    product = lambda a, b: jnp.matmul(flat(a), flat(b).T, precision=jax.lax.Precision.HIGHEST)
    return jax.tree.reduce(jnp.add, jax.tree.map(product, first, second))


def update_direction(
    pair_logps: PairPolicy, params: PyTree, batch: PyTree, weights: GradientWeights
) -> PyTree:
    """Mean over pairs of d_w grad chosen - d_l grad rejected: minus the gradient of the mean loss.

    Args:
      weights: d_w and d_l of each pair's own loss, from `losses.gradient_weights`.
    """
    logps, pullback = jax.vjp(lambda params: pair_logps(params, batch), params)
    pairs = logps.chosen.shape[0]
    cotangent = PairLogps(weights.chosen / pairs, -weights.rejected / pairs)
    return pullback(jax.tree.map(lambda x: x.astype(logps.chosen.dtype), cotangent))[0]


def directional(pair_logps: PairPolicy, params: PyTree, direction: PyTree, batch: PyTree) -> PairLogps:
    """First-order change of both `logps` per unit step along `direction`, [pairs], nats.

    With the optimizer's own update as the direction (learning rate, momentum, preconditioner and all) it
    is the predicted change of that step. One pass forward, no gradient is stored.
    """
    return jax.jvp(lambda params: pair_logps(params, batch), (params,), (direction,))[1]


def token_gradient_products(
    token_logps: Callable[[PyTree, PyTree], PairTokenLogps], params: PyTree, pair: PyTree
) -> TokenGradientProducts:
    """The inner product of one pair's gradients, token by token; the entries sum to `inner`.

    Each chosen token's gradient is met by all rejected tokens at once in one forward-mode pass, so that
    one gradient is alive at a time. For any policy; a language model has `probes.tokens`, ten times as fast.

    Args:
      pair: a batch whose leading axis is 1.

    References: Yuan et al. 2024, arXiv:2410.13828, section 4.3.
    """
    chosen, rejected = _token_functions(token_logps, pair)
    values, pullback = jax.vjp(chosen, params)

    def chosen_row(seed: Array) -> tuple[Array, Array]:
        grad = pullback(seed)[0]
        return jax.jvp(rejected, (params,), (grad,))[1], tree_inner(grad, grad)

    inner, chosen_sq_norm = jax.lax.map(chosen_row, jnp.eye(values.size, dtype=values.dtype))
    return TokenGradientProducts(inner, chosen_sq_norm, _token_sq_norms(rejected, params))


def _token_functions(token_logps: Callable[[PyTree, PyTree], PairTokenLogps], pair: PyTree):
    """Token log-probabilities of the one pair's two responses as functions of the parameters."""
    return (
        lambda params: token_logps(params, pair).chosen[0],
        lambda params: token_logps(params, pair).rejected[0],
    )


def _token_sq_norms(function: Callable[[PyTree], Array], params: PyTree) -> Array:
    values, pullback = jax.vjp(function, params)

    def sq_norm(seed: Array) -> Array:
        grad = pullback(seed)[0]
        return tree_inner(grad, grad)

    return jax.lax.map(sq_norm, jnp.eye(values.size, dtype=values.dtype))
