"""Ten optimizer steps of TRL's trainers beside `jaxpref train`: the same losses, gradients and metrics."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="parity extra not installed")
import torch
import trl_runs

from jaxpref.trainer import run as runs
from jaxpref.trainer.config import Config
from jaxpref.trainer.prepare import prepare

pytestmark = pytest.mark.parity

TOLERANCE = 2e-4  # of a metric's largest value on the way; seen: 1.1e-4 at the most
# What TRL means something else with, a mean over prompts and padding too, or what we do not log.
DEFINED_OTHERWISE = {
    "CPO": ("logits/chosen", "logits/rejected"),
    "ORPO": ("logits/chosen", "logits/rejected", "log_odds_ratio", "log_odds_chosen"),
    "KTO": (),
    "DPO": (),
}
NOT_COMPUTED = {"simpo": ("nll_loss",), "alphapo": ("nll_loss",), "apo_zero_unpaired": ("kl",)}  # 0 in TRL


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trl")
    trl_runs.write_inputs(folder)
    return folder


def history(case: trl_runs.Case, inputs: Path, out: Path, **fields) -> list[dict[str, float]]:
    """Metrics of `jaxpref train` for the case, a dict a step."""
    reference = str(inputs / "reference") if case.other_reference else None
    same = dict(
        batch_size=len(trl_runs.LENGTHS), max_length=case.max_length, learning_rate=trl_runs.LEARNING_RATE,
        steps=trl_runs.STEPS, schedule="linear", shuffle=False, save_every=0, export=False,
        reference_cache=inputs / "references", model=str(inputs / "model"), reference=reference,
    )  # fmt: skip
    config = Config(out=out, pairs=inputs / "pairs.jsonl", **(same | dict(case.ours) | fields))
    written = (runs.run(prepare(config)) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in written]


def not_compared(name: str) -> tuple[str, ...]:
    """Names that TRL logs, and jaxpref means otherwise or does not log."""
    other = (*DEFINED_OTHERWISE[trl_runs.CASES[name].trainer], *NOT_COMPUTED.get(name, ()))
    return ("step", *other)  # TRL counts from 1


def assert_alike(name: str, mine: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> None:
    assert len(mine) == len(theirs) == trl_runs.STEPS
    skipped = not_compared(name)
    for metric in [metric for metric in theirs[0] if metric not in skipped]:
        expected = [entry[metric] for entry in theirs]
        atol = TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose([m[metric] for m in mine], expected, rtol=0, atol=atol, err_msg=metric)


@pytest.mark.parametrize("name", trl_runs.CASES)
def test_ten_steps_are_those_of_trl(name, inputs, tmp_path):
    case = trl_runs.CASES[name]
    assert_alike(name, history(case, inputs, tmp_path / "run"), trl_runs.trl_history(case))


SETTINGS = {
    "cosine, warm-up, decay, clipping": (
        dict(lr_scheduler_type="cosine", warmup_steps=3, weight_decay=0.1, max_grad_norm=0.5),
        dict(schedule="cosine", warmup_steps=3, weight_decay=0.1, max_grad_norm=0.5),
    ),
    "rmsprop, warm-up by share": (
        dict(optim="rmsprop", lr_scheduler_type="constant_with_warmup", warmup_steps=0.25),
        dict(optimizer="rmsprop", schedule="constant", warmup_ratio=0.25),
    ),
    "sgd, batches of three": (
        dict(
            optim="sgd",
            learning_rate=0.1,
            per_device_train_batch_size=3,
            train_sampling_strategy="sequential",
        ),
        dict(optimizer="sgd", learning_rate=0.1, batch_size=3),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_optimizers_schedules_and_batches_are_those_of_trl(name, inputs, tmp_path):
    theirs, ours = SETTINGS[name]
    case = trl_runs.CASES["sigmoid"]
    mine = history(case, inputs, tmp_path / "run", **ours)
    assert_alike("sigmoid", mine, trl_runs.trl_history(case, **theirs))


@pytest.mark.parametrize("name", ["sft", "kto"])
def test_micro_batches_change_nothing_here(name, inputs, tmp_path):
    """In TRL sft is averaged over micro-batches whatever their tokens, and KTO's KL is each one's own."""
    case = trl_runs.CASES[name]
    whole = history(case, inputs, tmp_path / "whole")
    split = history(case, inputs, tmp_path / "split", micro_batch_size=2)
    for metric in whole[0]:
        expected = [entry[metric] for entry in whole]
        atol = 1e-5 * np.abs(expected).max() + 5e-6  # nats: differences of sums of some 35 nats in float32
        np.testing.assert_allclose([m[metric] for m in split], expected, rtol=0, atol=atol, err_msg=metric)
