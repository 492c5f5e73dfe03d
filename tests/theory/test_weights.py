"""Closed-form gradient weights at the point that the specification worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import PairLengths, PairLogps
from jaxpref.theory import weights

SANITY = (
    ("dpo", {"beta": 0.1}, 0.05498, 0.05498),
    ("r_dpo_len", {"beta": 0.1, "alpha": 0.02}, 0.05349, 0.05349),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, 0.04128, 0.05504),
    ("ipo", {"tau": 0.1}, 14.0, 14.0),
    ("ipo_mean", {"tau": 0.1}, 0.86574, 1.15432),
    ("cpo_sum", {"beta": 0.1, "lam": 0.7}, 0.74502, 0.04502),
    ("dpop", {"beta": 0.1, "lam": 50.0}, 5.07202, 0.09945),
    ("kto", {"beta": 0.1, "kl": 2.0, "undesirable_weight": 1.3}, 0.02445, 0.03242),
    ("sppo_hard", {"beta": 0.1}, 12.0, 12.0),  # TRL's loss is twice the table's
    ("orpo", {"lam": 0.7}, 0.10352, 0.02410),
)


@pytest.mark.parametrize(("name", "hyperparameters", "chosen", "rejected"), SANITY)
def test_the_worked_example(name, hyperparameters, chosen, rejected):
    with jax.enable_x64(True):
        policy = PairLogps(jnp.array([-21.0]), jnp.array([-23.0]))
        reference = PairLogps(jnp.array([-20.0]), jnp.array([-24.0]))
        lengths = PairLengths(jnp.array([12]), jnp.array([9]))
        measured = getattr(weights, name)(policy, reference, lengths, **hyperparameters)
    np.testing.assert_allclose([measured.chosen[0], measured.rejected[0]], [chosen, rejected], atol=6e-6)
