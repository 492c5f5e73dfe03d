"""Every question of the mode-seeking study at smoke size: runs, decides its claims, keeps its identities."""

import dataclasses

import numpy as np
import pytest

from analysis import figures, mode_seeking
from experiments import registry, runner
from jaxpref.results import Run

QUESTIONS = (
    "bandit_1d", "bandit_nd_offline", "bandit_nd_online", "bandit_setup", "kl_directions",
    "negative_gradient_theory",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs a question once for all tests of this file."""
    folder, done = tmp_path_factory.mktemp("mode_seeking"), {}

    def run(name: str) -> Run:
        if name not in done:
            question = registry.question(f"mode_seeking/{name}")
            runner.run_question(question, "smoke", question.preset("smoke"), folder / name)
            done[name] = Run(folder / name)
        return done[name]

    return run


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_smoke_preset_runs_and_decides_its_claims(name, runs):
    question = registry.question(f"mode_seeking/{name}")
    claims = runs(name).claims
    assert [claim.metric for claim in claims] == [spec.metric for spec in question.claims]
    assert all(claim.value is not None for claim in claims)


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_smoke_run_is_drawn(name, runs, tmp_path):
    paths = figures.draw(runs(name), mode_seeking.FIGURES[name], tmp_path)
    assert len(paths) == 2 * len(mode_seeking.FIGURES[name])
    assert all(path.stat().st_size > 5_000 for path in paths)


IDENTITIES = (
    ("kl_directions", "summary/gradient_error"), ("kl_directions", "summary/condition_1_mismatches"),
    ("kl_directions", "summary/condition_2_mismatches"), ("kl_directions", "summary/condition_3_mismatches"),
    ("kl_directions", "summary/lemma_61_error"), ("kl_directions", "summary/descent_error_forward"),
    ("negative_gradient_theory", "summary/tabular_margin_gain"),
    ("negative_gradient_theory", "summary/tabular_sign_mismatches"),
    ("negative_gradient_theory", "summary/best_of_n_composition_error"),
    ("negative_gradient_theory", "summary/best_of_n_kl_excess"),
    ("negative_gradient_theory", "summary/transformer_prediction_error"),
    ("bandit_setup", "summary/R1_reference_error"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "metric"), IDENTITIES)
def test_identities_hold_at_any_size(name, metric, runs):
    [claim] = [claim for claim in runs(name).claims if claim.metric == metric]
    assert claim.holds, claim


@pytest.mark.parametrize("name", ["bandit_1d", "bandit_nd_offline", "bandit_nd_online"])
def test_every_run_starts_at_the_reference_reward(name, runs):
    run = runs(name)
    for reward, expected in (("R1", 0.039), ("R2", 0.377)):
        start = run.values("reward/eval", step=0, reward=reward)
        tolerance = 0.02 if name == "bandit_1d" else 0.5  # two steps of pretraining do not get there
        np.testing.assert_allclose(start.mean(), expected, atol=tolerance)


def test_the_summary_can_be_computed_again_from_the_curves(runs):
    run = runs("bandit_nd_offline")
    final = {
        m: run.curves("reward/eval", method=m, reward="R1")[1][:, -1] for m in ("best_of_n", "ipo_all_pairs")
    }
    np.testing.assert_allclose(
        run.values("summary/R1_ipo_lead"), final["ipo_all_pairs"] - final["best_of_n"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("bandit_1d", "num_samples", 1, "num_samples must be at least 2"),
        ("bandit_1d", "record_every", 7, "record_every must divide"),
        ("bandit_nd_offline", "learning_rate", 0.0, "learning_rate must be positive; got 0.0"),
        ("bandit_nd_online", "early_step", 65, "early_step must be in"),
        ("bandit_setup", "num_seeds", 0, "num_seeds must be at least 1; got 0"),
        ("kl_directions", "temperature", -1.0, "temperature must be positive; got -1.0"),
        ("negative_gradient_theory", "largest_n", 1, "largest_n must be at least 2; got 1"),
    ],
)
def test_a_config_out_of_range_is_refused(name, field, value, message):
    config = registry.question(f"mode_seeking/{name}").preset("toy")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **{field: value})
