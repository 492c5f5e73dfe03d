"""Checkpoints read back are the weights that were written; damaged ones are refused by name."""

import dataclasses
import json
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from safetensors.numpy import save_file

from jaxpref.policies import checkpoints, families, transformer
from jaxpref.policies.checkpoints import CheckpointError

UNTIED = dataclasses.replace(tiny_model.CONFIG, tied=False)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))


def as_written(params, config) -> dict[str, np.ndarray]:
    return dict(families.from_params(params, config))


@pytest.mark.parametrize("config", [tiny_model.CONFIG, UNTIED], ids=["tied", "untied"])
def test_gguf_gives_back_the_weights_that_were_interleaved_into_it(tmp_path, config):
    weights = tiny_model.random_weights(config)
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf", weights, config)
    model = checkpoints.load(path)
    assert (model.config, model.name) == (config, "tiny")
    jax.tree.map(np.testing.assert_array_equal, as_written(model.params, config), weights)


def test_quantized_gguf_is_within_half_a_quantization_step(tmp_path):
    weights = tiny_model.random_weights()
    model = checkpoints.load(tiny_model.write_gguf(tmp_path / "q8.gguf", weights, quantized=True))
    read = as_written(model.params, model.config)
    for name, weight in weights.items():
        step = (
            np.abs(weight).reshape(-1, 32).max(-1) / 127 if weight.ndim == 2 else np.zeros(weight.size // 32)
        )
        error = np.abs(read[name] - weight).reshape(-1, 32).max(-1)
        assert (error <= (0.5 + 127 * 2**-11) * step).all(), name  # the scale itself is a float16


def test_second_load_comes_from_the_cache_and_is_the_same(tmp_path):
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf", quantized=True)
    first = checkpoints.load(path)
    (cached,) = (tmp_path / "cache" / "dequantized").iterdir()
    assert cached.stem == first.weights_sha256
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(path).params, first.params)


def test_a_damaged_cache_is_written_anew(tmp_path):
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    first = checkpoints.load(path)
    (cached,) = (tmp_path / "cache" / "dequantized").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(path).params, first.params)
    assert cached.stat().st_size > 1000


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("config", [tiny_model.CONFIG, UNTIED], ids=["tied", "untied"])
def test_hugging_face_folder_gives_back_its_weights(tmp_path, config, shards):
    weights = tiny_model.random_weights(config)
    model = checkpoints.load(tiny_model.write_folder(tmp_path / "model", weights, config, shards=shards))
    assert (model.config, model.name) == (config, "model")
    jax.tree.map(np.testing.assert_array_equal, as_written(model.params, config), weights)


def test_the_same_weights_under_another_config_are_another_model(tmp_path):
    """Or a stored reference, a run or a score of the one would be taken for the other's."""
    weights, slower = tiny_model.random_weights(), dataclasses.replace(tiny_model.CONFIG, rope_theta=1e5)
    folders = [tiny_model.write_folder(tmp_path / "one", weights, tiny_model.CONFIG),
               tiny_model.write_folder(tmp_path / "copy", weights, tiny_model.CONFIG),
               tiny_model.write_folder(tmp_path / "slower", weights, slower)]  # fmt: skip
    one, copy, other = (checkpoints.load(folder).weights_sha256 for folder in folders)
    assert one == copy != other


def test_gguf_and_folder_of_one_model_give_equal_logits(tmp_path):
    weights, config = tiny_model.random_weights(), tiny_model.CONFIG
    models = [
        checkpoints.load(tiny_model.write_gguf(tmp_path / "tiny.gguf", weights)),
        checkpoints.load(tiny_model.write_folder(tmp_path / "folder", weights, config)),
    ]
    tokens = jnp.array([[5, 6, 7, 8]])
    first, second = (transformer.logits(model.params, tokens, config=config) for model in models)
    np.testing.assert_array_equal(first, second)


