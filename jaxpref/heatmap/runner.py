"""Products of all tokens of one pair, a block of them after another, into a run folder."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import results
from jaxpref.heatmap.prepare import Prepared
from jaxpref.pairs import TokenRows
from jaxpref.policies import transformer
from jaxpref.probes import tokens as probe
from jaxpref.provenance import provenance
from jaxpref.results import Arrays, RunWriter

SIDES = ("chosen", "rejected")


class Chunk(NamedTuple):
    """Some tokens of one response."""

    side: int
    places: np.ndarray  # in its row
    numbers: np.ndarray  # among all tokens of both responses, the chosen one's first


class Pair(NamedTuple):
    """The pair's two rows, padded to one length."""

    tokens: np.ndarray  # [2, length]
    start: int  # tokens of the prompt
    ends: tuple[int, int]  # lengths of the rows

    @property
    def size(self) -> int:
        """Response tokens of both."""
        return sum(self.ends) - 2 * self.start


def run(prepared: Prepared, progress: Callable[[float, str], None] | None = None) -> Path:
    """Computes the pair's map into the run folder; at once if the folder holds it already.

    Raises:
      FloatingPointError: a product is not finite.
    """
    out = prepared.config.out
    if results.is_finished(out, prepared.run):
        return out
    writer, pair = RunWriter(out, prepared.run, provenance(), progress), read(prepared)
    products = _products(prepared, writer, pair)
    if not np.isfinite(products).all():
        raise FloatingPointError(f"pair {prepared.run.config['pair']}: a product of gradients is not finite")
    writer.table(_token_columns(prepared, pair, np.diagonal(products)), name="tokens")
    writer.table(_product_columns(products), name="products")
    writer.write(summary(products, pair))
    writer.note(line=int(prepared.pairs.lines[prepared.pair]))
    writer.finish()
    return out


def read(prepared: Prepared) -> Pair:
    """The pair's rows out of the file."""
    rows = [prepared.pairs.row(prepared.pair, side) for side in ("chosen", "rejected")]
    tokens = np.zeros((2, max(map(len, rows))), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return Pair(tokens, int(prepared.pairs.starts[prepared.pair]), (len(rows[0]), len(rows[1])))


def chunks(pair: Pair, most: int) -> list[Chunk]:
    """All response tokens, at most `most` together, parts of a response nearly equal."""
    found, before = [], 0
    for side, end in enumerate(pair.ends):
        size = end - pair.start
        for part in np.array_split(np.arange(size), -(-size // most)):
            found.append(Chunk(side, pair.start + part, before + part))
        before += size
    return found


def _products(prepared: Prepared, writer: RunWriter, pair: Pair) -> np.ndarray:
    """[tokens, tokens], the chosen response's tokens first, nats squared per parameter unit squared."""
    most = prepared.config.tokens_at_once
    parts = chunks(pair, most)
    blocks = list(itertools.combinations(parts, 2))  # there are two chunks at least, one of each response
    widest = max(len(part.places) for part in parts)
    matrix = np.zeros((pair.size, pair.size), np.float32)
    for number, both in enumerate(blocks):
        writer.progress(number / len(blocks), f"block {number + 1} of {len(blocks)}")
        compute = functools.partial(_block, prepared, pair, both, widest)
        found = writer.part(f"block-{most}-{number:05d}", compute)["products"]
        for (i, first), (j, second) in itertools.product(enumerate(both), repeat=2):
            block = found[i, : len(first.places), j, : len(second.places)]
            matrix[np.ix_(first.numbers, second.numbers)] = block
    writer.progress(1.0, "")
    return matrix


def _block(prepared: Prepared, pair: Pair, both: tuple[Chunk, Chunk], widest: int) -> Arrays:
    """Products of two chunks' tokens, [2, widest, 2, widest]; beyond a chunk's own its last is repeated."""
    places = [np.pad(chunk.places, (0, widest - len(chunk.places)), mode="edge") for chunk in both]
    rows = pair.tokens[[chunk.side for chunk in both]]
    program = _program(prepared.model.config)
    found = program(prepared.model.params, jnp.asarray(rows), jnp.asarray(np.stack(places)))
    return {"products": np.asarray(found).reshape(2, widest, 2, widest)}


@functools.cache
def _program(config: transformer.TransformerConfig) -> Any:
    return jax.jit(lambda *args: probe.total(probe.token_products(*args, config=config)))


def _response_tokens(pair: Pair) -> Iterator[tuple[int, int]]:
    """Row and place of each, the chosen response's first."""
    for side, end in enumerate(pair.ends):
        yield from ((side, place) for place in range(pair.start, end))


def _token_columns(prepared: Prepared, pair: Pair, sq_norms: np.ndarray) -> dict[str, list[Any]]:
    """Columns of `tokens.parquet`: a row a response token, in the order of the products."""
    model, places = prepared.model, list(_response_tokens(pair))
    inside = (np.arange(pair.tokens.shape[1]) >= pair.start) & np.ones((2, 1), bool)
    rows = TokenRows(jnp.asarray(pair.tokens), jnp.asarray(inside))
    measure = jax.jit(functools.partial(transformer.row_token_logps, config=model.config))
    logps = np.asarray(measure(model.params, rows))
    ids = [int(pair.tokens[place]) for place in places]
    return {
        "response": [SIDES[side] for side, _ in places], "position": [place for _, place in places],
        "token": ids, "text": [model.tokenizer.decode([token]) for token in ids],
        "logps": [float(logps[place]) for place in places], "sq_norm": sq_norms.tolist(),
    }  # fmt: skip


def _product_columns(products: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of `products.parquet`: a row for every two tokens, by their rows in `tokens.parquet`."""
    first, second = np.indices(products.shape)
    return {"first": first.ravel(), "second": second.ravel(), "inner": products.ravel()}


def summary(products: np.ndarray, pair: Pair) -> dict[str, float]:
    """The whole responses' geometry: sums over their tokens."""
    chosen = np.arange(len(products)) < pair.ends[0] - pair.start
    total = lambda rows, columns: float(products[np.ix_(rows, columns)].sum(dtype=np.float64))
    inner, w, l = total(chosen, ~chosen), total(chosen, chosen), total(~chosen, ~chosen)
    norm = np.sqrt(w * l)
    return {
        "grads/inner": inner, "grads/chosen_sq_norm": w, "grads/rejected_sq_norm": l,
        "grads/cos": inner / norm if norm > 0 else 0.0,
        "tokens/chosen": int(chosen.sum()), "tokens/rejected": int((~chosen).sum()),
    }  # fmt: skip
