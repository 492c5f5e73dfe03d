"""Runs questions: one into its folder, or all of a preset one after the other, answered again if done."""

import dataclasses
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.registry import Question
from jaxpref.provenance import provenance
from jaxpref.results import Claim, Run, RunWriter, collect_claims, is_finished, write_json


class Skipped(Exception):
    """A question cannot be answered here, for a reason that is nobody's fault (no weights, no network)."""


@dataclasses.dataclass
class Outcome:
    """What became of a question in a reproduction."""

    question: Question
    how: str  # "ran", "answered from the finished run", "skipped", "failed"
    seconds: float = 0.0
    reason: str = ""


def run_question(
    question: Question, preset: str, config: Any, out: Path, progress=None
) -> tuple[bool, list[Claim]]:
    """Runs one question into `out`, unless the folder already holds this run; (whether it ran, claims)."""
    run_id = question.run_id(preset, config)
    if is_finished(out, run_id):
        return False, Run(out).claims
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = RunWriter(out, run_id, provenance(), progress)
    question.run(config, writer)
    return True, writer.finish(question.claims_of(config))


class Estimate:
    """Time left: the presets' expected seconds, scaled by how fast this machine has been so far."""

    def __init__(self, expected: list[float]):
        self.expected, self.done, self.spent = expected, 0.0, 0.0

    def add(self, expected: float, seconds: float) -> None:
        self.done, self.spent = self.done + expected, self.spent + seconds

    def left(self, index: int, fraction: float = 0.0) -> float:
        """Seconds left when question `index` is done to `fraction`."""
        speed = self.spent / self.done if self.done else 1.0
        return speed * (sum(self.expected[index:]) - fraction * self.expected[index])


def reproduce(questions: list[Question], preset: str, results: Path, console: Console) -> list[Outcome]:
    """All questions that have the preset; one that fails is reported and the rest go on."""
    questions = [question for question in questions if preset in question.presets]
    estimate = Estimate([question.seconds.get(preset, 60.0) for question in questions])
    outcomes = []
    for index, question in enumerate(questions):
        outcome = _attempt(
            question, preset, results, _reporter(console, question, index, questions, estimate)
        )
        if outcome.how == "ran":
            estimate.add(estimate.expected[index], outcome.seconds)
        else:
            estimate.expected[index] = 0.0
        outcomes.append(outcome)
        console.print(f"  {question.key}: {outcome.how}{_detail(outcome)}", highlight=False)
    write_json(results / "claims.json", [dataclasses.asdict(claim) for claim in collect_claims(results)])
    return outcomes


def _detail(outcome: Outcome) -> str:
    took = f" in {outcome.seconds:.0f} s" if outcome.how == "ran" else ""
    return took + (f" ({outcome.reason})" if outcome.reason else "")


def _attempt(question: Question, preset: str, results: Path, report: Callable[[float, str], None]) -> Outcome:
    started = time.perf_counter()
    try:
        report(0.0, "")
        ran, _ = run_question(question, preset, question.preset(preset), results / question.key, report)
    except Skipped as reason:
        return Outcome(question, "skipped", reason=str(reason))
    except Exception as error:  # one study's failure must not cost the others their results
        traceback.print_exc()
        return Outcome(question, "failed", reason=f"{type(error).__name__}: {error}")
    how = "ran" if ran else "answered from the finished run"
    return Outcome(question, how, time.perf_counter() - started)


def _reporter(
    console: Console, question: Question, index: int, questions: list[Question], estimate: Estimate
):
    """A line when a question starts; on a terminal also a line that is overwritten as it goes on."""

    def report(fraction: float, text: str) -> None:
        left = estimate.left(index, fraction)
        place = f"[{index + 1}/{len(questions)}] {question.key}"
        line = f"{place} {fraction:4.0%} {text}  about {left:.0f} s left in all"
        if console.is_terminal:
            console.print(
                line.ljust(console.width - 1)[: console.width - 1], end="\r", highlight=False, markup=False
            )
        elif fraction == 0.0:
            console.print(line, highlight=False, markup=False)

    return report


def single_reporter(console: Console) -> Callable[[float, str], None]:
    """Lines for one question alone; the time left is judged from its own pace since it was taken up."""
    began, first = time.perf_counter(), None

    def report(fraction: float, text: str) -> None:
        nonlocal first
        first = fraction if first is None else first
        done, spent = fraction - first, time.perf_counter() - began
        left = f"  about {spent * (1 - fraction) / done:.0f} s left" if done else ""
        console.print(f"{fraction:6.1%} {text}{left}", highlight=False, markup=False)

    return report
