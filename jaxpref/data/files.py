"""Preference pairs from JSON lines (gzipped too) or Parquet, in the formats of TRL, checked line by line.

    standard         prompt, chosen, rejected: strings
    implicit prompt  chosen, rejected: the prompt is the prefix that they share
    conversational   lists of {role, content}; `messages` may stand for `prompt`, and a string for a
                     list of one assistant message; further fields of a message go to the template, and so
                     do the columns `tools` and `chat_template_kwargs`
    tokenized        prompt_ids, chosen_ids, rejected_ids: lists of integers

Optional columns: chosen_score, rejected_score, votes_chosen, votes_rejected, weight, id. Others are ignored,
and so are blank lines. A written-out prompt may be empty only where the caller allows it. Pairs are read one
after the other, in memory that does not grow with the file.
"""

import codecs
import dataclasses
import gzip
import io
import json
import math
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxpref import results
from jaxpref.data.tokenizer import RESERVED, Message

SHOWN = 40  # characters of a wrong value, and names of fields, that a message quotes
SCORES = ("chosen_score", "rejected_score")
COUNTS = ("votes_chosen", "votes_rejected")
LARGEST_LINE = 8 * 2**20  # bytes; a pair of two million tokens
ROWS_AT_ONCE = 256  # of Parquet


class PairsFileError(ValueError):
    """A pairs file that cannot be used: which file, which line (or Parquet row), and why."""

    def __init__(self, path: str | os.PathLike[str], line: int | None, reason: str):
        self.path, self.line, self.reason = Path(path), line, reason
        super().__init__(f"{path}: {reason}" if line is None else f"{path}, line {line}: {reason}")


@dataclasses.dataclass(frozen=True)
class TextPair:
    """Prompt and responses as they stand, without a template."""

    prompt: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class ChatPair:
    """A conversation and two ways to go on with it."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None  # JSON schemas of functions
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # `chat_template_kwargs`


@dataclasses.dataclass(frozen=True)
class IdPair:
    """Prompt and responses as token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRecord:
    """One pair of a file; `columns` holds those optional columns that the line has."""

    line: int  # counted from 1; of a Parquet file the row
    id: str  # the line's number where the file names none
    pair: TextPair | ChatPair | IdPair
    columns: dict[str, float]
    size: int = 0  # bytes of the line; of Parquet about


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadLine:
    line: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsFile:
    """The good lines of a file in their order, and the bad ones if these were to be skipped."""

    path: Path
    sha256: str
    records: tuple[PairRecord, ...]
    bad: tuple[BadLine, ...]


def read_pairs(path: str | Path, *, skip_bad: bool = False, allow_empty_prompt: bool = False) -> PairsFile:
    """Reads and checks a whole file.

    Args:
      path: JSON lines or Parquet, told apart by content.
      skip_bad: collect malformed lines in `bad` rather than stop at the first.
      allow_empty_prompt: take `"prompt": ""` as it is; else it is an error, being mostly a lost field.

    Raises:
      PairsFileError: names file, line and reason; also if no good line is left.
    """
    path = Path(path)
    found = list(stream_pairs(path, skip_bad=skip_bad, allow_empty_prompt=allow_empty_prompt))
    bad = tuple(line for line in found if isinstance(line, BadLine))
    records = tuple(line for line in found if isinstance(line, PairRecord))
    if not records:
        raise no_pair(path, len(bad))
    return PairsFile(path=path, sha256=results.file_sha256(path), records=records, bad=bad)


def no_pair(path: Path, bad: int) -> PairsFileError:
    """The error of a file without a good line."""
    return PairsFileError(path, None, f"it holds no pair ({bad} bad lines)" if bad else "it holds no pair")


def stream_pairs(
    path: Path, *, skip_bad: bool = False, allow_empty_prompt: bool = False
) -> Iterator[PairRecord | BadLine]:
    """The lines of a file one by one; arguments and errors are those of `read_pairs`."""
    for line, row in _rows(path):
        try:
            yield _record(line, row, allow_empty_prompt=allow_empty_prompt)
        except _BadLineError as error:
            if not skip_bad:
                raise PairsFileError(path, line, str(error)) from error
            yield BadLine(line=line, reason=str(error))


class _BadLineError(ValueError):
    """Why a line is no pair; becomes a `PairsFileError` or a `BadLine`."""

    def __init__(self, reason: str):
        super().__init__(printable(reason))


def printable(text: str) -> str:
    """One line that any terminal takes: a file's own control characters and half characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers with the line's bytes (None where they are too many), or with the row's dict."""
    try:
        if path.exists() and not path.is_file():  # a pipe without a writer would keep us waiting
            raise PairsFileError(path, None, "must be a file; it is a folder, a pipe or a device")
        yield from enumerate(_parquet(path), 1) if is_parquet(path) else raw_lines(path)
    except (OSError, EOFError, zlib.error) as error:  # Arrow's reading errors are among them
        reason = getattr(error, "strerror", None) or error
        raise PairsFileError(path, None, f"cannot be read: {reason}") from error
    except pa.ArrowException as error:
        raise PairsFileError(path, None, f"is a damaged Parquet file: {error}") from error


