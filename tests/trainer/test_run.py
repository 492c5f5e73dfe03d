"""`jaxpref train` from end to end on a tiny model."""

import json
import signal
import subprocess
import sys
import time

import filelock
import jax
import numpy as np
import pytest
import tiny_model
from safetensors.numpy import load_file

from jaxpref import results
from jaxpref.policies import checkpoints
from jaxpref.policies.families import gpt2
from jaxpref.trainer import run as runs
from jaxpref.trainer import setup


def lines(out):
    return results.Run(out).rows


def steps_of(out, prefix=""):
    return [row for row in lines(out) if f"{prefix}loss" in row]


def metrics_of(out):
    return (out / "metrics.jsonl").read_bytes()


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def test_margins_are_exactly_zero_at_step_zero_in_training_and_evaluation(tmp_path, train, pairs_file):
    assert train(tmp_path / "run", "--eval-pairs", pairs_file, "--micro-batch-size", 2) == 0
    first, held_out = steps_of(tmp_path / "run")[0], steps_of(tmp_path / "run", "eval_")[0]
    for row, prefix in ((first, ""), (held_out, "eval_")):
        assert row["step"] == 0
        for name in ("rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen_delta"):
            assert row[prefix + name] == 0.0
        np.testing.assert_allclose(row[prefix + "loss"], np.log(2), rtol=1e-6)


def test_rewards_are_exactly_zero_until_the_rate_has_left_zero(tmp_path, train, monkeypatch):
    exact = setup.reference.logps
    rounded = lambda *args, **kwargs: exact(*args, **kwargs) + np.float32(1e-4)  # as from other shapes
    monkeypatch.setattr(setup.reference, "logps", rounded)
    train(tmp_path / "run", "--warmup-steps", 2)
    rewards = [row["rewards/chosen"] for row in steps_of(tmp_path / "run")]
    assert rewards[:2] == [0.0, 0.0] and 0.0 not in rewards[2:]  # the first step of warm-up has rate 0


@pytest.mark.parametrize("size", [1, 2])
def test_the_split_into_micro_batches_changes_no_metric(tmp_path, train, size):
    train(tmp_path / "whole", "--loss", "dpo", "sft")
    train(tmp_path / "split", "--loss", "dpo", "sft", "--micro-batch-size", size)
    for whole, split in zip(steps_of(tmp_path / "whole"), steps_of(tmp_path / "split"), strict=True):
        assert whole.keys() == split.keys()
        for name, value in whole.items():
            np.testing.assert_allclose(split[name], value, rtol=3e-4, atol=3e-5, err_msg=name)


def test_a_run_that_was_stopped_goes_on_to_the_same_files(tmp_path, train, prepared, pairs_file):
    flags = ("--eval-pairs", pairs_file, "--eval-every", 2, "--save-every", 1)
    train(tmp_path / "whole", *flags)
    for stop_after in (1, 2):
        asked = iter([False] * stop_after + [True])
        with pytest.raises(runs.Preempted, match="is saved"):
            runs.run(prepared(tmp_path / "stopped", *flags), runs.Watch(stop=lambda asked=asked: next(asked)))
    assert not (tmp_path / "stopped").exists()
    assert train(tmp_path / "stopped", *flags) == 0
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def started(arguments, stderr=subprocess.DEVNULL):
    command = [sys.executable, "-m", "jaxpref.cli", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)


def test_a_run_that_goes_on_holds_no_weights_of_before_the_first_step(tmp_path, prepared):
    flags, asked = ("--loss", "simpo"), iter([False, True])
    with pytest.raises(runs.Preempted):
        runs.run(prepared(tmp_path / "run", *flags), runs.Watch(stop=lambda: next(asked)))
    again = prepared(tmp_path / "run", *flags)
    with pytest.raises(runs.Preempted):
        runs.run(again, runs.Watch(stop=lambda: True))
    assert all(weights.is_deleted() for weights in jax.tree.leaves(again.model.params))


