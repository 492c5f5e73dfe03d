"""The loop of sampling: read a token, draw the next one, until all rows have ended."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, PyTree

from jaxpref.policies import transformer
from jaxpref.policies.next_token import Drawn
from jaxpref.policies.transformer import TransformerConfig

Choose = Callable[[Array, Array], Drawn]  # (logits [rows, vocab], place in the response) -> a token a row


class _State(NamedTuple):
    """What goes round the loop."""

    place: Int[Array, ""]  # of the token to come, in the response
    last: Int[Array, "rows"]  # the token before it
    alive: Bool[Array, "rows"]  # its row has not ended
    drawn: Drawn  # [rows, tokens], 0 where nothing was written
    written: Bool[Array, "rows tokens"]
    cache: PyTree


def generate(
    params: PyTree,
    prompts: Int[Array, "rows prompt"],
    mask: Bool[Array, "rows prompt"] | None,
    choose: Choose,
    *,
    config: TransformerConfig,
    num_tokens: int,
    stop_tokens: tuple[int, ...] = (),
) -> tuple[Drawn, Bool[Array, "rows tokens"]]:
    """Tokens behind prompts, each read once, until all rows have ended: [rows, num_tokens], and which exist.

    `choose(logits, place)` draws a token a row. A row ends behind a stop token or a NaN in its `logps`.
    Padding stands on the left: `mask` is True in its last column.
    """
    before = prompts.shape[1] - 1  # the loop starts with reading the prompt's last token

    def step(state: _State) -> _State:
        logits, cache = transformer.decode(
            params, state.cache, state.last, before + state.place, config=config, mask=state.alive
        )
        return _write(state._replace(cache=cache), choose(logits, state.place), stop_tokens)

    going_on = lambda state: (state.place < num_tokens) & state.alive.any()
    cache = _read(
        params, prompts[:, :-1], None if mask is None else mask[:, :-1], before + num_tokens, config
    )
    end = jax.lax.while_loop(going_on, step, _start(prompts[:, -1], choose, num_tokens, cache, config))
    return end.drawn, end.written


def _read(
    params: PyTree, tokens: Array, mask: Array | None, length: int, config: TransformerConfig
) -> PyTree:
    """The cache after these tokens, of which there may be none; the last token drawn needs no slot."""
    if not tokens.shape[1]:
        return transformer.empty_cache(len(tokens), length, config=config)
    return transformer.prefill(params, tokens, mask, config=config, length=length)[1]


def _start(last: Array, choose: Choose, num_tokens: int, cache: PyTree, config: TransformerConfig) -> _State:
    rows = len(last)
    logits = jax.ShapeDtypeStruct((rows, config.vocab), jnp.result_type(float))
    shapes = jax.eval_shape(choose, logits, jnp.asarray(0))
    drawn = jax.tree.map(lambda x: jnp.zeros((rows, num_tokens), x.dtype), shapes)
    written = jnp.zeros((rows, num_tokens), bool)
    return _State(jnp.asarray(0), last, jnp.ones(rows, bool), drawn, written, cache)


def _write(state: _State, new: Drawn, stop_tokens: tuple[int, ...]) -> _State:
    new = jax.tree.map(lambda x: jnp.where(state.alive, x, 0), new)
    drawn = jax.tree.map(lambda row, x: row.at[:, state.place].set(x), state.drawn, new)
    written = state.written.at[:, state.place].set(state.alive)
    alive = state.alive & ~stops(new.tokens, stop_tokens) & ~jnp.isnan(new.logps)
    return _State(state.place + 1, new.tokens.astype(state.last.dtype), alive, drawn, written, state.cache)


def stops(tokens: Int[Array, "*rows"], stop_tokens: tuple[int, ...]) -> Bool[Array, "*rows"]:
    """Which of the tokens end a response."""
    return jnp.isin(tokens, jnp.asarray(stop_tokens, tokens.dtype))