def is_parquet(path: Path) -> bool:
    """Told by content."""
    return _magic(path) == b"PAR1"


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def raw_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file of JSON that are not blank, numbered, as they stand; None where one is too long."""
    opener: Any = gzip.open if _magic(path)[:2] == b"\x1f\x8b" else open
    with opener(path, "rb") as file:
        yield from _lines(file)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            yield from batch.to_pylist()


def _lines(file: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank, numbered, without a byte order mark."""
    number = 0
    while line := file.readline(LARGEST_LINE + 1):
        number += 1
        if len(line) > LARGEST_LINE and not line.endswith(b"\n"):
            _skip_line(file)
            yield number, None
            continue
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            yield number, text


def _skip_line(file: io.BufferedIOBase) -> None:
    """Reads to the end of a line that is too long, without holding it."""
    while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
        pass


def _record(line: int, row: bytes | dict[str, Any] | None, *, allow_empty_prompt: bool) -> PairRecord:
    if row is None:
        raise _BadLineError(f"a line must not be longer than {LARGEST_LINE} bytes")
    written = _parse(row) if isinstance(row, bytes) else row
    fields = {key: value for key, value in written.items() if value is not None}  # Parquet has no "absent"
    if "prompt" in written and not {"prompt", "messages", "prompt_ids"} & fields.keys():
        raise _BadLineError("prompt must not be null; without the field, the shared prefix is the prompt")
    pair = _pair(fields, allow_empty_prompt=allow_empty_prompt)
    size = len(row) if isinstance(row, bytes) else _size(row)
    return PairRecord(line=line, id=_id(fields, line), pair=pair, columns=_columns(fields), size=size)


