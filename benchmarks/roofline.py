"""The share of the machine that a DPO train step uses: its FLOPs a second against a large matrix product's.

    python benchmarks/roofline.py --out benchmarks/roofline.json        (five minutes on two idle cores)

SmolLM2-135M's shape, random weights, AdamW, both responses behind one prompt. The step runs with 2 and with 6
layers in turns with the product, and a straight line through both gives all 30, which are alike. FLOPs are
what the model asks for: 6 a parameter and token, attention as far as it is seen, the head on responses alone;
a program's waste is no work. Beside them stand the compiled program's own (`cost_analysis`), which counts the
body of a loop once, however often it runs: they are those of the same step with plain attention and the head
in one tile, and for every further layer those of one layer's program alone, forward and backward. Seconds are
CPU seconds on a CPU, the clock's elsewhere.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpref.data import packing
from jaxpref.losses import pairwise
from jaxpref.pairs import PackedRows, PairLogps
from jaxpref.policies import attention, head, transformer
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.layers import computing
from jaxpref.policies.layout import Layout
from jaxpref.policies.tiles import Tile

SHAPE = TransformerConfig(
    vocab=49152, dim=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_dim=1536, rope_theta=1e5
)
FEW, MORE = 2, 6  # layers
BETA = 0.1


def make_rows(pairs: int, length: int) -> PackedRows:
    """Responses of half a row's `length`, behind common prompts of the other half."""
    half, rng = length // 2, np.random.default_rng(0)
    tokens = rng.integers(0, SHAPE.vocab, (pairs, 3, half)).astype(np.int32)
    rows = packing.shared(list(tokens[:, 0]), [list(pair[1:]) for pair in tokens])
    return jax.tree.map(jnp.asarray, rows)


def layout_of(rows: PackedRows) -> Layout:
    return Layout(rows.positions, rows.groups, rows.branches)


def pair_logps(params: Any, rows: PackedRows, config: TransformerConfig, tile: Tile | None) -> PairLogps:
    states = transformer.hidden(params, rows.tokens, config=config, layout=layout_of(rows))
    seen = computing(transformer.sources_of(states, rows), config)
    matrix, asked = transformer.unembedding(params, config=config), rows.sources >= 0
    logps = head.token_statistics(seen, matrix, rows.tokens, asked, tile=tile).logps.reshape(-1)
    slots = rows.slots[:, 1:]
    return PairLogps(*jnp.where(slots >= 0, logps[slots], 0).sum(-1).T)


def make_step(config: TransformerConfig, tile: Tile | None = None):
    """One update, and the parameters and optimizer state before the first."""
    optimizer = optax.adamw(1e-6)

    def loss_fn(params, rows):
        policy = pair_logps(params, rows, config, tile)
        reference = jax.tree.map(jnp.zeros_like, policy)
        return pairwise.dpo_loss(policy, reference, beta=BETA).mean()

    def step(params, opt_state, rows):
        grads = jax.grad(loss_fn)(params, rows)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = lambda: transformer.init(jax.random.key(0), config)
    return step, lambda: (start := params(), optimizer.init(start))


def counted(function, *arguments: Any) -> float:
    """FLOPs of the compiled program, bodies of loops once."""
    return float(jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"])


def compiled_flop(config: TransformerConfig, rows: PackedRows) -> float:
    """FLOPs of a step's compiled program, its layers counted as often as they run."""
    config = dataclasses.replace(config, attention="plain")
    step, start = make_step(config, Tile(rows.tokens.size, config.vocab))
    params, opt_state = jax.eval_shape(start)
    return counted(step, params, opt_state, rows) + (config.layers - 1) * layer_flop(config, params, rows)


def layer_flop(config: TransformerConfig, params: Any, rows: PackedRows) -> float:
    """Of one layer alone, forward and backward."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params["layers"])
    x = jax.ShapeDtypeStruct((*rows.tokens.shape, config.dim), config.dtype)
    reading = attention.packed_reading(layout_of(rows), config)
    layer = lambda params, x: transformer.Layer(config).apply({"params": params}, x, reading, None)[0]
    return counted(lambda params, x: jax.vjp(layer, params, x)[1](x), one, x)


def asked_flop(config: TransformerConfig, rows: PackedRows) -> float:
    """What the model asks for: three times forward, 2 FLOPs a parameter and token."""
    c, tokens = config, int((rows.positions >= 0).sum())
    layer = c.dim * c.head_dim * 2 * (c.heads + c.kv_heads) + 3 * c.dim * c.mlp_dim
    seen = int((attention.packed_distances(layout_of(rows)) >= 0).sum())
    layers = c.layers * (6 * layer * tokens + 12 * c.heads * c.head_dim * seen)
    return layers + 6 * c.vocab * c.dim * int((rows.sources >= 0).sum())


class Stepper:
    """Steps on and on, in place."""

    def __init__(self, config: TransformerConfig, rows: PackedRows):
        step, start = make_step(config)
        self.rows, self.step, self.state = rows, jax.jit(step, donate_argnums=(0, 1)), jax.jit(start)()

    def __call__(self) -> Any:
        self.state = self.step(*self.state, self.rows)
        return self.state[0]["final_norm"]  # small, and there when all is


def product(size: int, dtype: str):
    """A matrix product, twice 2 size^3 FLOPs."""
    x = jnp.ones((size, size), dtype)
    twice = jax.jit(lambda x: (x @ x) / size @ x)
    return lambda: twice(x)


def measure(config: TransformerConfig, pairs: int, length: int, size: int, n: int) -> dict[str, Any]:
    """A row of the table."""
    rows = make_rows(pairs, length)
    shallow, deep = (dataclasses.replace(config, layers=layers) for layers in (FEW, MORE))
    calls = {
        "few": Stepper(shallow, rows),
        "more": Stepper(deep, rows),
        "product": product(size, config.dtype),
    }
    unit = "cpu_s" if jax.default_backend() == "cpu" else "wall_s"
    found = harness.rounds(calls, n)
    least = {name: min(getattr(one, unit) for one in measured[1:]) for name, measured in found.items()}
    layer_s = (least["more"] - least["few"]) / (MORE - FEW)
    step_s = least["few"] + (config.layers - FEW) * layer_s
    asked, rate = asked_flop(config, rows), 2 * 2 * size**3 / least["product"]
    return {
        "pairs": pairs, "row_tokens": length, "computed_tokens": rows.tokens.size, "step_s": step_s,
        "layer_s": layer_s, "asked_gflop": asked / 1e9, "compiled_gflop": compiled_flop(config, rows) / 1e9,
        "gflop_s": asked / step_s / 1e9, "product_gflop_s": rate / 1e9, "share": asked / step_s / rate,
        "layers_share": _layer_share(config, rows, layer_s, rate), "seconds": unit,
    }  # fmt: skip


def _layer_share(config: TransformerConfig, rows: PackedRows, layer_s: float, rate: float) -> float:
    """Of the layers alone, without embedding and head."""
    deep, shallow = (asked_flop(dataclasses.replace(config, layers=n), rows) for n in (2, 1))
    return (deep - shallow) / layer_s / rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--product", type=int, default=2048, help="rows of the square matrices")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = dataclasses.replace(SHAPE, dtype=given.dtype)
    rows = [measure(config, given.pairs, n, given.product, given.rounds) for n in given.lengths]
    harness.write(
        given.out, rows, {"rounds": given.rounds, "layers_run": [FEW, MORE], "product": given.product}
    )


if __name__ == "__main__":
    main()
