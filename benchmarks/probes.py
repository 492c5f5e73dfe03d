"""What gradient geometry costs in a train step of SmolLM2-135M's shape, against the same step without it.

    python benchmarks/probes.py --out benchmarks/probes.json     (a quarter of an hour on two idle cores)

DPO on pairs of rows of one length, part of it a common prompt; random weights, float32, no optimizer.
`plain` is the gradient on separate rows, `shared` that on rows in which both responses share the prompt's
computation, as the trainer has them; `probed` is the gradient with its geometry; `per_example` is the
geometry alone, from the gradients of one response after another. All go through the same tiled head.
"""

import argparse
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.data import packing
from jaxpref.losses import pairwise
from jaxpref.pairs import PairLogps, TokenRows
from jaxpref.policies import head, transformer
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.probes import backward, gradients

SHAPE = TransformerConfig(
    vocab=49152, dim=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_dim=1536, rope_theta=1e5
)
BETA = 0.1


def make_rows(pairs: int, length: int, share: float, vocab: int) -> tuple[TokenRows, Any]:
    """Separate rows, and the same pairs packed."""
    rng, prompt = np.random.default_rng(0), max(1, round(share * length))
    tokens = rng.integers(0, vocab, (2, pairs, length))
    tokens[1, :, :prompt] = tokens[0, :, :prompt]
    mask = np.broadcast_to(np.arange(length) >= prompt, tokens.shape)
    responses = [list(tokens[:, i, prompt:]) for i in range(pairs)]
    packed = packing.shared(list(tokens[0, :, :prompt]), responses)
    flat = lambda x: jnp.asarray(x.reshape(-1, length))
    return TokenRows(flat(tokens), flat(mask)), jax.tree.map(jnp.asarray, packed)


def separate_logps(params, rows: TokenRows, config: TransformerConfig) -> jax.Array:
    """Of every row, through the tiled head."""
    states = transformer.hidden(params, rows.tokens, config=config)
    places = states, transformer.unembedding(params, config=config), jnp.roll(rows.tokens, -1, 1)
    mask = jnp.pad(rows.response_mask[:, 1:], ((0, 0), (0, 1)))
    return head.token_statistics(*places, mask).logps.sum(1)


def shared_logps(params, rows, config: TransformerConfig) -> jax.Array:
    found = transformer.statistics(params, rows, config=config).logps.reshape(-1)
    tables = jnp.where(rows.slots[:, 1:] >= 0, found[rows.slots[:, 1:]], 0.0)
    return tables.sum(-1).T.reshape(-1)


def dpo(logps: jax.Array) -> jax.Array:
    policy = PairLogps(*jnp.split(logps, 2))
    return pairwise.dpo_loss(policy, jax.tree.map(jnp.zeros_like, policy), beta=BETA).mean()


def steps(config: TransformerConfig) -> dict[str, Any]:
    """The compiled programs, each of parameters and rows."""
    separate = functools.partial(separate_logps, config=config)

    def probed(params, rows):
        slopes_of = lambda statistics: (jax.grad(dpo)(statistics.logps.sum(1)), None)
        return backward.probed_gradients(params, rows, slopes_of, config=config)[0]

    def per_example(params, rows):
        by_pair = TokenRows(*(x.reshape(2, -1, x.shape[1]).swapaxes(0, 1) for x in rows))
        logps = lambda params, pair: PairLogps(*separate(params, TokenRows(*(x[0] for x in pair)))[:, None])
        return gradients.gradient_geometry(logps, params, by_pair)

    return {
        "plain": lambda params, rows: jax.value_and_grad(lambda p: dpo(separate(p, rows)))(params),
        "probed": probed,
        "shared": lambda params, rows: jax.value_and_grad(lambda p: dpo(shared_logps(p, rows, config)))(
            params
        ),
        "per_example": per_example,
    }


def measure(args: argparse.Namespace, config: TransformerConfig, length: int, share: float) -> dict[str, Any]:
    params = jax.jit(functools.partial(transformer.init, config=config))(jax.random.key(0))
    separate, shared = make_rows(args.pairs, length, share, config.vocab)
    calls, memory = {}, {}
    for name, step in steps(config).items():
        rows = shared if name == "shared" else separate
        compiled = jax.jit(step).lower(params, rows).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes / harness.MEGABYTE
        calls[name] = functools.partial(compiled, params, rows)
    found = {name: harness.summary(times) for name, times in harness.rounds(calls, args.rounds).items()}
    least = {name: times["least_cpu_s"] for name, times in found.items()}
    return {
        "length": length, "prompt": share, "remat": config.remat,
        **{f"{name}_cpu_s": seconds for name, seconds in least.items()},
        "probed/plain": least["probed"] / least["plain"],
        "probed/shared": least["probed"] / least["shared"],
        "(plain+per_example)/plain": 1 + least["per_example"] / least["plain"],
        "plain_temp_mb": memory["plain"], "probed_temp_mb": memory["probed"],
        "temp probed/plain": memory["probed"] / memory["plain"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--layers", type=int, default=SHAPE.layers)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--prompts", type=float, nargs="+", default=[0.0, 0.5], help="share of a row")
    parser.add_argument("--remat", nargs="+", default=["none"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    for remat, length, share in itertools.product(args.remat, args.lengths, args.prompts):
        config = dataclasses.replace(SHAPE, layers=args.layers, remat=remat)
        found.append(measure(args, config, length, share))
        harness.write(args.out, found, {"pairs": args.pairs, "layers": args.layers, "rounds": args.rounds})


if __name__ == "__main__":
    main()
