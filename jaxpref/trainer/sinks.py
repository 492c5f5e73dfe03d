"""Where metrics go besides metrics.jsonl, if a user asks: TensorBoard's files, Weights & Biases."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpref.results import RunId
from jaxpref.trainer.config import Config

TENSORBOARD, WANDB = ("tensorboardX", "tensorboard"), ("wandb", "wandb")  # package, flag
Sink = Callable[[int, Mapping[str, float]], None]


def tensorboard(folder: Path) -> Sink:
    """Event files in `folder`; of a step written twice after a crash, readers take the later one."""
    writer = _require(*TENSORBOARD).SummaryWriter(str(folder))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def wandb(project: str, run: str, config: Mapping[str, Any]) -> Sink:
    """A run of that project, gone on with where one of that name is there."""
    started = _require(*WANDB).init(project=project, id=run, name=run, config=dict(config), resume="allow")
    return lambda step, metrics: started.log(dict(metrics), step=step)


def _require(package: str, flag: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{flag} needs the package {package}: pip install {package}") from error


def tell(sinks: Sequence[Sink], step: int, metrics: Mapping[str, float]) -> None:
    """The same metrics to every sink."""
    for sink in sinks:
        sink(step, metrics)


def check(config: Config) -> None:
    """Raises ValueError where a package that a config asks for is not there."""
    for wanted, package, flag in ((config.tensorboard, *TENSORBOARD), (config.wandb, *WANDB)):
        if wanted:
            _require(package, flag)


def of(config: Config, run: RunId, folder: Path) -> list[Sink]:
    """The sinks that a config asks for."""
    found = [tensorboard(folder / "tensorboard")] if config.tensorboard else []
    if config.wandb is not None:
        found.append(wandb(config.wandb, config.out.name, run.config))
    return found