def _size(row: dict[str, Any]) -> int:
    """About the bytes of a Parquet row: of its text, and four for all else."""
    size = sum(len(value) if isinstance(value, str) else 4 * len(str(value)) for value in row.values())
    if size > 4 * LARGEST_LINE:
        raise _BadLineError(f"a row must not be longer than {LARGEST_LINE} bytes")
    return size


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8").rstrip())  # else an error may be placed on a second line
    except UnicodeDecodeError as error:
        raise _BadLineError(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _BadLineError(f"a pair must be a JSON object; got {_kind(value)}")
    return value


def _pair(fields: dict[str, Any], *, allow_empty_prompt: bool) -> TextPair | ChatPair | IdPair:
    if "chosen_ids" in fields or "rejected_ids" in fields:
        pair: TextPair | ChatPair | IdPair = IdPair(
            *(_ids(fields, f"{n}_ids") for n in ("prompt", "chosen", "rejected"))
        )
        written_out = True
    else:
        pair, written_out = _text_or_chat(fields)
    if written_out and _blank(pair.prompt) and not allow_empty_prompt:
        raise _BadLineError("prompt must not be empty (--allow-empty-prompt takes it as it is)")
    for name in ("chosen", "rejected"):
        if _silent(getattr(pair, name)):
            raise _BadLineError(f"{name} must not be empty")
    if pair.chosen == pair.rejected:
        raise _BadLineError("chosen and rejected must differ; they are identical")
    return pair


def _blank(part: Any) -> bool:
    """Nothing to go on: no message, no token id, or no text but white space."""
    return not (part.strip() if isinstance(part, str) else part)


def _silent(response: Any) -> bool:
    """Nothing to compare; white space alone is something, and so is a call without words."""
    if isinstance(response, tuple) and response and isinstance(response[0], dict):
        return not any(message.get("content") or message.keys() - {"role", "content"} for message in response)
    return not response


def _text_or_chat(fields: dict[str, Any]) -> tuple[TextPair | ChatPair, bool]:
    """The pair, and whether its prompt was written out."""
    chosen, rejected = _field(fields, "chosen"), _field(fields, "rejected")
    prompt_name = "messages" if "messages" in fields else "prompt"
    if prompt_name not in fields:
        return _implicit(fields, chosen, rejected), False
    if isinstance(fields[prompt_name], str):
        return TextPair(*(_text(fields, name) for name in (prompt_name, "chosen", "rejected"))), True
    prompt = _messages(fields[prompt_name], prompt_name)
    if prompt and prompt[-1]["role"] == "assistant":
        raise _BadLineError(f"{prompt_name} must not end with a message of the assistant")
    return _chat(fields, prompt, _reply(chosen, "chosen"), _reply(rejected, "rejected")), True


def _chat(
    fields: dict[str, Any],
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
) -> ChatPair:
    """With what else the template is to see: `tools` as a list or as JSON, `chat_template_kwargs`."""
    tools, variables = fields.get("tools"), fields.get("chat_template_kwargs", {})
    if isinstance(tools, str):
        tools = _json(tools, "tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise _BadLineError(f"tools must be a list of objects; got {_kind(tools)}")
    if not isinstance(variables, dict) or RESERVED & variables.keys():
        rule = f"an object without {' and '.join(sorted(RESERVED))}"
        raise _BadLineError(f"chat_template_kwargs must be {rule}; got {_kind(variables)}")
    variables = {name: value for name, value in variables.items() if value is not None}
    return ChatPair(prompt, chosen, rejected, None if tools is None else tuple(tools), variables)


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"{name} must be JSON; got {_kind(text)}: {error}") from error


def _implicit(fields: dict[str, Any], chosen: Any, rejected: Any) -> TextPair | ChatPair:
    """The prompt is what both begin with, by the rules of TRL's `extract_prompt`.

    A response is never left empty; where the two differ behind a space, the space begins them. (Where they
    differ from the first character on, and chosen ends with a space, TRL takes all but that for the prompt.)
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        _unicode(chosen, "chosen"), _unicode(rejected, "rejected")
        cut = _common(chosen, rejected)
        differs = chosen[cut : cut + 1] != rejected[cut : cut + 1]
        cut -= differs and cut > 0 and chosen[cut - 1] == " "
        return TextPair(chosen[:cut], chosen[cut:], rejected[cut:])
    first, second = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    cut = _common(first, second)
    if not cut:
        raise _BadLineError("chosen and rejected must begin with the same message: it is the prompt")
    return _chat(fields, first[:cut], first[cut:], second[cut:])


def _common(first: Any, second: Any) -> int:
    """Length of the common prefix, one short of the shorter where it is all of it."""
    low, high = 0, max(min(len(first), len(second)) - 1, 0)
    while low < high:  # by halves: prefixes are compared in C
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def _field(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        names = ", ".join(sorted(fields)[:SHOWN]) or "no field"
        raise _BadLineError(f"field {name} is missing; the line has {names}")
    return fields[name]


def _text(fields: dict[str, Any], name: str) -> str:
    value = _field(fields, name)
    if not isinstance(value, str):
        raise _BadLineError(f"{name} must be a string; got {_kind(value)}")
    return _unicode(value, name)


def _unicode(value: str, name: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadLineError(
            f"{name} is not Unicode text: lone surrogate at position {error.start}"
        ) from error
    return value


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _BadLineError(f"{name} must be a list of messages, not empty; got {_kind(value)}")
    return tuple(_message(item, f"{name}[{i}]") for i, item in enumerate(value))


def _message(value: Any, name: str) -> Message:
    """Of a user there must be words; a system's turn may be empty, and an assistant's that calls a tool."""
    if not isinstance(value, dict):
        raise _BadLineError(f"{name} must be an object with role and content; got {_kind(value)}")
    present = {key: item for key, item in value.items() if item is not None}
    role = _text(present, "role")
    content = _text(present, "content") if "content" in present or "tool_calls" not in present else ""
    if not role or (role == "user" and _blank(content)):
        raise _BadLineError(
            f"{name} must have a role and a content; got {'no role' if not role else 'no content'}"
        )
    return present


def _reply(value: Any, name: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "assistant", "content": _unicode(value, name)},) if value else ()
    return _messages(value, name)


def _ids(fields: dict[str, Any], name: str) -> tuple[int, ...]:
    value = _field(fields, name)
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise _BadLineError(f"{name} must be a list of integers of at least 0; got {_kind(value)}")
    return tuple(value)


def _id(fields: dict[str, Any], line: int) -> str:
    value = fields.get("id", line)
    if type(value) not in (str, int):
        raise _BadLineError(f"id must be a string or an integer; got {_kind(value)}")
    return _unicode(str(value), "id")


def _columns(fields: dict[str, Any]) -> dict[str, float]:
    counts = {name: _number(fields[name], name, minimum=0.0, whole=True) for name in COUNTS if name in fields}
    scores = {name: _number(fields[name], name) for name in SCORES if name in fields}
    weight = {name: _number(fields[name], name, minimum=0.0) for name in ("weight",) if name in fields}
    return counts | scores | weight


def _number(value: Any, name: str, *, minimum: float = -math.inf, whole: bool = False) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and abs(value) <= sys.float_info.max  # math.isfinite raises on integers beyond it
    if not finite or value < minimum or (whole and value != int(value)):
        rule = "a whole number" if whole else "a finite number"
        least = f" of at least {minimum:g}" if minimum > -math.inf else ""
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise _BadLineError(f"{name} must be {rule}{least}; got {shown}")
    return float(value)


def _kind(value: Any) -> str:
    """A value's type as JSON calls it, and the value where it is short."""
    names: Iterable[tuple[type, str]] = ((bool, "boolean"), (str, "string"), (list, "list"), (dict, "object"))
    kind = next(
        (name for of, name in names if isinstance(value, of)), "number" if value is not None else "null"
    )
    shown = repr(value)
    return f"{kind} {shown}" if len(shown) <= SHOWN else kind
