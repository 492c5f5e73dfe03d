"""Safetensors files, read and written tensor by tensor: one at a time is held beside its destination."""

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Entry(NamedTuple):
    """Where a tensor lies, and in which of the format's dtypes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes, from the beginning of the file


def entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a file by name, no data read.

    Raises:
      ValueError: the file is truncated, or its header describes something else than what follows it.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # the library checks the header's size, the shapes, and that the offsets tile the file
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {
        name: Entry(path, value["dtype"], tuple(value["shape"]), 8 + size + value["data_offsets"][0])
        for name, value in header.items()
        if name != "__metadata__"
    }


def read(entry: Entry) -> np.ndarray:
    """A tensor as it is stored, read and not mapped: a mapped file counts as memory until it is closed.

    Raises:
      ValueError: the file became shorter since `entries`.
    """
    count = math.prod(entry.shape)
    flat = np.fromfile(entry.path, DTYPES[entry.dtype], count, offset=entry.offset)
    if flat.size != count:
        raise ValueError(f"{entry.path} is truncated: {count} values expected, {flat.size} found")
    return flat.reshape(entry.shape)


def write(
    folder: Path,
    files: Mapping[str, Mapping[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    """Writes `tensors`, whatever their order, into the files that have a place for them.

    Args:
      folder: exists.
      files: of every file, name and shape of its tensors in their order in the file.
      tensors: every tensor once; each is asked for when the one before it is on disk.
      dtype: in which all are stored, a key of `DTYPES`; float32 is rounded to nearest, ties to even.

    Raises:
      ValueError: a tensor that is not finite, misshapen, unknown or missing, named.
      OSError: no room; says how many bytes were needed and how many were free.
    """
    values = sum(math.prod(shape) for shapes in files.values() for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    try:
        _write_all(folder, files, tensors, dtype)
    except OSError as error:
        raise _no_room(folder.parent, values * DTYPES[dtype].itemsize, free, error) from error


def _write_all(
    folder: Path,
    files: Mapping[str, Mapping[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    places = {name: place for file in files for name, place in _begin(folder / file, files[file], dtype)}
    for name, array in tensors:
        if name not in places:
            raise ValueError(f"tensor {name} must have one place in the files, and come once")
        _write_one(places.pop(name), name, array)
    if places:
        raise ValueError(f"every tensor must be given; {len(places)} are not, {next(iter(places))} the first")
    for file in files:
        _flush(folder / file)


def _begin(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> list[tuple[str, Entry]]:
    """Writes the header; the offsets in it are from its end."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    starts, end = {}, 0
    for name, shape in shapes.items():
        starts[name], end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return [(name, Entry(path, dtype, shapes[name], 8 + len(text) + start)) for name, start in starts.items()]


def _write_one(entry: Entry, name: str, array: np.ndarray) -> None:
    if array.shape != entry.shape:
        raise ValueError(f"tensor {name} must have shape {entry.shape}; got {array.shape}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, DTYPES[entry.dtype])
    if not np.isfinite(stored).all():
        raise ValueError(f"tensor {name} must be finite in {entry.dtype}; it holds nan or infinity")
    with entry.path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(stored.reshape(-1).view(np.uint8).data)


def _flush(path: Path) -> None:
    """To the disk itself: a rename may otherwise outlive the data when the power fails."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _no_room(folder: Path, needed: int, free: int, error: OSError) -> OSError:
    if error.errno not in FULL:
        return error
    return OSError(error.errno, f"the weights need {needed} bytes, {free} were free", str(folder))
