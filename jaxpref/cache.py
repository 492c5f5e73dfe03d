"""Where files that can be had again are kept, and how one is put there whole or not at all."""

import contextlib
import os
import secrets
import shutil
import sys
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
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # readable as any file of the user's is
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder` to fill; renamed to `folder` on success, removed on any error.

    Raises:
      ValueError: `folder` is there and not empty; what somebody keeps is never replaced.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or an empty folder")
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    aside.mkdir(parents=True)
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
