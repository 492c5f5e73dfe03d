"""The benchmarks' clock and scales, against what a process is known to have done."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "harness.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("harness", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_take_turns_and_keep_the_first_call_apart(harness):
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "ab"}
    found = harness.rounds(functions, 2)
    assert called == ["a", "b"] * 3 and [len(found[name]) for name in "ab"] == [3, 3]
    calls = [harness.Measured(seconds, 2 * seconds) for seconds in (9.0, 1.0, 5.0, 2.0)]
    expected = {"first_cpu_s": 9.0, "cpu_s": 2.0, "least_cpu_s": 1.0, "wall_s": 4.0}
    assert harness.summary(calls) == expected


def test_peak_memory_is_the_process_own_and_grows_by_what_was_held():
    held = np.ones(2**24)  # 128 MB, which a child's `ru_maxrss` would begin with
    lines = (
        "import harness; before = harness.peak_memory_mb()",
        "held = b'1' * 2**26; del held; print(before, harness.peak_memory_mb())",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=FILE.parent, capture_output=True, text=True, check=True
    )
    before, after = map(float, done.stdout.split())
    assert before < held.nbytes / 2**20 and 63 <= after - before <= 70


def test_what_is_written_says_on_what_it_was_measured(harness, tmp_path, capsys):
    path = tmp_path / "found.json"
    harness.write(path, [{"by": "ours", "cpu_s": 0.123456}], {"pairs": 4})
    found = json.loads(path.read_text())
    assert found["rows"] == [{"by": "ours", "cpu_s": 0.123456}] and found["notes"] == {"pairs": 4}
    assert {"cpu", "cores", "memory_gb", "device", "jax", "jaxlib", "python"} <= set(found["machine"])
    assert "0.1235" in capsys.readouterr().out
