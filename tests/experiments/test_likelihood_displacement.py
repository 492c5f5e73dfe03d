import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import figures, likelihood_displacement
from experiments import registry, runner
from experiments.likelihood_displacement import ches_ordering, graded_polarity, theorems, yes_no_never
from jaxpref.data import synthetic_topics
from jaxpref.policies import transformer
from jaxpref.results import Run

MODULES = {
    "theorems": theorems, "yes_no_never": yes_no_never, "graded_polarity": graded_polarity,
    "ches_ordering": ches_ordering,
}  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Every question's smoke preset, run once."""
    folder = tmp_path_factory.mktemp("results") / "likelihood_displacement"
    for name in MODULES:
        question = registry.question(f"likelihood_displacement/{name}")
        runner.run_question(question, "smoke", question.preset("smoke"), folder / name)
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_smoke_presets_finish_and_decide_every_claim(smoke, name):
    run = Run(smoke / name)
    assert [claim.claim for claim in run.claims] == [spec.claim for spec in MODULES[name].CLAIMS]
    assert all(claim.value is not None for claim in run.claims)


@pytest.mark.parametrize("name", MODULES)
def test_smoke_presets_are_drawn(smoke, name, tmp_path):
    wanted = likelihood_displacement.FIGURES[name]
    paths = figures.draw(Run(smoke / name), wanted, tmp_path)
    assert len(paths) == 2 * len(wanted) and all(path.stat().st_size > 1000 for path in paths)


def test_identities_hold_at_any_size(smoke):
    verdicts = {claim.metric: claim.holds for claim in Run(smoke / "theorems").claims}
    assert all(verdicts[f"summary/{name}_error"] for name in theorems.IDENTITIES)
    assert verdicts["summary/order_differs"]


def test_the_exact_draw_repeats_the_numbers_of_the_specification(smoke):
    assert Run(smoke / "yes_no_never").values("summary/anchor_error").item() <= 1.0


def test_five_answers_share_all_probability_at_every_step(smoke):
    run = Run(smoke / "yes_no_never")
    answers = [run.curves(f"logps/{name}", condition="scale 2")[1] for name in yes_no_never.YES_NO_NEVER]
    np.testing.assert_allclose(np.exp(answers).sum(axis=0), 1.0, atol=1e-5)


def test_ches_of_a_response_with_itself_is_zero_and_matched_lengths_leave_no_difference(smoke):
    run = Run(smoke / "ches_ordering")
    assert run.values("summary/ches_of_itself").max() == 0.0
    table = run.table()
    assert not table["length_difference"][table["arm"] == "matched lengths"].any()


def test_summaries_follow_from_the_stored_trajectories(smoke):
    run = Run(smoke / "ches_ordering")
    where = {"arm": "SFT first", "measure": "ches"}
    stored = run.values("logps/chosen_delta", percentile=0.0, **where)
    np.testing.assert_allclose(run.values("summary/change_lowest_ches"), stored, rtol=1e-6)


def test_the_largest_fall_is_read_off_the_runs_own_probabilities():
    chosen = np.array([0.5, 0.7, 0.2, 0.6])
    others = np.stack([1 - chosen, np.zeros(4), np.zeros(4), np.zeros(4)], axis=-1)
    table = np.insert(others, 1, chosen, axis=-1)[None, None]
    fall = graded_polarity.falls(table.astype(np.float32), graded_polarity.NO)
    assert (fall.before.item(), fall.after.item()) == (1, 2)
    np.testing.assert_allclose(fall.size, [[0.5]], rtol=1e-6)
    np.testing.assert_allclose(fall.gains[0, 0], [0.5, -0.5, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("chosen, gains, expected", [
    (graded_polarity.NO, [0.05, -0.65, 0.1, 0.2, 0.3], 0.6 - 0.05),
    (graded_polarity.YES, [0.05, 0.1, 0.2, -0.65, 0.3], 0.35 - 0.3),
])  # fmt: skip
def test_the_far_side_begins_at_maybe(chosen, gains, expected):
    np.testing.assert_allclose(graded_polarity.far_gain(np.array(gains), chosen), expected)


@pytest.mark.parametrize(
    "name, field, value, message",
    [
        ("theorems", "vocab", 3, "vocab must be at least 4"),
        ("yes_no_never", "beta", 0.0, "beta must be positive; got 0"),
        ("yes_no_never", "record_every", 7, "record_every must divide num_steps=300; got 7"),
        ("graded_polarity", "num_candidates", 3, "num_candidates must be at least num_prompts=10; got 3"),
        ("ches_ordering", "subset_size", 2000, r"subset_size must be in \[1, num_pairs=1000\]; got 2000"),
        ("ches_ordering", "batch_size", 48, "batch_size must divide subset_size=128; got 48"),
    ],
)
def test_configs_name_field_rule_and_value(name, field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODULES[name].PRESETS["toy"], **{field: value})


def test_a_subset_is_trained_on_by_batches_as_a_plain_loop_would():
    config = ches_ordering.PRESETS["smoke"]
    policy, task = ches_ordering._policy(config), ches_ordering.TASK
    made = synthetic_topics.pairs(jax.random.key(0), task, task.transitions(jax.random.key(1)), 8).pairs
    params = transformer.init(jax.random.key(2), policy)
    start = transformer.pair_logps(params, made, config=policy)
    changes = ches_ordering.train_subset(params, made._replace(reference=start), jnp.asarray(1e-4), config)

    def loss(params, batch, reference):
        margin = transformer.pair_logps(params, batch, config=policy).margin
        return jnp.mean(jnp.log1p(jnp.exp(-config.beta * (margin - reference.margin))))

    now, mean_square = params, jax.tree.map(jnp.zeros_like, params)
    for at in (slice(0, 4), slice(4, 8)):
        grads = jax.grad(loss)(now, *jax.tree.map(lambda x, at=at: x[at], (made, start)))
        mean_square = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, mean_square, grads)
        now = jax.tree.map(lambda p, g, v: p - 1e-4 * g / (v**0.5 + 1e-8), now, grads, mean_square)
    expected = jnp.mean(transformer.pair_logps(now, made, config=policy).chosen - start.chosen)
    np.testing.assert_allclose(changes.chosen, expected, rtol=1e-3)
