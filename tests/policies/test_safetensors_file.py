"""Safetensors files written tensor by tensor are those of the library, and are read back as they were."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxpref.policies import safetensors_file


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_tensor_that_never_comes_is_named(tmp_path):
    with pytest.raises(ValueError, match="1 are not, b the first"):
        files = {"x.safetensors": {"a": (2,), "b": (3,)}}
        safetensors_file.write(tmp_path, files, [("a", np.ones(2, np.float32))], "F32")


@pytest.mark.parametrize("names", ["ac", "aa"])
def test_a_tensor_without_a_place_is_named(tmp_path, names):
    tensors = [(name, np.ones(2, np.float32)) for name in names]
    with pytest.raises(ValueError, match=f"tensor {names[1]} must have one place"):
        safetensors_file.write(tmp_path, {"x.safetensors": {"a": (2,), "b": (2,)}}, tensors, "F32")


def test_files_are_what_the_safetensors_library_writes(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((), np.float32),
        "c": np.ones((0, 2)),
    }
    shapes = {name: array.shape for name, array in tensors.items()}
    safetensors_file.write(tmp_path, {"x.safetensors": shapes}, reversed(tensors.items()), "F32")
    assert_same(load_file(tmp_path / "x.safetensors"), tensors)
    entries = safetensors_file.entries(tmp_path / "x.safetensors")
    assert entries["a"].offset % 8 == 0
    assert_same({name: safetensors_file.read(entry) for name, entry in entries.items()}, tensors)


def test_a_file_that_shrinks_between_its_header_and_its_data_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_file.write(tmp_path, {path.name: {"a": (4,)}}, [("a", np.ones(4, np.float32))], "F32")
    entries = safetensors_file.entries(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"x\.safetensors is truncated: 4 values expected, 3 found"):
        safetensors_file.read(entries["a"])
