"""Responses drawn from a transformer: batches of ragged prompts, a cache, an end as soon as all have ended.

    key of a row     fold_in(fold_in(key(seed), step), row id)
    key of a token   fold_in(key of its row, its place in the response)

What a row draws therefore depends neither on its neighbours nor on padding. Logits do, by their rounding:
a draw that is decided by less than that (one in about a million in float32) may differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Integer, Key, PyTree

from jaxpref.pairs import TokenRows
from jaxpref.policies import next_token
from jaxpref.policies.generation import generate, stops
from jaxpref.policies.next_token import Drawn, Filters
from jaxpref.policies.transformer import TransformerConfig

WIDTHS = 16  # prompts are padded to a multiple of it: a program compiled for one batch serves the next


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Filters):
    """How tokens are drawn, and when a response ends."""

    max_new_tokens: int
    stop_tokens: tuple[int, ...] = ()  # the first one drawn ends a response and belongs to it

    def __post_init__(self):
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")


class Samples(NamedTuple):
    """Prompts with the responses drawn behind them, and what a loss needs to know of these.

    `logps` are the policy's own, as `transformer.row_token_logps` would measure them; `drawn_logps` those
    of the distribution after temperature, top-k and top-p. Nats, 0 outside the response.
    """

    rows: TokenRows  # [rows, prompt + max_new_tokens], padding on the right
    logps: Float[Array, "rows length"]
    drawn_logps: Float[Array, "rows length"]
    finished: Bool[Array, "rows"]  # by a stop token; else max_new_tokens was the end

    @property
    def lengths(self) -> Int[Array, "rows"]:
        """Tokens of each response, the stop token included."""
        return self.rows.response_mask.sum(-1)


def sample(
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    *,
    config: TransformerConfig,
    sampling: Sampling,
    seed: int,
    step: int = 0,
    row_ids: Sequence[int] | None = None,
    width: int | None = None,
) -> Samples:
    """A response to each prompt, deterministic in (seed, step, row id).

    Args:
      prompts: token ids, of any lengths of at least 1.
      seed, step: in [0, 2^32); each step, of training say, has draws of its own.
      row_ids: which draw is whose, in [0, 2^32); 0, 1, ... if None. Rows of equal ids and prompts are equal.
      width: tokens to which prompts are padded; by default the longest one's, rounded up.

    Raises:
      ValueError: an argument out of range; a prompt too long for learned positions.
      FloatingPointError: logits of NaN or +inf, with the row and the token.
    """
    lengths = _check_prompts(prompts, config)
    row_ids = range(len(prompts)) if row_ids is None else row_ids
    _check_ids(row_ids, seed, step, len(prompts))
    _check_sampling(sampling, max(lengths), config)
    width = _width(max(lengths), sampling, config) if width is None else width
    tokens, mask = _padded(prompts, width)
    keys = row_keys(jax.random.key(seed), jnp.uint32(step), jnp.asarray(row_ids, jnp.uint32))
    samples = _sample_jitted(params, keys, tokens, mask, config=config, sampling=sampling)
    _check_numbers(samples, row_ids)
    return samples


def row_keys(
    key: Key[Array, ""], step: Integer[Array, ""], row_ids: Integer[Array, "rows"]
) -> Key[Array, "rows"]:
    """Each row's own key."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), row_ids)


def sample_padded(
    params: PyTree,
    keys: Key[Array, "rows"],
    prompts: Int[Array, "rows prompt"],
    mask: Bool[Array, "rows prompt"],
    *,
    config: TransformerConfig,
    sampling: Sampling,
) -> Samples:
    """`sample` for use inside a program: nothing is checked, NaN logits end a row with NaN `logps`.

    Args:
      keys: of `row_keys`.
      mask: True on real tokens; padding stands on the left.
    """

    def choose(logits: Array, place: Array) -> Drawn:
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        return next_token.draw(folded, logits, sampling)

    drawn, written = generate(
        params, prompts, mask, choose, config=config, num_tokens=sampling.max_new_tokens,
        stop_tokens=sampling.stop_tokens,
    )  # fmt: skip
    finished = (stops(drawn.tokens, sampling.stop_tokens) & written).any(-1)
    return _samples(prompts, mask, drawn, written, finished)


