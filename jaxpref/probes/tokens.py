"""Inner products of the gradients of single tokens of a language model, without those gradients.

A token's gradient with respect to a dense kernel is A' G: the layer's inputs A at all places, the same for
every token of a row, and the token's own cotangents G. The product of two tokens' gradients is the sum of
(A A') * (G_1 G_2') over places, so that A A' acts once on each token's G, and none of the gradients, each as
large as the model, is ever made. Layer after layer: what is alive are the cotangents of one.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jaxtyping import Float, Int, PyTree

from jaxpref.logps import wide
from jaxpref.policies import transformer
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.attention import Reading
from jaxpref.policies.layers import Norm, computing
from jaxpref.policies.tiles import Scoring
from jaxpref.policies.transformer import Decoder, Layer

Products = dict[str, Array]  # by the parameter's path
Path = tuple[str, ...]
LONG = 128  # tokens from which the square of the length is too much to keep for every cotangent
TABLES = ("embedding", "position_embedding")


def token_products(
    params: PyTree,
    tokens: Int[Array, "2 length"],
    places: Int[Array, "2 picked"],
    *,
    config: TransformerConfig,
) -> Products:
    """Inner product of the gradients of every two of the picked tokens' log-probabilities.

    Costs a pass back for each token, without the weights' part, and about length / inputs of the weights'
    part. Alive are the cotangents of all picked tokens at one layer.

    Args:
      tokens: two rows, such as a prompt with the chosen and with the rejected response; what follows the
        last picked token does not matter.
      places: of the picked tokens in each row, never a row's first, which nothing predicts.

    Returns:
      [2 * picked, 2 * picked] for each parameter, the first row's tokens before the second's, and
      [layers, ...] for those of the layers, nats squared per parameter unit squared.

    References: Yuan et al. 2024, arXiv:2410.13828, section 4.3.
    """
    config = _without_kernels(config, tokens.shape[1])
    entry = _Entry(params, config, tokens.shape[1])
    reading, tables = entry.reading(), jax.vmap(entry.tables)(tokens)

    def ahead(x: Array, layer: Any) -> tuple[Array, Array]:
        return Layer(config).apply({"params": layer[0]}, x, reading, layer[1])[0], x

    def back(cotangents: Array, layer: Any) -> tuple[Array, Products]:
        (weights, local), x = layer
        one_row = lambda x, cotangents: _layer_back(weights, x, cotangents, reading, local, config)
        cotangents, sides = jax.vmap(one_row)(x, cotangents)
        return cotangents, _layer_products(sides)

    layers = params["layers"], None if config.local is None else jnp.asarray(config.local)
    last, inputs = jax.lax.scan(ahead, jax.vmap(entry.enter)(tables), layers)
    top = _top(params, last, tokens, places, config)
    cotangents, found = jax.lax.scan(back, top.cotangents, (layers, inputs), reverse=True)
    pull = lambda tables, cotangents: jax.vmap(jax.vjp(entry.enter, tables)[1])(cotangents)[0]
    lookups = jax.vmap(pull)(tables, cotangents)
    return found | top.products | _table_products(lookups, tokens, top, config)


def _without_kernels(config: TransformerConfig, length: int) -> TransformerConfig:
    """Attention in XLA alone: kernels are not made for many cotangents of one row."""
    return dataclasses.replace(config, attention="plain" if length < LONG else "blocks")


def total(products: Products) -> Float[Array, "tokens tokens"]:
    """Over all parameters."""
    return sum((x.sum(0) if x.ndim == 3 else x for x in products.values()), start=jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What a decoder does before its first layer, as a function of the vectors that one row looks up."""

    params: PyTree
    config: TransformerConfig
    length: int

    def tables(self, tokens: Int[Array, "length"]) -> dict[str, Array]:
        """The vectors of each place: what is differentiated is no larger than the row."""
        ids = {"embedding": tokens, "position_embedding": jnp.arange(self.length)}
        return {name: self.params[name][ids[name]] for name in TABLES if name in self.params}

    def enter(self, tables: dict[str, Array]) -> Float[Array, "length dim"]:
        """What comes to the first layer: of a decoder whose layers and norm do nothing."""

        def skip(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__" or isinstance(module, Decoder):
                return call(*args, **kwargs)
            return (args[0], None) if isinstance(module, Layer) else args[0]

        return self._decode(tables, skip)[0]

    def reading(self) -> Reading:
        """Where the tokens stand and what they look at, the same for both rows."""
        seen: list[Reading] = []

        def listen(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if context.method_name == "_read":
                seen.append(out[1])
            return out

        self._decode(self.tables(jnp.zeros(self.length, int)), listen)
        return seen[0]

    def _decode(self, tables: dict[str, Array], interceptor: Any) -> Array:
        """Over a vocabulary of the places: each looks up its own row of the tables."""
        longest = self.length if "position_embedding" in tables else self.config.max_length
        config = dataclasses.replace(self.config, vocab=self.length, tied=True, max_length=longest)
        with nn.intercept_methods(interceptor):
            variables = {"params": {**self.params, **tables}}
            states: Any = Decoder(config).apply(variables, jnp.arange(self.length)[None])
        return states


class _Sides(NamedTuple):
    """Of one row at one layer: what the gradients of its tokens are made of."""

    inputs: dict[Path, Array]  # of each dense layer, [length, inputs]
    cotangents: dict[Path, Array]  # of its outputs, [picked, 1, length, outputs]
    others: dict[Path, Array]  # gradients of all that is no kernel, [picked, ...]


def _layer_back(weights, x, cotangents, reading, local, config) -> tuple[Array, _Sides]:
    """One row's cotangents through one layer, [picked, length, dim], and what they leave there."""
    flat = flatten_dict(weights)
    kernels = {path: w for path, w in flat.items() if path[-1] == "kernel"}
    others = {path: w for path, w in flat.items() if path not in kernels}
    zeros = lambda kernel: computing(jnp.zeros((1, len(x), kernel.shape[-1]), kernel.dtype), config)
    taps = {path[:-1]: zeros(kernel) for path, kernel in kernels.items()}

    def layer(
        others: dict[Path, Array], taps: dict[Path, Array], x: Array
    ) -> tuple[Array, dict[Path, Array]]:
        inputs: dict[Path, Array] = {}

        def tap(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = context.module.path
            if path not in taps or context.method_name != "__call__":
                return call(*args, **kwargs)
            inputs[path] = computing(args[0][0], config)
            return call(*args, **kwargs) + taps[path]

        with nn.intercept_methods(tap):
            variables = {"params": unflatten_dict(kernels | others)}
            y = Layer(config).apply(variables, x[None], reading, local)[0]
        return y[0], inputs

    _, pull, inputs = jax.vjp(layer, others, taps, x, has_aux=True)
    by_others, by_taps, by_x = jax.vmap(pull)(cotangents)
    return by_x, _Sides(inputs, by_taps, by_others)


def _layer_products(sides: _Sides) -> Products:
    """Of one layer's parameters, from both rows' sides."""
    name = lambda path: "/".join(("layers", *path))
    found = {name(path): flat_products(grads) for path, grads in sides.others.items()}
    for path, inputs in sides.inputs.items():
        places = jnp.einsum("pti,qsi->ptqs", wide(inputs), wide(inputs), precision="highest")
        found[name((*path, "kernel"))] = place_products(places, sides.cotangents[path][:, :, 0])
    return found


def flat_products(grads: Float[Array, "2 picked *shape"]) -> Float[Array, "tokens tokens"]:
    """Of gradients that are small enough to be looked at."""
    flat = wide(grads).reshape(2 * grads.shape[1], -1)
    return jnp.matmul(flat, flat.T, precision="highest")


def place_products(
    places: Float[Array, "2 length 2 length"], cotangents: Float[Array, "2 picked length outputs"]
) -> Float[Array, "tokens tokens"]:
    """Sum over two places of their products of inputs times those of the tokens' cotangents there."""
    sides = wide(cotangents)

    def block(row: int, other: int) -> Array:
        moved = jnp.einsum("ts,nso->nto", places[row, :, other], sides[other], precision="highest")
        return jnp.einsum("mto,nto->mn", sides[row], moved, precision="highest")

    across = block(0, 1)
    return jnp.block([[block(0, 0), across], [across.T, block(1, 1)]])


class _Top(NamedTuple):
    """What the head and the final norm leave behind."""

    products: Products
    cotangents: Float[Array, "2 picked length dim"]  # of what the last layer puts out
    states: Float[Array, "tokens dim"]  # that predict the picked tokens
    slopes: Float[Array, "tokens vocab"]  # of the log-probabilities by the products with the matrix


def _top(params: PyTree, last: Array, tokens: Array, places: Array, config: TransformerConfig) -> _Top:
    weights = params.get("final_norm", {})

    def norm(weights: PyTree, x: Array) -> Any:
        return Norm(config).apply({"params": weights}, x)

    before = jnp.take_along_axis(last, (places - 1)[..., None], axis=1)
    states = norm(weights, before)
    matrix = computing(transformer.unembedding(params, config=config), config)
    targets = jnp.take_along_axis(tokens, places, axis=1)
    seen = computing(states, config).reshape(-1, states.shape[-1])
    slopes = _slopes(seen, matrix, targets.reshape(-1), config.logit_cap)
    by_states = jnp.matmul(slopes.astype(matrix.dtype), matrix, preferred_element_type=slopes.dtype)
    pull = lambda x, cotangent: jax.vjp(norm, weights, x)[1](cotangent)
    by_norm, by_x = jax.vmap(jax.vmap(pull))(before, by_states.reshape(states.shape).astype(states.dtype))
    products = {f"final_norm/{name}": flat_products(grads) for name, grads in by_norm.items()}
    return _Top(products, _scattered(by_x, places - 1, last.shape[1]), wide(seen), slopes)


def _scattered(cotangents: Array, places: Array, length: int) -> Array:
    """Each token's at its own place of the row, zeros elsewhere, [2, picked, length, dim]."""
    here = places[..., None] == jnp.arange(length)
    return jnp.where(here[..., None], cotangents[:, :, None], 0)


def _slopes(states: Array, matrix: Array, targets: Array, cap: float | None) -> Array:
    scoring = Scoring(cap, 1.0)
    products = jnp.matmul(states, matrix.T, preferred_element_type=wide(states).dtype)
    logits = scoring.logits(products)
    return scoring.slopes(logits) * (_one_hot(targets, logits) - jax.nn.softmax(logits))


def _one_hot(targets: Array, logits: Array) -> Array:
    return jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)


def _table_products(
    lookups: dict[str, Array], tokens: Array, top: _Top, config: TransformerConfig
) -> Products:
    """Of the embedding, the learned positions, and the unembedding, which may be the embedding itself."""
    same = (tokens[:, :, None, None] == tokens).astype(top.slopes.dtype)
    outer = lambda x: jnp.matmul(x, x.T, precision="highest")
    head = outer(top.slopes) * outer(top.states)
    found = {"embedding": place_products(same, lookups["embedding"])}
    if config.tied:
        across = _across(wide(lookups["embedding"]), tokens, top)
        found["embedding"] += head + across + across.T
    else:
        found["unembedding"] = head
    if "position_embedding" in lookups:
        found["position_embedding"] = flat_products(lookups["position_embedding"])
    return found


def _across(lookups: Array, tokens: Array, top: _Top) -> Array:
    """Of each token's gradient where it looks up with each token's where it scores: one matrix does both."""

    def one_row(lookups: Array, tokens: Array) -> Array:
        scored = top.slopes[:, tokens, None] * top.states[:, None]
        return jnp.einsum("msd,nsd->mn", lookups, scored, precision="highest")

    return jax.vmap(one_row)(lookups, tokens).reshape(len(top.states), -1)
