import numpy as np

from analysis import likelihood_displacement as drawing
from experiments.likelihood_displacement import graded_polarity, yes_no_never
from jaxpref.data import synthetic_polarity, synthetic_topics

RUNS = {
    "pair": np.array(["No over Never"] * 4 + ["Yes over No"]), "learning_rate": np.array([1e-5] * 4 + [1e-4]),
    "seed": np.array([0, 0, 1, 1, 0]), "drop": np.array([0.1, 0.3, 0.4, 0.4, 0.9]),
    "high": np.array([0.6, 0.6, 0.7, 0.7, 1.0]), "monotone_loss": np.array([True, True, True, False, True]),
    **{f"gain/{answer}": np.full(5, gain) for answer, gain in
       zip(drawing.ANSWERS, (0.0, -0.3, 0.25, 0.04, 0.0), strict=True)},
}  # fmt: skip


def test_runs_are_averaged_over_the_prompts_of_each_seed():
    runs = drawing.runs_of(RUNS, "No over Never", 1e-5)
    np.testing.assert_allclose(drawing.per_seed(runs, "drop"), [0.2, 0.4])


def test_a_line_of_the_drop_table_says_how_far_and_who_gained():
    pair, rate, drop, path, winners, monotone = drawing.drop_row(RUNS, "No over Never", 1e-5)
    assert (pair, rate, path, monotone) == ("No over Never", "1e-5", "0.65 to 0.35", "75%")
    assert drop.startswith("0.30 [") and winners == "Maybe +0.25, Yes +0.04"


def test_figures_use_the_names_that_the_questions_store():
    assert drawing.ANSWERS == synthetic_polarity.ANSWERS
    assert set(drawing.SHOWN) | set(drawing.SFT) <= set(yes_no_never.CONDITIONS)
    assert set(drawing.PAIRS) == {condition.pair for condition in graded_polarity.CONDITIONS}
    assert drawing.KINDS == synthetic_topics.KINDS