_sample_jitted = jax.jit(sample_padded, static_argnames=("config", "sampling"))


def _samples(prompts: Array, mask: Array, drawn: Drawn, written: Array, finished: Array) -> Samples:
    """Rows moved together: prompt, response, padding."""
    real = jnp.concatenate([mask, written], axis=1)
    order = jnp.argsort(~real, axis=1, stable=True)

    def place(before: Array, behind: Array) -> Array:
        row = jnp.concatenate([jnp.where(mask, before, jnp.zeros_like(before)), behind], axis=1)
        return jnp.take_along_axis(row, order, axis=1)

    nothing = jnp.zeros(prompts.shape, bool)
    tokens = place(prompts, drawn.tokens.astype(prompts.dtype))
    logps, drawn_logps = (place(nothing.astype(x.dtype), x) for x in drawn[1:])
    return Samples(TokenRows(tokens, place(nothing, written)), logps, drawn_logps, finished)


def _width(longest: int, sampling: Sampling, config: TransformerConfig) -> int:
    rounded = -(-longest // WIDTHS) * WIDTHS
    if config.positions != "learned":
        return rounded
    return max(longest, min(rounded, config.max_length - sampling.max_new_tokens))


def _padded(prompts: Sequence[Sequence[int]], width: int) -> tuple[Array, Array]:
    """On the left, so that all responses start in one slot of the cache."""
    tokens, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        if len(prompt) > width:
            raise ValueError(
                f"width must be at least the longest prompt's; got {width} for {len(prompt)} tokens"
            )
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


def _check_prompts(prompts: Sequence[Sequence[int]], config: TransformerConfig) -> list[int]:
    if not len(prompts):
        raise ValueError("prompts must hold at least one prompt; got none")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts must hold at least one token each; row {row} has none")
        if bad := [token for token in prompt if not 0 <= token < config.vocab]:
            raise ValueError(f"prompts must hold ids in [0, vocab={config.vocab}); row {row} has {bad[0]}")
    return [len(prompt) for prompt in prompts]


def _check_ids(row_ids: Sequence[int], seed: int, step: int, rows: int) -> None:
    if len(row_ids) != rows:
        raise ValueError(f"row_ids must be one for each of {rows} prompts; got {len(row_ids)}")
    for name, value in [("seed", seed), ("step", step), *(("row_ids", row) for row in row_ids)]:
        if not 0 <= value < 2**32:  # a key drops further bits without a word
            raise ValueError(f"{name} must be in [0, 2^32); got {value}")


def _check_sampling(sampling: Sampling, longest: int, config: TransformerConfig) -> None:
    if bad := [token for token in sampling.stop_tokens if not 0 <= token < config.vocab]:
        raise ValueError(f"stop_tokens must be ids in [0, vocab={config.vocab}); got {bad[0]}")
    total = longest + sampling.max_new_tokens
    if config.positions == "learned" and total > config.max_length:
        raise ValueError(
            f"prompt and max_new_tokens={sampling.max_new_tokens} must be at most "
            f"max_length={config.max_length} tokens; got {total}"
        )


def _check_numbers(samples: Samples, row_ids: Sequence[int]) -> None:
    broken = np.asarray(jnp.isnan(samples.logps))
    if not broken.any():
        return
    row, column = np.argwhere(broken)[0]
    place = int(np.asarray(samples.rows.response_mask)[row, :column].sum())
    raise FloatingPointError(
        f"logits must be numbers below inf; got NaN or inf for token {place} of the response of row "
        f"{row_ids[row]}"
    )