def killed(arguments, out, after_lines):
    """A run in another process, killed with SIGKILL when its metrics have so many lines."""
    process = started(arguments)
    path = results.partial_folder(out) / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < after_lines):
        time.sleep(0.002)
    process.kill()
    process.wait()


def test_a_run_that_was_killed_goes_on_to_the_same_files(tmp_path, train, arguments):
    flags = ("--steps", 30, "--save-every", 1)
    train(tmp_path / "whole", *flags)
    killed(arguments(tmp_path / "killed", *flags), tmp_path / "killed", after_lines=7)
    assert not (tmp_path / "killed").exists()
    assert train(tmp_path / "killed", *flags) == 0
    assert metrics_of(tmp_path / "whole") == (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, train, arguments, pairs_file):
    flags = ("--steps", 60, "--save-every", 1, "--eval-pairs", pairs_file, "--eval-every", 7, "--keep-best")
    train(tmp_path / "whole", *flags)
    rng, out = np.random.default_rng(0), tmp_path / "killed"
    for _ in range(20):
        process = started(arguments(out, *flags))
        with_steps = results.partial_folder(out) / "metrics.jsonl"
        before = with_steps.stat().st_mtime if with_steps.exists() else 0
        while process.poll() is None and (not with_steps.exists() or with_steps.stat().st_mtime == before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))  # among the steps, and in the midst of saves
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            break
    assert train(out, *flags) == 0
    assert metrics_of(tmp_path / "whole") == metrics_of(out)
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "whole"), weights(out))


def test_sigterm_saves_and_exits_with_a_message(tmp_path, arguments):
    out = tmp_path / "run"
    process = started(arguments(out, "--steps", 100_000), stderr=subprocess.PIPE)
    path = results.partial_folder(out) / "metrics.jsonl"
    while not path.exists() or not path.read_bytes():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and b"is saved; the same command goes on" in said
    saved = [p.name for p in (results.partial_folder(out) / "checkpoints").iterdir() if p.name.isdecimal()]
    assert len(saved) == 1 and int(saved[0]) == path.read_bytes().count(b"\n")


def test_a_folder_that_another_process_trains_into_is_refused(tmp_path, train, capsys):
    with filelock.FileLock(tmp_path / ".run.lock"):
        assert train(tmp_path / "run") == 1
    assert "another process trains into" in capsys.readouterr().err
    assert not any(tmp_path.glob("run*"))


def test_a_runs_config_given_back_is_the_same_run(tmp_path, train, capsys):
    from jaxpref import cli

    out = tmp_path / "run"
    train(out)
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    assert cli.main(["train", "--config", str(out / "config.json"), "--out", str(out)]) == 0
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before
    assert train(out, "--seed", 1) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def test_the_reference_is_computed_once_for_all_runs(tmp_path, train, own_cache, monkeypatch):
    train(tmp_path / "first")
    stored = sorted(path.name for path in (own_cache / "references").iterdir())

    def forbidden(*args):
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(setup, "reference_score", lambda *args: forbidden)
    assert train(tmp_path / "second", "--loss", "ipo", "--learning-rate", "1e-3") == 0
    assert sorted(path.name for path in (own_cache / "references").iterdir()) == stored
    assert len(stored) == 2


def test_a_loss_without_a_reference_never_touches_the_cache(tmp_path, train, own_cache):
    assert train(tmp_path / "run", "--loss", "simpo") == 0
    assert not (own_cache / "references").exists()


def test_a_changed_reference_file_is_refused(tmp_path, train, own_cache, capsys):
    train(tmp_path / "first")
    (path,) = (own_cache / "references").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert train(tmp_path / "second") == 1
    assert "was changed after it was written" in capsys.readouterr().err


def test_adapters_leave_the_weights_and_start_at_the_reference(tmp_path, train, model_folder):
    out = tmp_path / "run"
    assert train(out, "--lora-rank", 2, "--lora-targets", "q", "v") == 0
    assert steps_of(out)[0]["rewards/margins"] == 0.0 != steps_of(out)[-1]["rewards/margins"]
    assert (out / "adapter" / "adapter_model.safetensors").is_file() and not (out / "model").exists()


