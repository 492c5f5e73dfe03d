"""Every question of the gradient-entanglement study at smoke size: runs, is drawn, keeps its identities."""

import dataclasses

import numpy as np
import pytest

from analysis import figures, gradient_entanglement
from experiments import registry, runner
from jaxpref.results import Run

QUESTIONS = ("first_order", "fixture", "loss_table", "remedies", "suffix", "tokens")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs a question once for all tests of this file."""
    folder, done = tmp_path_factory.mktemp("gradient_entanglement"), {}

    def run(name: str) -> Run:
        if name not in done:
            question = registry.question(f"gradient_entanglement/{name}")
            runner.run_question(question, "smoke", question.preset("smoke"), folder / name)
            done[name] = Run(folder / name)
        return done[name]

    return run


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_smoke_preset_runs_and_decides_its_claims(name, runs):
    question = registry.question(f"gradient_entanglement/{name}")
    assert [claim.metric for claim in runs(name).claims] == [spec.metric for spec in question.claims]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_smoke_run_is_drawn(name, runs, tmp_path):
    paths = figures.draw(runs(name), gradient_entanglement.FIGURES[name], tmp_path)
    assert len(paths) == 2 * len(gradient_entanglement.FIGURES[name])
    assert all(path.stat().st_size > 5_000 for path in paths)


IDENTITIES = (
    ("fixture", "rate_error"), ("fixture", "single_token_other_case"), ("fixture", "shared_token_rises"),
    ("loss_table", "weight_error"), ("loss_table", "case_mismatch"), ("loss_table", "case4_positive"),
    ("suffix", "case4_share"), ("suffix", "case_mismatch"),
    ("first_order", "batch_sum_error"), ("tokens", "sum_error"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "metric"), IDENTITIES)
def test_what_is_exact_holds_at_any_size(name, metric, runs):
    claim = next(claim for claim in runs(name).claims if claim.metric == f"summary/{metric}")
    assert claim.holds, claim


# (suffix tokens, gap): log p(chosen) and log p(rejected) at the start and after 200 steps, then the changes
# of the chosen label and suffix and of the rejected label and suffix. An independent NumPy gradient descent.
EXACT = {
    (0, 0.0): (-1.063, -0.017, -1.063, -7.945, 1.046, 0.0, -6.882, 0.0),
    (2, 1.0): (-3.609, -3.392, -5.220, -13.038, 1.046, -0.829, -6.849, -0.969),
    (6, 1.0): (-8.701, -10.123, -13.532, -23.204, 1.045, -2.468, -6.784, -2.888),
    (12, 1.0): (-16.339, -20.176, -26.001, -38.404, 1.044, -4.881, -6.689, -5.714),
    (12, 0.0): (-20.938, -19.892, -20.938, -27.820, 1.046, 0.0, -6.882, 0.0),
    (12, -1.0): (-26.001, -17.574, -16.339, -17.200, 1.043, 7.384, -6.563, 5.702),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_exact_pair_moves_as_it_does_in_numpy(case, runs):
    where = dict(zip(("suffix", "gap"), case, strict=True))
    run = runs("fixture")
    curves = [run.curves(f"logps/{side}", **where)[1][0] for side in ("chosen", "rejected")]
    parts = [
        run.values(f"{side}_{part}_change", **where)[0]
        for side in ("chosen", "rejected")
        for part in ("label", "suffix")
    ]
    measured = [value for curve in curves for value in (curve[0], curve[-1])] + parts
    np.testing.assert_allclose(measured, EXACT[case], atol=6e-4)


BAD = (
    ("first_order", "small_rate", 7e-3), ("first_order", "suffix_lengths", (9,)), ("fixture", "gaps", (1.0,)),
    ("fixture", "beta", 0.0), ("loss_table", "num_pairs", 0), ("loss_table", "step_length", -1.0),
    ("remedies", "suffix", 0), ("remedies", "probe_every", 3), ("suffix", "expected_suffixes", (1, 0)),
    ("suffix", "probed", 1000), ("tokens", "suffix", 7),
)  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value"), BAD)
def test_a_bad_field_is_named_with_its_value(name, field, value):
    default = registry.question(f"gradient_entanglement/{name}").preset("toy")
    with pytest.raises(ValueError, match=field) as error:
        dataclasses.replace(default, **{field: value})
    assert str(value).strip("()").split(",")[0] in str(error.value)
