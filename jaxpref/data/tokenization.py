"""Pairs of text to rows of tokens: prompt, response, padding. The ids are those of TRL's DPO trainer.

Prompt and response are told apart on the joint tokenization, prompt and response encoded as one text: the
prompt's tokens are those that both joint rows share with the prompt encoded alone. Where the last prompt
token merged with a response, the merged token belongs to the responses, and the pair is counted. Plain text
is closed by the end token, unless it spells it out, and gets what the tokenizer puts around every text; a
conversation is what the template writes, with what it writes after the last end token (SmolLM2's newline).
Rows lose their end at `max_length`; pairs whose prompt alone fills it are dropped.

Where TRL 1.16 does something else:
- BOS stands at most once, where TRL writes one that the prompt spells out a second time.
- A row always has a token before its response: BOS, or else EOS, where the prompt has none left. TRL's
  first response token is not scored then.
- An empty response ("", or no content) and two identical responses are malformed lines; TRL trains on EOS
  alone and on a margin of 0. White space alone, EOS spelled out alone, and responses that become identical
  by truncation are taken, as TRL takes them, and counted as `empty` and `indistinct`.
- A response without any token (a template that drops it) is a counted drop; TRL keeps it at log-probability
  0.
- A conversation that ends with the assistant's turn is no prompt, one that shares no message with the other
  has none, and one of which the whole keeps no token is refused by line.
- `strftime_now` of a template says 26 July 2024 on every day, or a run would not resume on the next.
- A tokenizer without an end token is refused for plain text, by name; TRL fails on it.
"""

import dataclasses
import functools
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxpref.data.encoder import Encoder
from jaxpref.data.files import ChatPair, IdPair, PairRecord, TextPair
from jaxpref.data.tokenizer import Tokenizer
from jaxpref.pairs import TokenPairs, TokenRows

AfterEnd = Literal["keep", "cut"]
Drop = Literal["prompt_fills_max_length", "no_response_token"]
Ids = list[int]


class TokenizationError(ValueError):
    """A pair that the tokenizer, or the model's vocabulary, cannot take: its line, and why."""

    def __init__(self, line: int, reason: str):
        self.line, self.reason = line, reason
        super().__init__(f"line {line}: {reason}")


