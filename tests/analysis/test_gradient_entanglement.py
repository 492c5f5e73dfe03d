"""The figures of the gradient-entanglement study; `tests/experiments` draws them from smoke runs."""

from analysis import gradient_entanglement
from experiments import registry
from experiments.gradient_entanglement import loss_table


def test_every_question_has_figures():
    names = {question.name for question in registry.questions(("gradient_entanglement",))}
    assert names == set(gradient_entanglement.FIGURES) and all(gradient_entanglement.FIGURES.values())


def test_every_loss_and_group_of_the_table_has_a_label_and_a_color():
    assert set(gradient_entanglement.TITLES) == {row.loss for row in loss_table.ROWS}
    assert {row.group for row in loss_table.ROWS} == set(gradient_entanglement.GROUP_COLORS)
