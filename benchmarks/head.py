"""The head in tiles against the plain one: CPU seconds and memory by the size of the vocabulary.

    python benchmarks/head.py --out benchmarks/head.json
    python benchmarks/head.py --vocabs 200000 --places 4096 --dim 2048 --only tiled --rounds 0 \\
        --out benchmarks/head_200k.json

Two CPU minutes; the second command, whose logits alone would take 3.3 GB a copy, four, and
6.7 GB at its peak, matrix and gradient of 1.6 GB each included.
Log-probabilities of `places` tokens, in float32, with random states and matrix; compiled memory is what the
program needs besides its arguments and results.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp

from jaxpref.policies import head

Logps = Callable[..., jax.Array]


def plain(states, matrix, targets, mask) -> jax.Array:
    logps = jax.nn.log_softmax(states @ matrix.T)
    return jnp.where(mask, jnp.take_along_axis(logps, targets[:, None], axis=1)[:, 0], 0)


def tiled(states, matrix, targets, mask) -> jax.Array:
    return head.token_statistics(states, matrix, targets, mask).logps


def gradient(logps: Logps) -> Logps:
    return jax.value_and_grad(lambda *arrays: logps(*arrays).sum(), argnums=(0, 1))


WAYS: dict[str, Logps] = {"plain": plain, "tiled": tiled}
PASSES: dict[str, Callable[[Logps], Logps]] = {"forward": lambda logps: logps, "forward+backward": gradient}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def arrays(places: int, dim: int, vocab: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    matrix = jax.random.normal(keys[1], (vocab, dim)) * dim**-0.5
    targets = jax.random.randint(keys[2], (places,), 0, vocab)
    return jax.random.normal(keys[0], (places, dim)), matrix, targets, jnp.ones(places, bool)


def measure(vocab: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    inputs = arrays(args.places, args.dim, vocab)
    names = [(way, kind) for way in args.only for kind in PASSES]
    compiled = {name: jax.jit(PASSES[name[1]](WAYS[name[0]])).lower(*inputs).compile() for name in names}
    calls = {"/".join(name): functools.partial(program, *inputs) for name, program in compiled.items()}
    found = harness.rounds(calls, args.rounds)
    return [describe(vocab, *name, compiled[name], found["/".join(name)]) for name in names]


def describe(vocab: int, way: str, kind: str, compiled: Any, calls: list[harness.Measured]) -> dict[str, Any]:
    """Programs are compiled beforehand: the first call counts like the others."""
    times = [call.cpu_s for call in calls]
    memory = compiled.memory_analysis().temp_size_in_bytes / harness.MEGABYTE
    return {"vocab": vocab, "way": way, "pass": kind, "least_cpu_s": min(times), "temporary_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vocabs", type=int, nargs="+", default=[32_768, 65_536, 131_072, 262_144])
    parser.add_argument("--places", type=int, default=512)
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=2, help="besides the first call")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [row for vocab in args.vocabs for row in measure(vocab, args)]
    notes = {"places": args.places, "dim": args.dim, "peak_mb": harness.peak_memory_mb()}
    harness.write(args.out, rows, notes)


if __name__ == "__main__":
    main()
