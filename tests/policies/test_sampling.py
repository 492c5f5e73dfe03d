"""Sampling: as often as the policy says, deterministic row by row, scored as a loss would score it."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpref.logps import next_token_logps
from jaxpref.policies import families, generation, next_token, sampling, transformer
from jaxpref.policies.sampling import Sampling

GOLDEN = Path(__file__).parent / "golden"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN / "make_families.py")
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)

CONFIG = transformer.TransformerConfig(
    vocab=23, dim=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_dim=40, tied=False
)
PARAMS = transformer.init(jax.random.key(0), CONFIG)
PROMPTS = [[1, 5, 2], [7], [3, 3, 9, 20, 11], [4, 8]]
STOP = Sampling(max_new_tokens=12, stop_tokens=(4, 9), temperature=1.2)
draw = functools.partial(sampling.sample, PARAMS, config=CONFIG, seed=3)
logits = jax.jit(transformer.logits, static_argnames="config")


def rescore(params, rows, *, config):
    """Log-probability of every response token by one forward over whole rows."""
    return next_token_logps(logits(params, rows.tokens, config=config), rows)


def responses(samples):
    """Each row's response tokens."""
    return [tokens[mask].tolist() for tokens, mask in zip(*map(np.asarray, samples.rows), strict=True)]


@pytest.fixture(scope="module")
def drawn():
    return draw(PROMPTS, sampling=STOP)


def family(name):
    kind, values = make_families.CASES[name]
    model_type = {"GPTNeoX": "gpt_neox", "Gemma3": "gemma3_text"}.get(kind, kind.lower())
    config = families.config_of({"model_type": model_type, **values})
    weights = make_families.weights(name, families.expected_shapes(config))
    shapes = {key: array.shape for key, array in weights.items()}
    return config, families.to_params(families.Tensors(shapes, weights.__getitem__), config)


@functools.cache
def exact_pairs():
    """A policy of five tokens, and the probabilities of all its responses of two tokens behind [1, 2]."""
    config = transformer.tiny(5, dim=8, layers=1, heads=2)
    params = jax.tree.map(lambda x: 1.5 * x, transformer.init(jax.random.key(5), config))
    every = jnp.array([[1, 2, a, b] for a in range(5) for b in range(5)])
    logits = np.asarray(transformer.logits(params, every, config=config), np.float64)
    return config, params, logits[:, 1], logits[:, 2]


def probabilities(logits, temperature, top_k):
    """Of each token, the best `top_k` of them, in float64."""
    weights = np.exp(logits / temperature)
    weights = np.where(weights >= np.sort(weights)[:, -top_k][:, None], weights, 0)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 5), (0.7, 4)])
