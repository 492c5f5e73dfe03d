"""The table of claims shows what does not hold as plainly as what does; drawing needs no JAX."""

import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from analysis import __main__ as command
from analysis import claims, figures
from jaxpref.results import ClaimSpec, Run, RunId, RunWriter


@pytest.fixture
def run_folder(tmp_path):
    spec = lambda text, threshold, **more: ClaimSpec(
        claim=text, paper="p", artefact="R1", statistic="mean", metric="summary/x", relation=">",
        threshold=threshold, **more,
    )  # fmt: skip
    run = RunId(study="ranking_accuracy", question="none", preset="toy", config={})
    writer = RunWriter(tmp_path / "ranking_accuracy" / "none", run, {})
    writer.write_summary({"summary/x": np.array([1.0, 1.2, 1.1])})
    writer.finish([spec("above half", 0.5), spec("above two", 2.0, control=True)])
    return tmp_path


def test_the_table_shows_value_interval_threshold_and_verdict(run_folder, capsys):
    command.print_claims(run_folder, Console(width=160))
    text = capsys.readouterr().out
    assert "1 of 2 claims hold" in text and "DOES NOT HOLD" in text and "control: above two" in text
    assert "1.1 [0.852, 1.35]" in text  # 1.1 -+ 4.303 * 0.1 / sqrt(3)


def test_the_markdown_table_has_a_line_a_claim(run_folder, capsys):
    assert command.main(["claims", "--results", str(run_folder), "--markdown"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert (
        len(lines) == 4
        and lines[-1].startswith("| R1 | control: above two |")
        and "does not hold" in lines[-1]
    )


def test_a_value_that_was_not_finite_is_called_so():
    assert claims.interval({"value": None, "ci_low": None, "ci_high": None}) == "not finite"


def test_a_missing_results_folder_is_named(tmp_path, capsys):
    assert command.main(["all", "--results", str(tmp_path / "none")]) == 2
    assert "--results must be a folder of runs" in capsys.readouterr().err


def test_analysis_imports_no_jax():
    code = "import sys, analysis.__main__, analysis.figures, jaxpref.results; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_figure_is_the_same_file(tmp_path):
    def draw(folder):
        with figures.plt.rc_context(figures.STYLE):
            figure, axes = figures.panels(1)
            figures.band(
                axes[0, 0], [0, 1], np.array([[0.0, 1.0], [1.0, 2.0], [0.5, 1.5]]), figures.CHOSEN, "x"
            )
            return [path.read_bytes() for path in figures.save(figure, folder, "f")]

    assert draw(tmp_path / "a") == draw(tmp_path / "b")


def test_a_figure_is_drawn_again_only_when_its_run_is_newer(run_folder, tmp_path):
    drawn = []

    def plot(run):
        drawn.append(run)
        return figures.panels(1)[0]

    folder = run_folder / "ranking_accuracy" / "none"
    for _ in range(2):
        figures.draw(Run(folder), {"f": plot}, tmp_path / "figures")
    assert len(drawn) == 1
    later = (tmp_path / "figures" / "f.pdf").stat().st_mtime + 10
    os.utime(folder / "metrics.jsonl", (later, later))
    figures.draw(Run(folder), {"f": plot}, tmp_path / "figures")
    assert len(drawn) == 2
