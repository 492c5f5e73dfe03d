"""Token ids against TRL's, frozen by `golden/make_trl_pairs.py`: hard pairs under tokenizers of six kinds."""

import json
from pathlib import Path

import pytest
import trl_pairs

from jaxpref.data import files, tokenization, tokenizer

FROZEN = json.loads((Path(__file__).parent / "golden" / "trl_pairs.json").read_text(encoding="utf-8"))
LARGE = 10_000


@pytest.fixture(params=FROZEN)
def frozen(request, tmp_path):
    """Rows by TRL, and the tokenizer they were made with."""
    for name, text in FROZEN[request.param]["files"].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return FROZEN[request.param]["rows"], tokenizer.from_folder(tmp_path)


def outcomes(tmp_path, rows, ours, max_length):
    """Ours and TRL's of each pair that is well formed to us."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row["line"]) + "\n" for row in rows), encoding="utf-8")
    records = files.read_pairs(path, skip_bad=True, allow_empty_prompt=True).records
    made = tokenization.PairEncoder(ours, max_length=max_length, vocab=LARGE)(records)
    assert len(made) >= 30
    return [(outcome, rows[record.line - 1]) for record, outcome in zip(records, made, strict=True)]


def found(pair):
    rows = (pair.chosen, pair.rejected)
    return {"start": rows[0].start, "chosen": list(rows[0].tokens), "rejected": list(rows[1].tokens)}


def test_rows_are_trls(tmp_path, frozen):
    rows, ours = frozen
    for outcome, row in outcomes(tmp_path, rows, ours, LARGE):
        if outcome != "no_response_token":
            expected = trl_pairs.with_documented_differences(row[str(LARGE)], row["line"], ours)
            assert found(outcome) == expected, row["line"]


def test_short_rows_and_dropped_pairs_are_trls(tmp_path, frozen):
    rows, ours = frozen
    dropped = 0
    for outcome, row in outcomes(tmp_path, rows, ours, 12):
        as_trl = trl_pairs.with_documented_differences(row[str(LARGE)], row["line"], ours) == row[str(LARGE)]
        if as_trl and outcome != "no_response_token":
            assert (None if isinstance(outcome, str) else found(outcome)) == row["12"], row["line"]
            dropped += isinstance(outcome, str)
    assert dropped
