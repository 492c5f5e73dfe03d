"""Pairs files: every format is read as what it means, every malformed line is named."""

import gzip
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpref.data import files
from jaxpref.data.files import ChatPair, IdPair, PairsFileError, TextPair
from jaxpref.scoring.config import EXAMPLE_PAIRS

GOOD = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": ""}
CALL = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}
HELLO, BYE = ({"role": "assistant", "content": text} for text in ("hello", "bye"))


def write(path, *lines):
    """Lines given as bytes stand as they are, all else is written as JSON."""
    whole = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(whole) + b"\n")
    return path


FORMATS = {
    "standard": (GOOD, TextPair("2+2=", "4", "5")),
    "implicit": (
        {"chosen": "The cat sat down.", "rejected": "The cat ran off."},
        TextPair("The cat", " sat down.", " ran off."),
    ),
    "implicit without a common prefix": ({"chosen": "Yes", "rejected": "no"}, TextPair("", "Yes", "no")),
    "implicit, one the prefix of the other": (
        {"chosen": "ab", "rejected": "abc"},
        TextPair("a", "b", "bc"),
    ),
    "implicit, one the prefix of the other behind a space": (
        {"chosen": "a b", "rejected": "a bc"},
        TextPair("a ", "b", "bc"),
    ),
    "white space": (GOOD | {"rejected": " \n"}, TextPair("2+2=", "4", " \n")),
    "an empty system turn": (
        {"prompt": [SYSTEM, USER], "chosen": "hello", "rejected": "bye"},
        ChatPair((SYSTEM, USER), (HELLO,), (BYE,)),
    ),
    "tools and variables": (
        {
            "prompt": [USER],
            "chosen": [HELLO],
            "rejected": [CALL],
            "tools": '[{"name": "f"}]',
            "chat_template_kwargs": {"thinking": True},
        },
        ChatPair((USER,), (HELLO,), (CALL,), ({"name": "f"},), {"thinking": True}),
    ),
    "messages with strings": (
        {"messages": [USER], "chosen": "hello", "rejected": "bye"},
        ChatPair((USER,), (HELLO,), (BYE,)),
    ),
    "conversational": (
        {"prompt": [USER], "chosen": [HELLO], "rejected": [BYE]},
        ChatPair((USER,), (HELLO,), (BYE,)),
    ),
    "conversational, implicit": (
        {"chosen": [USER, HELLO], "rejected": [USER, BYE]},
        ChatPair((USER,), (HELLO,), (BYE,)),
    ),
    "tokenized": (
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]},
        IdPair((1, 2), (3,), (4, 5)),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_formats_mean_what_trl_means_by_them(tmp_path, name, kind):
    line, expected = FORMATS[name]
    if kind == "jsonl":
        path = write(tmp_path / "pairs.jsonl", line)
    else:
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist([line]), path)
    (record,) = files.read_pairs(path).records
    assert (record.pair, record.line, record.id) == (expected, 1, "1")


