"""Input that is odd but allowed gives numbers; what is not is one line; what was stored is never mixed up."""

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
import tiny_model

from jaxpref import results
from jaxpref.trainer import run as runs

PAIR = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9, 10, 11]}


MODEL = dataclasses.replace(tiny_model.CONFIG, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_dim=24)


@pytest.fixture
def write_pairs(tmp_path):
    def write(*changes):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(PAIR | change) + "\n" for change in changes))
        return path

    return write


def numbers(out):
    return [value for row in results.Run(out).rows for value in row.values()]


@pytest.mark.parametrize("loss", ["kto", "trl:orpo"])
def test_a_step_of_pairs_of_weight_0_changes_nothing_and_is_a_number(tmp_path, train, write_pairs, loss):
    pairs = write_pairs({"weight": 0}, {})
    flags = ("--pairs", pairs, "--loss", loss, "--batch-size", 1, "--steps", 2)
    assert train(tmp_path / "run", *flags) == 0
    assert None not in numbers(tmp_path / "run")


@pytest.mark.parametrize("weight", [1e-40, 1e38])
def test_a_weight_that_float32_cannot_sum_is_refused(tmp_path, train, write_pairs, capsys, weight):
    assert train(tmp_path / "run", "--pairs", write_pairs({"weight": weight, "id": "odd"}, {})) == 2
    assert "weight must be 0 or in [1e-12, 1e+12]" in (said := capsys.readouterr().err) and "odd" in said


def test_a_batch_larger_than_the_file_costs_what_the_file_does(tmp_path, train):
    assert train(tmp_path / "run", "--batch-size", 10**9, "--steps", 1, "--loss", "simpo") == 0


def test_too_little_memory_is_one_line(tmp_path, train, monkeypatch, capsys):
    def full(*args):
        raise MemoryError("Unable to allocate 7 PiB")

    monkeypatch.setattr(runs, "run", full)
    assert train(tmp_path / "run") == 1
    assert "Unable to allocate 7 PiB; a smaller micro_batch_size" in capsys.readouterr().err


def test_a_run_that_is_told_to_stop_in_the_reference_pass_does(tmp_path, train, prepared, own_cache):
    flags = ("--micro-batch-size", 2)
    with pytest.raises(runs.Preempted, match="reference of train, which is kept"):
        runs.run(prepared(tmp_path / "run", *flags), runs.Watch(stop=lambda: True))
    (half,) = (own_cache / "references").glob("*.partial")
    assert 0 < np.isnan(np.fromfile(half, np.float32)).sum() < 16
    assert train(tmp_path / "run", *flags) == 0 and not half.exists()


def stopped(prepared, out, *flags, after=2):
    asked = iter([False] * after + [True])
    with pytest.raises(runs.Preempted):
        runs.run(prepared(out, *flags), runs.Watch(stop=lambda: next(asked)))
    return results.partial_folder(out) / "checkpoints"


def test_checkpoints_of_another_run_are_refused(tmp_path, train, prepared, capsys):
    flags = ("--loss", "simpo", "--save-every", 1)  # without a reference, whose key would tell them apart
    mine = stopped(prepared, tmp_path / "mine", *flags)
    other = stopped(prepared, tmp_path / "other", *flags, "--seed", 1)
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    assert train(tmp_path / "mine", *flags) == 1
    said = capsys.readouterr().err
    assert (
        "checkpoints/2 is of another run; remove that folder to go on from the checkpoint of step 1" in said
    )


def test_a_damaged_checkpoint_says_what_to_do_and_the_advice_helps(tmp_path, train, prepared, capsys):
    flags = ("--loss", "simpo", "--save-every", 1)
    newest = stopped(prepared, tmp_path / "run", *flags) / "2"
    shutil.rmtree(newest / "state")
    assert train(tmp_path / "run", *flags) == 1
    assert "remove that folder to go on from the checkpoint of step 1" in capsys.readouterr().err
    shutil.rmtree(newest)
    assert train(tmp_path / "run", *flags) == 0
    assert [row["step"] for row in results.Run(tmp_path / "run").rows] == [0, 1, 2, 3]


def test_a_reference_that_is_wrong_is_named_as_the_reference(tmp_path, train, capsys):
    assert train(tmp_path / "run", "--reference", "nowhere") == 2
    assert "reference: model must be" in capsys.readouterr().err


def test_a_disk_that_is_full_says_where(tmp_path, train, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_json", full)
    assert train(tmp_path / "run", "--loss", "simpo") == 1
    said = capsys.readouterr().err
    assert (
        f"out {tmp_path / 'run'} (" in said and "bytes free" in said and "goes on when there is room" in said
    )


def test_a_reference_of_another_vocabulary_or_tokenizer_is_refused(tmp_path, train, model_folder, capsys):
    small = dataclasses.replace(MODEL, vocab=MODEL.vocab - 1)
    tiny_model.write_folder(tmp_path / "small", tiny_model.random_weights(small), small)
    shutil.copytree(model_folder, tmp_path / "other")
    described = tmp_path / "other" / "tokenizer.json"
    described.write_text(described.read_text().replace("<|endoftext|>", "<|other|>"))
    for name, message in (("small", "at least the model's vocabulary"), ("other", "the model's tokenizer")):
        assert train(tmp_path / "run", "--reference", tmp_path / name) == 2
        assert f"reference must have {message}" in capsys.readouterr().err
