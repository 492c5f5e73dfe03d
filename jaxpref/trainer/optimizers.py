"""Optimizers and schedules by name: torch.optim's update rules, built of optax's parts."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxpref import train
from jaxpref.trainer.config import Config

TORCH_CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by the norm plus this


def schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: as transformers has it, where the first warm-up step has rate 0."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * steps)
    rise = optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1))
    after = max(steps - warmup, 1)
    fall = {
        "linear": optax.linear_schedule(config.learning_rate, 0.0, after),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, after),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.schedule]
    return optax.join_schedules([rise, fall], [warmup]) if warmup else fall


def make_optimizer(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by the global norm, then the update rule."""
    rule = _rule(config, rate)
    return optax.chain(clip_by_global_norm(config.max_grad_norm), rule) if config.max_grad_norm else rule


def _rule(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_matrix)
    if config.optimizer == "adamw":
        adam = optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.epsilon)
        return optax.chain(adam, decay, optax.scale_by_learning_rate(rate))
    if config.optimizer == "rmsprop":
        scaled = optax.scale_by_rms(config.rmsprop_decay, config.epsilon, eps_in_sqrt=False)
        return optax.chain(decay, scaled, _momentum(config), optax.scale_by_learning_rate(rate))
    if config.optimizer == "adafactor":
        return optax.adafactor(
            rate, weight_decay_rate=config.weight_decay or None, weight_decay_mask=is_matrix
        )
    return optax.chain(decay, _momentum(config), optax.scale_by_learning_rate(rate))


def _momentum(config: Config) -> optax.GradientTransformation:
    return optax.trace(config.momentum) if config.momentum else optax.identity()


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, limit / (norm + 1e-6)), as PyTorch does."""

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree | None = None):
        scale = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + TORCH_CLIP_EPSILON))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def is_matrix(params: PyTree) -> PyTree:
    """True on kernels, embeddings and adapters; False on norms' scales and on biases, which do not decay."""
    name = lambda path: str(getattr(path[-1], "key", path[-1]))
    return jax.tree_util.tree_map_with_path(lambda path, _: name(path) not in ("scale", "bias"), params)


def apply_gradients(
    state: train.TrainState, grads: PyTree, optimizer: optax.GradientTransformation
) -> train.TrainState:
    """One update of the parameters."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return train.TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
