"""Synthetic sentiment: a bag of words with marker words, answered by a label and a fixed suffix.

The sentiment task of Yuan et al. 2024 (arXiv:2410.13828, section 4.3) without the tweets: chosen and
rejected differ in the label alone, and the suffix behind it is shared. A prompt is 12 words, some of
them markers of its class, and a separator; an answer is a label and up to 6 suffix slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpref.pairs import TokenPairs, TokenRows

WORDS, MARKERS, SLOTS, POOL = 28, 8, 6, 6  # how many words, markers of a class, suffix slots, wrong tokens
FIRST_MARKER = WORDS  # positive markers, then negative ones
SEPARATOR = FIRST_MARKER + 2 * MARKERS
FIRST_LABEL = SEPARATOR + 1
FIRST_SUFFIX = FIRST_LABEL + 2  # slot i's right token is FIRST_SUFFIX + i
FIRST_WRONG = FIRST_SUFFIX + SLOTS
VOCAB = 64  # FIRST_WRONG + POOL = 59 are used
PROMPT = 13  # 12 words and the separator
LENGTH = PROMPT + 1 + SLOTS
WRONG_CLASS_MARKERS = 0.15  # share of markers that speak for the other class
WRONG_PER_SLOT = 3


class Noise(NamedTuple):
    """How far pretraining answers are from right ones; each entry a probability."""

    flipped: Float[Array, ""] | float  # the label is the other class's
    right_if_matching: Float[Array, ""] | float  # a suffix slot holds its token, behind the right label
    right_if_flipped: Float[Array, ""] | float  # the same behind the wrong label


def prompts(key: Array, num: int) -> tuple[Int[Array, "rows prompt"], Int[Array, "rows"]]:
    """Prompts, separator included, and their classes: 0 positive, 1 negative."""
    class_key, word_key, count_key, marker_key, foreign_key = jax.random.split(key, 5)
    classes = jax.random.randint(class_key, (num,), 0, 2)
    words = jax.random.randint(word_key, (num, PROMPT - 1), 0, WORDS)
    foreign = jax.random.bernoulli(foreign_key, WRONG_CLASS_MARKERS, words.shape)
    kind = jnp.where(foreign, 1 - classes[:, None], classes[:, None])
    markers = FIRST_MARKER + MARKERS * kind + jax.random.randint(marker_key, words.shape, 0, MARKERS)
    tokens = jnp.where(_marked(count_key, num), markers, words)
    return jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=SEPARATOR), classes


def _marked(key: Array, num: int) -> Bool[Array, "rows words"]:
    """Two to four places of each prompt, uniformly."""
    count_key, place_key = jax.random.split(key)
    counts = jax.random.randint(count_key, (num, 1), 2, 5)
    draws = jax.random.uniform(place_key, (num, PROMPT - 1))
    ranks = jnp.sum(draws[:, :, None] > draws[:, None, :], axis=-1)  # XLA compiles a sort for seconds
    return ranks < counts


def right_suffix(num: int) -> Int[Array, "rows slots"]:
    """The fixed suffix, for each row."""
    return jnp.broadcast_to(FIRST_SUFFIX + jnp.arange(SLOTS), (num, SLOTS))


def rows(
    prompt: Int[Array, "rows prompt"], labels: Int[Array, "rows"], suffix: Int[Array, "rows slots"], slots
) -> TokenRows:
    """Prompt, label and the first `slots` suffix tokens (an integer, traced or not); the rest is padding."""
    tokens = jnp.concatenate([prompt, FIRST_LABEL + labels[:, None], suffix], axis=1)
    place = jnp.arange(LENGTH)
    mask = (place >= PROMPT) & (place <= PROMPT + slots)
    return TokenRows(tokens, jnp.broadcast_to(mask, tokens.shape))


def noisy_rows(key: Array, num: int, noise: Noise) -> TokenRows:
    """Pretraining rows with all suffix slots."""
    prompt_key, flip_key, right_key, wrong_key = jax.random.split(key, 4)
    prompt, classes = prompts(prompt_key, num)
    flipped = jax.random.bernoulli(flip_key, noise.flipped, (num,))
    share = jnp.where(flipped, noise.right_if_flipped, noise.right_if_matching)
    is_right = jax.random.bernoulli(right_key, share[:, None], (num, SLOTS))
    offset = jax.random.randint(wrong_key, (num, SLOTS), 0, WRONG_PER_SLOT)
    wrong = FIRST_WRONG + (jnp.arange(SLOTS) + offset) % POOL
    suffix = jnp.where(is_right, right_suffix(num), wrong)
    return rows(prompt, jnp.where(flipped, 1 - classes, classes), suffix, SLOTS)


def right_rows(key: Array, num: int, slots) -> TokenRows:
    """Fine-tuning rows: the true label and the right suffix of `slots` tokens."""
    prompt, classes = prompts(key, num)
    return rows(prompt, classes, right_suffix(num), slots)


def pairs(key: Array, num: int, slots) -> TokenPairs:
    """Preference pairs: the true label over the other one, the same right suffix behind both."""
    prompt, classes = prompts(key, num)
    suffix = right_suffix(num)
    return TokenPairs(rows(prompt, classes, suffix, slots), rows(prompt, 1 - classes, suffix, slots))
