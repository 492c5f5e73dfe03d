"""Attention of packed rows on a CPU: whole rows at once, against blocks that leave out what nobody sees.

    python benchmarks/attention.py --out benchmarks/attention.json       (two minutes on two idle cores)

SmolLM2-135M's heads (9 queries, 3 keys, 64 wide), 2,048 tokens in rows of one length, each row of so many
groups of a prompt and two responses, equal thirds. CPU milliseconds of the value and all gradients, and of
the value alone; the least of the rounds. `attention_kernels.BLOCKS_FROM` and `attention_blocks.BLOCK` are
chosen by it.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.policies import attention_blocks
from jaxpref.policies.attention_blocks import Kind
from jaxpref.policies.layout import Layout

TOKENS, HEADS, KV_HEADS, WIDTH = 2048, 9, 3, 64
CASES = ((64, 1), (128, 1), (256, 1), (512, 1), (512, 2), (1024, 1), (1024, 4), (2048, 1), (2048, 6))
BLOCKS = (32, 64, 128, 256)


def make_layout(length: int, groups: int) -> Layout:
    """Of every row."""
    third = length // groups // 3
    positions = np.concatenate([np.arange(third), *[third + np.arange(third)] * 2])
    branches, ends = np.repeat(np.arange(3), third), ((0, 0), (0, length - 3 * third * groups))
    pad = lambda x: jnp.asarray(np.pad(x[None], ends, constant_values=-1))
    numbers = np.repeat(np.arange(groups), 3 * third)
    rows = TOKENS // length
    fields = (pad(x) for x in (np.tile(positions, groups), numbers, np.tile(branches, groups)))
    return Layout(*(jnp.tile(x, (rows, 1)) for x in fields))


def plain(query, key, value, layout: Layout) -> jax.Array:
    seen = attention_blocks.visible(layout, layout, 0, layout.groups.shape[1])
    return jax.nn.dot_product_attention(query, key, value, mask=seen[:, None])


def blocks(query, key, value, layout: Layout, block: int) -> jax.Array:
    kind = Kind(WIDTH**-0.5, None, block)
    return attention_blocks.attend(query, key, value, layout, layout.groups.shape[1], kind)


def measure(length: int, groups: int, n: int) -> dict[str, Any]:
    """A row of the table."""
    layout, rng = make_layout(length, groups), np.random.default_rng(0)
    shapes = [(TOKENS // length, length, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    operands = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]
    programs = {"plain": plain, **{f"{b}": functools.partial(blocks, block=b) for b in BLOCKS if b <= length}}
    calls = {}
    for name, program in programs.items():
        loss = lambda q, k, v, program=program: jnp.sum(program(q, k, v, layout) ** 2)
        calls[name] = functools.partial(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), *operands)
        calls[f"{name}, value"] = functools.partial(jax.jit(loss), *operands)
    found = harness.rounds(calls, n)
    seen = attention_blocks.visible(layout, layout, 0, length).mean()
    least = {name: 1e3 * min(one.cpu_s for one in calls[1:]) for name, calls in found.items()}
    return {"length": length, "groups": groups, "seen": float(seen), **least}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [measure(*case, given.rounds) for case in CASES]
    harness.write(given.out, rows, {"rounds": given.rounds, "tokens": TOKENS, "unit": "CPU ms"})


if __name__ == "__main__":
    main()
