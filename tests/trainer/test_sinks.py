"""Metrics on their way to TensorBoard and Weights & Biases, by stand-ins for both packages."""

import sys
import types

import pytest

from jaxpref.results import RunId
from jaxpref.trainer import sinks
from jaxpref.trainer.config import Config

RUN = RunId(study="train", question="m", preset="", config={"beta": 0.1})


@pytest.fixture
def heard(monkeypatch):
    """What the packages are told, in order."""
    calls = []
    writer = types.SimpleNamespace(add_scalar=lambda *args: calls.append(args), flush=lambda: None)
    tensorboard = types.SimpleNamespace(
        SummaryWriter=lambda folder: calls.append(("folder", folder)) or writer
    )
    started = types.SimpleNamespace(log=lambda metrics, step: calls.append((metrics, step)))
    wandb = types.SimpleNamespace(init=lambda **settings: calls.append(settings) or started)
    monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return calls


def test_tensorboard_gets_every_metric_of_a_step(heard, tmp_path):
    config = Config(out=tmp_path / "run", tensorboard=True)
    sinks.tell(sinks.of(config, RUN, tmp_path), 3, {"loss": 0.5, "grad_norm": 2.0})
    assert heard == [("folder", str(tmp_path / "tensorboard")), ("loss", 0.5, 3), ("grad_norm", 2.0, 3)]


def test_wandb_goes_on_with_the_run_of_that_name(heard, tmp_path):
    config = Config(out=tmp_path / "run", wandb="project")
    sinks.tell(sinks.of(config, RUN, tmp_path), 3, {"loss": 0.5})
    assert heard[0]["project"] == "project" and heard[0]["id"] == "run" and heard[0]["resume"] == "allow"
    assert heard[1] == ({"loss": 0.5}, 3)


def test_without_the_package_the_flag_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb needs the package wandb"):
        sinks.check(Config(out=tmp_path, wandb="project"))


def test_no_flag_no_sink(tmp_path):
    sinks.check(Config(out=tmp_path))
    assert sinks.of(Config(out=tmp_path), RUN, tmp_path) == []
