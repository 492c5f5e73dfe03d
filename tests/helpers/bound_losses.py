"""The losses that `jaxpref train` binds, on prescribed log-probabilities."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from trl_losses import Prescribed, TrlResult

from jaxpref.pairs import PairLengths, PairLogps, PairTokenLogps
from jaxpref.trainer import binding
from jaxpref.trainer.config import Config
from jaxpref.trainer.objective import LossInputs


def ours(given: Prescribed, *names: str, kl: float = 0.0, **fields: Any) -> TrlResult:
    """Mean loss and its gradient, from the objective that `jaxpref train` binds."""
    config = Config(out=Path("unused"), loss=tuple(f"trl:{name}" for name in names), **fields)
    objective = binding.bind(config)
    pairs = len(given.mask) // 2
    masks = jnp.asarray(given.mask[:pairs]), jnp.asarray(given.mask[pairs:])
    split = lambda x: (jnp.asarray(x[:pairs]), jnp.asarray(x[pairs:]))
    reference = objective.response_logps(PairTokenLogps(*split(given.reference), *masks))
    lengths = PairLengths(*(mask.sum(-1) for mask in masks))
    means = PairLogps(*(x.sum(-1) / n for x, n in zip(split(given.log_sum_sq), lengths, strict=True)))

    def mean_loss(logps):
        tokens = PairTokenLogps(*logps, *masks)
        return objective.losses(tokens, LossInputs(reference, lengths, jnp.float32(kl)), means).mean()

    value, grads = jax.value_and_grad(mean_loss)(split(given.policy))
    return TrlResult(float(value), np.where(given.mask, np.concatenate(grads), 0.0))
