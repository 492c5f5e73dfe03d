"""Pairs a CPU second of `jaxpref score`: a pair at a time, as before, against packed and batched.

    python benchmarks/score.py --out benchmarks/score.json

SmolLM2-135M's shape with random weights, pairs of the lengths of HH helpful. Some twenty minutes of CPU, most
of it for the gradients of one pair after another; `--pairs 4 --rounds 1` looks at it in five.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import cli, logps, results
from jaxpref.data import tokenization
from jaxpref.data.pair_set import PairSet
from jaxpref.policies import transformer
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import gradients, likelihood
from jaxpref.scoring import batches, forward, geometry

SMOLLM2 = TransformerConfig(
    vocab=49152, dim=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_dim=1536, tied=True,
    rope_theta=1e5, remat="full",
)  # fmt: skip


def pair_set(lengths: Path, number: int, seed: int = 0) -> PairSet:
    """Random tokens in pairs of real lengths, spread over the file."""
    stored = json.loads(lengths.read_text())
    columns = [np.array(stored[name]) for name in ("prompt", "chosen", "rejected")]
    places = np.linspace(0, len(columns[0]) - 1, number).astype(int)
    prompts, chosen, rejected = (column[places] for column in columns)
    each = prompts + chosen + rejected
    rng, none = np.random.default_rng(seed), np.zeros(number)
    report = tokenization.Report(
        pairs=number, truncated=0, dropped={}, merged=0, duplicates=0, tied=0, indistinct=0, empty=0
    )
    return PairSet(
        ids=[str(i) for i in range(number)], weights=none + 1, columns=none, starts=prompts, sha256="",
        lengths=np.stack([prompts + chosen, prompts + rejected], axis=1), lines=np.arange(number) + 1,
        merged=none, truncated=none, report=report, bad=(), offsets=np.cumsum(each) - each,
        tokens=rng.integers(0, SMOLLM2.vocab, each.sum()).astype(np.int32),
    )  # fmt: skip


@functools.cache
def _one_forward(config: TransformerConfig) -> Callable[..., Any]:
    """Whole logits of both rows of a pair, as `jaxpref score` computed them a pair at a time."""

    def forward_pass(params, batch):
        rows = logps.stack_rows(batch)
        hidden = transformer.hidden(params, rows.tokens, config=config)
        scores = transformer.head(params, hidden, config=config)
        tokens = logps.split_pairs(logps.next_token_logps(scores, rows), rows)
        chosen, rejected = jnp.split(likelihood.response_hidden_sums(hidden, rows), 2)
        distance = likelihood.edit_distance(batch.chosen, batch.rejected)
        return tokens.sum(), likelihood.ches(chosen, rejected, batch.lengths), distance

    return jax.jit(forward_pass)


@functools.cache
def _one_geometry(config: TransformerConfig) -> Callable[..., Any]:
    pair_logps = functools.partial(transformer.pair_logps, config=config)
    return jax.jit(functools.partial(gradients.gradient_geometry, pair_logps))


def one_by_one(params: Any, pairs: PairSet, config: TransformerConfig, *, grads: bool) -> list[Any]:
    """A pair at a time, rows padded to `tokenization.bucket_length`."""
    found = []
    for i in range(len(pairs)):
        length = tokenization.bucket_length(int(pairs.lengths[i].max()))
        batch = jax.tree.map(jnp.asarray, pairs.batch([i], length))
        found.append(jax.device_get(_one_forward(config)(params, batch)))
        if grads:
            found.append(jax.device_get(_one_geometry(config)(params, batch)))
    return found


def batched(params: Any, pairs: PairSet, config: TransformerConfig, *, grads: bool, tokens: int) -> list[Any]:
    """As `scoring.runner` does."""
    window = range(len(pairs))
    found = [forward.compute(params, pairs, b, config) for b in batches.packed(pairs, window, tokens)]
    if grads:
        separate = batches.separate(pairs, window, tokens)
        found += [geometry.compute(params, pairs, batch, config) for batch in separate]
    return found


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way and each thing to compute."""
    pairs = pair_set(Path(options.lengths), options.pairs)
    params = transformer.init(jax.random.key(0), SMOLLM2)
    rows = []
    for grads in (False, True):
        ways = {
            "one by one": functools.partial(one_by_one, params, pairs, SMOLLM2, grads=grads),
            "packed": functools.partial(
                batched, params, pairs, SMOLLM2, grads=grads, tokens=options.batch_tokens
            ),
        }
        measured = harness.rounds(ways, options.rounds)
        seconds = {name: harness.summary(calls) for name, calls in measured.items()}
        for name, summary in seconds.items():
            ratio = seconds["one by one"]["cpu_s"] / summary["cpu_s"]
            speed = {"pairs_per_cpu_s": len(pairs) / summary["cpu_s"], "times": ratio}
            rows.append({"way": name, "gradients": grads, "pairs": len(pairs)} | summary | speed)
    return rows


def rank_many(number: int, lengths: Path) -> dict[str, Any]:
    """A whole run of the command over so many pairs, ranked by CHES, under a Llama of 130,000 weights."""
    sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))
    import tiny_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAXPREF_CACHE"] = str(folder / "cache")
        model = tiny_model.write_gguf(folder / "tiny.gguf")
        _write_pairs(folder / "pairs.jsonl", number, lengths, len(tiny_model.VOCAB))
        arguments = ["--model", model, "--pairs", folder / "pairs.jsonl", "--out", folder / "run"]
        arguments += ["--no-gradients", "--rank", "ches", "--batch-tokens", "8192"]
        command = lambda: cli.main(["score", *map(str, arguments)])
        whole, ranked = harness.call(command), harness.call(command)
        notes = results.Run(folder / "run").stored["notes"]
    return {
        "way": "command, tiny model", "gradients": False, "pairs": number, "cpu_s": whole.cpu_s,
        "wall_s": whole.wall_s, "pairs_per_cpu_s": number / whole.cpu_s, "ranked_again_cpu_s": ranked.cpu_s,
        "peak_memory_mb": harness.peak_memory_mb(), **notes["packing"],
    }  # fmt: skip


def _write_pairs(path: Path, number: int, lengths: Path, vocab: int) -> None:
    stored, rng = json.loads(lengths.read_text()), np.random.default_rng(0)
    names = ("prompt", "chosen", "rejected")
    places = rng.integers(0, len(stored["prompt"]), number)
    with path.open("w", encoding="utf-8") as file:
        for place in places:
            sizes = {"prompt": 200, "chosen": 300, "rejected": 300}  # most tokens of each
            ids = {
                f"{name}_ids": rng.integers(3, vocab, min(stored[name][place], sizes[name])).tolist()
                for name in names
            }
            file.write(json.dumps(ids) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default=str(Path(__file__).with_name("hh_lengths.json")))
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--ranked", type=int, default=10_000, help="pairs of a whole run; 0 leaves it out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [rank_many(options.ranked, Path(options.lengths))] if options.ranked else []
    rows += measure(options) if options.pairs else []
    notes = {name: value for name, value in vars(options).items() if name not in ("out", "lengths")}
    notes |= {"lengths": Path(options.lengths).name, "config": dataclasses.asdict(SMOLLM2)}
    harness.write(options.out, rows, notes | {"peak_memory_mb": harness.peak_memory_mb()})


if __name__ == "__main__":
    main()