def test_responses_are_drawn_as_often_as_enumeration_says(temperature, top_k):
    config, params, first, second = exact_pairs()
    tokens = np.arange(25)
    exact = probabilities(first, temperature, top_k)[tokens, tokens // 5]
    exact *= probabilities(second, temperature, top_k)[tokens, tokens % 5]
    how = Sampling(max_new_tokens=2, temperature=temperature, top_k=top_k)
    samples = sampling.sample(params, [[1, 2]] * 20_000, config=config, sampling=how, seed=0)
    pairs = np.asarray(samples.rows.tokens)[:, 2:4]
    counts = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    assert counts[exact == 0].sum() == 0 and (exact > 0).sum() == top_k**2
    possible = exact > 0
    assert stats.chisquare(counts[possible], 20_000 * exact[possible]).pvalue > 0.01
    assert (
        stats.chisquare(counts[possible], np.full(top_k**2, 20_000 / top_k**2)).pvalue < 1e-9
    )  # it can tell


def test_tokens_of_other_steps_and_seeds_are_independent():
    config, params, *_ = exact_pairs()
    how = Sampling(max_new_tokens=2, temperature=1.0, top_k=5)
    run = functools.partial(sampling.sample, params, [[1, 2]] * 20_000, config=config, sampling=how)
    first = [np.asarray(run(seed=s, step=t).rows.tokens)[:, 2] for s, t in [(0, 0), (0, 1), (1, 0)]]
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        table = np.histogram2d(first[i], first[j], bins=5)[0]
        assert stats.chi2_contingency(table).pvalue > 0.01


def test_a_response_ends_with_its_first_stop_token():
    ended = []
    for seed in range(8):
        samples = sampling.sample(PARAMS, PROMPTS, config=CONFIG, sampling=STOP, seed=seed)
        ended += [done := np.asarray(samples.finished)]
        for response, end, length in zip(responses(samples), done, samples.lengths, strict=True):
            assert not {4, 9} & set(response[:-1]) and len(response) == length
            assert end == (response[-1] in (4, 9)) and (end or length == 12)
    assert 0 < np.mean(ended) < 1


def test_rows_are_prompt_response_padding(drawn):
    tokens, mask = map(np.asarray, drawn.rows)
    for row, prompt in enumerate(PROMPTS):
        start, end = len(prompt), len(prompt) + int(drawn.lengths[row])
        np.testing.assert_array_equal(tokens[row, :start], prompt)
        np.testing.assert_array_equal(
            mask[row], (np.arange(tokens.shape[1]) >= start) & (np.arange(tokens.shape[1]) < end)
        )
        assert np.all(tokens[row, end:] == 0) and np.all(drawn.drawn_logps[row, end:] == 0)


def test_a_row_draws_the_same_alone_and_among_others_in_any_order(drawn):
    order = [2, 0, 3, 1]
    sorted_otherwise = draw([PROMPTS[i] for i in order], sampling=STOP, row_ids=order)
    alone = [responses(draw([p], sampling=STOP, row_ids=[i]))[0] for i, p in enumerate(PROMPTS)]
    assert alone == responses(drawn)
    assert [responses(sorted_otherwise)[order.index(i)] for i in range(4)] == alone


def test_the_length_of_the_padding_changes_no_draw(drawn):
    padded = draw(PROMPTS, sampling=STOP, width=29)
    assert padded.rows.tokens.shape == (4, 29 + 12) and drawn.rows.tokens.shape == (4, 16 + 12)
    assert responses(padded) == responses(drawn)
    np.testing.assert_allclose(padded.logps.sum(-1), drawn.logps.sum(-1), atol=1e-4)


def test_seed_step_and_row_id_each_change_the_draw(drawn):
    first = responses(drawn)
    assert responses(draw(PROMPTS, sampling=STOP)) == first
    assert responses(draw(PROMPTS, sampling=STOP, step=1)) != first
    assert responses(draw(PROMPTS, sampling=STOP, row_ids=[9, 8, 7, 6])) != first
    assert responses(sampling.sample(PARAMS, PROMPTS, config=CONFIG, sampling=STOP, seed=4)) != first


def test_responses_of_equal_prompts_differ_by_row():
    assert len({tuple(r) for r in responses(draw([[1, 2]] * 4, sampling=STOP))}) == 4


def test_a_longer_limit_changes_no_token_before_it(drawn):
    short = responses(draw(PROMPTS, sampling=dataclasses.replace(STOP, max_new_tokens=4)))
    assert short == [response[:4] for response in responses(drawn)]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama3", "mistral", "gemma3", "pythia")]


@pytest.mark.parametrize("name", ["gemma2", "gpt2", *SLOW])
def test_logps_are_those_of_a_rescoring(name):
    config, params = family(name)
    how = Sampling(max_new_tokens=12, temperature=0.8, top_k=9, top_p=0.9, stop_tokens=(3,))
    samples = sampling.sample(
        params, [[1, 5, 2], [7], [3, 8, 9, 20, 11]], config=config, sampling=how, seed=1
    )
    exact = rescore(params, samples.rows, config=config)
    np.testing.assert_allclose(samples.logps, exact, rtol=0, atol=1e-4)
    scores = logits(params, samples.rows.tokens, config=config)
    rows, columns = np.nonzero(np.asarray(samples.rows.response_mask))
    filtered = next_token.filtered_logps(scores[rows, columns - 1], how)
    expected = filtered[np.arange(len(rows)), samples.rows.tokens[rows, columns]]
    np.testing.assert_allclose(samples.drawn_logps[rows, columns], expected, rtol=0, atol=1e-4)
    assert not np.allclose(samples.drawn_logps, samples.logps, atol=0.01)


def test_greedy_tokens_are_the_best_of_a_whole_forward():
    samples = draw(PROMPTS, sampling=dataclasses.replace(STOP, temperature=0.0))
    best = np.asarray(logits(PARAMS, samples.rows.tokens, config=CONFIG)).argmax(-1)
    mask = np.asarray(samples.rows.response_mask)
    np.testing.assert_array_equal(np.asarray(samples.rows.tokens)[mask], best[:, :-1][mask[:, 1:]])
    assert np.all(np.asarray(samples.drawn_logps) == 0)


def test_bfloat16_products_give_float32_logps_near_a_rescoring():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    samples = sampling.sample(PARAMS, PROMPTS, config=config, sampling=STOP, seed=3)
    assert samples.logps.dtype == jnp.float32
    np.testing.assert_allclose(samples.logps, rescore(PARAMS, samples.rows, config=config), atol=0.05)


def test_the_loop_ends_with_the_last_row():
    """Rows that stop at their tokens 1 and 3 of 50 cost three tokens."""
    places = []

    def choose(logits, place):
        jax.debug.callback(lambda p: places.append(int(p)), place)
        tokens = jnp.where(place == jnp.array([0, 2]), 4, 5)
        return next_token.scored(tokens, logits, logits)

    run = jax.jit(
        lambda: generation.generate(
            PARAMS, jnp.array([[1], [2]]), None, choose, config=CONFIG, num_tokens=50, stop_tokens=(4,)
        )
    )
    drawn, written = jax.block_until_ready(run())
    jax.effects_barrier()
    assert places == [0, 1, 2]
    np.testing.assert_array_equal(written.sum(-1), [1, 3])
    np.testing.assert_array_equal(drawn.tokens[:, :4], [[4, 0, 0, 0], [5, 5, 4, 0]])


def test_it_runs_inside_a_program():
    tokens, mask = jnp.array([[1, 5, 2], [0, 0, 7]]), jnp.array([[True] * 3, [False, False, True]])
    inside = jax.jit(
        lambda params, step: sampling.sample_padded(
            params, sampling.row_keys(jax.random.key(3), step, jnp.arange(2)), tokens, mask,
            config=CONFIG, sampling=STOP,
        )
    )(PARAMS, jnp.asarray(0))  # fmt: skip
    assert responses(inside) == responses(draw([[1, 5, 2], [7]], sampling=STOP))


BAD_CALLS = [
    (dict(prompts=[]), "prompts must hold at least one prompt; got none"),
    (dict(prompts=[[1], []]), "prompts must hold at least one token each; row 1 has none"),
    (dict(prompts=[[1], [2, 23]]), r"prompts must hold ids in \[0, vocab=23\); row 1 has 23"),
    (dict(row_ids=[0]), "row_ids must be one for each of 4 prompts; got 1"),
    (dict(row_ids=[0, 1, 2, -3]), r"row_ids must be in \[0, 2\^32\); got -3"),
    (dict(step=2**32), r"step must be in \[0, 2\^32\); got 4294967296"),
    (dict(seed=-1), r"seed must be in \[0, 2\^32\); got -1"),
    (dict(width=4), "width must be at least the longest prompt's; got 4 for 5 tokens"),
    (dict(sampling=Sampling(max_new_tokens=2, stop_tokens=(23,))), "stop_tokens must be ids .*; got 23"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_CALLS)
def test_bad_arguments_name_argument_rule_and_value(changed, message):
    arguments = dict(prompts=PROMPTS, sampling=STOP, seed=0) | changed
    with pytest.raises(ValueError, match=message):
        sampling.sample(PARAMS, arguments.pop("prompts"), config=CONFIG, **arguments)


def test_no_new_tokens_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1; got 0"):
        Sampling(max_new_tokens=0)


def test_learned_positions_bound_prompt_and_response_but_not_the_padding():
    config, params = family("gpt2")  # 17 positions
    run = functools.partial(sampling.sample, params, [[1, 2, 3, 4, 5], [7]], config=config, seed=0)
    assert run(sampling=Sampling(max_new_tokens=12)).rows.tokens.shape == (2, 17)  # not 16 + 12
    with pytest.raises(ValueError, match="max_new_tokens=13 must be at most max_length=17 tokens; got 18"):
        run(sampling=Sampling(max_new_tokens=13))


def test_logits_that_are_no_numbers_name_row_and_token():
    """NaN in the embedding of token 6, then in those of all but padding's 0 and the prompt's 1."""
    embedding = PARAMS["embedding"]
    run = functools.partial(sampling.sample, config=CONFIG, sampling=STOP, seed=0)
    params = PARAMS | {"embedding": embedding.at[6].set(jnp.nan)}
    with pytest.raises(FloatingPointError, match="NaN or inf for token 0 of the response of row 40"):
        run(params, [[1], [6, 2], [1], [1]], row_ids=[30, 40, 50, 60])
    params = PARAMS | {"embedding": jnp.full_like(embedding, jnp.nan).at[:2].set(embedding[:2])}
    with pytest.raises(FloatingPointError, match=r"NaN or inf for token [1-9] of the response of row"):
        run(params, [[1]] * 4)
