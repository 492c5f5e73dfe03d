import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import PairLengths, PairLogps
from jaxpref.probes import ranking

# the specification's five pairs: pair 3 is untrained (m = -c), pair 4 an exact tie
MARGIN, GAP = jnp.array([-1.0, 2.0, -20.0, 0.0, 3.0]), jnp.array([5.0, -3.0, 20.0, 0.5, 8.0])


def pair_logps(margin) -> PairLogps:
    return PairLogps(jnp.asarray(margin) - 4.0, jnp.full(len(margin), -4.0))


def test_an_exact_tie_is_right_unless_the_rule_says_otherwise():
    expected = {"ge": [0, 1, 0, 1, 1], "gt": [0, 1, 0, 0, 1], "band": [0, 0, 0, 0, 1]}
    for rule, right in expected.items():
        np.testing.assert_array_equal(ranking.ranked_right(MARGIN, tie_rule=rule, band=2.5), right)


def test_an_unknown_tie_rule_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="tie_rule must be one of ge, gt, band; got 'le'"):
        ranking.ranked_right(MARGIN, tie_rule="le")


def test_ranking_accuracy_is_the_share_ranked_right():
    np.testing.assert_allclose(ranking.ranking_accuracy(pair_logps(MARGIN)), 3 / 5)
    np.testing.assert_allclose(ranking.ranking_accuracy(pair_logps(MARGIN), tie_rule="gt"), 2 / 5)


def test_length_normalization_can_turn_the_ranking_over():
    logps = PairLogps(jnp.array([-12.0]), jnp.array([-9.0]))  # two nats a token against three
    lengths = PairLengths(jnp.array([6]), jnp.array([3]))
    assert ranking.ranking_accuracy(logps) == 0
    assert ranking.normalized_ranking_accuracy(logps, lengths) == 1


def test_reference_accuracy_counts_gaps_that_are_not_positive():
    np.testing.assert_allclose(ranking.reference_accuracy(GAP), 0.2)


def test_log_ratios_have_the_signs_of_the_paper():
    ratios = ranking.log_ratios(pair_logps([1.5]), pair_logps([-2.0]))
    assert ratios == (1.5, 2.0)  # the reference is wrong by two nats


def test_reward_accuracy_sees_growth_rather_than_rank():
    np.testing.assert_array_equal(ranking.reward_right(MARGIN, GAP), [1, 0, 0, 1, 1])
    reference = PairLogps(jnp.zeros(5), GAP)
    np.testing.assert_allclose(ranking.reward_accuracy(pair_logps(MARGIN), reference), 3 / 5)


def test_categories_are_reference_then_policy():
    names = [ranking.CATEGORIES[index] for index in ranking.category(MARGIN, GAP)]
    assert names == ["ii", "cc", "ii", "ic", "ic"]
    assert ranking.CATEGORIES[int(ranking.category(jnp.array(-1.0), jnp.array(-1.0)))] == "ci"


def test_category_shares_sum_to_one_and_give_the_accuracies():
    shares = ranking.category_shares(ranking.category(MARGIN, GAP))
    np.testing.assert_allclose(shares, [0.2, 0, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(shares[0] + shares[1], ranking.reference_accuracy(GAP))
    np.testing.assert_allclose(shares[0] + shares[2], ranking.ranking_accuracy(pair_logps(MARGIN)))
    np.testing.assert_allclose(ranking.flip_rate(MARGIN, GAP), 0.5)


def test_nothing_has_flipped_before_training():
    shares = ranking.category_shares(ranking.category(-GAP, GAP))
    np.testing.assert_allclose(shares, [0.2, 0, 0, 0.8])


def test_exact_ties_are_counted():
    assert ranking.exact_ties(MARGIN) == 1


def test_tied_votes_are_right_only_inside_the_band():
    margin, share = jnp.array([0.005, 0.5, 0.5, 0.5]), jnp.array([0.5, 0.5, 0.75, 0.25])
    np.testing.assert_array_equal(ranking.ranked_right_with_ties(margin, share), [1, 0, 1, 0])


def test_exact_match_wants_the_whole_ranking_ties_included():
    gold = jnp.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 2, 4], [1, 2, 2, 4]])
    scores = jnp.array([[9.0, 5, 2, 1], [9, 2, 5, 1], [9, 5, 5, 1], [9, 5, 4, 1]])
    np.testing.assert_array_equal(ranking.exact_match(scores, gold), [1, 0, 1, 0])
    np.testing.assert_array_equal(ranking.exact_match(scores, gold, band=1.5)[3], 1)


def test_mean_pairwise_counts_the_couples_that_annotators_tell_apart():
    gold = jnp.array([[1, 2, 3, 4], [1, 2, 2, 4]])
    scores = jnp.array([[9.0, 2, 5, 1], [9.0, 5, 2, 6]])
    np.testing.assert_allclose(ranking.mean_pairwise(scores, gold), [5 / 6, 3 / 5], rtol=1e-6)


def test_exact_match_is_never_likelier_than_a_couple():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(500, 4)))
    gold = jnp.asarray(rng.permuted(np.tile(np.arange(4), (500, 1)), axis=1))
    exact = ranking.exact_match(scores, gold).mean()
    assert exact <= ranking.mean_pairwise(scores, gold).mean()
    np.testing.assert_allclose(exact, 1 / 24, atol=0.03)  # chance


def test_auc_compares_all_couples_with_ties_counting_half():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60).astype(np.float32), rng.random(60) < 0.4
    couples = np.subtract.outer(scores[labels], scores[~labels])
    expected = ((couples > 0) + 0.5 * (couples == 0)).mean()
    np.testing.assert_allclose(ranking.auc(jnp.asarray(scores), jnp.asarray(labels)), expected, rtol=1e-6)


def test_auc_is_one_where_scores_separate_the_classes():
    assert ranking.auc(jnp.array([1.0, 2.0, 3.0]), jnp.array([False, False, True])) == 1
