"""Gradients of one step's loss, in one piece or in many: any split gives the same step.

The loss of a pair on its own goes through one program a piece: forward, loss, backward. A loss that
looks at the whole step (a sort over the batch, a mean over all tokens) takes two: every piece forward,
the loss and its slopes from all of them at once, and every piece backward with its slopes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import PyTree

from jaxpref import train
from jaxpref.pairs import PairLogps
from jaxpref.trainer import objective as objectives
from jaxpref.trainer import optimizers
from jaxpref.trainer.objective import Batch, Forward, Objective, Outputs, Sums, Totals

PairTable = tuple[Array, Array]  # [pairs, length] of the chosen rows, and of the rejected ones
Combine = Callable[[PyTree, PyTree], PyTree]  # (trained, frozen) -> the policy's parameters


class Gradients(NamedTuple):
    """Of one step, before the update."""

    grads: PyTree
    sums: Sums
    losses: Sequence[Array]  # of each pair, a piece after another, filling rows included


class Programs(NamedTuple):
    """The compiled pieces of a run; each is compiled once for every shape of batch."""

    gradients: Callable[..., tuple[PyTree, Sums, Array]]
    outputs: Callable[..., Outputs]
    measure: Callable[..., Sums]
    slopes: Callable[..., tuple[PairTable, Sums, Array]]
    pull_back: Callable[..., PyTree]
    add: Callable[[PyTree, PyTree], PyTree]
    update: Callable[..., tuple[train.TrainState, Array]]
    logps: Callable[..., PairLogps]


def make_programs(
    forward: Forward, combine: Combine, objective: Objective, optimizer: optax.GradientTransformation
) -> Programs:
    """`forward(params, tokens)` is the policy; `combine` joins what is trained with what is frozen."""
    policy = lambda trained, frozen, pairs: objectives.outputs(forward, combine(trained, frozen), pairs)

    def measured(out: Outputs, batch: Batch, totals: Totals, at_reference: Array):
        gap = objectives.gap_sum(objective, jax.lax.stop_gradient(out), batch)
        batch = objectives.own_reference(objective, out, batch, at_reference)
        loss, values = objectives.loss_sum(objective, out, batch, totals)
        fixed = jax.lax.stop_gradient((out, batch, values))
        return loss, (objectives.metric_sums(objective, *fixed) | gap, values)

    def gradients(trained: PyTree, frozen: PyTree, batch: Batch, totals: Totals, at_reference: Array):
        loss = lambda trained: measured(policy(trained, frozen, batch.pairs), batch, totals, at_reference)
        (_, (sums, values)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        return grads, sums, values

    def slopes(out: Outputs, batch: Batch, totals: Totals, at_reference: Array):
        def loss(table: PairTable):
            return measured(_with_logps(out, table), batch, totals, at_reference)

        (_, (sums, values)), slope = jax.value_and_grad(loss, has_aux=True)(_logps(out))
        return slope, sums, values

    def pull_back(trained: PyTree, frozen: PyTree, batch: Batch, slope: PairTable) -> PyTree:
        return jax.vjp(lambda trained: _logps(policy(trained, frozen, batch.pairs)), trained)[1](slope)[0]

    def update(state: train.TrainState, grads: PyTree) -> tuple[train.TrainState, Array]:
        return optimizers.apply_gradients(state, grads, optimizer), optax.tree.norm(grads)

    return Programs(
        gradients=jax.jit(gradients),
        outputs=jax.jit(lambda trained, frozen, batch: policy(trained, frozen, batch.pairs)),
        measure=jax.jit(lambda *args: measured(*args)[1][0]),
        slopes=jax.jit(slopes),
        pull_back=jax.jit(pull_back),
        add=jax.jit(optax.tree.add, donate_argnums=0),
        update=jax.jit(update, donate_argnums=0),
        logps=jax.jit(lambda out, batch: response_logps(objective, out, batch)),
    )


def response_logps(objective: Objective, out: Outputs, batch: Batch) -> PairLogps:
    """What a reference pass stores."""
    return objective.response_logps(objectives.response_tokens(out, batch.pairs))


def step_gradients(
    programs: Programs,
    objective: Objective,
    trained: PyTree,
    frozen: PyTree,
    pieces: Sequence[Batch],
    totals: Totals,
    at_reference: bool,
) -> Gradients:
    """Gradients and metric sums of a step whose pairs come in `pieces`."""
    whole = objective.batchwise and (len(pieces) > 1 or bool(np.any(pieces[0].weights == 0)))
    run = _two_passes if whole else _one_pass
    return run(programs, trained, frozen, pieces, totals, jnp.asarray(at_reference))


def _one_pass(programs: Programs, trained, frozen, pieces, totals, at_reference) -> Gradients:
    first, *rest = pieces
    grads, sums, values = programs.gradients(trained, frozen, first, totals, at_reference)
    losses = [values]
    for piece in rest:
        more, piece_sums, values = programs.gradients(trained, frozen, piece, totals, at_reference)
        grads, sums = programs.add(grads, more), jax.tree.map(jnp.add, sums, piece_sums)
        losses.append(values)
    return Gradients(grads, sums, losses)


def _two_passes(programs: Programs, trained, frozen, pieces, totals, at_reference) -> Gradients:
    outs = [programs.outputs(trained, frozen, piece) for piece in pieces]
    kept, pick = _without_filling(pieces)
    slope, sums, values = programs.slopes(pick(_join(outs)), pick(_join(pieces)), totals, at_reference)
    back = lambda x: jnp.zeros((sum(len(p.weights) for p in pieces), *x.shape[1:]), x.dtype).at[kept].set(x)
    grads = None
    for piece, piece_slope in zip(pieces, _cut(jax.tree.map(back, slope), pieces), strict=True):
        more = programs.pull_back(trained, frozen, piece, piece_slope)
        grads = more if grads is None else programs.add(grads, more)
    return Gradients(grads, sums, [back(values)])


def _without_filling(pieces: Sequence[Batch]):
    """Rows of weight above 0, which alone may enter a sort or a mean; and a function that picks them."""
    kept = np.flatnonzero(np.concatenate([np.asarray(piece.weights) for piece in pieces]) > 0)
    return kept, functools.partial(jax.tree.map, lambda x: x[kept])


def _logps(out: Outputs) -> PairTable:
    return out.chosen.logps, out.rejected.logps


def _with_logps(out: Outputs, table: PairTable) -> Outputs:
    return Outputs(*(side._replace(logps=logps) for side, logps in zip(out, table, strict=True)))


def _join(trees: Sequence[PyTree]) -> Any:
    """Pieces one below the other, rows padded to the longest piece."""
    return jax.tree.map(_join_leaves, *trees)


def _join_leaves(*leaves: Any) -> Array:
    if leaves[0].ndim < 2:
        return jnp.concatenate(leaves)
    length = max(leaf.shape[1] for leaf in leaves)
    return jnp.concatenate([jnp.pad(leaf, ((0, 0), (0, length - leaf.shape[1]))) for leaf in leaves])


def _cut(tree: PyTree, pieces: Sequence[Batch]) -> list[PyTree]:
    """The inverse of `_join`, for rows by tokens."""
    ends = np.cumsum([len(piece.weights) for piece in pieces])
    spans = zip(ends - [len(piece.weights) for piece in pieces], ends, pieces, strict=True)
    shapes = [(low, high, piece.pairs.chosen.tokens.shape[1]) for low, high, piece in spans]
    return [jax.tree.map(lambda x, s=s: x[s[0] : s[1], : s[2]], tree) for s in shapes]


def measure_step(
    programs: Programs,
    objective: Objective,
    trained: PyTree,
    frozen: PyTree,
    pieces: Sequence[Batch],
    totals: Totals,
    at_reference: bool,
) -> Sums:
    """Metric sums of a step without gradients."""
    outs, flag = [programs.outputs(trained, frozen, piece) for piece in pieces], jnp.asarray(at_reference)
    if objective.batchwise:
        _, pick = _without_filling(pieces)
        return programs.measure(pick(_join(outs)), pick(_join(pieces)), totals, flag)
    sums = [programs.measure(out, piece, totals, flag) for out, piece in zip(outs, pieces, strict=True)]
    return jax.tree.map(lambda *parts: sum(parts), *sums)


def step_totals(pieces: Sequence[Batch], kl: float | Array = 0.0) -> Totals:
    """Sums over all pieces, on the host: known before any of them is computed."""
    weight = sum(float(np.sum(piece.weights)) for piece in pieces)
    tokens = sum(float(np.sum(piece.weights * (piece.row_lengths[:, 0] - 1))) for piece in pieces)
    as_float = lambda x: jnp.asarray(x, jnp.float32)
    return Totals(as_float(weight or 1.0), as_float(tokens or 1.0), as_float(kl))  # weight 0: no gradient
