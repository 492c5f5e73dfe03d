import jax
import numpy as np

from jaxpref.data import synthetic_prefixes


def test_responses_part_at_the_first_token_and_share_nothing_but_the_prompt():
    problem = synthetic_prefixes.one_prompt(jax.random.key(0), vocab=7, dim=5, lengths=(4, 3, 5))
    rows = [problem.pair.chosen, problem.pair.rejected, problem.other]
    assert [row.tokens.shape for row in rows] == [(1, 4), (1, 3), (1, 5)]
    assert len({int(row.tokens[0, 0]) for row in rows}) == 3
    later = np.concatenate([row.prefixes[0, 1:] for row in rows])
    assert sorted(later) == list(range(1, len(problem.params.hidden)))


def test_each_pair_has_its_own_prompt_and_two_different_tokens():
    problem = synthetic_prefixes.many_prompts(jax.random.key(1), vocab=4, dim=3, num_pairs=6)
    assert len(np.unique(problem.pairs.chosen.prefixes)) == 6
    assert np.all(problem.pairs.chosen.tokens != problem.pairs.rejected.tokens)
