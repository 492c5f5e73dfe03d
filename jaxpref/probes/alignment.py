"""Which way the vectors of two responses point to each other, token by token."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxpref.logps import wide


def positive_share(
    first: Float[Array, "rows first_tokens dim"],
    second: Float[Array, "rows second_tokens dim"],
    first_mask: Bool[Array, "rows first_tokens"],
    second_mask: Bool[Array, "rows second_tokens"],
) -> Float[Array, ""]:
    """Share of inner products between two responses' vectors that are positive, over unmasked tokens.

    Of hidden states: why raw CHES grows with length. Of residuals e_token - p: the coefficients that CHES
    takes to be 1. Razin et al. 2025, arXiv:2410.08847, section 5 and appendix G.2.
    """
    inner = jnp.einsum("rid,rjd->rij", wide(first), wide(second), precision="highest")
    counted = first_mask[:, :, None] & second_mask[:, None, :]
    return jnp.sum(counted & (inner > 0)) / jnp.sum(counted)
