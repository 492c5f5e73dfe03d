"""The voted toy: pairs are well formed, the majority decides, votes follow Bradley and Terry."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.data import synthetic_votes as votes
from jaxpref.pairs import TokenRows

CONFIG = votes.VotesConfig(vocab=10, prompt_length=4, min_length=2, max_length=6)


@jax.jit
def make_data() -> tuple[votes.World, votes.VotedPairs]:
    world_key, pair_key = jax.random.split(jax.random.key(0))
    world = votes.world(world_key, CONFIG)
    return world, votes.voted_pairs(pair_key, world, 200, CONFIG)


@pytest.fixture(scope="module")
def world() -> votes.World:
    return make_data()[0]


@pytest.fixture(scope="module")
def data() -> votes.VotedPairs:
    return make_data()[1]


def rows_of(data: votes.VotedPairs) -> list[TokenRows]:
    return [data.pairs.chosen, data.pairs.rejected]


def test_a_row_is_prompt_response_padding_and_the_response_alone_ends_in_the_end_token(data):
    for rows in rows_of(data):
        for tokens, mask in zip(np.array(rows.tokens), np.array(rows.response_mask), strict=True):
            response = tokens[mask]
            assert not mask[: CONFIG.prompt_length].any() and mask[CONFIG.prompt_length]
            assert mask.sum() == np.flatnonzero(mask)[-1] - CONFIG.prompt_length + 1  # no gap
            assert CONFIG.min_length + 1 <= len(response) <= CONFIG.max_length + 1
            assert response[-1] == votes.END_TOKEN and (response[:-1] != votes.END_TOKEN).all()


def test_both_responses_stand_behind_the_same_prompt(data):
    chosen, rejected = (rows.tokens[:, : CONFIG.prompt_length] for rows in rows_of(data))
    np.testing.assert_array_equal(chosen, rejected)


def test_chosen_has_the_majority_and_no_vote_is_tied(data):
    assert (data.votes_chosen + data.votes_rejected == CONFIG.num_votes).all()
    assert (data.votes_chosen > data.votes_rejected).all()
    np.testing.assert_allclose(data.alpha, data.votes_chosen / CONFIG.num_votes)


def test_reward_margin_is_that_of_the_labelled_responses(world, data):
    value = np.array(world.token_rewards, np.float64)
    scores = [
        [value[t[m]].sum() / math.sqrt(m.sum() - 1) for t, m in zip(*map(np.array, rows), strict=True)]
        for rows in rows_of(data)
    ]  # the end token is worth 0 and not counted
    np.testing.assert_allclose(data.reward_margin, np.subtract(*scores), atol=1e-4)


def test_votes_have_the_binomial_probabilities_given_no_tie():
    difference, draws = 0.7, 40_000
    drawn = votes.votes(jax.random.key(1), jnp.full(draws, difference), 4)
    p = 1 / (1 + math.exp(-difference))
    weight = np.array([math.comb(4, k) * p**k * (1 - p) ** (4 - k) * (k != 2) for k in range(5)])
    measured = np.bincount(np.array(drawn), minlength=5) / draws
    np.testing.assert_allclose(measured, weight / weight.sum(), atol=0.01)  # four standard errors


def test_the_language_never_ends_a_response_by_itself(world):
    assert (world.chain_logits[:, votes.END_TOKEN] == -jnp.inf).all()


@pytest.mark.parametrize(
    ("field", "value"), [("vocab", 2), ("prompt_length", 0), ("min_length", 30), ("num_votes", 0)]
)
def test_sizes_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .*got {value}"):
        votes.VotesConfig(**{field: value})
