"""Copied lines are the bytes that they were."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpref.data import excerpt

LINES = [b'{"b": 1,  "a": "\xc3\xa9"}\n', b"\n", b'{"weight": 1e-3}\n', b'{"x":\t0}\n', b'{"last": true}']


@pytest.mark.parametrize("compressed", [False, True])
def test_lines_are_copied_as_they_stand_and_blank_ones_are_counted(tmp_path, compressed):
    source, target = tmp_path / "pairs.jsonl", tmp_path / ("kept.jsonl" + ".gz" * compressed)
    whole = b"".join(LINES)
    source.write_bytes(gzip.compress(whole) if not compressed else whole)
    excerpt.copy(source, target, np.array([1, 3, 5]))
    written = target.read_bytes()
    assert target.stat().st_mode == source.stat().st_mode  # who may read one may read the other
    assert (gzip.decompress(written) if compressed else written) == LINES[0] + LINES[2] + LINES[4] + b"\n"


def test_rows_of_parquet_keep_their_columns_and_types(tmp_path):
    source, target = tmp_path / "pairs.parquet", tmp_path / "kept.parquet"
    number = 600  # several of the pieces it is read in
    rows = {"prompt": [[i, i] for i in range(number)], "other": pa.array(range(number), pa.int16())}
    table = pa.table(rows)
    pq.write_table(table, source)
    lines = np.array([1, 256, 257, 600])
    excerpt.copy(source, target, lines)
    kept = pq.read_table(target)
    assert kept.equals(table.take(pa.array(lines - 1))) and kept.schema == table.schema


def test_what_cannot_be_copied_is_refused_by_name(tmp_path):
    lines, table = tmp_path / "pairs.jsonl", tmp_path / "pairs.parquet"
    lines.write_bytes(LINES[0])
    pq.write_table(pa.table({"a": [1]}), table)
    bad = [
        (lines, lines, "must be a new file"), (lines, tmp_path, "must be a new file"),
        (lines, tmp_path / "no" / "kept.jsonl", "must lie in a folder"),
        (lines, tmp_path / "kept.parquet", r"must not end in \.parquet, as pairs\.jsonl is JSON lines"),
        (table, tmp_path / "kept.jsonl", r"must end in \.parquet, as pairs\.parquet is Parquet"),
    ]  # fmt: skip
    for source, target, message in bad:
        with pytest.raises(ValueError, match=f"keep_out {message}"):
            excerpt.check(source, target)
    excerpt.check(lines, tmp_path / "kept.jsonl")
