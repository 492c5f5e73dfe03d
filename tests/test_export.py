"""The command that writes models: GGUF or folder in, folder out; bad input is one line, nothing written."""

import jax
import numpy as np
import pytest
import tiny_model

from jaxpref import cli
from jaxpref.policies import checkpoints, lora
from jaxpref.policies.lora import LoraConfig


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OFFLINE", "1")
    model = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    return ["export", "--model", str(model), "--out", str(tmp_path / "out")]


def test_a_gguf_file_becomes_a_sharded_folder(arguments, tmp_path, capsys):
    assert cli.main([*arguments, "--dtype", "bfloat16", "--max-shard-size", "50KB"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    halves = jax.tree.map(lambda x: x.astype("bfloat16"), checkpoints.load(tmp_path / "tiny.gguf").params)
    again = checkpoints.load(tmp_path / "out", dtype="bfloat16").params
    jax.tree.map(np.testing.assert_array_equal, again, halves)


def test_an_adapter_is_merged_into_what_is_written(arguments, tmp_path):
    model, config = (
        checkpoints.load(tmp_path / "tiny.gguf"),
        LoraConfig(rank=2, alpha=3.0, targets=("v", "gate")),
    )
    adapters = jax.tree.map(lambda x: x + 0.125, lora.init(jax.random.key(0), model.params, config))
    lora.save_peft(tmp_path / "adapter", adapters, config, model.config, "base")
    assert cli.main([*arguments, "--adapter", str(tmp_path / "adapter")]) == 0
    merged = lora.merge(model.params, adapters, config)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(tmp_path / "out").params, merged)


BAD = {
    "model": (["--model", "nowhere.gguf"], "model must be"),
    "adapter": (["--adapter", "nowhere"], "must hold adapter_config.json"),
    "size": (["--max-shard-size", "huge"], "max_shard_size must be a number of bytes"),
    "folder": (["--out", "."], "must be new or an empty folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_two_and_one_line_and_nothing_written(arguments, tmp_path, capsys, name):
    extra, message = BAD[name]
    assert cli.main([*arguments, *extra]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_with_one_and_says_what_was_missing(arguments, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "9 bytes are needed for the weights, 3 are free on the disk")

    monkeypatch.setattr("jaxpref.policies.safetensors_file.write", full)
    assert cli.main(arguments) == 1
    assert "9 bytes are needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