def test_the_exported_model_is_the_last_state(tmp_path, train, pairs_file):
    out = tmp_path / "run"
    train(out, "--eval-pairs", pairs_file)
    train(tmp_path / "again", "--model", out / "model", "--eval-pairs", pairs_file, "--loss", "simpo")
    was, is_now = steps_of(out, "eval_")[-1], steps_of(tmp_path / "again", "eval_")[0]
    np.testing.assert_allclose(is_now["eval_logps/chosen"], was["eval_logps/chosen"], rtol=1e-6)
    assert checkpoints.load(out / "model").config == checkpoints.load(tmp_path / "again" / "model").config


def test_evaluation_is_weighted_by_example_whatever_the_batch(tmp_path, train, pairs_file):
    for size in (3, 8):
        train(tmp_path / str(size), "--eval-pairs", pairs_file, "--batch-size", size, "--loss", "simpo")
    three, eight = (steps_of(tmp_path / name, "eval_")[0] for name in ("3", "8"))
    for name, value in eight.items():
        np.testing.assert_allclose(three[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_kto_estimates_the_kl_from_mismatched_rows(tmp_path, train):
    assert train(tmp_path / "run", "--loss", "kto") == 0
    kl = [row["kl"] for row in steps_of(tmp_path / "run")]
    assert kl[0] == 0.0 and all(value >= 0 for value in kl) and any(value > 0 for value in kl[1:])


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_pairs_and_checkpoint(tmp_path, train, capsys):
    flags = ("--learning-rate", "1e30", "--max-grad-norm", 0, "--save-every", 1, "--optimizer", "sgd")
    assert train(tmp_path / "run", *flags) == 1
    said = capsys.readouterr().err
    assert "is not finite" in said and "step 1" in said and "checkpoint" in said
    assert all(np.isfinite(v) for row in written(tmp_path / "run") for v in row.values())


def written(out):
    path = results.partial_folder(out) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


# A file may grow to 20,000 bytes, which is less than the parameters; the system then refuses to write.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from jaxpref import cli
import jax
jax.config.update("jax_enable_compilation_cache", False)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_while_saving_is_an_error_and_leaves_no_half_checkpoint(tmp_path, arguments):
    out = tmp_path / "run"
    program = [sys.executable, "-c", LIMITED, "train", *arguments(out, "--loss", "simpo")]
    process = subprocess.run(program, capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    assert "could not be written" in process.stderr
    saved = [p.name for p in (results.partial_folder(out) / "checkpoints").iterdir() if p.name.isdecimal()]
    assert saved == [] and not out.exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--loss", "dpoo"), "loss must be one of"),
        (("--loss-args", "gamma=1"), "loss_args of dpo are beta; got gamma=1"),
        (("--loss-args", "gamma"), "loss_args must be name=number"),
        (("--beta", "-1"), "beta of the loss 'dpo' must lie in"),
        (("--model", "nowhere"), "model must be"),
        (("--pairs", "/nowhere.jsonl"), "cannot be read"),
        (("--lora-rank", "2", "--lora-targets", "nose"), "nose"),
        (("--max-length", "2"), "max_length"),
        (("--loss", "aot"), "pairs must all have one weight for aot"),
        (("--config", "/nowhere.toml"), "cannot be read"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(tmp_path, train, capsys, flags, message):
    assert train(tmp_path / "run", *flags) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not any(tmp_path.glob("run*"))


def test_rows_longer_than_learned_positions_are_refused(tmp_path, train, capsys):
    values = {"n_head": 2, "n_embd": 4, "vocab_size": len(tiny_model.VOCAB), "n_layer": 1, "n_positions": 8}
    small = gpt2.config_of(values)
    folder = tiny_model.write_folder(tmp_path / "gpt2", tiny_model.random_weights(small), small)
    assert train(tmp_path / "run", "--model", folder) == 2
    assert "rows must have at most the model's 8 positions" in capsys.readouterr().err
    assert train(tmp_path / "run", "--model", folder, "--max-length", 8, "--steps", 1, "--no-export") == 0
