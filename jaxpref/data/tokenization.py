"""Pairs of text to rows of tokens: prompt, response, padding.

Prompt and response are told apart on the joint tokenization, prompt and response encoded as one text: the
prompt's tokens are those that it shares with the prompt encoded alone. Where the last prompt token merged
with the response, the merged token belongs to the response, and the row is counted.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpref.data.files import ChatPair, IdPair, PairRecord, TextPair
from jaxpref.data.tokenizer import Message, Tokenizer
from jaxpref.pairs import TokenPairs, TokenRows


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
    """How many pairs met which fate."""

    pairs: int  # kept
    truncated: int  # kept, a response cut at the maximum length
    dropped: int  # not kept: no response token, or no difference, fits into the maximum length
    merged: int  # kept, a token spans prompt and response
    duplicates: int  # kept, though an earlier pair has the same tokens
    tied: int  # kept, though both scores are equal


def encode_pairs(
    records: Iterable[PairRecord], tokenizer: Tokenizer, *, max_length: int, vocab: int
) -> tuple[list[EncodedPair], Report]:
    """Rows of at most `max_length` tokens, in the order of the records, and what happened to them.

    Raises:
      TokenizationError: names the line whose ids are outside the vocabulary, or whose template fails.
    """
    encoded = [_encode_record(record, tokenizer, max_length=max_length, vocab=vocab) for record in records]
    kept = [pair for pair in encoded if pair is not None]
    return kept, _report(kept, dropped=len(encoded) - len(kept))


def _report(kept: Sequence[EncodedPair], *, dropped: int) -> Report:
    rows = [(pair.chosen, pair.rejected) for pair in kept]
    scores = [[pair.record.columns.get(f"{name}_score") for name in ("chosen", "rejected")] for pair in kept]
    return Report(
        pairs=len(kept),
        truncated=sum(w.truncated or l.truncated for w, l in rows),
        dropped=dropped,
        merged=sum(w.merged or l.merged for w, l in rows),
        duplicates=len(rows) - len({(w.tokens, w.start, l.tokens, l.start) for w, l in rows}),
        tied=sum(w is not None and w == l for w, l in scores),
    )


def _encode_record(
    record: PairRecord, tokenizer: Tokenizer, *, max_length: int, vocab: int
) -> EncodedPair | None:
    """None where truncation would leave nothing to compare."""
    try:
        whole = encode_pair(record.pair, tokenizer)
    except ValueError as error:
        raise TokenizationError(record.line, str(error)) from error
    largest = max(max(row.tokens) for row in whole)
    if largest >= vocab:
        rule = f"token ids must be below the vocabulary's {vocab}"
        raise TokenizationError(record.line, f"{rule}; got {largest}")
    rows = chosen, rejected = [truncate(row, max_length) for row in whole]
    comparable = all(row.start < len(row.tokens) for row in rows) and chosen.tokens != rejected.tokens
    return EncodedPair(record=record, chosen=chosen, rejected=rejected) if comparable else None


def encode_pair(pair: TextPair | ChatPair | IdPair, tokenizer: Tokenizer) -> tuple[EncodedRow, EncodedRow]:
    """Both rows of a pair, untruncated, each response closed by the end token.

    Where only one response merged with the prompt, both begin at the earlier start: their
    log-probabilities can be compared only behind the same prompt tokens.
    """
    rows = [_encode_response(pair, response, tokenizer) for response in (pair.chosen, pair.rejected)]
    start = min(row.start for row in rows)
    chosen, rejected = (dataclasses.replace(row, start=start) for row in rows)
    return chosen, rejected


def _encode_response(pair: TextPair | ChatPair | IdPair, response: Any, tokenizer: Tokenizer) -> EncodedRow:
    if isinstance(pair, IdPair):
        return encode_ids(pair.prompt, response, tokenizer)
    if isinstance(pair, ChatPair):
        return encode_chat(pair.prompt, response, tokenizer)
    return encode_text(pair.prompt, response, tokenizer)


def encode_ids(prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer) -> EncodedRow:
    """Ids as they are: nothing is added, except a first token before an empty prompt."""
    first = [] if prompt else _first_token(tokenizer)
    return EncodedRow((*first, *prompt, *response), len(first) + len(prompt))


def encode_text(prompt: str, response: str, tokenizer: Tokenizer) -> EncodedRow:
    """Plain text, no template; the end token is added unless the response spells it out."""
    row = _encode_joint(prompt, prompt + response, tokenizer)
    eos = tokenizer.eos
    return (
        row if eos is None or row.tokens[-1] == eos else dataclasses.replace(row, tokens=(*row.tokens, eos))
    )


def encode_chat(prompt: Sequence[Message], response: Sequence[Message], tokenizer: Tokenizer) -> EncodedRow:
    """A conversation as the model's template writes it.

    What the template writes after the last end token (SmolLM2's a newline) is no part of the response: a
    model stops at the end token and never writes it.
    """
    before = tokenizer.render(list(prompt), generation_prompt=True)
    whole = tokenizer.render([*prompt, *response], generation_prompt=False)
    if not whole.startswith(before):
        raise ValueError(
            "the chat template must write a conversation's prompt as a prefix of the whole; it does not"
        )
    row = _encode_joint(before, whole, tokenizer)
    return dataclasses.replace(row, tokens=_to_last_end(row, tokenizer))


def _to_last_end(row: EncodedRow, tokenizer: Tokenizer) -> tuple[int, ...]:
    response = row.tokens[row.start :]
    if tokenizer.eos not in response:
        return row.tokens
    after = response[::-1].index(tokenizer.eos)
    blank = not tokenizer.decode(list(response[len(response) - after :])).strip()
    return row.tokens[: len(row.tokens) - after] if blank else row.tokens


def _encode_joint(prompt: str, whole: str, tokenizer: Tokenizer) -> EncodedRow:
    alone, tokens = tokenizer.encode(prompt), tokenizer.encode(whole)
    start = next(
        (i for i, (a, b) in enumerate(zip(alone, tokens, strict=False)) if a != b),
        min(len(alone), len(tokens)),
    )
    first = _first_token(tokenizer) if not start or _lacks_bos(tokens, tokenizer) else []
    return EncodedRow((*first, *tokens), len(first) + start, merged=start < len(alone))


def _lacks_bos(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    """True where the model wants a `bos` that the text, or its template, did not write already."""
    return tokenizer.add_bos and tokens[:1] != [tokenizer.bos]


def _first_token(tokenizer: Tokenizer) -> list[int]:
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
