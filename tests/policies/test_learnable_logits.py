"""The learnable-logits policy against NumPy, and the effect that needs shared logits."""

import jax
import numpy as np

from jaxpref.data import synthetic_suffix
from jaxpref.policies import learnable_logits
from jaxpref.probes import gradients


def test_log_probabilities_are_those_of_a_softmax_per_position():
    params, pair = synthetic_suffix.random_pair(jax.random.key(3), tokens=5, vocab=7)
    scores = np.asarray(params.logits + pair.chosen.offsets[0], np.float64)
    table = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    tokens, mask = np.asarray(pair.chosen.tokens[0]), np.asarray(pair.chosen.mask[0])
    expected = table[np.arange(5), tokens][mask].sum()
    np.testing.assert_allclose(learnable_logits.pair_logps(params, pair).chosen[0], expected, rtol=1e-5)


def test_a_shared_suffix_turns_opposed_gradients_aligned():
    measure = lambda slots: gradients.gradient_geometry(
        learnable_logits.pair_logps, *synthetic_suffix.exact_pair(slots, 1.0, most=12)
    )
    assert measure(0).cosine[0] < -0.5 < 0.5 < measure(12).cosine[0]
