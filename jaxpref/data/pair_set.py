"""Tokenized pairs as memory-mapped arrays: read once, kept on disk under what they depend on.

`prepare` streams a file of any size through the tokenizer into `token_store` arrays. With a cache folder they
are found again by the hashes of file, tokenizer and settings; a damaged entry is written anew.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jinja2
import numpy as np
import tokenizers

from jaxpref import results
from jaxpref.data import files, token_store
from jaxpref.data.files import BadLine, PairRecord, PairsFileError
from jaxpref.data.token_store import ArrayWriter
from jaxpref.data.tokenization import AfterEnd, EncodedPair, PairEncoder, Report, Tally, TokenizationError
from jaxpref.data.tokenizer import Tokenizer
from jaxpref.pairs import TokenPairs, TokenRows

Which = Literal["chosen", "rejected"]
ARRAYS = ("weights", "columns", "lengths", "starts", "tokens", "offsets", "lines", "merged", "truncated")
COLUMNS = (*files.SCORES, *files.COUNTS)
RECORDS_AT_ONCE = 512
CHARACTERS_AT_ONCE = 2**22  # of a batch; one pair may have more
SOURCES = ("files.py", "tokenization.py", "tokenizer.py", "encoder.py", "pair_set.py", "token_store.py")


class Names(Sequence[str]):
    """Strings in one memory-mapped block of UTF-8."""

    def __init__(self, block: np.ndarray, bounds: np.ndarray):
        self._block, self._bounds = block, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError beyond the end; from the end if negative
        return bytes(self._block[self._bounds[place] : self._bounds[place + 1]]).decode("utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
    """The kept pairs of a file, tokenized, in file order; arrays are memory maps."""

    ids: Sequence[str]  # [pairs]; the line's number where the file names none
    weights: np.ndarray  # [pairs] float32, 1 where the file names none
    columns: np.ndarray  # [pairs, 4] float32, `COLUMNS`; NaN where the file names none
    lengths: np.ndarray  # [pairs, 2] tokens of the rows (prompt and response) of chosen, rejected
    starts: np.ndarray  # [pairs] tokens of the prompt, which both rows share
    lines: np.ndarray  # [pairs] of the file, from 1
    merged: np.ndarray  # [pairs] a token spans prompt and response
    truncated: np.ndarray  # [pairs] a response was cut off
    sha256: str  # of token ids, lengths, starts, weights and columns: what a run depends on
    report: Report
    bad: tuple[BadLine, ...]
    tokens: np.ndarray  # int32, pair after pair: prompt, chosen response, rejected response
    offsets: np.ndarray  # [pairs] where a pair begins in `tokens`

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int | np.integer, which: Which) -> np.ndarray:
        """Token ids of prompt and response, [length] int32."""
        prompt, response = self._parts(index, which)
        return np.concatenate([prompt, response])

    def _parts(self, index: int | np.integer, which: Which) -> tuple[np.ndarray, np.ndarray]:
        if which not in ("chosen", "rejected"):
            raise ValueError(f"which must be chosen or rejected; got {which!r}")
        begin, start = int(self.offsets[index]), int(self.starts[index])
        chosen, rejected = (int(length) - start for length in self.lengths[index])
        prompt = self.tokens[begin : begin + start]
        if which == "chosen":
            return prompt, self.tokens[begin + start : begin + start + chosen]
        return prompt, self.tokens[begin + start + chosen : begin + start + chosen + rejected]

    def groups(
        self, indices: Iterable[int | np.integer]
    ) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
        """Token ids of each pair's prompt, and of its chosen and rejected response: what `packing` takes."""
        sides = [(self._parts(i, "chosen"), self._parts(i, "rejected")) for i in indices]
        return [chosen[0] for chosen, _ in sides], [(chosen[1], rejected[1]) for chosen, rejected in sides]

    def batch(
        self, indices: Iterable[int | np.integer] | np.ndarray, length: int | None = None
    ) -> TokenPairs:
        """Pairs as NumPy rows: prompt, response, padding on the right.

        Args:
          indices: which pairs, in which order.
          length: of the rows; None takes the longest row's.

        Raises:
          ValueError: a row is longer than `length`.
        """
        indices = np.asarray(indices, np.int64)
        longest = int(self.lengths[indices].max(initial=0))
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"length must hold the longest row's {longest} tokens; got {length}")
        return TokenPairs(self._rows(indices, length, "chosen"), self._rows(indices, length, "rejected"))

    def _rows(self, indices: np.ndarray, length: int, which: Which) -> TokenRows:
        """Masks are made from the lengths: padding may well have the end token's id."""
        tokens: Any = np.zeros((len(indices), length), np.int32)
        column = ("chosen", "rejected").index(which)
        for row, index in zip(tokens, indices, strict=True):
            prompt, response = self._parts(index, which)
            row[: len(prompt)] = prompt
            row[len(prompt) : len(prompt) + len(response)] = response
        place: Any = np.arange(length)
        begin, end = self.starts[indices, None], self.lengths[indices, column, None]
        return TokenRows(tokens, (place >= begin) & (place < end))


