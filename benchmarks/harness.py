"""What all benchmarks share: who measured, on what, how often, and where it is written.

Seconds are CPU seconds of the process with all its threads: on shared cores a wall clock measures the others.
"""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "trl")
MEGABYTE = 2**20


class Measured(NamedTuple):
    """One call."""

    cpu_s: float
    wall_s: float


def machine() -> dict[str, Any]:
    """What the numbers are of; nothing that names the host."""
    import jax

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory, 1),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **_versions(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_seconds() -> float:
    """Of this process, all its threads."""
    return time.process_time()


def peak_memory_mb() -> float:
    """The most that this process has held so far, 2**20 bytes.

    `ru_maxrss` of a child begins at its parent's size, hence the kernel's own count where there is one.
    """
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEGABYTE if sys.platform == "darwin" else 1024)


def call(function: Callable[[], Any]) -> Measured:
    """One call, until its arrays are computed."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    _wait(function())
    return Measured(cpu_seconds() - cpu, time.perf_counter() - wall)


def _wait(result: Any) -> None:
    if "jax" in sys.modules:  # a process that measures PyTorch does without
        sys.modules["jax"].block_until_ready(result)


def rounds(functions: Mapping[str, Callable[[], Any]], n: int) -> dict[str, list[Measured]]:
    """All functions in turn, n times, so that what disturbs the machine disturbs each alike.

    Returns:
      Of each function n + 1 calls: the first, which compiles, then those of the rounds.
    """
    found = {name: [call(function)] for name, function in functions.items()}
    for _ in range(n):
        for name, function in functions.items():
            found[name].append(call(function))
    return found


def summary(calls: Sequence[Measured]) -> dict[str, float]:
    """What `rounds` found of one function: the first call, and median and least of the others."""
    first, *others = calls
    cpu, wall = ([one[i] for one in others] for i in range(2))
    return {
        "first_cpu_s": first.cpu_s, "cpu_s": statistics.median(cpu), "least_cpu_s": min(cpu),
        "wall_s": statistics.median(wall),
    }  # fmt: skip


def write(path: Path | None, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, Any]) -> None:
    """Prints the rows as a table; writes them with the notes and the machine, where there is a path."""
    _print(rows)
    if path is not None:
        found = {"machine": machine(), "notes": dict(notes), "rows": [dict(row) for row in rows]}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names)
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in names))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
