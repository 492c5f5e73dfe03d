"""Attention block by block, in plain XLA: nothing is computed of two blocks that do not see each other.

For processors without a kernel of their own. Scores exist a block at a time, so memory grows with the
length of the rows and not with its square.

References: Dao et al. 2022, arXiv:2205.14135 (softmax in blocks); Rabe and Staats 2021, arXiv:2112.05682.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxpref.logps import wide
from jaxpref.policies.layout import Layout

BLOCK = 64  # tokens: of 32 to 256 the quickest on a CPU, heads of 64


class Kind(NamedTuple):
    """What all calls of one program have in common; hashable."""

    scale: float  # of scores
    cap: float | None  # scores are then cap * tanh(score / cap)
    block: int = BLOCK


class _Operands(NamedTuple):
    """Rows cut into blocks, all blocks of all rows in one axis; a key head's query heads stand together."""

    query: Float[Array, "blocks kv_heads queries head_dim"]
    key: Float[Array, "blocks kv_heads block head_dim"]
    value: Float[Array, "blocks kv_heads block head_dim"]
    layout: Layout  # [blocks, block]
    window: ArrayLike


class _Work(NamedTuple):
    """The pairs of blocks of which one sees the other, in the order of the queries, then a filling."""

    queries: Int[Array, "most"]
    keys: Int[Array, "most"]
    later: Int[Array, "most"]  # by how many tokens the block of queries stands behind the block of keys
    number: Int[Array, ""]


def visible(queries: Layout, keys: Layout, later: ArrayLike, window: ArrayLike) -> Array:
    """Which tokens see which: [..., queries, keys] of layouts [..., queries] and [..., keys].

    Args:
      later: by how many tokens the first query stands behind the first key in the row.
      window: positions that a token sees back to, itself among them.
    """
    same = queries.groups[..., :, None] == keys.groups[..., None, :]
    branches = keys.branches[..., None, :]
    seen = same & ((branches == 0) | (branches == queries.branches[..., :, None]))
    behind = jnp.arange(queries.groups.shape[-1])[:, None] - jnp.arange(keys.groups.shape[-1]) + later
    apart = queries.positions[..., :, None] - keys.positions[..., None, :]
    return seen & (behind >= 0) & (apart < window) & (keys.groups[..., None, :] >= 0)


def attend(
    query: Float[Array, "rows length heads head_dim"],
    key: Float[Array, "rows length kv_heads head_dim"],
    value: Float[Array, "rows length kv_heads head_dim"],
    layout: Layout,
    window: ArrayLike,
    kind: Kind,
) -> Float[Array, "rows length heads head_dim"]:
    """Values weighted by the softmax of the scores; 0 for padding. Reverse mode alone.

    Args:
      layout: of the rows, [rows, length].
      window: positions that a token sees back to, itself among them.

    References: Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4.
    """
    rows, length, heads, _ = query.shape
    block = min(kind.block, length)
    fields = (_cut(x, block, key.shape[2]) for x in (query, key, value))
    cut = Layout(*(_cut_layout(x, block) for x in layout))
    work = _visible_blocks(cut, window, rows)
    mixed = _attend(*fields, cut, work, window, kind)
    return _join(mixed, rows, heads)[:, :length].astype(query.dtype)