@dataclasses.dataclass(frozen=True)
class EncodedRow:
    """Token ids of a prompt and its response; the response is `tokens[start:]`."""

    tokens: tuple[int, ...]
    start: int
    merged: bool = False  # a token spans the end of the prompt and the beginning of the response
    truncated: bool = False  # the end of the response was cut off


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPair:
    record: PairRecord
    chosen: EncodedRow
    rejected: EncodedRow

    @property
    def length(self) -> int:
        """Tokens of the longer row."""
        return max(len(self.chosen.tokens), len(self.rejected.tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How many pairs met which fate; all but `dropped` are kept."""

    pairs: int  # kept
    truncated: int  # a response cut at the maximum length
    dropped: dict[str, int]  # not kept, by reason: a name of `Drop`
    merged: int  # a token spans prompt and response
    duplicates: int  # an earlier pair has the same tokens
    tied: int  # both scores are equal
    indistinct: int  # both rows have the same tokens: a margin of 0 whatever the policy
    empty: int  # a response of white space, or of the end token, alone


Outcome = EncodedPair | Drop | TokenizationError


def encode_pairs(
    records: Iterable[PairRecord],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    vocab: int,
    after_end: AfterEnd = "keep",
) -> tuple[list[EncodedPair], Report]:
    """Rows of at most `max_length` tokens, in the order of the records, and what happened to them.

    Args:
      records: of a pairs file.
      tokenizer: the model's.
      max_length: tokens of the longest row, >= 2.
      vocab: the model's; ids must be below.
      after_end: what becomes of the white space that a template writes after the last end token; TRL keeps
        it, though a model stops at the end token and never writes it.

    Raises:
      TokenizationError: names the line whose ids are outside the vocabulary, or whose template fails.
    """
    encode = PairEncoder(tokenizer, max_length=max_length, vocab=vocab, after_end=after_end)
    outcomes, tally = encode(list(records)), Tally(tokenizer)
    for outcome in outcomes:
        if isinstance(outcome, TokenizationError):
            raise outcome
        tally.add(outcome)
    return [outcome for outcome in outcomes if isinstance(outcome, EncodedPair)], tally.report()


class Tally:
    """Counts what became of pairs; remembers 8 bytes of each, to find duplicates."""

    def __init__(self, tokenizer: Tokenizer):
        self._eos, self._eos_text = tokenizer.eos, tokenizer.token(tokenizer.eos)
        self._kept: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._digests = array("Q")

    def add(self, outcome: EncodedPair | str) -> None:
        """Counts a pair, or the reason why one was dropped."""
        if isinstance(outcome, str):
            self._dropped[outcome] += 1
            return
        chosen, rejected, columns = outcome.chosen, outcome.rejected, outcome.record.columns
        self._digests.append(_digest(chosen, rejected))
        pair = outcome.record.pair
        self._kept["truncated"] += chosen.truncated or rejected.truncated
        self._kept["merged"] += chosen.merged or rejected.merged
        self._kept["tied"] += "chosen_score" in columns and columns["chosen_score"] == columns.get(
            "rejected_score"
        )
        self._kept["indistinct"] += chosen.tokens == rejected.tokens
        self._kept["empty"] += any(self._says_nothing(response) for response in (pair.chosen, pair.rejected))

    def _says_nothing(self, response: Any) -> bool:
        if isinstance(response, str):
            return not response.removesuffix(self._eos_text).strip()
        if isinstance(response[0], int):
            return all(token == self._eos for token in response)
        return not any(m.get("content", "").strip() or m.keys() - {"role", "content"} for m in response)

    def report(self) -> Report:
        """All counts so far."""
        names = ("truncated", "merged", "tied", "indistinct", "empty")
        distinct = len(np.unique(np.frombuffer(self._digests, np.uint64))) if self._digests else 0
        return Report(
            pairs=len(self._digests), duplicates=len(self._digests) - distinct,
            dropped=dict(sorted(self._dropped.items())), **{name: self._kept[name] for name in names},
        )  # fmt: skip


def _digest(chosen: EncodedRow, rejected: EncodedRow) -> int:
    parts = (array("q", [chosen.start, len(chosen.tokens), *chosen.tokens]), array("q", rejected.tokens))
    return int.from_bytes(hashlib.blake2b(b"".join(map(bytes, parts)), digest_size=8).digest(), "little")


class PairEncoder:
    """Encodes batches of pairs, and remembers pieces of text between them; arguments as in `encode_pairs`."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, vocab: int, after_end: AfterEnd = "keep"):
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2; got {max_length}")
        if after_end not in ("keep", "cut"):
            raise ValueError(f"after_end must be keep or cut; got {after_end!r}")
        self._tokenizer, self._encoder = tokenizer, Encoder(tokenizer)
        self._max_length, self._vocab, self._after_end = max_length, vocab, after_end

    def __call__(self, records: Sequence[PairRecord]) -> list[Outcome]:
        """What becomes of each: a pair, the reason why it is dropped, or an error."""
        texts = [self._guarded(record, self._texts, record.pair) for record in records]
        ids = iter(self._encoder.encode_groups([found for found in texts if isinstance(found, tuple)]))
        failed = lambda found: isinstance(found, TokenizationError)
        return [
            found if failed(found) else self._guarded(record, self._outcome, record, next(ids))
            for record, found in zip(records, texts, strict=True)
        ]

    @staticmethod
    def _guarded(record: PairRecord, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except ValueError as error:
            return TokenizationError(record.line, str(error))

    def _texts(self, pair: TextPair | ChatPair | IdPair) -> tuple[str, ...]:
        """Prompt, prompt and chosen, prompt and rejected; nothing of a pair of ids."""
        if isinstance(pair, IdPair):
            return ()
        if isinstance(pair, ChatPair):
            return self._conversations(pair)
        if self._tokenizer.eos is None:
            raise ValueError("the tokenizer must have an end token (eos) to close a response of plain text")
        end = self._tokenizer.token(self._tokenizer.eos)
        closed = [text if text.endswith(end) else text + end for text in (pair.chosen, pair.rejected)]
        return pair.prompt, *(pair.prompt + text for text in closed)

    def _conversations(self, pair: ChatPair) -> tuple[str, ...]:
        render = functools.partial(self._tokenizer.render, tools=pair.tools, variables=pair.variables)
        return (
            render(pair.prompt, generation_prompt=True),
            render([*pair.prompt, *pair.chosen], generation_prompt=False),
            render([*pair.prompt, *pair.rejected], generation_prompt=False),
        )

    def _outcome(self, record: PairRecord, ids: list[Ids]) -> EncodedPair | Drop:
        """From the ids of its three texts; a pair of ids has none."""
        chosen, rejected = self._rows(record.pair, ids)
        largest = max(max(chosen.tokens), max(rejected.tokens))
        if largest >= self._vocab:
            raise ValueError(f"token ids must be below the vocabulary's {self._vocab}; got {largest}")
        if chosen.start >= self._max_length:
            return "prompt_fills_max_length"
        if chosen.start in (len(chosen.tokens), len(rejected.tokens)):
            return "no_response_token"
        short = [truncate(row, self._max_length) for row in (chosen, rejected)]
        return EncodedPair(record=record, chosen=short[0], rejected=short[1])

    def _rows(self, pair: TextPair | ChatPair | IdPair, ids: list[Ids]) -> tuple[EncodedRow, EncodedRow]:
        if isinstance(pair, IdPair):
            prompt = list(pair.prompt)
            return self._split(len(prompt), 0, prompt + list(pair.chosen), prompt + list(pair.rejected))
        after = 0
        if isinstance(pair, TextPair):
            ids, after = self._framed(ids), len(self._tokenizer.around[1])
        shared = [common_prefix(ids[0], whole) for whole in ids[1:]]
        if isinstance(pair, ChatPair) and not min(shared):
            raise ValueError("the chat template must write a conversation's prompt as a prefix of the whole")
        chosen, rejected = self._split(min(shared), len(ids[0]) - after, *ids[1:])
        return (chosen, rejected) if self._after_end == "keep" or after else self._cut(chosen, rejected)

    def _framed(self, ids: list[Ids]) -> list[Ids]:
        """With what the tokenizer puts around plain text; without a second `bos` where both rows have one."""
        before, after = self._tokenizer.around
        if before[-1:] == [self._tokenizer.bos] and all(whole[:1] == before[-1:] for whole in ids[1:]):
            before = before[:-1]
        return [[*before, *part, *after] for part in ids]

    def _split(self, start: int, alone: int, chosen: Ids, rejected: Ids) -> tuple[EncodedRow, EncodedRow]:
        """Both rows behind the same prompt tokens, at least one; `alone` tokens would be the prompt's own."""
        merged, first = start < alone, []
        if not start and chosen[:1] == rejected[:1] == [self._tokenizer.bos]:
            start = 1
        elif not start:
            first = _first_token(self._tokenizer)
        rows = (tuple(first + chosen), tuple(first + rejected))
        return EncodedRow(rows[0], start + len(first), merged), EncodedRow(
            rows[1], start + len(first), merged
        )

    def _cut(self, *rows: EncodedRow) -> Any:
        return tuple(dataclasses.replace(row, tokens=_to_last_end(row, self._tokenizer)) for row in rows)


def common_prefix(first: Ids, second: Ids) -> int:
    """Tokens that both begin with."""
    if first == second[: len(first)]:
        return len(first)
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))


def _to_last_end(row: EncodedRow, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Without what follows the last end token, if that is white space."""
    response = row.tokens[row.start :]
    if tokenizer.eos not in response:
        return row.tokens
    after = response[::-1].index(tokenizer.eos)
    blank = not tokenizer.decode(list(response[len(response) - after :])).strip()
    return row.tokens[: len(row.tokens) - after] if blank else row.tokens


def _first_token(tokenizer: Tokenizer) -> Ids:
    """What stands before an empty prompt: something must, for the first token to be predicted."""
    first = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if first is None:
        raise ValueError("prompt must not be empty: this tokenizer has no token to begin with")
    return [first]


def truncate(row: EncodedRow, max_length: int) -> EncodedRow:
    """The row's first `max_length` tokens."""
    if len(row.tokens) <= max_length:
        return row
    return dataclasses.replace(row, tokens=row.tokens[:max_length], truncated=True)


def bucket_length(length: int, *, multiple: int = 32) -> int:
    """The padded length of a row: a multiple of `multiple`, and of few kinds, for each compiles a program.

    The kinds double, with one between: 32, 64, 96, 128, 192, 256, 384, ... Less than half is padding.
    """
    size = multiple
    while size < length:
        size = size + max(multiple, 2 ** ((size // multiple).bit_length() - 2) * multiple)
    return size


def to_batch(pairs: Sequence[EncodedPair], *, length: int | None = None) -> TokenPairs:
    """Rows padded on the right to one length, that of the longest row if `length` is None.

    The mask is made from the lengths, never from the ids: padding may well have the end token's id.
    """
    length = max(pair.length for pair in pairs) if length is None else length
    return TokenPairs(_rows([p.chosen for p in pairs], length), _rows([p.rejected for p in pairs], length))


def _rows(rows: Sequence[EncodedRow], length: int) -> TokenRows:
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row.tokens) > length:
            raise ValueError(f"length must hold the longest row's {len(row.tokens)} tokens; got {length}")
        tokens[i, : len(row.tokens)] = row.tokens
        mask[i, row.start : len(row.tokens)] = True
    return TokenRows(jnp.asarray(tokens), jnp.asarray(mask))
