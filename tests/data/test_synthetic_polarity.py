import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.data import synthetic_polarity as polarity
from jaxpref.policies import unconstrained_features as ufm


@pytest.mark.parametrize("scale", [1.0, 1.2, 2.0])
def test_yes_no_never_begins_with_the_same_probabilities_at_every_scale(scale):
    table = ufm.response_logps(polarity.yes_no_never(scale), jnp.zeros(1, int))
    np.testing.assert_allclose(np.exp(table[0]), [0.050, 0.262, 0.597, 0.062, 0.028], atol=6e-4)


def test_answers_follow_the_mean_strength_of_the_prompt():
    task = polarity.PolarityTask(content_tokens=3, prompt_length=2, gain=1.0)
    strengths = jnp.array([-2.0, 0.0, 1.0])
    prompts = jnp.array([[5, 5], [5, 6], [7, 7]])  # means -2, -1, 1
    table = np.asarray(task.answer_logps(strengths, prompts))
    assert [polarity.ANSWERS[i] for i in table.argmax(1)] == ["Never", "No", "Yes"]
    weights = np.exp([-2 * (a - 1) ** 2 for a in (-2, -1, 0, 1, 2)])  # the last prompt's, by hand
    np.testing.assert_allclose(np.exp(table[2]), weights / weights.sum(), rtol=1e-5)


def test_prompts_hold_content_tokens_only():
    task = polarity.PolarityTask()
    prompts = task.prompts(jax.random.key(0), 500)
    assert prompts.min() == len(polarity.ANSWERS) and prompts.max() == task.vocab - 1


def test_a_task_names_the_field_that_is_out_of_range():
    with pytest.raises(ValueError, match="sharpness must be positive; got -1"):
        polarity.PolarityTask(sharpness=-1.0)