BAD = {
    "half a line": (b'{"prompt": "a", "chosen"', "not JSON"),
    "a list": ([1, 2], "must be a JSON object; got list"),
    "deep nesting": (b"[" * 100_000, "not JSON"),
    "not UTF-8": (
        b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}',
        "not UTF-8: byte 0xe9 at position 15",
    ),
    "half a character": (b'{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}', "lone surrogate"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "field rejected is missing; the line has chosen, prompt"),
    "a number": (GOOD | {"chosen": 4}, "chosen must be a string; got number 4"),
    "null": (GOOD | {"chosen": None}, "field chosen is missing"),
    "empty response": (GOOD | {"rejected": ""}, "rejected must not be empty"),
    "empty prompt": (GOOD | {"prompt": ""}, "prompt must not be empty"),
    "blank prompt": (GOOD | {"prompt": "  "}, "prompt must not be empty"),
    "no prompt in common": ({"chosen": [HELLO], "rejected": [BYE]}, "must begin with the same message"),
    "tools": ({"messages": [USER], "tools": "[1]", "chosen": "a", "rejected": "b"}, "tools must be a list"),
    "tools that are no JSON": (
        {"messages": [USER], "tools": "[", "chosen": "a", "rejected": "b"},
        "tools must be JSON; got string '['",
    ),
    "template keyword": (
        {"messages": [USER], "chat_template_kwargs": {"messages": []}, "chosen": "a", "rejected": "b"},
        "chat_template_kwargs must be an object without add_generation_prompt and messages",
    ),
    "null prompt": (GOOD | {"prompt": None}, "prompt must not be null"),
    "beyond float64": (GOOD | {"weight": 10**400}, "weight must be a finite number of at least 0; got 1000"),
    "long value": (GOOD | {"weight": "9" * 1000}, f"got '{'9' * 39}..."),
    "half a character in a name": (b'{"\\ud83d": 1}', r"the line has \ud83d"),
    "terminal codes in a name": (b'{"\\u001b[2J": 1}', r"the line has \x1b[2J"),
    "identical": (GOOD | {"rejected": "4"}, "chosen and rejected must differ"),
    "empty chat response": ({"messages": [USER], "chosen": "", "rejected": "b"}, "chosen must not be empty"),
    "no messages": ({"messages": [], "chosen": "a", "rejected": "b"}, "messages must be a list of messages"),
    "no role": ({"messages": [{"content": "a"}], "chosen": "a", "rejected": "b"}, "field role is missing"),
    "empty content": ({"messages": [USER | {"content": ""}], "chosen": "a", "rejected": "b"}, "no content"),
    "assistant asks": ({"messages": [USER, HELLO], "chosen": "a", "rejected": "b"}, "must not end with"),
    "negative id": (
        {"prompt_ids": [1], "chosen_ids": [-2], "rejected_ids": [3]},
        "chosen_ids must be a list",
    ),
    "boolean id": (
        {"prompt_ids": [1], "chosen_ids": [True], "rejected_ids": [3]},
        "chosen_ids must be a list",
    ),
    "no ids": ({"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [3]}, "chosen must not be empty"),
    "score": (GOOD | {"chosen_score": "high"}, "chosen_score must be a finite number; got 'high'"),
    "not finite": (
        b'{"prompt":"a","chosen":"b","rejected":"c","rejected_score":NaN}',
        "must be a finite number",
    ),
    "votes": (GOOD | {"votes_chosen": 1.5}, "votes_chosen must be a whole number of at least 0"),
    "weight": (GOOD | {"weight": -1}, "weight must be a finite number of at least 0; got -1"),
    "id": (GOOD | {"id": [1]}, "id must be a string or an integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_lines_are_named_with_file_line_and_reason(tmp_path, name):
    line, reason = BAD[name]
    path = write(tmp_path / "pairs.jsonl", GOOD, b"", line)  # a blank line is counted, not read
    with pytest.raises(PairsFileError) as error:
        files.read_pairs(path)
    assert reason in error.value.reason
    assert str(error.value).startswith(f"{path}, line 3: ")


@pytest.mark.parametrize("name", BAD)
def test_skip_bad_lists_the_line_and_keeps_the_others(tmp_path, name):
    line, reason = BAD[name]
    path = write(tmp_path / "pairs.jsonl", GOOD, line, GOOD)
    read = files.read_pairs(path, skip_bad=True)
    assert [record.line for record in read.records] == [1, 3]
    assert [bad.line for bad in read.bad] == [2] and reason in read.bad[0].reason


def test_an_empty_prompt_may_be_allowed(tmp_path):
    path = write(tmp_path / "pairs.jsonl", GOOD | {"prompt": ""})
    assert files.read_pairs(path, allow_empty_prompt=True).records[0].pair == TextPair("", "4", "5")


def test_a_line_that_is_too_long_is_an_error_and_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_LINE", 1000)
    path = write(tmp_path / "pairs.jsonl", GOOD, GOOD | {"chosen": "x" * 10**7}, GOOD)
    with pytest.raises(PairsFileError, match="line 2: a line must not be longer than 1000 bytes"):
        files.read_pairs(path)
    tracemalloc.start()
    assert [record.line for record in files.read_pairs(path, skip_bad=True).records] == [1, 3]
    assert tracemalloc.get_traced_memory()[1] < 4 * 10**6
    tracemalloc.stop()


def test_gzip_is_read_like_the_file_in_it_and_half_of_one_is_refused(tmp_path):
    plain = write(tmp_path / "pairs.jsonl", GOOD, GOOD | {"id": "second"})
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert files.read_pairs(packed).records == files.read_pairs(plain).records
    packed.write_bytes(gzip.compress(plain.read_bytes())[:40])
    with pytest.raises(PairsFileError, match="cannot be read"):
        files.read_pairs(packed)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_files_without_a_pair_are_refused(tmp_path, content):
    (tmp_path / "pairs.jsonl").write_bytes(content)
    with pytest.raises(PairsFileError, match="it holds no pair"):
        files.read_pairs(tmp_path / "pairs.jsonl")


def test_a_pipe_without_a_writer_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PairsFileError, match="must be a file; it is a folder, a pipe or a device"):
        files.read_pairs(tmp_path / "pipe")


def test_a_byte_order_mark_alone_is_a_blank_line(tmp_path):
    (record,) = files.read_pairs(write(tmp_path / "pairs.jsonl", b"\xef\xbb\xbf", GOOD)).records
    assert record.line == 2


def test_missing_files_folders_and_damaged_parquet_are_refused(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    for name in ("nowhere.jsonl", ".", "cut.parquet"):
        with pytest.raises(PairsFileError):
            files.read_pairs(tmp_path / name)


def test_optional_columns_are_kept_and_a_byte_order_mark_is_not(tmp_path):
    line = json.dumps(
        GOOD | {"chosen_score": 3, "votes_rejected": 1, "weight": 0.5, "id": 7, "other": []}
    ).encode()
    (record,) = files.read_pairs(write(tmp_path / "pairs.jsonl", b"\xef\xbb\xbf" + line)).records
    assert record.id == "7"
    assert record.columns == {"chosen_score": 3.0, "votes_rejected": 1.0, "weight": 0.5}


def test_the_example_that_comes_with_jaxpref_is_good():
    read = files.read_pairs(EXAMPLE_PAIRS)
    assert len(read.records) == 32 and not read.bad
