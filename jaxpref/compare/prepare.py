"""From what was asked for to what will be run; all that can be wrong with it is found here."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref import results
from jaxpref.compare import contenders, problems, sweep, user_losses
from jaxpref.compare.config import DEFAULT_SWEEP, MOST_RECORDS, Config
from jaxpref.compare.contenders import Contender
from jaxpref.compare.problems.problem import Problem
from jaxpref.compare.sweep import Settings
from jaxpref.compare.training import Budget
from jaxpref.losses import LOSSES
from jaxpref.results import RunId

ALL = "all"
TRACED = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
PACKAGE = Path(__file__).parent.parent
SOURCES = ("compare", "losses", "policies", "probes", "theory", "toys", "data")  # what numbers depend on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A loss that takes part."""

    contender: Contender
    settings: Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A comparison that can be run."""

    config: Config
    problem: Problem
    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]  # losses that do not take part, and why
    budget: Budget
    run: RunId


def prepare(config: Config) -> Prepared:
    """Finds problem and losses and checks them against each other; ValueError names what is wrong."""
    problem, numbers = problems.get(config.problem)
    axes = sweep.parse(DEFAULT_SWEEP if config.sweep is None else config.sweep)
    found = _entries(config, problem, axes)
    left_out = {key: reason for key, reason in found.items() if isinstance(reason, str)}
    entries = tuple(entry for entry in found.values() if isinstance(entry, Entry))
    if not entries:
        raise ValueError(f"losses must name one that can run; got {config.losses!r} ({_reasons(left_out)})")
    budget = _budget(config, problem)
    run = _run_id(config, entries, numbers, budget)
    results.is_finished(config.out, run)  # raises where the folder holds another run
    results.check_place(config.out)
    return Prepared(
        config=config, problem=problem, entries=entries, left_out=left_out, budget=budget, run=run
    )


def _budget(config: Config, problem: Problem) -> Budget:
    num_steps = config.steps or problem.num_steps
    every = -(-num_steps // MOST_RECORDS)
    return Budget(optimizer=config.optimizer or problem.optimizer, num_steps=num_steps, record_every=every)


def _reasons(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: {reason}" for key, reason in list(left_out.items())[:3])


def _entries(config: Config, problem: Problem, axes) -> dict[str, Entry | str]:
    """Every loss asked for, or why it is left out; a loss that was named is not left out but an error."""
    names, everywhere = [name.strip() for name in config.losses.split(",")], config.sweep is not None
    found: dict[str, Entry | str] = _all_of_table(problem, axes, everywhere) if ALL in names else {}
    for name in names:
        if name != ALL:
            found[name] = _entry(_contender(name, problem), problem, axes, everywhere)
    return found


def _all_of_table(problem: Problem, axes, everywhere: bool) -> dict[str, Entry | str]:
    found: dict[str, Entry | str] = {}
    keys: dict[Any, str] = {}  # of functions that are in already
    for key, objective in LOSSES.items():
        first = keys.setdefault(objective.function, key)
        if first != key:
            found[key] = f"the same function as {first}"
            continue
        try:
            found[key] = _entry(contenders.from_table(objective), problem, axes, everywhere)
        except ValueError as error:
            found[key] = str(error)
    return found


def _contender(name: str, problem: Problem) -> Contender:
    if name in LOSSES:
        return contenders.from_table(LOSSES[name])
    if ":" in name:
        return user_losses.load(name, problem.inputs)
    raise ValueError(
        f"losses must be all, module:function or among {', '.join(sorted(LOSSES))}; got {name!r}"
    )


def _entry(contender: Contender, problem: Problem, axes, everywhere: bool) -> Entry:
    """`everywhere`: a loss that lacks a swept parameter is an error, not a loss at one setting."""
    missing = contender.missing(problem)
    if missing:
        has = ", ".join(sorted(problem.inputs))
        raise ValueError(
            f"the loss {contender.key!r} needs {', '.join(missing)}; the problem {problem.name} has {has}"
        )
    axes = [axis for axis in axes if everywhere or sweep.is_of(axis, contender)]
    settings = sweep.settings(axes, contender, problem.learning_rate)
    _check_values(contender, problem, settings)
    return Entry(contender=contender, settings=settings)


def _check_values(contender: Contender, problem: Problem, settings: Settings) -> None:
    """Traces the loss and its gradient: does it return a number a pair, can it be swept?"""
    instance = _one_instance(problem)
    hyperparameters = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in settings.hyperparameters}

    def values(params, batch, hyperparameters):
        loss = contender.values(problem, **hyperparameters)
        return loss(problem.token_logps(params, batch), params, batch)

    total = lambda *arguments: jnp.sum(values(*arguments).astype(jnp.float32))
    pairs = len(jax.tree.leaves(instance.batch)[0])
    try:
        shape = jax.eval_shape(values, *instance, hyperparameters)
        if getattr(shape, "shape", None) == (pairs,):
            jax.eval_shape(jax.grad(total), *instance, hyperparameters)
    except Exception as error:  # whatever a loss does on arrays that it was not made for
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        if isinstance(error, TRACED):
            reason += " A loss is traced: jnp for numpy, jnp.where for if."
        raise ValueError(f"the loss {contender.key!r} fails on {problem.name}: {reason}") from error
    _check_shape(contender.key, shape, pairs)


def _check_shape(key: str, shape: Any, pairs: int) -> None:
    is_array = isinstance(shape, jax.ShapeDtypeStruct)
    if not is_array or shape.shape != (pairs,) or not jnp.issubdtype(shape.dtype, jnp.floating):
        shown = f"{shape.dtype}{list(shape.shape)}" if is_array else type(shape).__name__
        raise ValueError(f"the loss {key!r} must return one number a pair, float[{pairs}]; got {shown}")


@functools.lru_cache(maxsize=8)
def _one_instance(problem: Problem):
    """Shapes of one seed, at no cost."""
    drawn = jax.eval_shape(lambda: problem.draw(jax.random.split(jax.random.key(0), 1)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), drawn)


def _run_id(config: Config, entries: tuple[Entry, ...], numbers: Any, budget: Budget) -> RunId:
    """Two comparisons are the same when problem, budget, losses and settings are, whatever the folder."""
    values = {
        "problem": config.problem,
        "numbers": dataclasses.asdict(numbers),
        "losses": {e.contender.key: _described(e) for e in entries},
        "sweep": None if config.sweep is None else list(config.sweep),
        "seeds": config.seeds,
        "seed": config.seed,
        **dataclasses.asdict(budget),
    }
    files = [path for name in SOURCES for path in (PACKAGE / name).rglob("*.py")]
    code = results.fingerprint([*files, *PACKAGE.glob("*.py")])
    return RunId(study="compare", question=config.problem, preset="", config=values, code=code)


def _described(entry: Entry) -> dict[str, Any]:
    """Settings, and of a user's loss what its module says: an edit makes it another run."""
    settings = {name: column.tolist() for name, column in entry.settings.swept.items()}
    if entry.contender.group != user_losses.GROUP:
        return settings
    source = inspect.getsource(inspect.getmodule(entry.contender.function) or entry.contender.function)
    return settings | {"source_sha256": hashlib.sha256(source.encode()).hexdigest()}
