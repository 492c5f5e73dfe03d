"""Responses that are Markov chains of a topic, and pairs of them from alike to unlike.

A stand-in for UltraFeedback where the similarity of two responses is known: the rejected one is a second
draw of the same topic, an edited copy, or of another topic. After Razin et al. 2025 (arXiv:2410.08847,
section 5), whose subsets by similarity are trained on one by one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxpref.pairs import TokenPairs, TokenRows

SAME_TOPIC, EDITED, OTHER_TOPIC = range(3)
KINDS = ("same topic", "edited copy", "other topic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicTask:
    """Tokens 0 to `topics` - 1 are prompts, one a topic; then come the words; the last token is the end."""

    topics: int = 12
    words: int = 60
    min_length: int = 4  # words of a response, without the end token
    max_length: int = 29
    sharpness: float = 2.0  # standard deviation of a topic's transition logits
    edited_share: float = 0.3  # of the words of an edited copy

    def __post_init__(self):
        for name in ("topics", "words"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2; got {getattr(self, name)}")
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(
                f"min_length must be in [1, max_length={self.max_length}]; got {self.min_length}"
            )
        if self.sharpness <= 0:
            raise ValueError(f"sharpness must be positive; got {self.sharpness}")
        if not 0 < self.edited_share <= 1:
            raise ValueError(f"edited_share must be in (0, 1]; got {self.edited_share}")

    @property
    def vocab(self) -> int:
        """Prompts, words and the end token."""
        return self.topics + self.words + 1

    @property
    def end(self) -> int:
        """The end token."""
        return self.vocab - 1

    @property
    def row_length(self) -> int:
        """Prompt, the longest response and its end token."""
        return self.max_length + 2

    def transitions(self, key: Array) -> Float[Array, "topics words words"]:
        """Log-probability of the next word given topic and word, nats.

        One grammar for all topics plus each topic's liking of words, so that a small model can learn it.
        """
        grammar_key, topic_key = jax.random.split(key)
        grammar = jax.random.normal(grammar_key, (1, self.words, self.words))
        liking = jax.random.normal(topic_key, (self.topics, 1, self.words))
        return jax.nn.log_softmax(self.sharpness * (grammar + liking) / 2**0.5)

    def lengths(self, key: Array, num: int) -> Int[Array, "responses"]:
        """Uniform numbers of words."""
        return jax.random.randint(key, (num,), self.min_length, self.max_length + 1)


class TopicPairs(NamedTuple):
    """Pairs and how each rejected response was made."""

    pairs: TokenPairs
    kind: Int[Array, "pairs"]


def words(
    key: Array, transitions: Float[Array, "topics words words"], topics: Int[Array, "responses"], length: int
) -> Int[Array, "responses length"]:
    """A chain of `length` words for each topic, the first word uniform; words count from 0."""
    first_key, *step_keys = jax.random.split(key, length)
    first = jax.random.randint(first_key, topics.shape, 0, transitions.shape[-1])

    def next_word(word: Array, key: Array):
        drawn = jax.random.categorical(key, transitions[topics, word])
        return drawn, drawn

    _, later = jax.lax.scan(next_word, first, jnp.stack(step_keys))
    return jnp.concatenate([first[:, None], later.T], axis=1)


def rows(
    task: TopicTask, topics: Int[Array, "rows"], words: Int[Array, "rows words"], lengths: Int[Array, "rows"]
) -> TokenRows:
    """Prompt, the first `lengths` words, the end token, padding."""
    position = jnp.arange(task.row_length)
    tokens = jnp.pad(words + task.topics, ((0, 0), (1, 1))).at[:, 0].set(topics)
    end = lengths[:, None] + 1
    mask = (position >= 1) & (position <= end)
    return TokenRows(jnp.where(position == end, task.end, jnp.where(position < end, tokens, 0)), mask)


def responses(key: Array, task: TopicTask, transitions: Array, num: int) -> TokenRows:
    """Responses of uniform topics, for a language model to learn from."""
    topic_key, word_key, length_key = jax.random.split(key, 3)
    topics = jax.random.randint(topic_key, (num,), 0, task.topics)
    drawn = words(word_key, transitions, topics, task.max_length)
    return rows(task, topics, drawn, task.lengths(length_key, num))


def pairs(
    key: Array, task: TopicTask, transitions: Array, num: int, *, matched_lengths: bool | Array = False
) -> TopicPairs:
    """Pairs of a chosen response and a rejected one of a random kind, lengths drawn independently.

    Args:
      matched_lengths: give every response of the data set one length, the middle of the task's range, so
        that no length can stand in for similarity.
    """
    keys = jax.random.split(key, 8)
    topics = jax.random.randint(keys[0], (num,), 0, task.topics)
    elsewhere = (topics + jax.random.randint(keys[1], (num,), 1, task.topics)) % task.topics
    kind = jax.random.randint(keys[2], (num,), 0, len(KINDS))
    drawn = lambda key, topics: words(key, transitions, topics, task.max_length)
    chosen = drawn(keys[3], topics)
    edited = jnp.where(jax.random.bernoulli(keys[4], task.edited_share, chosen.shape),
                       jax.random.randint(keys[5], chosen.shape, 0, task.words), chosen)  # fmt: skip
    another = drawn(keys[6], jnp.where(kind == OTHER_TOPIC, elsewhere, topics))
    rejected = jnp.where((kind == EDITED)[:, None], edited, another)
    lengths = _pair_lengths(keys[7], task, num, matched_lengths)
    made = [rows(task, topics, x, n) for x, n in zip((chosen, rejected), lengths, strict=True)]
    return TopicPairs(TokenPairs(made[0], made[1]), kind)


def _pair_lengths(key: Array, task: TopicTask, num: int, matched: bool | Array) -> tuple[Array, Array]:
    middle = (task.min_length + task.max_length) // 2
    first, second = (jnp.where(matched, middle, task.lengths(k, num)) for k in jax.random.split(key))
    return first, second


def percentile_subset(
    scores: Float[Array, "pairs"], percentile: Float[Array, ""] | float, size: int
) -> Int[Array, "size"]:
    """The `size` pairs around a percentile of their scores, in [0, 1]: 0 the lowest, 1 the highest.

    The middle pair is number round(percentile (n - 1)) in ascending order, and a window that would
    reach over an end is moved inside, as in the paper's released code.
    """
    num = scores.shape[0]
    middle = jnp.round(jnp.asarray(percentile) * (num - 1)).astype(int)
    start = jnp.clip(middle - size // 2, 0, num - size)
    return jax.lax.dynamic_slice(jnp.argsort(scores), (start,), (size,))
