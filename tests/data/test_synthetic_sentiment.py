"""The sentiment toy's rows say what they claim to say."""

import jax
import numpy as np

from jaxpref.data import synthetic_sentiment as sentiment

NUM = 4000


def test_chosen_and_rejected_differ_in_the_label_alone():
    batch = sentiment.pairs(jax.random.key(0), 50, 3)
    differs = np.asarray(batch.chosen.tokens != batch.rejected.tokens)
    assert differs[:, sentiment.PROMPT].all() and differs.sum() == 50


def test_the_mask_covers_the_label_and_the_asked_suffix():
    for slots in (0, 1, 6):
        batch = sentiment.pairs(jax.random.key(0), 5, slots)
        np.testing.assert_array_equal(batch.lengths.chosen, slots + 1)
        assert np.asarray(
            batch.chosen.response_mask[:, sentiment.PROMPT : sentiment.PROMPT + 1 + slots]
        ).all()


def test_prompts_hold_two_to_four_markers_mostly_of_their_class():
    tokens, classes = map(np.asarray, sentiment.prompts(jax.random.key(1), NUM))
    marked = (tokens >= sentiment.FIRST_MARKER) & (tokens < sentiment.SEPARATOR)
    counts = marked.sum(1)
    assert set(counts) == {2, 3, 4} and abs(counts.mean() - 3) < 0.05
    kind = (tokens - sentiment.FIRST_MARKER) // sentiment.MARKERS
    foreign = (kind != classes[:, None])[marked].mean()
    assert abs(foreign - sentiment.WRONG_CLASS_MARKERS) < 0.02
    assert (tokens[:, -1] == sentiment.SEPARATOR).all()


def test_pretraining_rows_have_the_asked_noise():
    noise = sentiment.Noise(flipped=0.3, right_if_matching=0.5, right_if_flipped=0.1)
    key = jax.random.key(2)
    tokens = np.asarray(sentiment.noisy_rows(key, NUM, noise).tokens)
    classes = np.asarray(sentiment.prompts(jax.random.split(key, 4)[0], NUM)[1])
    flipped = tokens[:, sentiment.PROMPT] - sentiment.FIRST_LABEL != classes
    right = tokens[:, sentiment.PROMPT + 1 :] == sentiment.FIRST_SUFFIX + np.arange(sentiment.SLOTS)
    shares = flipped.mean(), right[~flipped].mean(), right[flipped].mean()
    np.testing.assert_allclose(shares, noise, atol=0.03)
    assert tokens.max() < sentiment.FIRST_WRONG + sentiment.POOL <= sentiment.VOCAB
