"""Prepared pairs: what `encode_pairs` gives, on disk; found again, and never read when damaged."""

import dataclasses
import errno
import json
import os
import threading
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_model

from jaxpref.data import files, pair_set, token_store, tokenization, tokenizer
from jaxpref.policies import gguf_file

VOCAB = len(tiny_model.VOCAB)
EOS = tiny_model.VOCAB.index("<|im_end|>")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tiny_model.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    return tokenizer.from_gguf(gguf_file.metadata(gguf_file.open_file(path)))


def lines(count=20):
    """Pairs of several lengths and formats."""
    for i in range(count):
        text = {"prompt": "hello" * (i % 3 + 1), "chosen": f" world {i}", "rejected": " 42" * (i % 5 + 1)}
        chat = {"messages": [{"role": "user", "content": f"hello {i}"}], "chosen": "world", "rejected": "12"}
        ids = {"prompt_ids": [3], "chosen_ids": [4, i % 7], "rejected_ids": [5], "weight": 0.5, "id": f"é{i}"}
        yield (text, chat, ids)[i % 3]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare(path, tiny, cache=None, **settings):
    return pair_set.prepare(path, tiny, **({"max_length": 64, "vocab": VOCAB, "cache": cache} | settings))


def test_rows_are_those_of_encode_pairs_in_the_order_of_the_file(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(pair_set, "RECORDS_AT_ONCE", 3)  # several batches
    path = write(tmp_path / "pairs.jsonl", lines())
    made = prepare(path, tiny, max_length=20)
    encoded, report = tokenization.encode_pairs(
        files.read_pairs(path).records, tiny, max_length=20, vocab=VOCAB
    )
    assert made.report == report and len(made) == len(encoded) < 20
    assert list(made.ids) == [pair.record.id for pair in encoded] and made.ids[-1] == encoded[-1].record.id
    assert made.ids[1:3] == [pair.record.id for pair in encoded[1:3]]
    assert made.weights.tolist() == [pair.record.columns.get("weight", 1.0) for pair in encoded]
    assert made.lines.tolist() == [pair.record.line for pair in encoded]
    for name in ("merged", "truncated"):
        expected = [getattr(pair.chosen, name) or getattr(pair.rejected, name) for pair in encoded]
        assert getattr(made, name).tolist() == expected
    for i, pair in enumerate(encoded):
        assert made.row(i, "chosen").tolist() == list(pair.chosen.tokens)
        assert made.row(i, "rejected").tolist() == list(pair.rejected.tokens)
        assert made.starts[i] == pair.chosen.start == pair.rejected.start
        assert made.lengths[i].tolist() == [len(pair.chosen.tokens), len(pair.rejected.tokens)]
    assert isinstance(made.tokens, np.memmap) and made.tokens.dtype == np.int32


def test_groups_are_prompts_and_both_responses_which_make_the_rows(tmp_path, tiny):
    made, order = prepare(write(tmp_path / "pairs.jsonl", lines()), tiny), np.array([7, 0, 3])
    prompts, responses = made.groups(order)
    for i, prompt, pair in zip(order, prompts, responses, strict=True):
        assert len(prompt) == made.starts[i]
        for which, response in zip(("chosen", "rejected"), pair, strict=True):
            np.testing.assert_array_equal(np.concatenate([prompt, response]), made.row(i, which))


def test_batches_are_those_of_to_batch_and_masks_know_nothing_of_ids(tmp_path, tiny):
    path = write(tmp_path / "pairs.jsonl", lines())
    made, order = prepare(path, tiny), [7, 0, 3, 3, 14]  # 14 has token 0, the id of padding, in its response
    encoded, _ = tokenization.encode_pairs(files.read_pairs(path).records, tiny, max_length=64, vocab=VOCAB)
    for length in (None, 64):
        batch = made.batch(np.array(order), length)
        expected = tokenization.to_batch([encoded[i] for i in order], length=length)
        for side in ("chosen", "rejected"):
            got, want = getattr(batch, side), getattr(expected, side)
            np.testing.assert_array_equal(got.tokens, want.tokens)
            np.testing.assert_array_equal(got.response_mask, want.response_mask)
            assert type(got.tokens) is np.ndarray
    with pytest.raises(ValueError, match="length must hold the longest row's"):
        made.batch([0], 2)


@pytest.mark.parametrize("kind", ["parquet", "gzip"])
def test_other_formats_hold_the_same_pairs(tmp_path, tiny, kind):
    import gzip

    rows = [row for i, row in enumerate(lines()) if i % 3 == 0]
    plain, other = write(tmp_path / "pairs.jsonl", rows), tmp_path / f"pairs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), other, row_group_size=2)
    else:
        other.write_bytes(gzip.compress(plain.read_bytes()))
    assert prepare(other, tiny).sha256 == prepare(plain, tiny).sha256


def test_limit_counts_good_pairs_and_skipped_lines_are_listed(tmp_path, tiny):
    good = next(lines())
    outside = {"prompt_ids": [1], "chosen_ids": [VOCAB], "rejected_ids": [2]}
    path = write(tmp_path / "pairs.jsonl", [{"chosen": 1}, good, outside, *lines(5)])
    made = prepare(path, tiny, skip_bad=True, limit=4)
    assert [bad.line for bad in made.bad] == [1, 3] and len(made) == 3
    assert "must be below the vocabulary's" in made.bad[1].reason
    with pytest.raises(files.PairsFileError, match="line 3: token ids must be below"):
        prepare(write(path, [good, good, outside]), tiny)


def test_a_second_call_reads_the_cache_and_nothing_else(tmp_path, tiny, monkeypatch):
    path, cache = write(tmp_path / "pairs.jsonl", [*lines(), {"bad": 1}]), tmp_path / "cache"
    first = prepare(path, tiny, cache, skip_bad=True)
    monkeypatch.setattr(files, "stream_pairs", lambda *_, **__: pytest.fail("the file was read again"))
    second = prepare(path, tiny, cache, skip_bad=True)
    assert (second.sha256, second.report, second.bad) == (first.sha256, first.report, first.bad)
    assert list(second.ids) == list(first.ids)
    np.testing.assert_array_equal(second.tokens, first.tokens)
    assert len(list(cache.iterdir())) == 1


CHANGES = {
    "length": {"max_length": 20},
    "vocabulary": {"vocab": VOCAB + 1},
    "limit": {"limit": 3},
    "after the end": {"after_end": "cut"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_another_entry(tmp_path, tiny, change):
    path, cache = write(tmp_path / "pairs.jsonl", lines()), tmp_path / "cache"
    prepare(path, tiny, cache)
    prepare(path, tiny, cache, **CHANGES[change])
    assert len(list(cache.iterdir())) == 2


def test_another_template_or_end_token_is_another_entry(tmp_path, tiny):
    path, cache = write(tmp_path / "pairs.jsonl", lines()), tmp_path / "cache"
    others = [{}, {"chat_template": tiny.chat_template + "x"}, {"eos": 0}, {"add_bos": True}]
    hashes = [prepare(path, dataclasses.replace(tiny, **other), cache).sha256 for other in others]
    assert len(set(hashes)) == len(others) == len(list(cache.iterdir()))


def _cut(folder):
    data = (folder / "tokens.npy").read_bytes()
    (folder / "tokens.npy").write_bytes(data[:-4])


def _flip(folder):
    data = bytearray((folder / "starts.npy").read_bytes())
    data[-4] ^= 1
    (folder / "starts.npy").write_bytes(data)


DAMAGES = {
    "cut": _cut,
    "a bit": _flip,
    "no notes": lambda folder: (folder / "meta.json").unlink(),
    "half the notes": lambda folder: (folder / "meta.json").write_text('{"sha256": {'),
    "other notes": lambda folder: (folder / "meta.json").write_text("[]"),
    "a file missing": lambda folder: (folder / "ids.npy").unlink(),
    "a file in its place": lambda folder: (folder.rename(folder.with_name("x")), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_written_anew(tmp_path, tiny, damage):
    path, cache = write(tmp_path / "pairs.jsonl", lines()), tmp_path / "cache"
    first = prepare(path, tiny, cache)
    (folder,) = cache.iterdir()
    starts, tokens = np.array(first.starts), np.array(first.tokens)
    DAMAGES[damage](folder)
    second = prepare(path, tiny, cache)
    assert second.sha256 == first.sha256 and second.report == first.report
    np.testing.assert_array_equal(second.starts, starts)
    np.testing.assert_array_equal(second.tokens, tokens)
    assert pair_set._open(folder) is not None  # whole again


def test_a_failed_run_leaves_nothing_behind(tmp_path, tiny):
    cache = tmp_path / "cache"
    with pytest.raises(files.PairsFileError, match="line 2"):
        prepare(write(tmp_path / "pairs.jsonl", [next(lines()), {}]), tiny, cache)
    assert not list(cache.iterdir())


def test_scratch_folders_of_killed_writers_are_swept_after_a_day_and_not_before(tmp_path, tiny):
    path, cache = write(tmp_path / "pairs.jsonl", lines()), tmp_path / "cache"
    for name in (".partial-old", ".partial-new"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".partial-old", (0, 0))
    prepare(path, tiny, cache)
    assert {".partial-new"} == {folder.name for folder in cache.glob(".partial-*")}


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, tiny, monkeypatch):
    def full(self, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = tmp_path / "cache"
    monkeypatch.setattr(token_store.ArrayWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(write(tmp_path / "pairs.jsonl", lines()), tiny, cache)
    assert not list(cache.iterdir())


def test_end_token_alone_pad_that_is_eos_and_a_line_of_ten_megabytes(tmp_path, tiny):
    """One file of hard lines: counted, listed, masked right; never an empty response."""
    rows = [
        {"prompt": "hello", "chosen": "<|im_end|>", "rejected": " world"},
        {"prompt": "hello", "chosen": "", "rejected": " world"},
        {"prompt": "hello", "chosen": "x" * 10**7, "rejected": " world"},
        {"prompt": "hello" * 70, "chosen": "x", "rejected": " world"},
        {"prompt_ids": [3, EOS], "chosen_ids": [EOS, EOS], "rejected_ids": [EOS]},
    ]
    made = prepare(write(tmp_path / "pairs.jsonl", rows), tiny, skip_bad=True)
    assert [bad.line for bad in made.bad] == [2, 3]
    assert made.report.dropped == {"prompt_fills_max_length": 1} and made.report.empty == 2
    batch = made.batch(range(len(made)), 8)
    assert batch.lengths.chosen.tolist() == [1, 2] and batch.lengths.rejected.tolist() == [2, 1]
    assert made.row(0, "chosen").tolist()[-1] == EOS


def test_writers_at_the_same_time_all_get_the_pairs_and_leave_one_entry(tmp_path, tiny):
    path, cache = write(tmp_path / "pairs.jsonl", lines(60)), tmp_path / "cache"
    made: list[pair_set.PairSet] = []
    pair_set._code()  # Python's own parser is not for threads
    threads = [threading.Thread(target=lambda: made.append(prepare(path, tiny, cache))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(made) == 4 and len({one.sha256 for one in made}) == 1
    assert len(list(cache.iterdir())) == 1


def test_memory_does_not_grow_with_the_file(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(pair_set, "RECORDS_AT_ONCE", 4)
    long = {"prompt_ids": [3] * 4_000, "chosen_ids": [4] * 4_000, "rejected_ids": [5] * 4_000}
    peaks = []
    for count in (8, 32):
        path = write(tmp_path / f"{count}.jsonl", [long] * count)
        tracemalloc.start()
        made = prepare(path, tiny, max_length=10**6)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(made) == 32 and made.tokens.nbytes == 32 * 48_000
    assert peaks[1] < 1.1 * peaks[0]


REFUSED = {
    "nothing fits": (
        [{"prompt_ids": [1] * 64, "chosen_ids": [1], "rejected_ids": [2]}],
                     "no pair fits into max_length=64 tokens .prompt_fills_max_length: 1"),
    "no weight": (
        [{"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [2], "weight": 0}],
        "must not all be 0",
    ),
    "weight beyond float32": (
        [{"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [2], "weight": 1e39}],
        r"line 1: weight must be a finite float32; got 1e\+39",
    ),
    "empty": ([], "it holds no pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_files_without_use_are_refused(tmp_path, tiny, name):
    rows, reason = REFUSED[name]
    with pytest.raises(files.PairsFileError, match=reason):
        prepare(write(tmp_path / "pairs.jsonl", rows), tiny)


@pytest.mark.parametrize(
    ("setting", "named"),
    [({"max_length": 1}, "max_length"), ({"limit": 0}, "limit")],
)
def test_settings_are_checked_by_name(tmp_path, tiny, setting, named):
    with pytest.raises(ValueError, match=f"{named} must be"):
        prepare(write(tmp_path / "pairs.jsonl", lines()), tiny, **setting)
