"""The train step. Pure functions; the caller jits, vmaps over seeds and places them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int, PyTree

from jaxpref import logps
from jaxpref.pairs import PairLogps, PairTokenLogps

PairLogpsFn = Callable[[PyTree, Any], PairLogps | PairTokenLogps]
ResponseLogpsFn = Callable[[PyTree, Any], Array]
LossFn = Callable[[Any, Any], Array]  # (policy, batch) -> [pairs]
Metrics = dict[str, Array]
Objective = Callable[[PyTree, Any], tuple[Array, Metrics]]


class TrainState(NamedTuple):
    """What must survive a step."""

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0: these parameters, a fresh optimizer."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def pair_objective(pair_logps: PairLogpsFn, loss_fn: LossFn) -> Objective:
    """Mean loss over the pairs of a batch, and the metrics that come with it.

    `pair_logps(params, batch) -> PairLogps` is the policy, or its `token_logps` where the loss is one of
    tokens (`losses.LOSSES[name].needs`); `loss_fn(policy, batch) -> [pairs]` has its
    hyperparameters bound (`jaxpref.losses.bind`).
    """

    def objective(params: PyTree, batch: Any) -> tuple[Array, Metrics]:
        policy = pair_logps(params, batch)
        loss = jnp.mean(loss_fn(policy, batch))
        return loss, {"loss": loss} | pair_metrics(policy)

    return objective


def response_objective(response_logps: ResponseLogpsFn, loss_fn: LossFn) -> Objective:
    """As `pair_objective`, for a policy that scores every response of a prompt in one go.

    `response_logps(params, batch) -> [pairs, responses]`, nats; the batch names two of them as `chosen` and
    `rejected`. All of them are among the metrics, as `logps/responses`: where did the mass go?
    """

    def objective(params: PyTree, batch: Any) -> tuple[Array, Metrics]:
        table = response_logps(params, batch)
        policy = logps.finite_pair_logps(table, batch.chosen, batch.rejected)
        loss = jnp.mean(loss_fn(policy, batch))
        return loss, {"loss": loss, "logps/responses": table} | pair_metrics(policy)

    return objective


def pair_metrics(policy: PairLogps | PairTokenLogps) -> Metrics:
    """Means over the pairs, nats; `ranking/accuracy` counts a tie as right (arXiv:2405.19534, def. 2.3)."""
    if isinstance(policy, PairTokenLogps):
        policy = policy.sum()
    return {
        "logps/chosen": jnp.mean(policy.chosen),
        "logps/rejected": jnp.mean(policy.rejected),
        "logps/margin": jnp.mean(policy.margin),
        "ranking/accuracy": jnp.mean(policy.margin >= 0),
    }


def row_objective(row_token_logps: Callable[[PyTree, Any], Array]) -> Objective:
    """Mean negative log-likelihood per response token of a batch of `TokenRows`: pretraining, fine-tuning."""

    def objective(params: PyTree, rows: Any) -> tuple[Array, Metrics]:
        tokens = jnp.maximum(jnp.sum(rows.response_mask), 1)
        loss = -jnp.sum(row_token_logps(params, rows)) / tokens
        return loss, {"loss": loss}

    return objective


def make_step(objective: Objective, optimizer: optax.GradientTransformation):
    """Builds `step(state, batch) -> (state, metrics)` for `objective(params, batch) -> (loss, metrics)`.

    All metrics, `grad_norm` among them, are those before the update.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    return step


def make_train_step(pair_logps: PairLogpsFn, loss_fn: LossFn, optimizer: optax.GradientTransformation):
    """Builds `train_step(state, batch) -> (state, metrics)` for a loss over preference pairs."""
    return make_step(pair_objective(pair_logps, loss_fn), optimizer)


def fit(step, state: TrainState, batches: PyTree) -> tuple[TrainState, Metrics]:
    """All steps as one scan: `batches` and the returned metrics carry a leading axis of steps."""
    return jax.lax.scan(step, state, batches)


def fit_visiting(step, state: TrainState, batches: PyTree, every: int) -> tuple[TrainState, PyTree]:
    """`fit`, and the parameters before the first step and after every `every` of them, for probes.

    `every` divides the number of steps; the second result has a leading axis of steps / every + 1.
    """

    def segment(state: TrainState, batches: PyTree) -> tuple[TrainState, PyTree]:
        return fit(step, state, batches)[0], state.params

    segments = jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]), batches)
    state, visited = jax.lax.scan(segment, state, segments)
    return state, jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), visited, state.params)


def fit_fixed(step, state: TrainState, batch: PyTree, num_steps: int) -> tuple[TrainState, Metrics]:
    """`num_steps` steps on the same batch, as one scan."""
    return jax.lax.scan(lambda state, _: step(state, batch), state, length=num_steps)


def batch_indices(
    key: Array, num_examples: int, batch_size: int, num_steps: int
) -> Int[Array, "steps batch"]:
    """Which examples each step sees: epochs without replacement, the rest of an epoch dropped."""
    per_epoch = num_examples // batch_size
    if per_epoch < 1:
        raise ValueError(f"batch_size must be at most num_examples={num_examples}; got {batch_size}")
    epochs = jax.random.split(key, -(-num_steps // per_epoch))
    order = jax.vmap(lambda k: jax.random.permutation(k, num_examples)[: per_epoch * batch_size])(epochs)
    return order.reshape(-1, batch_size)[:num_steps]


def torch_rmsprop(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """RMSProp as torch.optim has it and the papers used it: decay 0.99, eps outside the square root.

    optax's own defaults differ in both (0.9, inside). Neither corrects the bias: the first update is
    10 times the learning rate in every coordinate.
    """
    return optax.rmsprop(learning_rate, decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=0.0)