def test_bfloat16_folders_are_read_as_float32(tmp_path):
    folder = tiny_model.write_folder(tmp_path / "model", tiny_model.random_weights(), tiny_model.CONFIG)
    halves = {
        name: np.asarray(jnp.asarray(x, jnp.bfloat16)) for name, x in tiny_model.random_weights().items()
    }
    save_file(halves, folder / "model.safetensors")
    read = as_written(checkpoints.load(folder).params, tiny_model.CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), read, halves)


def changed(weights: dict, name: str, array: np.ndarray | None) -> dict:
    rest = {key: x for key, x in weights.items() if key != name}
    return rest if array is None else rest | {name: array}


WRONG_WEIGHTS = {
    "missing": ("model.norm.weight", None, "model.norm.weight is missing.*(96,)"),
    "misshapen": (
        "model.layers.1.mlp.up_proj.weight", np.zeros((32, 96), np.float32),
        r"model.layers.1.mlp.up_proj.weight must have shape \(64, 96\).*got \(32, 96\)",
    ),
    "unknown": ("model.layers.0.self_attn.q_proj.bias", np.zeros(96, np.float32), "q_proj.bias is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_tensors_that_do_not_fit_the_config_are_named(tmp_path, case):
    name, array, message = WRONG_WEIGHTS[case]
    weights = changed(tiny_model.random_weights(), name, array)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tiny_model.write_folder(tmp_path, weights, tiny_model.CONFIG))


def test_misshapen_gguf_tensor_is_named_with_both_shapes(tmp_path):
    weights = changed(tiny_model.random_weights(), "model.embed_tokens.weight", np.zeros((7, 96), np.float32))
    with pytest.raises(
        CheckpointError, match=r"embed_tokens.weight must have shape \(\d+, 96\).*got \(7, 96\)"
    ):
        checkpoints.load(tiny_model.write_gguf(tmp_path / "tiny.gguf", weights))


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 3_000, 8_000, 100_000, -1])
def test_truncated_gguf_is_refused_by_name(tmp_path, keep):
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf"):
        checkpoints.load(path)


@pytest.mark.parametrize("magic", [b"GGML", b"PK\x03\x04", b"\x80\x04\x95\x00"])
def test_files_with_another_magic_are_refused(tmp_path, magic):
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(magic + path.read_bytes()[4:])
    with pytest.raises(CheckpointError, match="must begin with b'GGUF'"):
        checkpoints.load(path)


def test_gguf_whose_header_promises_too_much_is_refused(tmp_path):
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    data = bytearray(path.read_bytes())
    data[8:24] = struct.pack("<QQ", 2**60, 2**60)  # tensors, metadata keys
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(path)


def test_unknown_architecture_quantization_and_tokenizer_are_refused(tmp_path):
    refused = lambda message, **kwargs: pytest.raises(CheckpointError, match=message)
    with refused("architecture must be llama; got 'mamba'"):
        checkpoints.load(tiny_model.write_gguf(tmp_path / "a.gguf", architecture="mamba"))
    with refused("tokenizer.ggml.pre must be one of gpt-2, smollm; got 'tekken'"):
        checkpoints.load(tiny_model.write_gguf(tmp_path / "b.gguf", pre="tekken"))
    with refused("tokenizer.ggml.model must be gpt2"):
        checkpoints.load(tiny_model.write_gguf(tmp_path / "c.gguf", tokenizer="llama"))
    integers = changed(tiny_model.random_weights(), "model.norm.weight", np.zeros(96, np.int32))
    with refused("output_norm.weight must be stored as .*F32.*; got I32"):
        checkpoints.load(tiny_model.write_gguf(tmp_path / "d.gguf", integers))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["absent", "truncated"])
def test_damaged_folders_are_refused_by_file_name(tmp_path, file, damage):
    path = tiny_model.write_folder(tmp_path, tiny_model.random_weights(), tiny_model.CONFIG) / file
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        checkpoints.load(tmp_path)


