"""What a number may depend on besides config and code: recorded beside every result."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy")


def provenance() -> dict[str, Any]:
    """Commit (None outside a checkout), versions, device and machine."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "device": f"{jax.devices()[0].platform}:{jax.devices()[0].device_kind}",
        "machine": platform.machine(),
    }
