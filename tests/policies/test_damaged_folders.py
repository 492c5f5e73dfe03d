"""Damaged or hostile folders, or of another model: what is wrong is named, nothing large is read."""

import dataclasses
import json
import struct
import tracemalloc

import numpy as np
import pytest
import tiny_model
from safetensors.numpy import load_file, save_file

from jaxpref.policies import checkpoints
from jaxpref.policies.families import CheckpointError

CONFIG = tiny_model.CONFIG
INDEX = "model.safetensors.index.json"


def folder(tmp_path, weights=None, config=CONFIG, shards=1):
    weights = tiny_model.random_weights() if weights is None else weights
    return tiny_model.write_folder(tmp_path / "m", weights, config, shards=shards)


def test_every_kind_of_misfit_is_named_and_counted(tmp_path):
    weights = tiny_model.random_weights()
    for name in [name for name in weights if name.startswith("model.layers.1.")]:
        weights[f"extra.{name}"] = weights.pop(name)  # 9 missing, 9 unknown
    weights["model.norm.weight"] = np.ones(7, np.float32)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(folder(tmp_path, weights))
    message = str(error.value)
    assert "(9 missing, 1 misshapen, 9 unknown)" in message
    assert message.count("is missing") == 3 and message.count("is unknown") == 3
    assert "model.norm.weight must have shape (96,) to fit the config; got (7,)" in message
    assert len(message) < 1500


def test_a_checkpoint_of_a_larger_model_is_refused_with_both_shapes(tmp_path):
    larger = dataclasses.replace(CONFIG, dim=160, heads=10, layers=3)
    with pytest.raises(CheckpointError, match=r"must have shape \(\d+, 160\).*got \(\d+, 96\)") as error:
        checkpoints.load(folder(tmp_path, config=larger))
    assert "9 missing, 19 misshapen" not in str(error.value) and "9 missing" in str(error.value)


def test_a_config_of_a_billion_layers_is_refused_at_once(tmp_path):
    path = folder(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"\(8999999982 missing\)"):
        checkpoints.load(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tensors_that_are_not_finite_are_named(tmp_path, value):
    weights = tiny_model.random_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight must be finite"):
        checkpoints.load(folder(tmp_path, weights))


def test_absent_shards_are_named(tmp_path):
    path = folder(tmp_path, shards=6)
    for i in (2, 5):
        (path / f"model-{i:05d}-of-00006.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"must hold model-00002-of-00006\S+, model-00005-of-00006"):
        checkpoints.load(path)


def test_an_index_that_names_a_tensor_in_a_file_without_it_is_refused(tmp_path):
    path = folder(tmp_path, shards=2)
    index = json.loads((path / INDEX).read_text())["weight_map"]
    moved = {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "ghost": "model-00002-of-00002.safetensors",
    }
    assert index["model.norm.weight"] != moved["model.norm.weight"]
    (path / INDEX).write_text(json.dumps({"weight_map": index | moved}))
    with pytest.raises(
        CheckpointError, match=r"got model\.norm\.weight in model-00001\S+; ghost in .*2 such"
    ):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "name", ["../m2/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""]
)
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path, name):
    path = folder(tmp_path)
    (path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointError, match="must name safetensors files of its own folder"):
        checkpoints.load(path)


def test_quantized_folders_are_refused_with_their_method(tmp_path):
    path = folder(tmp_path) / "config.json"
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    with pytest.raises(CheckpointError, match="quantization_config must be absent; got 'gptq'"):
        checkpoints.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_folders_with_nothing_but_pickle_are_refused_with_the_reason(tmp_path, name):
    path = folder(tmp_path)
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(
        CheckpointError, match=f"must hold model.safetensors; {name} is pickle, which can run"
    ):
        checkpoints.load(path)


def with_header(path, header: bytes, size: int | None = None, data: bytes = b""):
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header + data)


HUGE = json.dumps(
    {"model.norm.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
).encode()
OVERFLOW = json.dumps({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}).encode()
NEGATIVE = json.dumps({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}).encode()
OVERLAP = json.dumps({
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
}).encode()  # fmt: skip
HOSTILE = {
    "a header of 2^60 bytes": (b"{}", 2**60), "shapes beyond the file": (HUGE, None),
    "a product that overflows": (OVERFLOW, None), "a negative size": (NEGATIVE, None),
    "tensors that overlap": (OVERLAP, None), "no JSON": (b"\x80\x04\x95", None),
    "deep nesting": (b"[" * 100_000, None),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_at_once(tmp_path, case):
    path = folder(tmp_path)
    with_header(path / "model.safetensors", *HOSTILE[case], data=b"\0" * 16)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or no safetensors file"):
        checkpoints.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["int32", "float64", "uint8"])
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, kind):
    weights = tiny_model.random_weights()
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(kind)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight must be stored as F32, F16, BF16; got"):
        checkpoints.load(folder(tmp_path, weights))


def test_the_tied_matrix_may_be_stored_twice(tmp_path):
    weights = tiny_model.random_weights()
    twice = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    again = checkpoints.load(folder(tmp_path, twice))
    np.testing.assert_array_equal(again.params["embedding"], weights["model.embed_tokens.weight"])


def test_shards_may_hold_their_tensors_in_any_order(tmp_path):
    path = folder(tmp_path, shards=3)
    for shard in path.glob("*.safetensors"):
        save_file(dict(reversed(load_file(shard).items())), shard)
    params = checkpoints.load(path).params
    np.testing.assert_array_equal(
        params["embedding"], tiny_model.random_weights()["model.embed_tokens.weight"]
    )