def check_reach(pairs: PairSet, reach: int | None, path: Path) -> None:
    """Raises PairsFileError where a row is longer than the model has positions; None is any number."""
    longest = int(pairs.lengths.max())
    if reach is not None and longest > reach:
        reason = f"rows must have at most the model's {reach} positions; got {longest}"
        raise PairsFileError(path, None, f"{reason} (--max-length cuts responses)")


def prepare(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    vocab: int,
    skip_bad: bool = False,
    allow_empty_prompt: bool = False,
    limit: int | None = None,
    cache: Path | None,
    after_end: AfterEnd = "keep",
) -> PairSet:
    """Tokenizes a file of pairs, or finds it in the cache.

    Args:
      path: JSON lines (gzipped too) or Parquet.
      tokenizer: the model's.
      max_length: tokens of the longest row, >= 2; what is longer loses the end of its response.
      vocab: the model's; ids must be below.
      skip_bad: list malformed lines in `bad` rather than stop at the first.
      allow_empty_prompt: take an empty prompt as it is.
      limit: read only the first so many pairs.
      cache: a folder that outlives the run; None keeps the arrays only as long as they are in use.
      after_end: see `tokenization.encode_pairs`.

    Raises:
      PairsFileError: names file, line and reason; also if no pair is left, or all weights are 0.
    """
    settings = {
        "max_length": max_length, "vocab": vocab, "skip_bad": skip_bad, "limit": limit,
        "allow_empty_prompt": allow_empty_prompt, "after_end": after_end,
    }  # fmt: skip
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    encode = PairEncoder(tokenizer, max_length=max_length, vocab=vocab, after_end=after_end)
    job = _Job(Path(path), tokenizer, encode, settings)
    place = None if cache is None else cache / job.key()
    found = None if place is None else _open(place)
    if found is not None:
        return found
    with token_store.scratch(place) as folder:
        return _tokenize(job, folder, place)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is to be tokenized, and how."""

    path: Path
    tokenizer: Tokenizer
    encode: PairEncoder
    settings: dict[str, Any]

    def key(self) -> str:
        """Of everything that the arrays depend on, the code and its libraries among it."""
        parts = (_file_sha256(self.path), self.tokenizer.sha256, self.settings, _code())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@functools.cache
def _code() -> tuple[str, ...]:
    """Versions of the code that makes the arrays."""
    ours = results.fingerprint(Path(__file__).parent / name for name in SOURCES)
    return ours, tokenizers.__version__, jinja2.__version__


def _file_sha256(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise PairsFileError(path, None, "must be a file; it is a folder, a pipe or a device")
    try:
        return results.file_sha256(path)
    except OSError as error:
        raise PairsFileError(path, None, f"cannot be read: {error.strerror or error}") from error


def _open(folder: Path) -> PairSet | None:
    """None where there is nothing, or something damaged, which is then taken away."""
    if not folder.exists():
        return None
    try:
        return _pair_set(folder)
    except (ValueError, TypeError, KeyError, OSError):
        token_store.discard(folder)
        return None


def _pair_set(folder: Path) -> PairSet:
    arrays, meta = token_store.read(folder)
    named = ("columns",) if np.isfinite(arrays["columns"]).any() else ()
    parts = [meta["sha256"][name] for name in ("tokens", "lengths", "starts", "weights", *named)]
    return PairSet(
        ids=Names(arrays["ids"], arrays["names"]),
        sha256=hashlib.sha256("".join(parts).encode()).hexdigest(),
        report=Report(**meta["report"]),
        bad=tuple(BadLine(**line) for line in meta["bad"]),
        **{name: arrays[name] for name in ARRAYS},
    )


def _tokenize(job: _Job, folder: Path, place: Path | None) -> PairSet:
    """Into a scratch folder; the arrays stay open when that goes, or when it has got its final name."""
    whole = folder / "pairs"
    whole.mkdir()
    arrays, tally = token_store.open_writers(whole), Tally(job.tokenizer)
    arrays["names"].append([0])
    with _collecting_only_what_is_new():
        bad = _write_pairs(job, arrays, tally)
    report = tally.report()
    if not report.pairs:
        raise _nothing_left(job, report, len(bad))
    notes = {"report": dataclasses.asdict(report), "bad": [dataclasses.asdict(line) for line in bad]}
    token_store.write(whole, arrays, notes)
    made = _pair_set(whole)
    if not made.weights.any():
        raise PairsFileError(job.path, None, "the weights must not all be 0")
    if place is not None:
        token_store.publish(whole, place)
    return made


@contextlib.contextmanager
def _collecting_only_what_is_new() -> Iterator[None]:
    """Short-lived lists set off the garbage collector: a fifth of the time, if it walks through all JAX."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _nothing_left(job: _Job, report: Report, bad: int) -> PairsFileError:
    if not report.dropped:
        return files.no_pair(job.path, bad)
    reasons = ", ".join(f"{name}: {count}" for name, count in report.dropped.items())
    return PairsFileError(
        job.path, None, f"no pair fits into max_length={job.settings['max_length']} tokens ({reasons})"
    )