WRONG_CONFIGS = {
    "model_type": "qwen2", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "hidden_act": "xielu",
    "attention_bias": True, "num_attention_heads": 5, "hidden_size": "wide", "num_hidden_layers": 10**12,
    "intermediate_size": 64.0, "head_dim": 0, "num_key_value_heads": True, "vocab_size": 10**9,
    "rms_norm_eps": "small", "rope_theta": 10**400, "rope_parameters": "x", "tie_word_embeddings": "no",
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG_CONFIGS)
def test_configs_of_other_models_are_refused(tmp_path, key):
    folder = tiny_model.write_folder(tmp_path, tiny_model.random_weights(), tiny_model.CONFIG)
    values = families.config_json(tiny_model.CONFIG) | {key: WRONG_CONFIGS[key]}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        checkpoints.load(folder)


WRONG_METADATA = {
    "llama.block_count": (2**31 - 1, "UINT32", r"layers\.2\.input_layernorm\.weight is missing"),
    "llama.embedding_length": ("wide", "STRING", "must be a whole number of 1 to 2147483647; got 'wide'"),
    "llama.attention.head_count": (0, "UINT32", "must be a whole number"),
    "llama.rope.freq_base": (float("inf"), "FLOAT32", "must be a finite number above 0; got inf"),
    "llama.attention.layer_norm_rms_epsilon": (float("nan"), "FLOAT32", "finite number above 0; got nan"),
    "tokenizer.ggml.bos_token_id": (10**6, "UINT32", "must be a token of the vocabulary's"),
    "tokenizer.ggml.eos_token_id": ("</s>", "STRING", "must be of type int; got '</s>'"),
    "tokenizer.ggml.add_bos_token": ("no", "STRING", "must be of type bool"),
    "tokenizer.ggml.tokens": (5, "UINT32", "must be a list; got 5"),
    "tokenizer.ggml.merges": (5, "UINT32", "must be a list of type str; got 5"),
    "tokenizer.ggml.token_type": (5, "UINT32", "must be a list of type int; got 5"),
}


@pytest.mark.parametrize("key", WRONG_METADATA)
def test_gguf_metadata_out_of_range_is_named_with_its_file(tmp_path, monkeypatch, key):
    value, kind, message = WRONG_METADATA[key]
    write = tiny_model._write_tokenizer

    def write_and_spoil(writer, metadata):
        write(writer, metadata)
        entry = gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType[kind])
        writer.kv_data[0][key] = entry

    monkeypatch.setattr(tiny_model, "_write_tokenizer", write_and_spoil)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.load(tiny_model.write_gguf(tmp_path / "tiny.gguf"))
    assert "tiny.gguf" in str(error.value)
    assert key in str(error.value) or key == "llama.block_count"  # there the missing tensor is named


@pytest.mark.parametrize("length", [2**60, 2**22])
def test_a_gguf_array_longer_than_its_file_is_refused_at_once(tmp_path, length):
    key = struct.pack("<Q", 1) + b"a"
    array = struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8, length)
    path = tmp_path / "long.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + array + b"short")
    with pytest.raises(CheckpointError, match=r"long\.gguf is truncated or damaged"):
        checkpoints.load(path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    broken = changed(tiny_model.random_weights(), "model.norm.weight", np.full(96, np.nan, np.float32))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight must be finite"):
        checkpoints.load(tiny_model.write_gguf(tmp_path / "nan.gguf", broken))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "file"))
    assert checkpoints.load(tiny_model.write_gguf(tmp_path / "tiny.gguf")).name == "tiny"


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    weights = tiny_model.random_weights()
    folder = tiny_model.write_folder(tmp_path / "m", weights, tiny_model.CONFIG, shards=2)
    save_file(weights, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"must be in one file; it is in model-00001"):
        checkpoints.load(folder)


def test_index_that_points_out_of_its_folder_is_refused(tmp_path):
    folder = tiny_model.write_folder(tmp_path / "m", tiny_model.random_weights(), tiny_model.CONFIG)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="files of its own folder"):
        checkpoints.load(folder)


def test_pickled_weights_are_never_loaded(tmp_path):
    folder = tiny_model.write_folder(tmp_path, tiny_model.random_weights(), tiny_model.CONFIG)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors"):
        checkpoints.load(folder)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoints.load(tmp_path / "nowhere.gguf")
