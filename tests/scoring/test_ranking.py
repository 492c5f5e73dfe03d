"""Ranked pairs, and the file of those that are kept."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxpref.scoring import ranking


def asked(scored, **changes):
    """The scored run, to be ranked."""
    prepared, _ = scored
    return dataclasses.replace(prepared, config=dataclasses.replace(prepared.config, **changes))


@pytest.mark.parametrize(
    ("column", "sign"),
    [("ches", 1), ("ln_ches", 1), ("grads/inner", 1), ("grads/cos", 1), ("grads/inner/q", 1),
     ("logps/margin", -1), ("edit_distance", -1), ("tokens/chosen", -1)],
)  # fmt: skip
def test_ranking_is_the_sorted_column_best_first(scored, column, sign):
    prepared, table = asked(scored, rank=column), scored[1].table()
    ranking.check(prepared)
    ranked = ranking.rank(prepared)
    ranking.write(prepared, ranked)
    ranked = ranked.to_pydict()
    places = sorted(range(3), key=lambda i: sign * table[column][i])
    assert ranked["rank"] == [1, 2, 3] and ranked["column"] == [column] * 3
    assert ranked["value"] == [table[column][i] for i in places]
    for name in ("id", "line"):
        assert ranked[name] == table[name][places].tolist()
    stored = pq.read_table(prepared.config.out / "ranked.parquet").to_pylist()
    lines = (prepared.config.out / "ranked.jsonl").read_text().splitlines()
    assert stored == [json.loads(line) for line in lines] and stored[0]["rank"] == 1


def test_equal_pairs_stand_as_in_the_file_and_those_without_a_value_last(scored):
    assert ranking.order([1.0, np.nan, 0.0, 1.0], least_first=False).tolist() == [0, 3, 2, 1]
    assert ranking.order([1.0, np.nan, 0.0, 1.0], least_first=True).tolist() == [2, 0, 3, 1]
    ranked = ranking.rank(asked(scored, rank="chosen_score")).to_pydict()
    assert ranked["line"] == [3, 1, 2] and ranked["value"] == [2.5, None, None]


def test_kept_pairs_are_lines_of_the_file_as_they_were(scored, tmp_path):
    prepared = asked(scored, rank="ches", keep=0.6, keep_out=tmp_path / "kept.jsonl")
    ranking.check(prepared)
    ranking.write(prepared, ranking.rank(prepared))
    best = sorted(np.argsort(scored[1].table()["ches"])[:2])  # of three pairs, in order of the file
    lines = prepared.path.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(lines[i] for i in best)


def test_a_share_keeps_at_least_one_pair():
    assert [ranking.kept(share, 10) for share in (1e-9, 0.05, 0.25, 0.3, 1.0)] == [1, 1, 2, 3, 10]


BAD = {
    "unknown column": (dict(rank="chess"), "rank must be one of line, .*, ches, .*; got 'chess'"),
    "no such group": (
        dict(rank="grads/inner/z"),
        "rank must be one of .*grads/inner/q",
    ),
    "not computed": (
        dict(rank="grads/cos", gradients=False),
        "rank must be a column .* without gradients",
    ),
    "column not given": (dict(rank="rejected_score"), "rank must be one of .*chosen_score"),
    "other format": (dict(rank="ches", keep=0.5, keep_out="kept.parquet"), "keep_out must not end in"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_ranked_is_refused_before_work(scored, tmp_path, name):
    fields, message = BAD[name]
    if "keep_out" in fields:
        fields = fields | {"keep_out": tmp_path / fields["keep_out"]}
    with pytest.raises(ValueError, match=message):
        ranking.check(asked(scored, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [(dict(rank="ches", keep=0.5), "keep must be given with keep_out"),
     (dict(rank="ches", keep=0.0, keep_out=Path("x")), r"keep must be a share .* in \(0, 1\]; got 0"),
     (dict(rank="ches", keep=1.5, keep_out=Path("x")), "keep must be a share"),
     (dict(keep=0.5, keep_out=Path("x")), "keep must be given with rank")],
)  # fmt: skip
def test_shares_out_of_range_or_alone_are_named(scored, fields, message):
    with pytest.raises(ValueError, match=message):
        asked(scored, **fields)
