"""The benchmark of a train step, at the size of a toy."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TOY = dict(
    vocab=64, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=24, tied=True, max_length=1024
)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("train_step", FOLDER / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_step", module)  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPE", TOY)
    monkeypatch.setattr(module, "sample", lambda pairs: [(7, 3 + i, 5) for i in range(pairs)])
    return module


def test_a_policy_that_is_its_reference_has_a_loss_of_log_two(bench, tmp_path):
    bench.write_inputs(tmp_path, bench.PAIRS)
    found = bench.ours(bench.Case("jaxpref", "online", 4, "dots"), tmp_path, steps=1)
    assert found["losses"][0] == pytest.approx(math.log(2), rel=1e-6) and len(found["losses"]) == 2
    assert found["cpu_s_per_pair"] > 0


def test_a_meter_leaves_out_the_steps_that_compile(bench):
    meter = bench.Meter()
    meter.ends = [0.0, 9.0, 11.0, 13.0]
    found = meter.found(1, [])
    assert found["cpu_s_per_pair"] == 2.0 / bench.PAIRS and found["before_cpu_s"] == 7.0


def test_sampled_lengths_have_the_mean_of_all(bench, monkeypatch):
    monkeypatch.undo()
    sys.path.insert(0, str(FOLDER))
    picked = np.array(importlib.import_module("train_step").sample(40)).sum(1).mean()
    assert abs(picked / 267.9 - 1) < 0.05
