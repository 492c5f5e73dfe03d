"""Policies: a module each, all behind the same functions.

    init(key, config) -> params               response_logps(params, prompts) -> [prompts, responses]
    pair_logps(params, batch, ...) -> PairLogps        (where the responses are finitely many)
    hidden(params, tokens, config), sample(params, key, prompts, ...)   (where it is a language model)

`params` is a pytree of arrays and nothing else; whatever is static (sizes, rope, tying) is a frozen
config given by keyword, so that `functools.partial(transformer.pair_logps, config=config)` is the
`pair_logps(params, batch)` that losses, probes and the train step take.
"""
