"""Every question runs at its smallest size; what holds exactly has to hold there too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import registry, runner
from experiments.ranking_accuracy import dynamics, flip_time, optimum, statistics
from experiments.ranking_accuracy.statistics import Scored
from jaxpref.pairs import PairLengths, PairLogps
from jaxpref.results import Run

QUESTIONS = ("dynamics", "flip_time", "optimum")
EXACT = {  # identities, whatever the size
    "summary/idealized_rise", "summary/idealized_low_error", "summary/idealized_high_error",
    "summary/threshold_violations", "summary/surely_right_violations", "summary/start_loss_error",
    "summary/start_changed", "summary/share_error", "summary/sign_violations", "summary/dpo_gap",
    "summary/rlhf_gap", "summary/rank_disagreement", "summary/majority_growth", "summary/votes_growth",
    "summary/time_error",
}  # fmt: skip


@pytest.fixture(scope="module", params=QUESTIONS)
def run(request, tmp_path_factory) -> Run:
    question = registry.question(f"ranking_accuracy/{request.param}")
    folder = tmp_path_factory.mktemp("results") / question.key
    ran, _ = runner.run_question(question, "smoke", question.preset("smoke"), folder)
    assert ran
    return Run(folder)


def test_smoke_answers_every_claim_and_the_exact_ones_hold(run):
    question = registry.question(f"ranking_accuracy/{run.stored['question']}")
    assert len(run.claims) == len(question.claims)
    failed = [claim.claim for claim in run.claims if claim.metric in EXACT and not claim.holds]
    assert not failed


def test_smoke_is_drawn(run, tmp_path):
    from analysis import figures
    from analysis.ranking_accuracy import FIGURES

    paths = figures.draw(run, FIGURES[run.stored["question"]], tmp_path)
    assert len(paths) == 2 * len(FIGURES[run.stored["question"]])
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize("run", ["dynamics"], indirect=True)
def test_dynamics_summary_can_be_recomputed_from_the_stored_scores(run):
    pairs, scores, beta = run.table("pairs"), run.table("scores"), run.config["beta"]
    for seed in range(run.config["num_seeds"]):
        of = (pairs["seed"] == seed) & (pairs["split"] == "train")
        gap = pairs["ref_logps_rejected"][of] - pairs["ref_logps_chosen"][of]
        last = (
            (scores["seed"] == seed) & (scores["split"] == "train") & (scores["step"] == scores["step"].max())
        )
        margin = scores["logps_chosen"][last] - scores["logps_rejected"][last]
        loss = np.log1p(np.exp(-beta * (margin + gap)))
        flip_rate = np.mean(margin[gap > 0] >= 0)
        assert run.values("summary/end_flip_rate")[seed] == pytest.approx(flip_rate)
        assert run.curves("loss", split="train")[1][seed, -1] == pytest.approx(loss.mean())


def scored_pairs(evaluations: int = 3, num_pairs: int = 100) -> Scored:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.array(rng.normal(-30, 12, shape))
    length = lambda: jnp.array(rng.integers(1, 20, num_pairs))
    return Scored(
        PairLogps(draw(evaluations, num_pairs), draw(evaluations, num_pairs)),
        PairLogps(draw(num_pairs), draw(num_pairs)),
        PairLengths(length(), length()),
        jnp.array(rng.choice([0.75, 1.0], num_pairs)),
    )


def test_theorems_hold_of_any_scores_but_only_an_untrained_policy_starts_at_log_2():
    with jax.enable_x64(True):
        scored = statistics.double(scored_pairs())
        found = jax.jit(statistics.identities)(scored, 0.1)  # random scores are no untrained policy's
        assert found["threshold_violations"] == 0 and found["sign_violations"] == 0
        assert found["start_loss_error"] > 0.1 and found["start_changed"] > 0.1


def test_idealized_statistics_are_the_loop_over_pairs():
    scored = scored_pairs()
    gap, share = np.array(-scored.reference.margin), np.clip(np.array(scored.vote_share), 1e-3, 1 - 1e-3)
    expected = [np.mean(-gap + np.log(share / (1 - share)) / beta > 0) for beta in statistics.BETAS]
    np.testing.assert_allclose(statistics.idealized_curve(scored), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ([1.0, 0.75, 0.25, 0.1, 0.0, 0.0], 5.5),  # half-way from 3.5 to 7.5
        ([1.0, 1.0, 1.0, 0.5, 0.0, 0.0], 15.0),
        ([0.4, 0.3, 0.2, 0.1, 0.0, 0.0], np.nan),
    ],
)
def test_half_flip_gap_is_interpolated_between_the_bins(profile, expected):
    np.testing.assert_allclose(statistics.half_flip_gap(np.array(profile)), expected)


def test_crossing_time_is_interpolated_and_infinite_without_a_crossing():
    margin = jnp.array([[-3.0, -3.0], [-1.0, -2.0], [3.0, -1.0]])
    np.testing.assert_allclose(flip_time.crossing_time(margin, 2.0), [2.5, np.inf])


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (dynamics.Config, "num_epochs", 0),
        (dynamics.Config, "beta", -0.1),
        (dynamics.Config, "num_pairs", 8),
        (dynamics.Config, "num_scored", 5000),
        (optimum.Config, "num_responses", 1),
        (optimum.Config, "betas", (0.0,)),
        (flip_time.Config, "time_step", 0.0),
        (flip_time.Config, "max_gap", 0.5),
    ],
)
def test_a_config_out_of_range_names_field_rule_and_value(config, field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .*got") as error:
        config(**{field: value})
    assert str(value) in str(error.value)
