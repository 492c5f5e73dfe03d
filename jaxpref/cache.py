"""Where files that can be had again are kept, and how one is put there whole or not at all."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_dir() -> Path:
    """`$JAXPREF_CACHE`, or `jaxpref` in the platform's cache folder; not made here."""
    if chosen := os.environ.get("JAXPREF_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jaxpref"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "jaxpref"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpref"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renamed to `path` on success, removed on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
