"""Arrays of tokenized pairs in a folder: written in pieces, hashed, renamed; read as memory maps.

    tokens.npy   int32, pair after pair: prompt, chosen response, rejected response
    offsets.npy  int64, [pairs]: where a pair begins in `tokens`
    lengths.npy  int32, [pairs, 2]: tokens of the rows of chosen and rejected, prompt included
    starts.npy   int32, [pairs]: tokens of the prompt
    weights.npy  float32, [pairs]
    lines.npy    int64, [pairs]: of the file, from 1; merged.npy, truncated.npy bool: what became of the texts
    columns.npy  float32, [pairs, 4]: scores of chosen and rejected, votes for either; NaN where there is none
    ids.npy      uint8: the pairs' names, UTF-8, one after the other; names.npy int64, [pairs + 1]: where
    meta.json    the hash of every file, and what the caller notes

A folder under its final name is whole: it was renamed when all of it had been written and synced.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.results import file_sha256

DTYPES: dict[str, tuple[type, tuple[int, ...]]] = {  # of an element
    "tokens": (np.int32, ()), "offsets": (np.int64, ()), "lengths": (np.int32, (2,)),
    "starts": (np.int32, ()), "weights": (np.float32, ()), "columns": (np.float32, (4,)),
    "ids": (np.uint8, ()), "names": (np.int64, ()), "lines": (np.int64, ()),
    "merged": (np.bool_, ()), "truncated": (np.bool_, ()),
}  # fmt: skip
META = "meta.json"
ABANDONED = 86_400.0  # seconds


class ArrayWriter:
    """A `.npy` file that grows; its header, which NumPy leaves room to grow, is written again at the end."""

    def __init__(self, path: Path, dtype: type, shape: tuple[int, ...]):
        self._file, self._dtype, self._shape, self.length = path.open("wb"), np.dtype(dtype), shape, 0
        self._header()

    def append(self, values: Any) -> None:
        """Adds elements, [elements, *shape]."""
        array = np.asarray(values, self._dtype).reshape(-1, *self._shape)
        self.length += len(array)
        self._file.write(array.tobytes())

    def _header(self) -> None:
        described = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, described)

    def close(self) -> None:
        """Writes the header for what was appended, and waits for the disk."""
        self._file.seek(0)
        self._header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def write(folder: Path, arrays: dict[str, ArrayWriter], notes: dict[str, Any]) -> None:
    """Closes the arrays and writes `meta.json`, which makes the folder whole."""
    for array in arrays.values():
        array.close()
    hashes = {name: file_sha256(folder / f"{name}.npy") for name in DTYPES}
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump({"sha256": hashes, **notes}, file)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, memory-mapped, and the notes. Raises ValueError or OSError where anything is damaged."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), dict):
        raise ValueError(f"{folder / META} must hold hashes")
    for name in DTYPES:
        if meta["sha256"].get(name) != file_sha256(folder / f"{name}.npy"):
            raise ValueError(f"{folder / name}.npy must have the hash of {META}")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in DTYPES}
    return arrays, meta


@contextlib.contextmanager
def scratch(beside: Path | None) -> Iterator[Path]:
    """An empty folder of this process's own, next to where it will be renamed to; gone at the end."""
    if beside is not None:
        beside.parent.mkdir(parents=True, exist_ok=True)
        _sweep(beside.parent)
    parent = None if beside is None else beside.parent
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Takes away what killed processes left: scratch folders that nobody has touched for a day."""
    for folder in parent.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, place: Path) -> None:
    """Renames a whole folder to its place; another process's there, whole too, is as good."""
    try:
        folder.rename(place)
    except OSError:
        if not (place / META).is_file():
            raise


def open_writers(folder: Path) -> dict[str, ArrayWriter]:
    """An empty array for every name."""
    return {name: ArrayWriter(folder / f"{name}.npy", *kind) for name, kind in DTYPES.items()}


def discard(folder: Path) -> None:
    """Takes a damaged folder away, by a rename first: none is ever half gone; who has it open keeps it."""
    with scratch(folder) as aside, contextlib.suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