def _write_pairs(job: _Job, arrays: dict[str, ArrayWriter], tally: Tally) -> list[BadLine]:
    bad: list[BadLine] = []
    for records in _batches(_records(job, bad)):
        kept = []
        for outcome in job.encode(records):
            if isinstance(outcome, TokenizationError):
                bad.append(_bad_line(job, outcome))
                continue
            tally.add(outcome)
            if isinstance(outcome, EncodedPair):
                kept.append(outcome)
        _append(arrays, kept, job.path)
    return bad


def _bad_line(job: _Job, error: TokenizationError) -> BadLine:
    if not job.settings["skip_bad"]:
        raise PairsFileError(job.path, error.line, error.reason) from error
    return BadLine(line=error.line, reason=files.printable(error.reason))


def _records(job: _Job, bad: list[BadLine]) -> Iterator[PairRecord]:
    """The good lines, at most `limit`; the others end in `bad`."""
    read = files.stream_pairs(
        job.path, skip_bad=job.settings["skip_bad"], allow_empty_prompt=job.settings["allow_empty_prompt"]
    )
    return itertools.islice(_good(read, bad), job.settings["limit"])


def _good(lines: Iterable[PairRecord | BadLine], bad: list[BadLine]) -> Iterator[PairRecord]:
    for line in lines:
        if isinstance(line, BadLine):
            bad.append(line)
        else:
            yield line


def _batches(records: Iterator[PairRecord]) -> Iterator[list[PairRecord]]:
    """Enough pairs at once to be quick, never so many that they fill the memory."""
    batch: list[PairRecord] = []
    size = 0
    for record in records:
        batch.append(record)
        size += record.size
        if len(batch) == RECORDS_AT_ONCE or size > CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _column(pair: EncodedPair, path: Path, name: str, default: float) -> float:
    value = pair.record.columns.get(name, default)
    if abs(value) > float(np.finfo(np.float32).max):
        raise PairsFileError(path, pair.record.line, f"{name} must be a finite float32; got {value:g}")
    return value


def _append(arrays: dict[str, ArrayWriter], pairs: Sequence[EncodedPair], path: Path) -> None:
    rows = [(p.chosen.tokens, p.rejected.tokens, p.chosen.start) for p in pairs]
    sizes = np.array([len(w) + len(l) - start for w, l, start in rows], np.int64)
    arrays["offsets"].append(arrays["tokens"].length + np.cumsum(sizes) - sizes)
    arrays["tokens"].append(
        np.fromiter(itertools.chain.from_iterable(w + l[start:] for w, l, start in rows), np.int32)
    )
    arrays["lengths"].append([(len(w), len(l)) for w, l, _ in rows])
    arrays["starts"].append([start for _, _, start in rows])
    arrays["lines"].append([pair.record.line for pair in pairs])
    for name in ("merged", "truncated"):
        arrays[name].append([getattr(p.chosen, name) or getattr(p.rejected, name) for p in pairs])
    arrays["weights"].append([_column(pair, path, "weight", 1.0) for pair in pairs])
    arrays["columns"].append([[_column(pair, path, name, math.nan) for name in COLUMNS] for pair in pairs])
    names = [pair.record.id.encode("utf-8") for pair in pairs]
    arrays["names"].append(arrays["ids"].length + np.cumsum([len(name) for name in names], dtype=np.int64))
    arrays["ids"].append(np.frombuffer(b"".join(names), np.uint8))
