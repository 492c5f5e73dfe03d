"""The figures of the mode-seeking study; `tests/experiments` draws them from smoke runs."""

from analysis import mode_seeking
from experiments import registry
from jaxpref.losses.sampled_table import SAMPLED_LOSSES


def test_every_question_has_figures():
    names = {question.name for question in registry.questions(("mode_seeking",))}
    assert names == set(mode_seeking.FIGURES) and all(mode_seeking.FIGURES.values())


def test_every_sampled_loss_has_a_label_and_a_colour_of_its_own():
    assert set(mode_seeking.METHODS) == set(SAMPLED_LOSSES)
    assert len(set(mode_seeking.METHODS.values())) == len(SAMPLED_LOSSES)
