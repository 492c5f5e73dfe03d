"""What is exported is what was loaded, in files as transformers names them; whole or not at all."""

import errno
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxpref.data.tokenizer import Tokenizer
from jaxpref.policies import checkpoints, families, hf_writer, lora
from jaxpref.policies.lora import LoraConfig

CONFIG = tiny_model.CONFIG


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    return checkpoints.load(tiny_model.write_folder(tmp_path / "in", tiny_model.random_weights(), CONFIG))


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB", 1])
def test_export_is_read_back_bit_for_bit_whatever_the_shards(model, tmp_path, max_shard_size):
    checkpoints.save(tmp_path / "out", model, max_shard_size=max_shard_size)
    again = checkpoints.load(tmp_path / "out")
    assert_same(again.params, model.params)
    assert again.config == model.config
    assert again.tokenizer.encode("hello world 12") == model.tokenizer.encode("hello world 12")
    assert again.tokenizer.chat_template == tiny_model.TEMPLATE


def test_one_file_has_no_index_and_the_format_that_transformers_asks_for(model, tmp_path):
    checkpoints.save(tmp_path / "out", model)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    with safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_hold_what_the_index_says_and_no_more_than_they_may(model, tmp_path):
    checkpoints.save(tmp_path / "out", model, max_shard_size="60KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    weights = tiny_model.random_weights()
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    found = {}
    for file in files:
        tensors = load_file(tmp_path / "out" / file)
        assert sum(x.nbytes for x in tensors.values()) <= 60_000 or len(tensors) == 1
        assert {name for name, where in index["weight_map"].items() if where == file} == set(tensors)
        found |= tensors
    assert_same(found, weights)


def test_bfloat16_export_is_rounded_to_nearest(model, tmp_path):
    checkpoints.save(tmp_path / "out", model, dtype="bfloat16")
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), model.params)
    assert_same(checkpoints.load(tmp_path / "out").params, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    checkpoints.save(tmp_path / "again", checkpoints.load(tmp_path / "out"), dtype="bfloat16")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


def test_gguf_becomes_a_folder_of_the_same_model(tmp_path, monkeypatch):
    write = tiny_model._write_tokenizer
    with_length = lambda writer, metadata: (write(writer, metadata), writer.add_context_length(8192))
    monkeypatch.setattr(tiny_model, "_write_tokenizer", with_length)
    model = checkpoints.load(tiny_model.write_gguf(tmp_path / "tiny.gguf", quantized=True))
    checkpoints.save(tmp_path / "out", model)
    again = checkpoints.load(tmp_path / "out")
    assert_same(again.params, model.params)
    extras = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8192}
    assert again.extras == model.extras == extras
    ours, theirs = again.tokenizer, model.tokenizer
    text = "<|im_start|>hello world 1234<|im_end|>\n  é"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.bos, ours.eos, ours.chat_template) == (1, 2, tiny_model.TEMPLATE)


def test_dropout_that_a_config_turns_off_stays_off(tmp_path):
    """GPT-2's is 0.1 for transformers where `config.json` is silent."""
    tiny_model.write_folder(tmp_path / "m", tiny_model.random_weights(), tiny_model.CONFIG)
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | off))
    checkpoints.save(tmp_path / "out", checkpoints.load(tmp_path / "m"))
    assert off.items() <= json.loads((tmp_path / "out" / "config.json").read_text()).items()


def test_a_tokenizer_that_adds_bos_still_does(model, tmp_path):
    for add_bos in (False, True):
        tokenizer = Tokenizer(backend=model.tokenizer.backend, bos=1, eos=2, add_bos=add_bos)
        out = tmp_path / f"out{add_bos}"
        hf_writer.save(out, model.params, model.config, tokenizer=tokenizer)
        again = checkpoints.load(out).tokenizer
        assert again.add_bos == add_bos
        assert again.backend.encode("hello").ids == [1] * add_bos + tokenizer.encode("hello")


def test_ids_and_length_of_the_source_config_are_kept_and_its_code_is_not(model, tmp_path):
    path = tmp_path / "in" / "config.json"
    extra = {"eos_token_id": 2, "max_position_embeddings": 77, "auto_map": {"AutoModel": "evil.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    checkpoints.save(tmp_path / "out", checkpoints.load(tmp_path / "in"))
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["eos_token_id"], values["max_position_embeddings"]) == (2, 77)
    assert "auto_map" not in values


def test_a_folder_that_holds_something_is_never_overwritten(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be new or an empty folder"):
        checkpoints.save(tmp_path / "out", model)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_adapters_must_be_merged_before_they_are_exported(model, tmp_path):
    adapters = lora.init(jax.random.key(0), model.params, config := LoraConfig(rank=2, targets=("up",)))
    with pytest.raises(ValueError, match="adapters merged; layers/mlp/up"):
        checkpoints.save(tmp_path / "out", model, lora.attach(model.params, adapters, config))


def test_weights_that_are_not_finite_are_refused_by_name_and_leave_nothing(model, tmp_path):
    params = {**model.params, "final_norm": {"scale": model.params["final_norm"]["scale"].at[3].set(jnp.inf)}}
    with pytest.raises(ValueError, match=r"model\.norm\.weight must be finite"):
        checkpoints.save(tmp_path / "out", model, params)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_weights_too_large_for_bfloat16_are_refused_by_name(model, tmp_path):
    scale = jnp.full_like(model.params["final_norm"]["scale"], 3.4e38)
    with pytest.raises(ValueError, match=r"model\.norm\.weight must be finite in BF16"):
        checkpoints.save(
            tmp_path / "o", model, {**model.params, "final_norm": {"scale": scale}}, dtype="bfloat16"
        )


@pytest.mark.parametrize("size", ["0", "-1GB", "2XB", "many", "", "1e9", "0.4"])
def test_shard_sizes_that_are_none_are_refused(size):
    with pytest.raises(ValueError, match=r"max_shard_size must be a number of bytes above 0.*got"):
        hf_writer.parse_size(size)


def test_shard_sizes_are_read_with_either_unit():
    sizes = [hf_writer.parse_size(size) for size in ("2GB", "1.5 MiB", "7", "3kb", 12)]
    assert sizes == [2_000_000_000, 1_572_864, 7, 3000, 12]


def test_a_full_disk_says_what_was_needed_and_leaves_nothing(model, tmp_path, monkeypatch):
    """The kernel's limit on the size of a file stands for the disk's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"the weights need 449664 bytes, \d+ were free") as error:
            checkpoints.save(tmp_path / "out", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


KILLED = """
import os, signal, sys
from pathlib import Path
from jaxpref.policies import checkpoints, safetensors_file
model = checkpoints.load(sys.argv[1])
write, left = safetensors_file._write_one, [int(sys.argv[3])]
def write_or_die(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args)
safetensors_file._write_one = write_or_die
checkpoints.save(Path(sys.argv[2]), model)
"""


def test_a_killed_export_leaves_no_folder_of_its_name(model, tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out"), "7"]
    assert subprocess.run(arguments, check=False).returncode == -9
    assert not (tmp_path / "out").exists()
    checkpoints.save(tmp_path / "out", model)
    assert_same(checkpoints.load(tmp_path / "out").params, model.params)


def test_tensors_come_in_the_order_in_which_the_files_hold_them(model):
    names = [name for name, _ in families.from_params(model.params, CONFIG)]
    assert names == list(families.expected_shapes(CONFIG))
