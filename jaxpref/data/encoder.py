"""Token ids of many texts: each distinct piece between spaces is tokenized once.

Tokenizers cut a text into words before they merge, and most never let a word run from a character that is
no space into a space. A text may then be cut there beforehand, and its pieces be looked up: the ids are the
same, and cost a fifth. Where a tokenizer is not known to be of that kind, whole texts are encoded.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxpref.data.tokenizer import Tokenizer

# Up to the next space behind a character that is none; Python's white space includes every regex engine's.
PIECE = re.compile(r" *[^ ]+(?:(?<=\s) +[^ ]*)*| +")
MOST_PIECES = 200_000  # kept, about 30 MB
LONGEST_PIECE = 64  # characters of a kept piece; longer ones hardly come again
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3, QWEN2 = CONTRACTIONS + r"|\p{N}{1,3}" + REST, CONTRACTIONS + r"|\p{N}" + REST
PROBES = (
    "a b  c",
    "it's 12  \n x. y\t z ",
    " \n\n  a'll\u00a0 b!\r\n \r\nc é \u3000 d",
    "x <|im_end|> y\n <s> z",
)


class Encoder:
    """Encodes batches of texts as `Tokenizer.encode` would encode each, special tokens in them recognized."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._in_pieces = False
        self._in_pieces = cuts_before_spaces(tokenizer) and self._agrees()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without what a post-processor would add."""
        if not self._in_pieces:
            return self._tokenizer.encode_batch(texts)
        if len(self._known) > MOST_PIECES:
            self._known.clear()
        pieces = [PIECE.findall(text) for text in texts]
        ids = self._ids_of(dict.fromkeys(itertools.chain.from_iterable(pieces)))
        return [list(itertools.chain.from_iterable(map(ids.__getitem__, parts))) for parts in pieces]

    def _ids_of(self, pieces: Iterable[str]) -> dict[str, list[int]]:
        known = self._known
        new = [piece for piece in pieces if piece not in known]
        encoded = dict(zip(new, self._tokenizer.encode_batch(new), strict=True))
        known.update((piece, ids) for piece, ids in encoded.items() if len(piece) <= LONGEST_PIECE)
        return known if len(encoded) == 0 else {**encoded, **known}

    def _agrees(self) -> bool:
        """The proof is in `cuts_before_spaces`; a tokenizer that escapes it is caught here."""
        whole = self._tokenizer.encode_batch(PROBES)
        self._in_pieces = True
        return self.encode(PROBES) == whole


def cuts_before_spaces(tokenizer: Tokenizer) -> bool:
    """Whether no token, whatever stands around it, spans a character that is no space and a space after it.

    Also required: what stands before such a cut has no say in how the text after it is tokenized, nor the
    reverse. True of the regular expressions above, which never look behind, and ahead in runs of white space
    alone; of NFC, which composes no space with what is before it; not of added tokens that swallow spaces.
    """
    described = json.loads(tokenizer.backend.to_str())
    steps = _steps(described.get("pre_tokenizer"))
    normalizer = described.get("normalizer")
    return (
        bool(steps)
        and all(_is_local(step) for step in steps)
        and any(_makes_words(step) for step in steps)
        and (normalizer is None or normalizer.get("type") == "NFC")
        and not described["model"].get("dropout")
        and not any(_takes_spaces(token) for token in described.get("added_tokens", ()))
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _makes_words(step: dict[str, Any]) -> bool:
    return bool(step["type"] == "Split" or (step["type"] == "ByteLevel" and step.get("use_regex", True)))


def _is_local(step: dict[str, Any]) -> bool:
    if step["type"] == "Split":
        pattern = step["pattern"].get("Regex")
        return step["behavior"] == "Isolated" and not step["invert"] and pattern in (GPT2, LLAMA3, QWEN2)
    return step["type"] == "Digits" or (step["type"] == "ByteLevel" and not step["add_prefix_space"])


def _takes_spaces(token: dict[str, Any]) -> bool:
    flags = token["lstrip"] or token["rstrip"] or token["single_word"]
    return bool(flags or re.search(r"\S ", token["content"]))