def _cut(x: Array, block: int, kv_heads: int) -> Array:
    """[rows, length, heads, head_dim] to [blocks, kv_heads, group * block, head_dim]."""
    _, length, heads, head_dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    x = x.reshape(-1, block, kv_heads, heads // kv_heads, head_dim)
    return x.transpose(0, 2, 3, 1, 4).reshape(x.shape[0], kv_heads, -1, head_dim)


def _join(x: Array, rows: int, heads: int) -> Array:
    """The inverse of `_cut`, but for the padding."""
    blocks, kv_heads, queries, head_dim = x.shape
    group = heads // kv_heads
    x = x.reshape(blocks, kv_heads, group, queries // group, head_dim).transpose(0, 3, 1, 2, 4)
    return x.reshape(rows, -1, heads, head_dim)


def _cut_layout(x: Array, block: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), constant_values=-1).reshape(-1, block)


def _visible_blocks(cut: Layout, window: ArrayLike, rows: int) -> _Work:
    """All pairs of which the queries see any key, row by row."""
    blocks, block = cut.groups.shape
    n = blocks // rows  # of a row

    def one_row(layout: Layout) -> Array:
        seen = visible(layout, layout, 0, window)
        return seen.reshape(n, block, n, block).any((1, 3))

    seen = jax.lax.map(one_row, Layout(*(x.reshape(rows, -1) for x in cut)))
    most = rows * n * (n + 1) // 2  # a token sees none that stands later
    queries, keys = (x[:most] for x in jnp.nonzero(seen.reshape(-1, n), size=blocks * n, fill_value=0))
    keys += queries // n * n
    return _Work(queries, keys, (queries - keys) * block, seen.sum())


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(query, key, value, layout, work, window, kind):
    return _forward(_Operands(query, key, value, layout, window), work, kind)[0]


def _remembered(query, key, value, layout, work, window, kind):
    operands = _Operands(query, key, value, layout, window)
    mixed, log_sums = _forward(operands, work, kind)
    return mixed, (operands, work, mixed, log_sums)


def _pull_back(kind, remembered, cotangent):
    operands, work, mixed, log_sums = remembered
    grads = _backward(operands, work, mixed, log_sums, cotangent, kind)
    return *grads, None, None, None


_attend.defvjp(_remembered, _pull_back)


class _Running(NamedTuple):
    """The softmax of each query over the keys so far: all not yet divided by the sum."""

    largest: Float[Array, "blocks kv_heads queries"]
    sums: Float[Array, "blocks kv_heads queries"]
    mixed: Float[Array, "blocks kv_heads queries head_dim"]


def _forward(x: _Operands, work: _Work, kind: Kind) -> tuple[Array, Array]:
    """Mixed values and the logarithms of the softmaxes' sums, in float32 or wider."""
    dtype = wide(x.query).dtype
    lowest = jnp.full(x.query.shape[:-1], -0.7 * jnp.finfo(dtype).max, dtype)
    start = _Running(lowest, jnp.zeros_like(lowest), jnp.zeros(x.query.shape, dtype))
    step = lambda i, running: _put(running, work.queries[i], _softened(running, x, work, i, kind))
    largest, sums, mixed = jax.lax.fori_loop(0, work.number, step, start)
    sums = jnp.where(sums > 0, sums, 1)  # of padding, which sees nothing
    return mixed / sums[..., None], largest + jnp.log(sums)


def _softened(running: _Running, x: _Operands, work: _Work, i: Array, kind: Kind) -> _Running:
    """What is known of a block of queries after one more block of keys."""
    before = _take(running, work.queries[i])
    scores, _, seen = _scores(x, work, i, kind)
    largest = jnp.maximum(before.largest, jnp.where(seen, scores, before.largest[..., None]).max(-1))
    weights = jnp.where(seen, jnp.exp(scores - largest[..., None]), 0)
    kept = jnp.exp(before.largest - largest)
    value = x.value[work.keys[i]]
    mixed = _product("hqk,hkd->hqd", weights.astype(value.dtype), value)
    return _Running(largest, kept * before.sums + weights.sum(-1), kept[..., None] * before.mixed + mixed)


def _scores(x: _Operands, work: _Work, i: Array, kind: Kind) -> tuple[Array, Array, Array]:
    """Scores, their derivative by the product of query and key, and the mask; [kv_heads, queries, keys]."""
    queries, keys = (_take(x.layout, j[i]) for j in (work.queries, work.keys))
    seen = visible(queries, keys, work.later[i], x.window)
    query, key = x.query[work.queries[i]], x.key[work.keys[i]]
    scores = _product("hqd,hkd->hqk", query, key) * kind.scale
    seen = jnp.tile(seen, (query.shape[1] // seen.shape[0], 1))
    if kind.cap is None:
        return scores, jnp.asarray(kind.scale, scores.dtype), seen
    bent = jnp.tanh(scores / kind.cap)
    return kind.cap * bent, kind.scale * (1 - bent**2), seen


def _product(how: str, left: Array, right: Array) -> Array:
    return jnp.einsum(how, left, right, preferred_element_type=wide(left).dtype)


def _take(tree, i: Array):
    return jax.tree.map(lambda x: x[i], tree)


def _put(tree, i: Array, new):
    return jax.tree.map(lambda x, y: x.at[i].set(y), tree, new)


def _backward(
    x: _Operands, work: _Work, mixed: Array, log_sums: Array, cotangent: Array, kind: Kind
) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value: the weights are computed anew from the sums."""
    cotangent = wide(cotangent)
    lost = (mixed * cotangent).sum(-1)  # what the softmax takes off all weights' cotangents

    def step(i, grads):
        query, key, value = _block_gradients(x, work, i, log_sums, lost, cotangent, kind)
        q, k = work.queries[i], work.keys[i]
        return grads[0].at[q].add(query), grads[1].at[k].add(key), grads[2].at[k].add(value)

    zeros = tuple(jnp.zeros(y.shape, cotangent.dtype) for y in x[:3])
    grads = jax.lax.fori_loop(0, work.number, step, zeros)
    return tuple(g.astype(y.dtype) for g, y in zip(grads, x[:3]))


def _block_gradients(x, work, i, log_sums, lost, cotangent, kind) -> tuple[Array, Array, Array]:
    q, k = work.queries[i], work.keys[i]
    query, key, value, upward = x.query[q], x.key[k], x.value[k], cotangent[q].astype(x.value.dtype)
    scores, slope, seen = _scores(x, work, i, kind)
    weights = jnp.where(seen, jnp.exp(scores - log_sums[q][..., None]), 0)
    pull = _product("hqd,hkd->hqk", upward, value) - lost[q][..., None]
    pull = (weights * pull * slope).astype(query.dtype)
    return (
        _product("hqk,hkd->hqd", pull, key),
        _product("hqk,hqd->hkd", pull, query),
        _product("hqk,hqd->hkd", weights.astype(value.dtype), upward),
    )
