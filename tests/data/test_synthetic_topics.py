import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.data import synthetic_topics as topics
from jaxpref.data.synthetic_topics import TopicTask

TASK = TopicTask(topics=3, words=10, min_length=2, max_length=6)


def made(matched: bool = False):
    transitions = TASK.transitions(jax.random.key(0))
    return topics.pairs(jax.random.key(1), TASK, transitions, 200, matched_lengths=matched)


def test_a_row_is_prompt_words_end_and_padding():
    row = topics.rows(TASK, jnp.array([2]), jnp.array([[4, 5, 6, 7, 8, 9]]), jnp.array([3]))
    assert row.tokens[0].tolist() == [2, 7, 8, 9, TASK.end, 0, 0, 0]
    assert row.response_mask[0].tolist() == [False, True, True, True, True, False, False, False]


def test_both_responses_of_a_pair_answer_the_same_prompt():
    pairs = made().pairs
    np.testing.assert_array_equal(pairs.chosen.tokens[:, 0], pairs.rejected.tokens[:, 0])
    assert set(np.unique(pairs.lengths.chosen)) == set(range(3, 8))  # words and the end token


def test_edited_copies_share_most_words_and_other_pairs_do_not():
    both = made(matched=True)
    same = np.asarray(both.pairs.chosen.tokens == both.pairs.rejected.tokens)[:, 1:5].mean(axis=1)
    kind = np.asarray(both.kind)
    assert same[kind == topics.EDITED].mean() > 0.6 > 0.3 > same[kind != topics.EDITED].mean()


def test_matched_lengths_are_all_the_same():
    lengths = made(matched=True).pairs.lengths
    assert set(np.unique(lengths.chosen)) == set(np.unique(lengths.rejected)) == {5}


def test_words_follow_the_transitions_of_their_topic():
    table = jnp.log(jnp.eye(3)[jnp.array([[1, 2, 0], [2, 0, 1]])] + 1e-30)  # topic 0 counts up, 1 down
    chains = np.asarray(topics.words(jax.random.key(2), table, jnp.array([0, 1]), 5))
    np.testing.assert_array_equal(np.diff(chains) % 3, [[1] * 4, [2] * 4])


@pytest.mark.parametrize("percentile, expected", [(0.0, range(4)), (1.0, range(6, 10)), (0.5, range(2, 6))])
def test_subsets_at_the_ends_hold_the_lowest_and_the_highest(percentile, expected):
    scores = jax.random.permutation(jax.random.key(0), jnp.arange(10.0))
    subset = topics.percentile_subset(scores, percentile, 4)
    assert sorted(np.asarray(scores)[np.asarray(subset)]) == list(expected)


def test_a_task_names_the_field_that_is_out_of_range():
    with pytest.raises(ValueError, match=r"edited_share must be in .0, 1.; got 0"):
        TopicTask(edited_share=0.0)
